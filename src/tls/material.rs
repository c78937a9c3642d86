//! Material: what the files hold, checked and made into what connections use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, InconsistentKeys, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion, version,
};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::{EXPIRES_SOON, Error, File, Settings, host_name, words};
use crate::types::NodeId;
use crate::util::secret_file::{self, Readers};

/// A file of certificates or a key is never larger, in bytes: a system's whole bundle has a quarter of it.
const FILE_LEN_MAX: u64 = 1 << 20;
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
/// What is spoken inside of TLS.
const PROTOCOL: &[u8] = b"http/1.1";
/// Why a provider is expected to have the versions it was made for.
const OWN_VERSIONS: &str = "the library's own provider speaks both versions";

/// What connections are made with. Made once from the files, never changed.
pub struct Material {
    pub(super) server: Arc<ServerConfig>,
    /// For dialling peers; there with `TLS_CA`.
    pub(super) client: Option<Arc<ClientConfig>>,
    validity: Validity,
    fingerprint: String,
}

/// From when to when a whole chain is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Validity {
    begins: Duration,
    ends: Duration,
}

impl fmt::Debug for Material {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("fingerprint", &self.fingerprint)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Material {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// Which file cannot be used, and why. That a certificate has expired is no error here ([`Material::untimely`]).
    pub fn load(settings: &Settings) -> Result<Self, Error> {
        let chain = certificates(&settings.cert).map_err(|problem| Error { file: File::Cert, problem })?;
        let key = private_key(&settings.key, settings.key_readers)
            .map_err(|problem| Error { file: File::Key, problem })?;
        let validity = validity(&chain).map_err(|problem| Error { file: File::Cert, problem })?;
        let fingerprint = fingerprint(&chain[0]);
        let certified = certified(chain, &key)?;
        let ca = |path: &PathBuf| Ca::load(path).map_err(|problem| Error { file: File::Ca, problem });
        let ca = settings.ca.as_ref().map(ca).transpose()?;
        if let (Some(ca), Some(own)) = (&ca, &settings.own) {
            ca.check(&certified.cert, own, validity)?;
        }
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&VERSIONS)
            .expect(OWN_VERSIONS);
        let server = match &ca {
            Some(ca) => server.with_client_cert_verifier(ca.clients.clone()),
            None => server.with_no_client_auth(),
        };
        let mut server = server.with_cert_resolver(resolver.clone());
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        let client = ca.map(|ca| {
            let client = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&VERSIONS)
                .expect(OWN_VERSIONS)
                .with_webpki_verifier(ca.servers);
            let mut client = client.with_client_cert_resolver(resolver);
            client.alpn_protocols = vec![PROTOCOL.to_vec()];
            client.resumption = Resumption::disabled(); // a resumed session names nobody
            Arc::new(client)
        });
        Ok(Self { server: Arc::new(server), client, validity, fingerprint })
    }

    /// When the chain ends, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.validity.ends.as_secs()
    }

    /// Why the certificate is good for nobody now, if so: the rest of a sentence about it.
    pub fn untimely(&self) -> Option<String> {
        let now = now();
        if now > self.validity.ends {
            return Some(format!("it has expired, on {}", date(self.validity.ends)));
        }
        let early = now < self.validity.begins;
        early.then(|| format!("it is not valid before {}; is the clock wrong?", date(self.validity.begins)))
    }

    /// What there is to warn of: that clients refuse the certificate, or will within [`EXPIRES_SOON`].
    pub fn warning(&self) -> Option<String> {
        if let Some(problem) = self.untimely() {
            return Some(format!("CLIENTS AND PEERS REFUSE THE CERTIFICATE in TLS_CERT: {problem}"));
        }
        let left = self.validity.ends.saturating_sub(now());
        (left < EXPIRES_SOON).then(|| {
            let days = left.as_secs() / 86_400;
            let ends = date(self.validity.ends);
            format!(
                "the certificate in TLS_CERT expires in {days} days, on {ends}: replace it and send SIGHUP"
            )
        })
    }
}

impl fmt::Display for Material {
    /// Which certificate it is, for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate {} until {}", self.fingerprint, date(self.validity.ends))
    }
}

fn now() -> Duration {
    Duration::from_secs(UnixTime::now().as_secs())
}

/// The SHA-256 of a certificate, written as `openssl x509 -fingerprint -sha256` does.
fn fingerprint(certificate: &[u8]) -> String {
    let bytes: Vec<_> = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    bytes.join(":")
}

/// A time as people write it.
fn date(since_1970: Duration) -> String {
    SystemTime::UNIX_EPOCH.checked_add(since_1970).map_or_else(
        || "a day beyond all calendars".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

// ---- files ----

/// The certificates in a file of PEM; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = secret_file::read_public(path, FILE_LEN_MAX)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err("there is no certificate in it (PEM, -----BEGIN CERTIFICATE-----)".to_owned())
        }
        Ok(found) => Ok(found),
        Err(_) => Err("it is not PEM as certificates are; is it cut off?".to_owned()),
    }
}

