//! Which certificates of a peer are good: webpki's rules, and what PostgreSQL takes besides.
//!
//! PostgreSQL's manual makes certificates that webpki refuses whoever signed them: of X.509 version 1 (`openssl x509 -req`),
//! self-signed with CA:TRUE (`openssl req -x509`), and without a subjectAltName. They are good here where an authority of the
//! file has signed them itself: no path is built for them.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, ServerName, SignatureVerificationAlgorithm,
    SubjectPublicKeyInfoDer, TrustAnchor, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use thiserror::Error as ThisError;
use x509_parser::asn1_rs::Any;
use x509_parser::prelude::{
    ASN1Time, CertificateRevocationList, FromDer, GeneralName, X509Certificate, X509Version,
};

use super::{TlsError, common_name, revocation_lists, roots};

/// A certificate that could be good if it were made otherwise, and how. The word is the setting that names the authorities.
#[derive(Debug, ThisError)]
enum Unfit {
    #[error(
        "it is of X.509 version 1, and no authority of {0} has signed it itself: make a version 3 certificate (openssl x509 \
         -req with -extfile), or add the certificate of the authority that has signed it to {0}"
    )]
    Version1(&'static str),
    #[error(
        "it is the certificate of an authority (CA:TRUE) that is not in {0}: make one with CA:FALSE, or put this one into {0}"
    )]
    Authority(&'static str),
}

impl From<Unfit> for Error {
    fn from(unfit: Unfit) -> Self {
        CertificateError::Other(OtherError(Arc::new(unfit))).into()
    }
}

/// What the certificate of a peer is to be used for.
#[derive(Debug, Clone, Copy)]
enum CertificateUse {
    Server,
    Client,
}

/// Whether a server's certificate must be for its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// `verify-ca`
    Any,
    /// `verify-full`
    Checked,
}

