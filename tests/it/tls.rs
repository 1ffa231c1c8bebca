//! TLS on both sides.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;

use super::house::{Pgusher, run, temporary_folder, warehouse};
use super::wire::{Raw, startup};

/// A certificate authority, and certificates of it: `server` (for localhost and 127.0.0.1), `dana` and `pete`.
pub fn certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let named = |name: &str, hosts: &[&str]| {
        let mut parameters =
            CertificateParams::new(hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters
    };
    for authority in ["ca", "other_ca"] {
        let key = KeyPair::generate().unwrap();
        let mut parameters = named(authority, &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write(&format!("{authority}.crt"), parameters.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(parameters, key);
        let leaves: &[&str] = if authority == "ca" { &["server", "dana", "pete"] } else { &["stranger"] };
        for name in leaves {
            let key = KeyPair::generate().unwrap();
            let hosts: &[&str] = if *name == "server" { &["localhost", "127.0.0.1"] } else { &[] };
            write(&format!("{name}.crt"), named(name, hosts).signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}.key"), key.serialize_pem());
            run(Command::new("chmod").arg("600").arg(folder.join(format!("{name}.key"))));
        }
    }
}

fn with_tls(mode: &str, more: &str, users: &str) -> Pgusher {
    let folder = temporary_folder("tls");
    certificates(&folder);
    let tls = format!(
        "tls = {{ mode = \"{mode}\", certificate = \"server.crt\", key = \"server.key\", client_ca = \"ca.crt\" }}\n{more}"
    );
    Pgusher::start_in(folder, &(warehouse(&tls, "", "") + users))
}

impl Pgusher {
    fn select_with(&self, user: &str, environment: &[(&str, &str)]) -> Result<String, String> {
        self.psql_with(user, user, environment, &["SELECT name FROM whoami"])
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

#[test]
fn tls_is_offered_verified_and_bound_to_scram() {
    let pgusher = with_tls("prefer", "", "");
    let ca = pgusher.path("ca.crt");
    assert_eq!(pgusher.select_with("dana", &[("PGSSLMODE", "disable")]).unwrap(), "dev");
    assert_eq!(pgusher.select_with("dana", &[("PGSSLMODE", "require")]).unwrap(), "dev");
    let verified = [("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &ca), ("PGCHANNELBINDING", "require")];
    assert_eq!(pgusher.select_with("dana", &verified).unwrap(), "dev");
    let other = pgusher.path("other_ca.crt");
    assert!(pgusher.select_with("dana", &[("PGSSLMODE", "verify-ca"), ("PGSSLROOTCERT", &other)]).is_err());
    // Channel binding is not to be had without TLS: -PLUS is never offered there.
    let plain = pgusher.select_with("dana", &[("PGSSLMODE", "disable"), ("PGCHANNELBINDING", "require")]);
    assert!(plain.unwrap_err().contains("channel binding"), "refused by the client itself");
}

#[test]
fn a_changed_certificate_is_taken_up_by_a_reload_without_dropping_anyone() {
    let pgusher = with_tls("prefer", "", "");
    let mut held = Raw::login(pgusher.address(), "raw");
    let old = pgusher.folder.join("old_ca.crt");
    std::fs::copy(pgusher.folder.join("ca.crt"), &old).unwrap();
    let verify =
        |ca: &str| pgusher.select_with("dana", &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", ca)]);
    let (old, new) = (old.display().to_string(), pgusher.path("ca.crt"));
    assert_eq!(verify(&old).unwrap(), "dev");
    certificates(&pgusher.folder);
    assert!(verify(&new).is_err(), "it is not used before a reload");
    let config = std::fs::read_to_string(pgusher.folder.join("pgusher.toml")).unwrap();
    pgusher.reload(&config);
    assert_eq!(verify(&new).unwrap(), "dev");
    assert!(verify(&old).is_err());
    assert_eq!(held.value("SELECT 'still here'"), "still here");
}

#[test]
fn tls_is_refused_where_it_is_not_configured_and_required_where_it_is() {
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    let error = pgusher.select_with("dana", &[("PGSSLMODE", "require")]).unwrap_err();
    assert!(error.contains("does not support SSL"), "{error}");
    let pgusher = with_tls("require", "", "");
    let error = pgusher.select_with("dana", &[("PGSSLMODE", "disable")]).unwrap_err();
    assert!(error.contains("TLS is required"), "{error}");
}

#[test]
fn a_client_certificate_proves_its_user_and_nobody_else() {
    let users = "[users.cara]\nauth_type = \"cert\"\n";
    let pgusher = with_tls("prefer", "auth_type = \"cert\"", &users.replace("cara", "stranger"));
    let as_user = |user: &str, certificate: &str| {
        let (certificate, key) =
            (pgusher.path(&format!("{certificate}.crt")), pgusher.path(&format!("{certificate}.key")));
        pgusher
            .select_with(user, &[("PGSSLMODE", "require"), ("PGSSLCERT", &certificate), ("PGSSLKEY", &key)])
    };
    assert_eq!(as_user("dana", "dana").unwrap(), "dev");
    assert_eq!(as_user("pete", "pete").unwrap(), "prod");
    let error = as_user("pete", "dana").unwrap_err();
    assert!(error.contains("certificate authentication failed for user \"pete\""), "{error}");
    assert!(as_user("stranger", "stranger").is_err(), "an authority that is not ours");
    assert!(pgusher.select_with("dana", &[("PGSSLMODE", "require")]).is_err(), "no certificate");
}

#[test]
fn direct_tls_wants_the_protocols_name() {
    let pgusher = with_tls("prefer", "", "");
    let connect = |alpn: &[&[u8]]| -> std::io::Result<Vec<u8>> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_file(pgusher.path("ca.crt")).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = "localhost".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut socket = std::net::TcpStream::connect(pgusher.address())?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        stream.write_all(&startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]))?;
        let mut first = vec![0; 9];
        stream.read_exact(&mut first)?;
        Ok(first)
    };
    assert_eq!(connect(&[b"postgresql"]).unwrap(), [b'R', 0, 0, 0, 8, 0, 0, 0, 0]);
    assert!(connect(&[]).is_err(), "direct TLS without ALPN");
    assert!(connect(&[b"http/1.1"]).is_err(), "another protocol");
}
