//! Which certificates are taken, on both sides: those of PostgreSQL's manual, and not the revoked ones.

use std::io;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgusher::inside::tls;
use policy::config::file::{SslMode, SslNegotiation};
use policy::config::read::Setting;
use policy::config::{ClientTls, Host, UpstreamTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue,
    GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, NameConstraints, PublicKeyData, RevokedCertParams,
    SerialNumber, SigningKey, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::fake::{Fake, config, login, refused};
use super::house::{Pgusher, eventually, run, temporary_folder, warehouse};
use super::wire::{Raw, startup};

// ── certificates to try ──

/// A certificate authority, which writes what it makes into a folder.
struct Authority {
    folder: PathBuf,
    parameters: CertificateParams,
    key: KeyPair,
}

fn parameters(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut parameters = CertificateParams::new(hosts).unwrap();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    run(std::process::Command::new("chmod").arg("600").arg(path));
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut parameters = parameters(name, &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        write(&folder.join(format!("{name}.crt")), &parameters.self_signed(&key).unwrap().pem());
        write(&folder.join(format!("{name}.key")), &key.serialize_pem());
        Self { folder: folder.to_owned(), parameters, key }
    }

    /// One that another vouches for; it may do so itself for these names only.
    fn under(&self, name: &str, names: Option<&str>) -> Self {
        let mut parameters = parameters(name, &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.name_constraints = names.map(|names| NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(names.to_owned())],
            excluded_subtrees: Vec::new(),
        });
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer()).unwrap();
        write(&self.folder.join(format!("{name}.crt")), &certificate.pem());
        Self { folder: self.folder.clone(), parameters, key }
    }

    /// As `sign`, with the certificate of this authority behind it in the file.
    fn sign_and_show(&self, file: &str, name: &str, hosts: &[&str]) {
        self.sign(file, name, hosts, 1);
        let path = self.folder.join(format!("{file}.crt"));
        let DnValue::Utf8String(own) = self.parameters.distinguished_name.get(&DnType::CommonName).unwrap()
        else {
            panic!("no name")
        };
        let both =
            [&path, &self.folder.join(format!("{own}.crt"))].map(|p| std::fs::read_to_string(p).unwrap());
        write(&path, &both.concat());
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.parameters, &self.key)
    }

    /// `FILE.crt` and `FILE.key`, of version 3.
    fn sign(&self, file: &str, name: &str, hosts: &[&str], serial: u8) {
        let mut parameters = parameters(name, hosts);
        parameters.serial_number = Some(SerialNumber::from(u64::from(serial)));
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer()).unwrap();
        write(&self.folder.join(format!("{file}.crt")), &certificate.pem());
        write(&self.folder.join(format!("{file}.key")), &key.serialize_pem());
    }

    /// The same of version 1, as `openssl x509 -req` makes it.
    fn sign_plain(&self, file: &str, name: &str, serial: u8, until: &str) {
        let key = KeyPair::generate().unwrap();
        let signer = Signer { name: "ca", key: &self.key };
        self.write_plain(file, &key, &plain(&signer, name, serial, until, &key));
    }

    fn write_plain(&self, file: &str, key: &KeyPair, der: &[u8]) {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        write(&self.folder.join(format!("{file}.crt")), &pem);
        write(&self.folder.join(format!("{file}.key")), &key.serialize_pem());
    }

    /// A revocation list in `FILE`.
    fn revoke(&self, file: &str, serials: &[u8], until: i32) {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(u64::from(*serial)),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer()).unwrap();
        std::fs::write(self.folder.join(file), list.pem().unwrap()).unwrap();
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = vec![tag];
    match length {
        0..=0x7f => bytes.push(length as u8),
        0x80..=0xff => bytes.extend([0x81, length as u8]),
        _ => bytes.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    bytes.extend(content);
    bytes
}

