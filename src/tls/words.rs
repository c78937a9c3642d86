//! TLS errors in words that say what to do.

use std::io;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// The error of TLS inside of one of a socket.
fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether whoever was dialled answered in plaintext.
pub fn is_plaintext(error: &io::Error) -> bool {
    matches!(of_tls(error), Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

/// Why one side refuses the other, where that is what an error says: trying again does not help.
pub fn refusal(error: &io::Error) -> Option<String> {
    match of_tls(error)? {
        rustls::Error::InvalidCertificate(problem) => {
            Some(format!("its certificate {}", certificate(problem)))
        }
        rustls::Error::AlertReceived(alert) => alerted(*alert),
        rustls::Error::PeerIncompatible(problem) => {
            Some(format!("it has no version or cipher of TLS in common with us ({problem:?})"))
        }
        _ => None,
    }
}

/// What an error of a connection to a node means, for people.
pub fn told(error: &io::Error) -> String {
    if is_plaintext(error) {
        return "it does not speak TLS; it answered in plaintext".to_owned();
    }
    refusal(error).unwrap_or_else(|| error.to_string())
}

/// What is wrong with a certificate; `it` stands before it.
pub(super) fn certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet; is a clock wrong?".to_owned()
        }
        CertificateError::UnknownIssuer => "is not signed by a CA that is trusted here".to_owned(),
        CertificateError::NotValidForName => "does not name the host".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = match expected {
                ServerName::IpAddress(address) => std::net::IpAddr::from(*address).to_string(),
                other => other.to_str().into_owned(),
            };
            let named = match &presented[..] {
                [] => "nobody (it has no subjectAltName)".to_owned(),
                names => names.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", "),
            };
            format!("does not name {expected}, but {named}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is for something else: nodes need extendedKeyUsage serverAuth and clientAuth, or none".to_owned()
        }
        // The library has no name of its own for it, and it is the mistake that everybody makes once.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "is a CA's own; a node needs one that the CA has signed, with CA:FALSE".to_owned()
        }
        other => format!("is not accepted: {other}"),
    }
}

/// The name in `DnsName("a.example")`, as the library writes those that a certificate holds.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.map_or(name, |inner| inner.trim_matches('"'))
}

/// What a peer says by an alert about us.
fn alerted(alert: AlertDescription) -> Option<String> {
    let about_certificate = match alert {
        AlertDescription::UnknownCA => "it is not signed by a CA that is trusted there",
        AlertDescription::CertificateExpired => "it has expired, or a clock is wrong",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::CertificateRequired => "it wants to see one",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => "it does not fit",
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            return Some("it has no version or cipher of TLS in common with us".to_owned());
        }
        AlertDescription::NoApplicationProtocol => {
            return Some("it does not speak HTTP/1.1".to_owned());
        }
        _ => return None,
    };
    Some(format!("it refuses our certificate: {about_certificate}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(error: rustls::Error) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    #[test]
    fn each_error_is_told_by_what_to_do() {
        let wrong_name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.example").unwrap(),
            presented: vec!["DnsName(\"b.example\")".to_owned()],
        };
        for (error, says) in [
            (rustls::Error::InvalidCertificate(wrong_name), "does not name a.example, but b.example"),
            (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), "is not signed by a CA"),
            (rustls::Error::AlertReceived(AlertDescription::UnknownCA), "refuses our certificate"),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
        ] {
            let told = told(&io(error));
            assert!(told.contains(says), "{told}");
        }
        assert!(!is_plaintext(&io::ErrorKind::ConnectionReset.into()));
        assert_eq!(refusal(&io::ErrorKind::ConnectionReset.into()), None, "that may pass");
    }
}
