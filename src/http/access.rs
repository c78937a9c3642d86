//! Access: which token a request shows, and whether it may do what it asks for.
//!
//! ```text
//! no tokens set, or a route open to all ──> in
//! Authorization: Bearer … ──unknown, or not there──> 401      WWW-Authenticate says how to ask
//!                └─────────known, but of a lesser scope──> 403
//! ```
//!
//! A browser cannot be told a bearer token, so it may show one as the password of a user of any name (`Basic`). That never
//! writes: browsers add passwords to what other sites make them send, too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use super::body::Body;
use super::status::Fault;
use crate::util::tokens::{Scope, Tokens};

/// Whom a route lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone: it tells nothing of the data.
    Open,
    /// Peers, who prove `CLUSTER_SECRET`, or who they are by a certificate, themselves.
    Peers,
    /// Tokens that may read.
    Read,
    /// Tokens that may write.
    Write,
    /// Tokens that may do everything.
    Admin,
    /// The same, to change something.
    AdminWrite,
}

/// Says whether a request may come in.
///
/// # Errors
/// [`Fault::Unauthorized`] or [`Fault::Forbidden`].
pub fn check(tokens: &Tokens, access: Access, headers: &HeaderMap) -> Result<(), Fault> {
    let needed = match access {
        Access::Open | Access::Peers => return Ok(()),
        _ if tokens.is_empty() => return Ok(()),
        Access::Read => Scope::Read,
        Access::Write => Scope::Write,
        Access::Admin | Access::AdminWrite => Scope::Admin,
    };
    let shown = shown(headers).ok_or(Fault::Unauthorized("a bearer token is needed"))?;
    match tokens.scope_of(shown.token()) {
        None => Err(Fault::Unauthorized("the bearer token is not known here")),
        Some(scope) if scope < needed => Err(Fault::Forbidden("the token may not do this".to_owned())),
        Some(_)
            if matches!(access, Access::Write | Access::AdminWrite)
                && matches!(shown, Shown::Password(_)) =>
        {
            Err(Fault::Forbidden("a password may not write; show a bearer token".to_owned()))
        }
        Some(_) => Ok(()),
    }
}

/// Has a browser that is refused for want of a token ask whoever sits before it.
pub fn ask_browser(response: &mut Response<Body>) {
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"kvstore\""));
    }
}

/// A token, and how it is shown.
enum Shown<'a> {
    Bearer(&'a [u8]),
    Password(Vec<u8>),
}

impl Shown<'_> {
    fn token(&self) -> &[u8] {
        match self {
            Self::Bearer(token) => token,
            Self::Password(password) => password,
        }
    }
}

/// The token that a request shows. Of two none counts: which one is meant is a guess.
fn shown(headers: &HeaderMap) -> Option<Shown<'_>> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (shown.next(), shown.next()) else { return None };
    let space = only.as_bytes().iter().position(|c| *c == b' ')?;
    let (scheme, rest) = only.as_bytes().split_at(space);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Shown::Bearer(rest));
    }
    let pair = STANDARD.decode(rest).ok().filter(|_| scheme.eq_ignore_ascii_case(b"basic"))?;
    let colon = pair.iter().position(|c| *c == b':')?;
    Some(Shown::Password(pair[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(shown: &[&'static str], access: Access) -> u16 {
        let tokens = Tokens::parse("ro:aaaaaaaa,rw:bbbbbbbb,admin:cccccccc").unwrap();
        let mut headers = HeaderMap::new();
        for value in shown {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        check(&tokens, access, &headers).map_or_else(|fault| fault.code().as_u16(), |()| 200)
    }

    #[test]
    fn a_scope_lets_in_what_it_names_and_all_below() {
        let by_access =
            |shown| [Access::Read, Access::Write, Access::Admin].map(|access| asked(&[shown], access));
        assert_eq!(by_access("Bearer aaaaaaaa"), [200, 403, 403]);
        assert_eq!(by_access("Bearer bbbbbbbb"), [200, 200, 403]);
        assert_eq!(by_access("bearer  cccccccc"), [200, 200, 200]);
        for wrong in
            ["Bearer dddddddd", "Bearer", "Bearer ", "Basic aaaaaaaa", "Digest aaaaaaaa", "aaaaaaaa", ""]
        {
            assert_eq!(by_access(wrong), [401, 401, 401], "{wrong}");
        }
    }

    #[test]
    fn a_browser_shows_a_token_as_a_password_and_never_writes() {
        // "me:cccccccc", "me:aaaaaaaa", "me:dddddddd", "cccccccc"
        assert_eq!(asked(&["Basic bWU6Y2NjY2NjY2M="], Access::Admin), 200);
        assert_eq!(asked(&["Basic bWU6Y2NjY2NjY2M="], Access::Write), 403);
        assert_eq!(asked(&["Basic bWU6Y2NjY2NjY2M="], Access::AdminWrite), 403);
        assert_eq!(asked(&["Bearer cccccccc"], Access::AdminWrite), 200);
        assert_eq!(asked(&["Bearer bbbbbbbb"], Access::AdminWrite), 403);
        assert_eq!(asked(&["Basic bWU6YWFhYWFhYWE="], Access::Read), 200);
        assert_eq!(asked(&["Basic bWU6YWFhYWFhYWE="], Access::Admin), 403);
        assert_eq!(asked(&["Basic bWU6ZGRkZGRkZGQ="], Access::Read), 401);
        assert_eq!(asked(&["Basic Y2NjY2NjY2M="], Access::Read), 401, "no user");
    }

    #[test]
    fn no_token_and_two_tokens_are_refused_and_open_routes_ask_for_none() {
        assert_eq!(asked(&[], Access::Read), 401);
        assert_eq!(asked(&["Bearer aaaaaaaa", "Bearer aaaaaaaa"], Access::Read), 401);
        assert_eq!(asked(&[], Access::Open), 200);
        assert_eq!(asked(&[], Access::Peers), 200);
        assert!(
            check(&Tokens::default(), Access::Admin, &HeaderMap::new()).is_ok(),
            "no tokens: all are let in"
        );
    }
}