fn common_name_only(name: &str) -> Vec<u8> {
    let attribute = [&[0x06, 3, 0x55, 4, 3][..], &der(0x0c, name.as_bytes())].concat();
    der(0x30, &der(0x31, &der(0x30, &attribute)))
}

/// Whom a certificate names as its issuer, and by whose key it is signed.
struct Signer<'a> {
    name: &'a str,
    key: &'a KeyPair,
}

/// A certificate of version 1: neither a version nor extensions (RFC 5280 section 4.1).
fn plain(signer: &Signer<'_>, name: &str, serial: u8, until: &str, key: &KeyPair) -> Vec<u8> {
    // ecdsa-with-SHA256
    let algorithm = der(0x30, &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    let validity = [der(0x17, b"200101000000Z"), der(0x17, until.as_bytes())].concat();
    let body = [
        der(0x02, &[serial]),
        algorithm.clone(),
        common_name_only(signer.name),
        der(0x30, &validity),
        common_name_only(name),
        key.subject_public_key_info(),
    ];
    let body = der(0x30, &body.concat());
    let signature = der(0x03, &[&[0][..], &signer.key.sign(&body).unwrap()].concat());
    der(0x30, &[body, algorithm, signature].concat())
}

const LATER: &str = "490101000000Z";
const PAST: &str = "210101000000Z";

/// All that the tests below try, in a folder.
fn made(name: &str) -> PathBuf {
    let folder = temporary_folder(name);
    let (ca, other) = (Authority::new(&folder, "ca"), Authority::new(&folder, "other"));
    ca.sign("v3", "v3", &["localhost", "127.0.0.1"], 1);
    ca.sign("v3_revoked", "v3_revoked", &["localhost"], 2);
    ca.sign("cn", "localhost", &[], 3);
    ca.sign("cn_address", "127.0.0.1", &[], 4);
    ca.sign("cn_and_san", "localhost", &["elsewhere"], 5);
    let (free, bound) = (ca.under("free", None), ca.under("bound", Some("elsewhere")));
    free.sign_and_show("cn_of_free", "localhost", &[]);
    bound.sign_and_show("cn_of_bound", "localhost", &[]);
    bound.sign_and_show("cn_elsewhere_of_bound", "elsewhere", &[]);
    bound.sign_and_show("san_of_bound", "bound", &["elsewhere"]);
    ca.sign_plain("v1", "localhost", 11, LATER);
    ca.sign_plain("v1_revoked", "localhost", 12, LATER);
    ca.sign_plain("v1_elsewhere", "elsewhere", 13, LATER);
    ca.sign_plain("v1_expired", "localhost", 14, PAST);
    // It says that it is of `ca`, and is not.
    other.sign_plain("v1_forged", "localhost", 15, LATER);
    let key = KeyPair::generate().unwrap();
    let signer = Signer { name: "other", key: &other.key };
    let of_other = plain(&signer, "localhost", 16, LATER, &key);
    ca.write_plain("v1_other", &key, &of_other);
    let own = KeyPair::generate().unwrap();
    let mut parameters = parameters("self", &["localhost"]);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write(&folder.join("self.crt"), &parameters.self_signed(&own).unwrap().pem());
    write(&folder.join("self.key"), &own.serialize_pem());
    ca.revoke("ca.crl", &[2, 12], 2049);
    ca.revoke("expired.crl", &[2, 12], 2021);
    ca.revoke("nothing.crl", &[], 2049);
    other.revoke("other.crl", &[], 2049);
    folder
}

// ── handshakes in memory ──

/// A server that shows this certificate, and has this key.
fn server(
    folder: &Path,
    certificate: &str,
    key: &str,
    version: &'static SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let path = folder.join(format!("{certificate}.crt"));
    let chain = CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{key}.key"))).unwrap();
    let own = CertifiedKey::new(chain, provider.key_provider.load_private_key(key).unwrap());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    Arc::new(config)
}

fn towards(
    folder: &Path,
    mode: SslMode,
    root: Option<&str>,
    list: Option<&str>,
    identity: Option<&str>,
) -> UpstreamTls {
    let file = |name: &str| folder.join(name);
    UpstreamTls {
        mode,
        negotiation: SslNegotiation::Postgres,
        root_cert: root.map(|name| file(&format!("{name}.crt"))),
        revoked: list.map(file),
        identity: identity.map(|name| (file(&format!("{name}.crt")), file(&format!("{name}.key")))),
    }
}

/// Whether the two come to an agreement; the reason of the first who does not want to.
fn shake(client: &tls::UpstreamClient, server: Arc<ServerConfig>) -> Result<(), String> {
    let mut client = ClientConnection::new(client.config.clone(), client.name.clone()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let words = |error| tls::reason(&io::Error::new(io::ErrorKind::InvalidData, error)).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(words)?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(words)?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

/// What is expected of `verify-ca` and `verify-full`: good, or a part of the reason.
type Expected = [Result<(), &'static str>; 2];

fn compare(what: &str, outcome: &Result<(), String>, expected: Result<(), &str>) {
    match (outcome, expected) {
        (Ok(()), Ok(())) => {}
        (Err(error), Err(part)) => assert!(error.contains(part), "{what}: {error}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn an_upstreams_certificate_is_taken_where_libpq_takes_it() {
    let folder = made("upstream-certificates");
    let all: Expected = [Ok(()); 2];
    let no_name: Expected = [Ok(()), Err("not valid for")];
    let never = |why: &'static str| -> Expected { [Err(why); 2] };
    for (certificate, root, host, expected) in [
        ("v3", "ca", "localhost", all),
        ("v3", "ca", "127.0.0.1", all),
        ("v3", "ca", "elsewhere", no_name),
        ("v3", "other", "localhost", never("UnknownIssuer")),
        ("v1", "ca", "localhost", all),
        ("v1", "ca", "LOCALHOST", all),
        ("v1", "ca", "elsewhere", [Ok(()), Err("NotValidForName")]),
        ("v1_elsewhere", "ca", "localhost", [Ok(()), Err("NotValidForName")]),
        ("v1", "other", "localhost", never("X.509 version 1, and no authority of sslrootcert")),
        ("v1_other", "ca", "localhost", never("X.509 version 1, and no authority of sslrootcert")),
        ("v1_forged", "ca", "localhost", never("X.509 version 1, and no authority of sslrootcert")),
        ("v1_expired", "ca", "localhost", never("xpired")),
        ("self", "self", "localhost", all),
        ("self", "self", "elsewhere", no_name),
        ("self", "ca", "localhost", never("CA:TRUE) that is not in sslrootcert")),
        ("cn", "ca", "localhost", all),
        ("cn", "ca", "elsewhere", no_name),
        ("cn_address", "ca", "127.0.0.1", all),
        ("cn_and_san", "ca", "localhost", no_name),
        ("cn_of_free", "ca", "localhost", all),
        // What an authority may vouch for is not known of a common name: where it is constrained, that does not count.
        ("cn_of_bound", "ca", "localhost", no_name),
        ("cn_of_bound", "bound", "localhost", no_name),
        ("cn_elsewhere_of_bound", "ca", "elsewhere", no_name),
        ("san_of_bound", "ca", "elsewhere", all),
    ] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            // With authorities of its own, `require` verifies as `verify-ca` does; without, it takes anything.
            for (mode, root, expected) in [
                (SslMode::Require, None, Ok(())),
                (SslMode::Require, Some(root), expected[0]),
                (SslMode::VerifyCa, Some(root), expected[0]),
                (SslMode::VerifyFull, Some(root), expected[1]),
            ] {
                let what = format!("{certificate} of {root:?} for {host}, {}, {version:?}", mode.word());
                let tls = towards(&folder, mode, root, None, None);
                let client = tls::upstream(&tls, &Host::Name(host.to_owned())).unwrap().unwrap();
                let outcome = shake(&client, server(&folder, certificate, certificate, version));
                compare(&what, &outcome, expected);
            }
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn whoever_shows_a_certificate_must_have_its_key_in_every_mode() {
    let folder = made("stolen-certificates");
    for (certificate, root) in [("v1", "ca"), ("v3", "ca"), ("self", "self")] {
        for mode in [SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
            for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
                let tls = towards(&folder, mode, Some(root), None, None);
                let client = tls::upstream(&tls, &Host::Name("localhost".into())).unwrap().unwrap();
                let outcome = shake(&client, server(&folder, certificate, "cn", version));
                let what = format!("{certificate}, {}, {version:?}", mode.word());
                compare(&what, &outcome, Err("BadSignature"));
            }
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_revoked_certificate_of_an_upstream_is_refused() {
    let folder = made("revoked");
    for (certificate, root, list, expected) in [
        ("v3", "ca", "ca.crl", Ok(())),
        ("v3_revoked", "ca", "nothing.crl", Ok(())),
        ("v3_revoked", "ca", "ca.crl", Err("Revoked")),
        ("v3", "ca", "expired.crl", Err("xpired")),
        ("v3", "ca", "other.crl", Err("UnknownRevocationStatus")),
        ("v1", "ca", "ca.crl", Ok(())),
        ("v1_revoked", "ca", "ca.crl", Err("Revoked")),
        ("v1", "ca", "expired.crl", Err("UnknownRevocationStatus")),
        ("v1", "ca", "other.crl", Err("UnknownRevocationStatus")),
        ("self", "self", "other.crl", Err("UnknownRevocationStatus")),
    ] {
        for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
            let tls = towards(&folder, mode, Some(root), Some(list), None);
            let client = tls::upstream(&tls, &Host::Name("localhost".into())).unwrap().unwrap();
            let outcome = shake(&client, server(&folder, certificate, certificate, &rustls::version::TLS13));
            compare(&format!("{certificate} by {list}, {}", mode.word()), &outcome, expected);
        }
    }
    let nothing = towards(&folder, SslMode::VerifyFull, Some("ca"), Some("ca.crt"), None);
    let error = tls::upstream(&nothing, &Host::Name("localhost".into())).unwrap_err().to_string();
    assert!(error.contains("no revocation list"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

fn for_clients(mode: SslMode, certificate: &str, authority: &str, list: Option<&str>) -> ClientTls {
    let text = |text: String| Setting::default_of(text);
    ClientTls {
        mode: Setting::default_of(mode),
        certificate: text(format!("{certificate}.crt")),
        key: text(format!("{certificate}.key")),
        client_ca: Setting::default_of(Some(format!("{authority}.crt").into())),
        client_crl: Setting::default_of(list.map(|list| list.to_owned().into())),
    }
}

#[test]
fn a_clients_certificate_is_taken_where_postgresql_takes_it() {
    let folder = made("client-certificates");
    for (certificate, authority, list, expected) in [
        ("v3", "ca", None, Ok(())),
        ("v3", "other", None, Err("UnknownIssuer")),
        ("v1", "ca", None, Ok(())),
        ("v1", "other", None, Err("X.509 version 1, and no authority of client_ca")),
        ("v1_forged", "ca", None, Err("X.509 version 1, and no authority of client_ca")),
        ("v1_expired", "ca", None, Err("xpired")),
        ("self", "self", None, Ok(())),
        ("self", "ca", None, Err("CA:TRUE) that is not in client_ca")),
        ("v3", "ca", Some("ca.crl"), Ok(())),
        ("v3_revoked", "ca", Some("ca.crl"), Err("Revoked")),
        ("v1_revoked", "ca", Some("ca.crl"), Err("Revoked")),
        ("v3", "ca", Some("other.crl"), Err("UnknownRevocationStatus")),
    ] {
        for mode in [SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
            let ours = tls::server(&for_clients(mode, "v1", authority, list), &folder).unwrap();
            let upstream = towards(&folder, SslMode::VerifyFull, Some("ca"), None, Some(certificate));
            let client = tls::upstream(&upstream, &Host::Name("localhost".into())).unwrap().unwrap();
            let what = format!("{certificate} of {authority}, {list:?}, {}", mode.word());
            compare(&what, &shake(&client, ours.config.clone()), expected);
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn our_own_certificate_may_be_of_version_1_and_must_fit_its_key() {
    let folder = made("own-certificate");
    let own = |certificate: &str, key: &str| {
        let mut tls = for_clients(SslMode::Prefer, certificate, "ca", None);
        tls.key = Setting::default_of(format!("{key}.key"));
        tls::server(&tls, &folder).map(|tls| tls.warning)
    };
    for certificate in ["v1", "v3", "self"] {
        assert_eq!(own(certificate, certificate).unwrap(), None, "{certificate}");
        assert!(own(certificate, "cn").is_err(), "{certificate}");
    }
    let error = own("v1", "cn").unwrap_err().to_string();
    assert!(error.contains("not the key of the certificate"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

// ── with processes ──

fn with_tls(folder: &Path, mode: &str, certificate: &str, more: &str) -> String {
    let tls = format!(
        "tls = {{ mode = \"{mode}\", certificate = \"{certificate}.crt\", key = \"{certificate}.key\", \
         client_ca = \"ca.crt\", client_crl = \"used.crl\" }}\n{more}"
    );
    assert!(folder.join("used.crl").exists());
    warehouse(&tls, "", "")
}

fn select(pgusher: &Pgusher, user: &str, certificate: &str) -> Result<String, String> {
    let file = |end: &str| pgusher.folder.join(format!("{certificate}.{end}")).display().to_string();
    let (certificate, key) = (file("crt"), file("key"));
    let environment = [("PGSSLMODE", "require"), ("PGSSLCERT", &*certificate), ("PGSSLKEY", &*key)];
    pgusher.psql_with(user, user, &environment, &["SELECT name FROM whoami"])
}

#[test]
fn a_reload_takes_up_what_was_revoked_and_the_log_says_who_was_refused_and_why() {
    let folder = temporary_folder("revoked-client");
    let ca = Authority::new(&folder, "ca");
    ca.sign("server", "server", &["localhost", "127.0.0.1"], 1);
    ca.sign("dana", "dana", &[], 2);
    ca.sign("pete", "pete", &[], 3);
    ca.revoke("used.crl", &[], 2049);
    let text = with_tls(&folder, "prefer", "server", "auth_type = \"cert\"");
    let pgusher = Pgusher::start_in(folder, &text);
    assert_eq!(select(&pgusher, "dana", "dana").unwrap(), "dev");
    ca.revoke("used.crl", &[2], 2049);
    assert_eq!(select(&pgusher, "dana", "dana").unwrap(), "dev", "it is not used before a reload");
    pgusher.reload(&text);
    assert!(select(&pgusher, "dana", "dana").is_err());
    assert_eq!(select(&pgusher, "pete", "pete").unwrap(), "prod");
    eventually("a line in the log", || {
        let log = pgusher.log();
        log.lines().any(|line| {
            line.contains(" INFO ") && line.contains("TLS handshake failed") && line.contains("Revoked")
        })
    });
}

#[test]
fn a_socket_that_merely_leaves_is_no_failed_handshake() {
    let folder = temporary_folder("left");
    let ca = Authority::new(&folder, "ca");
    ca.sign("server", "server", &["localhost"], 1);
    ca.revoke("used.crl", &[], 2049);
    let text = with_tls(&folder, "prefer", "server", "");
    let pgusher = Pgusher::start_in(folder, &text);
    for sent in [&[][..], &[0x16], &[0x16, 3, 1, 2, 0, 1]] {
        let mut raw = Raw::connect(pgusher.address());
        raw.send(&[0, 0, 0, 8, 4, 210, 22, 47]);
        raw.stream.read_exact(&mut [0]).unwrap();
        raw.send(sent);
    }
    eventually("they are gone", || pgusher.log().matches("no login").count() >= 4);
    assert!(!pgusher.log().contains("TLS handshake failed"), "{}", pgusher.log());
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&[0, 0, 0, 8, 4, 210, 22, 47]);
    raw.stream.read_exact(&mut [0]).unwrap();
    raw.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]));
    eventually("what is not TLS is told of", || pgusher.log().contains("TLS handshake failed"));
}

#[test]
fn a_certificate_without_a_hash_for_channel_binding_costs_only_that() {
    let folder = temporary_folder("ed25519");
    let ca = Authority::new(&folder, "ca");
    ca.revoke("used.crl", &[], 2049);
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    // Signed by its own key, so that the certificate's signature is of that kind, too.
    let own = parameters("server", &["localhost", "127.0.0.1"]).self_signed(&key).unwrap();
    write(&folder.join("server.crt"), &own.pem());
    write(&folder.join("server.key"), &key.serialize_pem());
    let text = with_tls(&folder, "prefer", "server", "");
    let pgusher = Pgusher::start_in(folder, &text);
    assert!(pgusher.log().contains("SCRAM-SHA-256-PLUS is not offered"), "{}", pgusher.log());
    let with = |binding: &str| {
        let environment = [("PGSSLMODE", "require"), ("PGCHANNELBINDING", binding)];
        pgusher.psql_with("dana", "dana", &environment, &["SELECT name FROM whoami"])
    };
    assert_eq!(with("prefer").unwrap(), "dev");
    assert!(with("require").unwrap_err().contains("channel binding"));
    pgusher.reload(&text);
    assert_eq!(with("prefer").unwrap(), "dev");
}

/// A server that says yes to TLS and then breaks it off; in the clear, it lets in. The number of plain logins, and it.
fn breaks_tls() -> (Arc<AtomicUsize>, Fake) {
    let plain = Arc::new(AtomicUsize::new(0));
    let counted = plain.clone();
    let fake = Fake::start_raw(move |mut stream| {
        let mut first = [0; 8];
        if stream.read_exact(&mut first).is_err() {
            return;
        }
        if first[4..] == [4, 210, 22, 47] {
            let _ = stream.write_all(b"S");
            let _ = stream.read(&mut [0; 1024]);
            // handshake_failure
            let _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40]);
            return;
        }
        counted.fetch_add(1, Ordering::SeqCst);
        let mut rest = vec![0; u32::from_be_bytes(first[..4].try_into().unwrap()) as usize - 8];
        stream.read_exact(&mut rest).unwrap();
        super::fake::let_in(stream);
    });
    (plain, fake)
}

#[test]
fn prefer_goes_on_without_tls_where_its_handshake_fails_and_nothing_stronger_does() {
    let (plain, fake) = breaks_tls();
    let bases = [("t0".to_owned(), fake.port())];
    let pgusher = Pgusher::start(&config("", &bases, "sslmode = \"prefer\""));
    drop(login(&pgusher, "t0"));
    assert!(plain.load(Ordering::SeqCst) > 0);
    assert!(pgusher.log().contains("goes on without TLS"), "{}", pgusher.log());
    drop(pgusher);
    for mode in ["require", "verify-ca", "verify-full"] {
        plain.store(0, Ordering::SeqCst);
        let folder = temporary_folder("no-downgrade");
        Authority::new(&folder, "ca");
        let lines = format!("sslmode = \"{mode}\"\nsslrootcert = \"ca.crt\"");
        let pgusher = Pgusher::start_in(folder, &config("", &bases, &lines));
        assert_eq!(refused(&pgusher, "raw", "t0").field('C'), "08001", "{mode}");
        assert_eq!(plain.load(Ordering::SeqCst), 0, "{mode} went on in the clear");
    }
}