/// Who may have signed a certificate, and what they have revoked.
#[derive(Debug)]
pub(super) struct Authorities {
    setting: &'static str,
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Authorities {
    /// Whether any of them may only vouch for some names.
    fn constrain_names(&self) -> bool {
        self.roots.roots.iter().any(|root| root.name_constraints.is_some())
    }

    /// Those of a PEM file, or, without one, the system's; `setting` is where the file is named.
    ///
    /// # Errors
    /// Which file, and why.
    pub(super) fn load(
        setting: &'static str,
        file: Option<&Path>,
        revoked: Option<&Path>,
        provider: &CryptoProvider,
    ) -> Result<Self, TlsError> {
        let (known, roots) = match file {
            Some(path) => roots(path)?,
            None => (Vec::new(), system_roots()?),
        };
        Ok(Self {
            setting,
            certificates: known,
            roots: Arc::new(roots),
            lists: revoked.map(revocation_lists).transpose()?.unwrap_or_default(),
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// What webpki has refused is good if an authority has signed it itself, and it is of version 1, or the very
    /// certificate that the file holds.
    fn besides(
        &self,
        certificate: &CertificateDer<'_>,
        purpose: CertificateUse,
        now: UnixTime,
        refused: Error,
    ) -> Result<(), Error> {
        if !matches!(refused, Error::InvalidCertificate(CertificateError::Other(_))) {
            return Err(refused);
        }
        let Ok(([], parsed)) = X509Certificate::from_der(certificate) else { return Err(refused) };
        let is_plain = parsed.version() == X509Version::V1 && parsed.extensions().is_empty();
        let is_known = self.certificates.iter().any(|known| known == certificate);
        if !is_plain && !is_known {
            return Err(if parsed.is_ca() { Unfit::Authority(self.setting).into() } else { refused });
        }
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let time = ASN1Time::from_timestamp(seconds).map_err(|_| CertificateError::Expired)?;
        if time < parsed.validity().not_before {
            return Err(CertificateError::NotValidYet.into());
        }
        if time > parsed.validity().not_after {
            return Err(CertificateError::Expired.into());
        }
        if !serves(&parsed, purpose) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        let issuer = self.issuer(certificate, &parsed);
        let issuer = issuer.ok_or_else(|| match is_plain {
            true => Unfit::Version1(self.setting).into(),
            false => Error::from(CertificateError::UnknownIssuer),
        })?;
        self.not_revoked(&parsed, issuer, time)
    }

    /// The authority that has signed a certificate itself.
    fn issuer(
        &self,
        certificate: &CertificateDer<'_>,
        parsed: &X509Certificate<'_>,
    ) -> Option<&TrustAnchor<'static>> {
        let signed = Signed::of(certificate)?;
        if parsed.signature_algorithm != parsed.tbs_certificate.signature {
            return None;
        }
        let name = Any::from_der(parsed.issuer().as_raw()).ok()?.1.data;
        self.roots.roots.iter().find(|anchor| {
            // What a name constraint means for a certificate without a subjectAltName is left to version 3.
            anchor.name_constraints.is_none()
                && anchor.subject.as_ref() == name
                && signed.is_by(&anchor.subject_public_key_info, self.algorithms.all)
        })
    }

    /// If there are lists, one of the issuer's own must be in force, and none may name the certificate.
    fn not_revoked(
        &self,
        certificate: &X509Certificate<'_>,
        issuer: &TrustAnchor<'static>,
        now: ASN1Time,
    ) -> Result<(), Error> {
        let mut is_known = self.lists.is_empty();
        for der in &self.lists {
            let Ok((_, list)) = CertificateRevocationList::from_der(der) else { continue };
            if list.issuer().as_raw() != certificate.issuer().as_raw() {
                continue;
            }
            let serial = &certificate.tbs_certificate.serial;
            if list.iter_revoked_certificates().any(|revoked| revoked.serial() == serial) {
                return Err(CertificateError::Revoked.into());
            }
            // A list that is not of all certificates says so in a critical extension.
            let is_whole = !list.tbs_cert_list.extensions().iter().any(|extension| extension.critical);
            let in_force = list.tbs_cert_list.next_update.is_some_and(|end| now <= end);
            let is_theirs = || {
                let signed = Signed::of(der);
                signed.is_some_and(|s| s.is_by(&issuer.subject_public_key_info, self.algorithms.all))
            };
            is_known |= is_whole && in_force && is_theirs();
        }
        if is_known { Ok(()) } else { Err(CertificateError::UnknownRevocationStatus.into()) }
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(store) }
}

/// Whether an extended key usage, if there is one, has this purpose.
fn serves(certificate: &X509Certificate<'_>, purpose: CertificateUse) -> bool {
    match certificate.extended_key_usage() {
        Ok(Some(usage)) => match purpose {
            CertificateUse::Server => usage.value.any || usage.value.server_auth,
            CertificateUse::Client => usage.value.any || usage.value.client_auth,
        },
        Ok(None) => true,
        Err(_) => false,
    }
}

/// A certificate or a revocation list: what is signed, how, and the signature. They have the same form (RFC 5280 sections
/// 4.1 and 5.1).
struct Signed<'a> {
    message: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn of(der: &'a [u8]) -> Option<Self> {
        let ([], whole) = Any::from_der(der).ok()? else { return None };
        let (rest, _) = Any::from_der(whole.data).ok()?;
        let message = whole.data.get(..whole.data.len() - rest.len())?;
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let ([], bits) = Any::from_der(rest).ok()? else { return None };
        Some(Self { message, algorithm: algorithm.data, signature: bits.data.strip_prefix(&[0])? })
    }

    /// Whether this key (the contents of a `SubjectPublicKeyInfo`) has signed it.
    fn is_by(&self, key: &[u8], known: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let fits = |a: &&&dyn SignatureVerificationAlgorithm| a.signature_alg_id().as_ref() == self.algorithm;
        known.iter().filter(fits).any(|a| verifies(*a, key, self.message, self.signature))
    }
}

/// Whether a key (the contents of a `SubjectPublicKeyInfo`) is of this algorithm, and has signed the message.
fn verifies(
    algorithm: &dyn SignatureVerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    let Ok((rest, kind)) = Any::from_der(key) else { return false };
    let Ok(([], bits)) = Any::from_der(rest) else { return false };
    let Some(key) = bits.data.strip_prefix(&[0]) else { return false };
    algorithm.public_key_alg_id().as_ref() == kind.data
        && algorithm.verify_signature(key, message, signature).is_ok()
}

/// Whether an authority says which names it may vouch for (RFC 5280 section 4.2.1.10), or cannot be read.
fn constrains_names(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return true };
    !matches!(parsed.name_constraints(), Ok(None))
}

/// `require` and below: any certificate, but the peer must hold its key.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        proved_12(message, certificate, signed, &self.0)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        proved_13(message, certificate, signed, &self.0)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// `verify-ca` and `verify-full`.
#[derive(Debug)]
pub(super) struct KnownServer {
    authorities: Authorities,
    webpki: Arc<WebPkiServerVerifier>,
    names: Names,
}

impl KnownServer {
    /// # Errors
    /// What is wrong with the authorities or their lists.
    pub(super) fn new(
        authorities: Authorities,
        names: Names,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(authorities.roots.clone(), provider)
            .with_crls(authorities.lists.iter().cloned())
            .enforce_revocation_expiration()
            .build()?;
        Ok(Self { authorities, webpki, names })
    }
}

impl ServerCertVerifier for KnownServer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.webpki.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Ok(verified) => return Ok(verified),
            // The name is looked at last, after the chain was found good.
            Err(
                refused @ Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ),
            ) => {
                // Constraints of names are not looked at for a common name: then that does not count.
                let constrained = intermediates.iter().any(|issuer| constrains_names(issuer));
                if self.names == Names::Checked && (constrained || self.authorities.constrain_names()) {
                    return Err(refused);
                }
            }
            Err(refused) => self.authorities.besides(certificate, CertificateUse::Server, now, refused)?,
        }
        if self.names == Names::Checked {
            is_for(certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        proved_12(message, certificate, signed, &self.authorities.algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        proved_13(message, certificate, signed, &self.authorities.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// A client's certificate, where it has one or must have one.
#[derive(Debug)]
pub(super) struct KnownClient {
    authorities: Authorities,
    webpki: Arc<dyn ClientCertVerifier>,
}

/// Whether a client must have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It may.
    Optional,
    /// It must.
    Required,
}

impl KnownClient {
    /// # Errors
    /// What is wrong with the authorities or their lists.
    pub(super) fn new(
        authorities: Authorities,
        presence: Presence,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let builder = WebPkiClientVerifier::builder_with_provider(authorities.roots.clone(), provider)
            .with_crls(authorities.lists.iter().cloned())
            .enforce_revocation_expiration();
        let webpki = match presence {
            Presence::Optional => builder.allow_unauthenticated(),
            Presence::Required => builder,
        };
        Ok(Self { authorities, webpki: webpki.build()? })
    }
}

impl ClientCertVerifier for KnownClient {
    fn offer_client_auth(&self) -> bool {
        self.webpki.offer_client_auth()
    }
    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.webpki.verify_client_cert(certificate, intermediates, now).or_else(|refused| {
            self.authorities.besides(certificate, CertificateUse::Client, now, refused)?;
            Ok(ClientCertVerified::assertion())
        })
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        proved_12(message, certificate, signed, &self.authorities.algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        proved_13(message, certificate, signed, &self.authorities.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Whether a server's certificate is for a name: by its subjectAltName, or, if it names no host there, by its common name, as
/// libpq does it.
fn is_for(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let by_san = match ParsedCertificate::try_from(certificate) {
        Ok(parsed) => verify_server_name(&parsed, name),
        Err(_) => Err(CertificateError::NotValidForName.into()),
    };
    let names_no_host = || {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = match parsed.subject_alternative_name().ok()? {
            Some(extension) => extension.value.general_names.as_slice(),
            None => &[],
        };
        let is_host = |n: &GeneralName<'_>| matches!(n, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
        Some(!names.iter().any(is_host))
    };
    match by_san {
        Err(_)
            if names_no_host() == Some(true)
                && common_name(certificate).is_some_and(|common| covers(&common, name)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Whether a common name is this host's, or one with `*` for its first label.
fn covers(common: &str, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::DnsName(host) => {
            let host = host.as_ref();
            let covered = |rest: &str| {
                let of_host = host.split_once('.').map(|(_, rest)| rest);
                rest.contains('.') && of_host.is_some_and(|of_host| rest.eq_ignore_ascii_case(of_host))
            };
            common.eq_ignore_ascii_case(host) || common.strip_prefix("*.").is_some_and(covered)
        }
        ServerName::IpAddress(address) => common.parse().is_ok_and(|ip: IpAddr| ip == IpAddr::from(*address)),
        _ => false,
    }
}

/// The handshake's signature in TLS 1.2, also by the key of a certificate that webpki does not read.
fn proved_12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    known: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if ParsedCertificate::try_from(certificate).is_ok() {
        return verify_tls12_signature(message, certificate, signed, known);
    }
    let key = public_key(certificate).ok_or(CertificateError::BadEncoding)?;
    let contents = Any::from_der(&key).map_err(|_| CertificateError::BadEncoding)?.1.data;
    let of_scheme = known.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
    let mut candidates = of_scheme.flat_map(|(_, algorithms)| algorithms.iter());
    match candidates.any(|algorithm| verifies(*algorithm, contents, message, signed.signature())) {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

/// The same in TLS 1.3.
fn proved_13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    known: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if ParsedCertificate::try_from(certificate).is_ok() {
        return verify_tls13_signature(message, certificate, signed, known);
    }
    let key = public_key(certificate).ok_or(CertificateError::BadEncoding)?;
    verify_tls13_signature_with_raw_key(message, &key, signed, known)
}

/// The `SubjectPublicKeyInfo` of a certificate of any version.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate.subject_pki.raw.to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_name_covers_its_host_and_one_label_by_a_star() {
        for (common, host, expected) in [
            ("db.example.com", "db.example.com", true),
            ("DB.Example.Com", "db.example.com", true),
            ("db.example.com", "db.example.org", false),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.db.example.com", false),
            ("*.com", "example.com", false),
            ("*", "localhost", false),
            ("d*.example.com", "db.example.com", false),
            ("", "localhost", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.2", "127.0.0.1", false),
            ("*.0.0.1", "127.0.0.1", false),
            ("0:0:0:0:0:0:0:1", "::1", true),
        ] {
            let name = ServerName::try_from(host).unwrap();
            assert_eq!(covers(common, &name), expected, "{common} {host}");
        }
    }

    #[test]
    fn what_is_not_der_is_signed_by_nobody() {
        for bytes in [
            &b""[..],
            b"x",
            &[0x30, 0],
            &[0x30, 2, 0x30, 0],
            &[0x30, 0x84, 255, 255, 255, 255],
            &[0x30, 0x80],
        ] {
            assert!(Signed::of(bytes).is_none(), "{bytes:?}");
            for algorithm in
                rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all
            {
                assert!(!verifies(*algorithm, bytes, b"message", b"signature"), "{bytes:?}");
            }
        }
    }
}
