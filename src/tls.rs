//! rustls configurations, ours as server and as client, and what channel binding needs of a certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use pgwire::api::auth::sasl::scram::ScramServerAuth;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::file::SslMode;
use crate::config::{ClientTls, Host, UpstreamTls};
use crate::files;

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

/// TLS towards clients, ready to use.
pub struct ServerTls {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// The same for HTTP.
    pub http: Arc<ServerConfig>,
    /// How much of it clients must use.
    pub mode: SslMode,
    /// SCRAM with channel binding to our certificate.
    pub scram: ScramServerAuth,
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

/// Loads what `[server] tls` names, relative to `folder`.
///
/// # Errors
/// Which file, and why.
pub fn server(tls: &ClientTls, folder: &Path) -> Result<ServerTls, TlsError> {
    let certificate = folder.join(&**tls.certificate);
    let key_path = folder.join(&**tls.key);
    let chain = certificates(&certificate)?;
    let key = private_key(&key_path)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Unusable(certificate.clone(), e.to_string()))?;
    let builder = match &*tls.client_ca {
        Some(ca) => {
            let path = folder.join(ca);
            let verifier = WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots(&path)?),
                Arc::new(provider::default_provider()),
            );
            let verifier = match *tls.mode {
                SslMode::VerifyCa | SslMode::VerifyFull => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|e| TlsError::Unusable(path, e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|e| TlsError::Unusable(key_path, e.to_string()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // PostgreSQL's clients resume no sessions; remembering them would cost memory for each client.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let mut http = config.clone();
    http.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut scram = ScramServerAuth::new();
    let pem = read(&certificate)?;
    scram.configure_certificate(&pem).map_err(|e| TlsError::Unusable(certificate, e.to_string()))?;
    Ok(ServerTls { config: Arc::new(config), http: Arc::new(http), mode: *tls.mode, scram })
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
        SslMode::VerifyCa | SslMode::VerifyFull => {
            let roots = match &tls.root_cert {
                Some(path) => roots(path)?,
                None => system_roots()?,
            };
            let path = tls.root_cert.clone().unwrap_or_default();
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto.clone())
                .build()
                .map_err(|e| TlsError::Unusable(path, e.to_string()))?;
            if tls.mode == SslMode::VerifyFull { inner } else { Arc::new(AnyName(inner)) }
        }
        _ => Arc::new(AnyCertificate(crypto.clone())),
    };
    let builder = ClientConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Unusable(PathBuf::new(), e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &tls.identity {
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|e| TlsError::Unusable(key.clone(), e.to_string()))?,
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
    let pem = |e: rustls::pki_types::pem::Error| TlsError::Pem(path.to_owned(), e.to_string());
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(pem)?;
    if chain.is_empty() {
        return Err(TlsError::Pem(path.to_owned(), "no certificate in it".into()));
    }
    Ok(chain)
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

/// The authorities of a PEM file.
///
/// # Errors
/// It cannot be read, or holds none that can be used.
pub fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|e| TlsError::Unusable(path.to_owned(), e.to_string()))?;
    }
    Ok(store)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(store) }
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

/// `require` and below: any certificate, but the peer must hold its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// `verify-ca`: a known authority, whatever the name.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is looked at last, after the chain was found good.
        match self.0.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
