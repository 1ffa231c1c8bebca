//! rustls configurations, ours as server and as client, and what channel binding needs of a certificate.

mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use pgwire::api::auth::sasl::scram::ScramServerAuth;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, InconsistentKeys, OtherError, RootCertStore, ServerConfig};
use thiserror::Error;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::files;
use policy::config::file::SslMode;
use policy::config::{ClientTls, Host, UpstreamTls};
use verify::{AnyCertificate, Authorities, KnownClient, KnownServer, Names, Presence};

/// The ALPN name of PostgreSQL's protocol.
pub const ALPN: &[u8] = b"postgresql";

/// A certificate or key that cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file cannot be read as PEM.
    #[error("{0}: {1}")]
    Pem(PathBuf, String),
    /// rustls refuses what is in it.
    #[error("{0}: {1}")]
    Unusable(PathBuf, String),
    /// The system has no certificate authorities.
    #[error("no certificate authorities found on this system: set sslrootcert")]
    NoSystemRoots,
    /// A host name that no certificate can be for.
    #[error("`{0}` is not a host name that TLS can verify")]
    Name(String),
}

impl TlsError {
    /// The file that it is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Pem(path, _) | Self::Unusable(path, _) => Some(path),
            Self::NoSystemRoots | Self::Name(_) => None,
        }
    }
}

/// TLS towards clients, ready to use.
pub struct ServerTls {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// The same for HTTP.
    pub http: Arc<ServerConfig>,
    /// How much of it clients must use.
    pub mode: SslMode,
    /// SCRAM with channel binding to our certificate, where that has a hash for it.
    pub scram: ScramServerAuth,
    /// What an operator should know of the certificate, though it can be used.
    pub warning: Option<String>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerTls({})", self.mode.word())
    }
}

/// TLS towards one upstream, ready to use.
#[derive(Debug, Clone)]
pub struct UpstreamClient {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// The name in the certificate (and in SNI).
    pub name: ServerName<'static>,
}

