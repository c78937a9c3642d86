//! Tokens that clients show at the doors, and what each of them may do.
//!
//! ```text
//! API_TOKEN=secret                         everything
//! API_TOKEN=ro:aaaaaaaa,rw:bbbbbbbb,admin:cccccccc
//! ```
//!
//! A token is 8 to 1,024 characters of those a bearer token may have (RFC 6750: letters, digits, `-._~+/=`). A colon is none of
//! them, so a scope that is misspelt is refused, and not taken for the start of a token that may do everything.

use std::fmt;

use subtle::{Choice, ConstantTimeEq as _};

/// What a token may do; each scope may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Read data, and see how this node is.
    Read,
    /// Write and delete data, too.
    Write,
    /// See how the ring is made, and run it, too.
    Admin,
}

/// The tokens that are known, each with its scope. None: the doors are open to everyone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    tokens: Vec<(Scope, String)>,
}

impl fmt::Debug for Tokens {
    /// Without the tokens, which no log must hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tokens.iter().map(|(scope, _)| scope)).finish()
    }
}

/// A file of tokens without its comments, which begin with `#`: no token has one.
pub fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

impl Tokens {
    const LEN_MIN: usize = 8;
    const LEN_MAX: usize = 1024;

    /// Reads tokens separated by commas or line ends. The error is the rest of a sentence, and repeats no token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split([',', '\n', '\r']).map(str::trim).filter(|entry| !entry.is_empty());
        let tokens = entries.map(Self::entry).collect::<Result<Vec<_>, _>>()?;
        if tokens.is_empty() {
            return Err("there is no token in it".to_owned());
        }
        let twice = |(at, (_, token)): (usize, &(Scope, String))| {
            tokens[..at].iter().any(|(_, other)| other == token)
        };
        if tokens.iter().enumerate().any(twice) {
            return Err("one token is in it twice".to_owned());
        }
        Ok(Self { tokens })
    }

    fn entry(entry: &str) -> Result<(Scope, String), String> {
        let (scope, token) = match entry.split_once(':') {
            None => (Scope::Admin, entry),
            Some(("ro", token)) => (Scope::Read, token),
            Some(("rw", token)) => (Scope::Write, token),
            Some(("admin", token)) => (Scope::Admin, token),
            Some(_) => return Err("what stands before a colon must be ro, rw or admin".to_owned()),
        };
        let is_of_token = |c: u8| c.is_ascii_alphanumeric() || b"-._~+/=".contains(&c);
        if !(Self::LEN_MIN..=Self::LEN_MAX).contains(&token.len()) || !token.bytes().all(is_of_token) {
            let (min, max) = (Self::LEN_MIN, Self::LEN_MAX);
            return Err(format!("a token has {min} to {max} letters, digits or `-._~+/=`"));
        }
        Ok((scope, token.to_owned()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// What a token may do; `None` if it is not known.
    ///
    /// Every token is compared, and each in a time that depends on lengths alone: how long it takes tells nobody how much
    /// of a guess was right.
    pub fn scope_of(&self, shown: &[u8]) -> Option<Scope> {
        let mut scope = None;
        for (of_token, token) in &self.tokens {
            let is_it: Choice = token.as_bytes().ct_eq(shown);
            if bool::from(is_it) {
                scope = Some(*of_token);
            }
        }
        scope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_a_scope_may_do_everything() {
        let tokens = Tokens::parse("correct-horse").unwrap();
        assert_eq!(tokens.scope_of(b"correct-horse"), Some(Scope::Admin));
        for wrong in ["", "correct-hors", "correct-horse ", "Correct-horse", "admin:correct-horse"] {
            assert_eq!(tokens.scope_of(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn each_token_has_its_scope_and_lines_separate_as_commas_do() {
        for text in
            ["ro:aaaaaaaa,rw:bbbbbbbb,admin:cccccccc", "ro:aaaaaaaa\r\nrw:bbbbbbbb\n\nadmin:cccccccc\n"]
        {
            let tokens = Tokens::parse(text).unwrap();
            assert_eq!(tokens.scope_of(b"aaaaaaaa"), Some(Scope::Read));
            assert_eq!(tokens.scope_of(b"bbbbbbbb"), Some(Scope::Write));
            assert_eq!(tokens.scope_of(b"cccccccc"), Some(Scope::Admin));
            assert_eq!(tokens.scope_of(b"dddddddd"), None);
            assert_eq!(format!("{tokens:?}"), "[Read, Write, Admin]");
        }
    }

    #[test]
    fn a_file_of_tokens_may_have_comments() {
        let text = "# tokens of the ring, one a line\r\nro:aaaaaaaa  # dashboards\n\n  # rw:old-token\nrw:bbbbbbbb\n";
        let tokens = Tokens::parse(&without_comments(text)).unwrap();
        assert_eq!(format!("{tokens:?}"), "[Read, Write]");
        assert_eq!(tokens.scope_of(b"aaaaaaaa"), Some(Scope::Read));
        assert_eq!(tokens.scope_of(b"old-token"), None);
        assert!(Tokens::parse(&without_comments("# none yet\n")).unwrap_err().contains("no token"));
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_it() {
        for (text, problem) in [
            ("", "no token"),
            (",,", "no token"),
            ("short", "8 to 1024"),
            ("ro:short", "8 to 1024"),
            ("has a space in it", "8 to 1024"),
            ("rx:aaaaaaaa", "ro, rw or admin"),
            ("ro:aaaa:aaaa", "8 to 1024"),
            ("aaaaaaaa,ro:aaaaaaaa", "twice"),
        ] {
            let error = Tokens::parse(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(!error.contains("aaaa"), "{error}");
        }
    }
}