/// The first private key in a file of PEM. No error repeats what is in it.
fn private_key(path: &Path, readers: Readers) -> Result<PrivateKeyDer<'static>, String> {
    let pem = secret_file::read(path, FILE_LEN_MAX, readers)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let is_encrypted = pem.windows(9).any(|part| part == b"ENCRYPTED");
        let problem = if is_encrypted {
            "the key in it is encrypted; nobody is there to type a password, so decrypt it (openssl pkey)"
        } else {
            "there is no private key in it (PEM: PKCS#8, PKCS#1 or SEC1)"
        };
        problem.to_owned()
    })
}

/// A chain and its key, once it is known that they belong together.
fn certified(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<CertifiedKey, Error> {
    let key = rustls::crypto::ring::sign::any_supported_type(key).map_err(|_| Error {
        file: File::Key,
        problem:
            "this kind of key is not known; use ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits"
                .to_owned(),
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Error {
            file: File::Key,
            problem: "it is not the key of the first certificate in TLS_CERT".to_owned(),
        }),
        Err(error) => {
            Err(Error { file: File::Cert, problem: format!("its first certificate cannot be used: {error}") })
        }
    }
}

/// From when to when all certificates of a chain are good.
fn validity(chain: &[CertificateDer<'_>]) -> Result<Validity, String> {
    let mut whole = Validity { begins: Duration::ZERO, ends: Duration::MAX };
    for certificate in chain {
        let parsed = Certificate::from_der(certificate)
            .map_err(|error| format!("a certificate in it cannot be read: {error}"))?;
        let validity = parsed.tbs_certificate().validity();
        whole.begins = whole.begins.max(validity.not_before.to_unix_duration());
        whole.ends = whole.ends.min(validity.not_after.to_unix_duration());
    }
    Ok(whole)
}

// ---- who is believed ----

/// Who signs the certificates of peers.
struct Ca {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn rustls::server::danger::ClientCertVerifier>,
}

impl Ca {
    fn load(path: &Path) -> Result<Self, String> {
        let roots = Arc::new(roots_in(path)?);
        let unusable = |error: &dyn fmt::Display| format!("it cannot be used: {error}");
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build();
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated() // ordinary clients show none
            .build();
        Ok(Self {
            servers: servers.map_err(|error| unusable(&error))?,
            clients: clients.map_err(|error| unusable(&error))?,
        })
    }

    /// Checks a node's own certificate as its peers will, in both directions; found out now, and not when nobody lets it in.
    /// Time is left out: that a certificate has expired is told otherwise.
    fn check(&self, chain: &[CertificateDer<'_>], own: &NodeId, validity: Validity) -> Result<(), Error> {
        let name = host_name(own).map_err(|problem| Error { file: File::Cert, problem })?;
        let at = UnixTime::since_unix_epoch(now().clamp(validity.begins, validity.ends.max(validity.begins)));
        let (first, others) = chain.split_first().expect("a chain has a certificate");
        let as_server = self.servers.verify_server_cert(first, others, &name, &[], at).map(drop);
        let as_client = || self.clients.verify_client_cert(first, others, at).map(drop);
        as_server.and_then(|()| as_client()).map_err(|error| {
            let problem = match &error {
                rustls::Error::InvalidCertificate(problem) => words::certificate(problem),
                other => format!("is not accepted: {other}"),
            };
            Error { file: File::Cert, problem: format!("peers will refuse it: by TLS_CA it {problem}") }
        })
    }
}

/// The CA certificates in a file of PEM.
fn roots_in(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(certificates(path)?) {
        roots
            .add(certificate)
            .map_err(|error| format!("certificate {number} in it cannot be used: {error}"))?;
    }
    Ok(roots)
}

/// Whom a client of nodes believes; it shows no certificate of its own.
#[derive(Clone)]
pub struct Trusted(pub(super) Arc<ClientConfig>);

impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trusted").finish_non_exhaustive()
    }
}

impl Trusted {
    /// Those whom the CAs in a file of PEM signed.
    ///
    /// # Errors
    /// The rest of a sentence about the file.
    pub fn by_file(path: &Path) -> Result<Self, String> {
        Ok(Self::by(roots_in(path)?))
    }

    /// Those whom the CAs of this system signed.
    ///
    /// # Errors
    /// A sentence: there are none.
    pub fn by_system() -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            return Err("this system has no CA certificates".to_owned());
        }
        Ok(Self::by(roots))
    }

    fn by(roots: RootCertStore) -> Self {
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&VERSIONS)
            .expect(OWN_VERSIONS)
            .with_root_certificates(roots);
        Self::with(client.with_no_client_auth())
    }

    /// Everybody. For a question to this very machine that holds no secret and whose answer is no data: a plaintext
    /// connection would say as little of who answers.
    pub fn everybody() -> Self {
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&VERSIONS)
            .expect(OWN_VERSIONS)
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Everybody(provider())));
        Self::with(client.with_no_client_auth())
    }

    fn with(mut client: ClientConfig) -> Self {
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        Self(Arc::new(client))
    }

    /// What connections are made with.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.0.clone()
    }
}

/// Believes every certificate whose key the other end has.
#[derive(Debug)]
struct Everybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Everybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