/// Until when a certificate holds (X.509 `notAfter`); `None` if it is none.
pub fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Loads what `[server.tls]` names, relative to `folder`.
///
/// # Errors
/// Which file, and why.
pub fn server(tls: &ClientTls, folder: &Path) -> Result<ServerTls, TlsError> {
    let certificate = folder.join(&**tls.certificate);
    let key_path = folder.join(&**tls.key);
    let chain = certificates(&certificate)?;
    let provider = Arc::new(provider::default_provider());
    let own = certified(chain, &key_path, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Unusable(certificate.clone(), e.to_string()))?;
    let builder = match &*tls.client_ca {
        Some(ca) => {
            let (path, list) = (folder.join(ca), tls.client_crl.as_ref().map(|list| folder.join(list)));
            let authorities = Authorities::load("client_ca", Some(&path), list.as_deref(), &provider)?;
            let presence = match *tls.mode {
                SslMode::VerifyCa | SslMode::VerifyFull => Presence::Required,
                _ => Presence::Optional,
            };
            let verifier = KnownClient::new(authorities, presence, provider)
                .map_err(|e| TlsError::Unusable(list.unwrap_or(path), e.to_string()))?;
            builder.with_client_cert_verifier(Arc::new(verifier))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // PostgreSQL's clients resume no sessions; remembering them would cost memory for each client.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let mut http = config.clone();
    http.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut scram = ScramServerAuth::new();
    let pem = read(&certificate)?;
    let warning = scram.configure_certificate(&pem).err().map(|_| {
        format!(
            "{}: this certificate's signature has no hash for channel binding, so SCRAM-SHA-256-PLUS is not offered: clients \
             with channel_binding = require need one that is signed by RSA or ECDSA with SHA-256",
            certificate.display()
        )
    });
    Ok(ServerTls { config: Arc::new(config), http: Arc::new(http), mode: *tls.mode, scram, warning })
}

/// Whether a certificate can be for this host.
pub fn is_name(host: &str) -> bool {
    ServerName::try_from(host).is_ok()
}

/// Builds the client side for an upstream; `None` if its mode is `disable` or it is reached by a unix socket.
///
/// # Errors
/// Which file, and why.
pub fn upstream(tls: &UpstreamTls, host: &Host) -> Result<Option<UpstreamClient>, TlsError> {
    let Host::Name(host) = host else { return Ok(None) };
    if tls.mode == SslMode::Disable {
        return Ok(None);
    }
    let name = ServerName::try_from(host.clone()).map_err(|_| TlsError::Name(host.clone()))?;
    let crypto = Arc::new(provider::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match tls.mode {
        // With a root file, `require` verifies as `verify-ca` does (libpq's sslmode).
        _ if tls.verifies() => {
            let (roots, list) = (tls.root_cert.as_deref(), tls.revoked.as_deref());
            let authorities = Authorities::load("sslrootcert", roots, list, &crypto)?;
            let names = if tls.mode == SslMode::VerifyFull { Names::Checked } else { Names::Any };
            let path = list.or(roots).unwrap_or(Path::new(""));
            let unusable = |e: VerifierBuilderError| TlsError::Unusable(path.to_owned(), e.to_string());
            Arc::new(KnownServer::new(authorities, names, crypto.clone()).map_err(unusable)?)
        }
        _ => Arc::new(AnyCertificate(crypto.signature_verification_algorithms)),
    };
    let builder = ClientConfig::builder_with_provider(crypto.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Unusable(PathBuf::new(), e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &tls.identity {
        Some((certificate, key)) => {
            let own = certified(certificates(certificate)?, key, &crypto)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(UpstreamClient { config: Arc::new(config), name }))
}

/// The certificates of a PEM file.
///
/// # Errors
/// It cannot be read, or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    several(path, "no certificate in it")
}

/// All of one kind that a PEM file holds.
fn several<T: PemObject>(path: &Path, none: &str) -> Result<Vec<T>, TlsError> {
    let pem = |e: pem::Error| TlsError::Pem(path.to_owned(), e.to_string());
    let all: Vec<_> = T::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(pem)?;
    if all.is_empty() {
        return Err(TlsError::Pem(path.to_owned(), none.into()));
    }
    Ok(all)
}

/// The private key of a PEM file.
///
/// # Errors
/// It cannot be read, or holds none.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|e| TlsError::Pem(path.to_owned(), e.to_string()))
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsError> {
    files::read(path, files::MAX_SMALL).map_err(|e| TlsError::Pem(path.to_owned(), e.to_string()))
}

/// The authorities of a PEM file: its certificates, and what webpki makes of them.
///
/// # Errors
/// It cannot be read, or holds none that can be used.
pub fn roots(path: &Path) -> Result<(Vec<CertificateDer<'static>>, RootCertStore), TlsError> {
    let (known, mut store) = (certificates(path)?, RootCertStore::empty());
    for certificate in &known {
        let added = store.add(certificate.clone());
        added.map_err(|e| TlsError::Unusable(path.to_owned(), e.to_string()))?;
    }
    Ok((known, store))
}

/// The revocation lists of a PEM file.
///
/// # Errors
/// It cannot be read, or holds none.
pub fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    several(path, "no revocation list (X509 CRL) in it")
}

/// Until when a revocation list holds; `None` if it does not say.
pub fn list_expiry(list: &CertificateRevocationListDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = CertificateRevocationList::from_der(list).ok()?;
    let seconds = u64::try_from(parsed.next_update()?.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Our own certificate with its key, of any version of X.509: webpki reads no other than 3, PostgreSQL's manual makes 1.
fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let pem = private_key(key)?;
    let unusable = |e: rustls::Error| TlsError::Unusable(key.to_owned(), e.to_string());
    let own = CertifiedKey::new(chain, provider.key_provider.load_private_key(pem).map_err(unusable)?);
    let error = match own.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => return Ok(own),
        Err(error) => error,
    };
    match (own.key.public_key(), own.cert.first().and_then(verify::public_key)) {
        (Some(key), Some(of_certificate)) if key == of_certificate => Ok(own),
        (Some(_), Some(_)) => {
            Err(TlsError::Unusable(key.to_owned(), "this is not the key of the certificate".into()))
        }
        _ => Err(unusable(error)),
    }
}

/// What TLS did not like, in words; `None` for a connection that was merely lost.
pub fn reason(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => {
            Some(format!("invalid peer certificate: {why}"))
        }
        other => Some(other.to_string()),
    }
}

/// The same error with its reason in words.
pub fn explained(error: io::Error) -> io::Error {
    match reason(&error) {
        Some(reason) => io::Error::new(error.kind(), reason),
        None => error,
    }
}

/// The common name of a certificate's subject.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    // Two common names, or one with a NUL, could be read differently by whoever signed it.
    (names.next().is_none() && !name.contains('\0')).then_some(name)
}

/// `tls-server-end-point` channel binding data (RFC 5929 section 4.1): the certificate's hash by its own
/// signature's hash function, SHA-256 in place of MD5 and SHA-1. `None` for signatures that have no such hash.
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // sha1/md5 WithRSA, ecdsa-with-SHA1, SHA-256 with RSA and ECDSA
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}
