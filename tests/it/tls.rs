//! TLS on both sides.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConnection, StreamOwned};

use super::fake::{refused, unharmed};
use super::house::{Pgusher, eventually, pair, run, temporary_folder, warehouse};
use super::wire::{Message, Raw, message, query, startup};

/// A certificate authority, and certificates of it: `server` (for localhost and 127.0.0.1), `dana` and `pete`.
pub(crate) fn certificates(folder: &Path) {
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

pub(crate) fn with_tls(mode: &str, more: &str, users: &str) -> Pgusher {
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
fn verify_full_wants_the_users_own_certificate_whatever_its_method() {
    for method in ["scram-sha-256", "md5", "password", "trust", "cert"] {
        for mode in ["prefer", "require", "verify-ca", "verify-full"] {
            let pgusher = with_tls(mode, &format!("auth_type = \"{method}\""), "");
            let with = |certificate: &str| {
                let mut environment = vec![("PGSSLMODE", "require")];
                let files = ["crt", "key"].map(|end| pgusher.path(&format!("{certificate}.{end}")));
                if !certificate.is_empty() {
                    environment.extend([("PGSSLCERT", files[0].as_str()), ("PGSSLKEY", files[1].as_str())]);
                }
                pgusher.select_with("dana", &environment)
            };
            let (needs_one, what) = (mode.starts_with("verify"), format!("{method}, {mode}"));
            assert_eq!(with("dana").as_deref(), Ok("dev"), "{what}");
            assert_eq!(with("").is_ok(), !needs_one && method != "cert", "{what}, none");
            let other = with("pete");
            if mode == "verify-full" || method == "cert" {
                let error = other.unwrap_err();
                let expected = "certificate authentication failed for user \"dana\"";
                assert!(error.contains(expected), "{what}: {error}");
            } else {
                assert_eq!(other.as_deref(), Ok("dev"), "{what}");
            }
            assert!(with("stranger").is_err(), "{what}: an authority that is not ours");
        }
    }
}

#[test]
fn verify_full_holds_for_the_console_and_for_names_that_nobody_has() {
    let users = "[users.ops]\nauth_type = \"trust\"\nconsole = \"admin\"\n";
    let pgusher = with_tls("verify-full", "", users);
    let (certificate, key) = (pgusher.path("pete.crt"), pgusher.path("pete.key"));
    let environment = [("PGSSLMODE", "require"), ("PGSSLCERT", &certificate), ("PGSSLKEY", &key)];
    for (user, database) in [("ops", "pgusher"), ("nobody", "warehouse"), ("nobody", "pgusher")] {
        let target = format!("host=127.0.0.1 port={} user={user} dbname={database}", pgusher.port);
        let output = crate::house::psql()
            .args(["-XAtq", "-d", &target, "-c", "SHOW VERSION"])
            .env("PGPASSWORD", user)
            .envs(environment)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let expected = format!("certificate authentication failed for user \"{user}\"");
        assert!(error.contains(&expected), "{user} {database}: {error}");
    }
}

/// A client's side of TLS that trusts the authority of this pgusher, and offers these protocols.
fn client_of(pgusher: &Pgusher, alpn: &[&[u8]]) -> ClientConnection {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pgusher.path("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap()
}

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

fn connect(pgusher: &Pgusher) -> TcpStream {
    let socket = TcpStream::connect(pgusher.address()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// How TLS is begun.
#[derive(Clone, Copy, Debug)]
enum Begin {
    Asked,
    Direct,
}

fn begin(pgusher: &Pgusher, how: Begin) -> TcpStream {
    let mut socket = connect(pgusher);
    if let Begin::Asked = how {
        socket.write_all(&SSL_REQUEST).unwrap();
        let mut answer = [0];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"S");
    }
    socket
}

/// A client under TLS that has sent its startup packet.
fn arrive(pgusher: &Pgusher, user: &str) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = StreamOwned::new(client_of(pgusher, &[b"postgresql"]), begin(pgusher, Begin::Asked));
    stream.write_all(&startup(0x0003_0000, &[("user", user), ("database", "warehouse")])).unwrap();
    stream
}

fn next_message(stream: &mut impl Read) -> Option<Message> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).ok()?;
    let mut body = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
    stream.read_exact(&mut body).ok()?;
    Some(Message { tag: header[0] as char, body })
}

#[test]
fn direct_tls_wants_the_protocols_name() {
    let pgusher = with_tls("prefer", "", "");
    let connect = |alpn: &[&[u8]]| -> std::io::Result<Vec<u8>> {
        let mut stream = StreamOwned::new(client_of(&pgusher, alpn), begin(&pgusher, Begin::Direct));
        stream.write_all(&startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]))?;
        let mut first = vec![0; 9];
        stream.read_exact(&mut first)?;
        Ok(first)
    };
    assert_eq!(connect(&[b"postgresql"]).unwrap(), [b'R', 0, 0, 0, 8, 0, 0, 0, 0]);
    assert!(connect(&[]).is_err(), "direct TLS without ALPN");
    assert!(connect(&[b"http/1.1"]).is_err(), "another protocol");
}

#[test]
fn a_client_that_misjudges_channel_binding_is_refused() {
    let pgusher = with_tls("prefer", "", "");
    let initial = |mechanism: &str, first: &str| {
        let mut stream = arrive(&pgusher, "dana");
        let offered = next_message(&mut stream).unwrap();
        assert_eq!(offered.body, b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let length = (first.len() as u32).to_be_bytes();
        let body = [mechanism.as_bytes(), b"\0", &length, first.as_bytes()].concat();
        stream.write_all(&message('p', &body)).unwrap();
        let answer = next_message(&mut stream).unwrap();
        if answer.tag == 'E' { answer.field('C') } else { answer.tag.to_string() }
    };
    let bare = "n=,r=abcdefghijklmnop";
    assert_eq!(initial("SCRAM-SHA-256-PLUS", &format!("p=tls-server-end-point,,{bare}")), "R");
    assert_eq!(initial("SCRAM-SHA-256", &format!("n,,{bare}")), "R");
    // Whoever says that the server has no channel binding was lied to (RFC 5802 section 6).
    assert_eq!(initial("SCRAM-SHA-256", &format!("y,,{bare}")), "28000");
    for (mechanism, first) in [
        ("SCRAM-SHA-256-PLUS", format!("n,,{bare}")),
        ("SCRAM-SHA-256-PLUS", format!("y,,{bare}")),
        ("SCRAM-SHA-256-PLUS", format!("p=tls-unique,,{bare}")),
        ("SCRAM-SHA-256", format!("p=tls-server-end-point,,{bare}")),
        ("SCRAM-SHA-1", format!("n,,{bare}")),
    ] {
        assert_eq!(initial(mechanism, &first), "08P01", "{mechanism} {first}");
    }
    unharmed(&pgusher);
}

#[test]
fn a_handshake_that_ends_at_any_byte_leaves_nothing() {
    let pgusher = with_tls("prefer", "client_login_timeout = \"10s\"", "");
    assert_eq!(pgusher.select_with("dana", &[("PGSSLMODE", "require")]).unwrap(), "dev");
    let descriptors = pgusher.descriptors();
    let hello = |session: &mut ClientConnection| {
        let mut bytes = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut bytes).unwrap();
        }
        bytes
    };
    for how in [Begin::Asked, Begin::Direct] {
        let length = hello(&mut client_of(&pgusher, &[b"postgresql"])).len();
        for end in 0..length {
            let mut socket = begin(&pgusher, how);
            let bytes = hello(&mut client_of(&pgusher, &[b"postgresql"]));
            socket.write_all(&bytes[..end.min(bytes.len())]).unwrap();
            leave(socket, end);
        }
        // The client's second flight: its Finished.
        for end in 0..74 {
            let mut session = client_of(&pgusher, &[b"postgresql"]);
            let mut socket = begin(&pgusher, how);
            socket.write_all(&hello(&mut session)).unwrap();
            while session.is_handshaking() {
                match session.read_tls(&mut socket) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    read => assert!(read.unwrap() > 0, "closed in the middle of the handshake"),
                }
                session.process_new_packets().unwrap();
            }
            let bytes = hello(&mut session);
            assert!(bytes.len() > 60, "{}", bytes.len());
            socket.write_all(&bytes[..end.min(bytes.len())]).unwrap();
            leave(socket, end);
        }
    }
    eventually("their sockets are closed", || pgusher.descriptors() <= descriptors);
    assert_eq!(pgusher.select_with("dana", &[("PGSSLMODE", "require")]).unwrap(), "dev");
    unharmed(&pgusher);
}

/// With a FIN or, every other time, a RST.
fn leave(socket: TcpStream, number: usize) {
    if number % 2 == 1 {
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

#[test]
fn what_is_sent_in_the_clear_behind_tls_ends_the_connection() {
    let pgusher = with_tls("prefer", "", "");
    let mut stream = arrive(&pgusher, "raw");
    while next_message(&mut stream).unwrap().tag != 'Z' {}
    stream.sock.write_all(&query("CREATE TABLE in_the_clear (a int)")).unwrap();
    let mut rest = Vec::new();
    // An alert, under TLS, at most.
    let _ = stream.sock.read_to_end(&mut rest);
    assert!(!rest.windows(12).any(|w| w == b"CREATE TABLE"), "{rest:?}");
    assert_eq!(pair().dev.sql("dev", "SELECT to_regclass('in_the_clear') IS NULL"), "t");
    unharmed(&pgusher);
}

/// A server's end of TLS before a PostgreSQL that has none: answers no SSLRequest, wants a client certificate of `ca`
/// and the protocol's name. Answers its port.
async fn direct_tls_before(port: u16, folder: &Path) -> u16 {
    let path = |name: &str| folder.join(name);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path("ca.crt")).unwrap()).unwrap();
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(path("server.crt")).unwrap()],
            PrivateKeyDer::from_pem_file(path("server.key")).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut near) = acceptor.accept(socket).await else { return };
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    own
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_is_reached_by_direct_tls_with_a_client_certificate_and_so_is_its_cancel() {
    let folder = temporary_folder("direct");
    certificates(&folder);
    let port = direct_tls_before(pair().dev.port, &folder).await;
    let file = |name: &str| folder.join(name).display().to_string();
    let (ca, certificate, key) = (file("ca.crt"), file("dana.crt"), file("dana.key"));
    let config = |lines: &str| {
        format!(
            "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\n[connections.warehouse]\nhost = \"127.0.0.1\"\n\
             port = {port}\ndatabase = \"dev\"\nusername = \"app\"\nsslmode = \"verify-full\"\n\
             sslrootcert = \"{ca}\"\n{lines}\n[users.raw]\nauth_type = \"trust\"\n"
        )
    };
    let identity = format!("sslcert = \"{certificate}\"\nsslkey = \"{key}\"");
    tokio::task::block_in_place(|| {
        let pgusher = Pgusher::start(&config(&format!("sslnegotiation = \"direct\"\n{identity}")));
        let mut raw = Raw::login(pgusher.address(), "raw");
        assert_eq!(raw.value("SELECT name FROM whoami"), "dev");
        raw.send(&query("SELECT pg_sleep(60)"));
        eventually("it runs", || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'";
            pair().dev.sql("dev", running) == "1"
        });
        raw.cancel(pgusher.address());
        assert_eq!(raw.until_ready().iter().find(|m| m.tag == 'E').unwrap().field('C'), "57014");
        for lines in ["sslnegotiation = \"direct\"".to_owned(), identity.clone()] {
            // Without a certificate it is refused; asking by SSLRequest, it speaks to one who knows only TLS.
            let pgusher = Pgusher::start(&config(&lines));
            let error = refused(&pgusher, "raw", "warehouse");
            assert_eq!(error.field('C'), "08001", "{lines}: {}", error.field('M'));
        }
    });
}

/// A socket that was opened under weaker rules does not get in under them.
#[test]
fn a_login_that_began_before_the_rules_of_tls_were_changed_begins_again() {
    let pgusher = with_tls("prefer", "", "\n[users.ops]\nauth_type = \"trust\"\nconsole = \"admin\"\n");
    let early: Vec<Raw> = (0..3).map(|_| Raw::connect(pgusher.address())).collect();
    std::thread::sleep(Duration::from_millis(200));
    let written = std::fs::read_to_string(pgusher.path("pgusher.toml")).unwrap();
    pgusher.reload(&written.replacen("mode = \"prefer\"", "mode = \"require\"", 1));
    for (mut raw, (user, database)) in
        early.into_iter().zip([("raw", "warehouse"), ("rawprod", "warehouse"), ("ops", "pgusher")])
    {
        raw.send(&startup(0x0003_0000, &[("user", user), ("database", database)]));
        let error = raw.next().expect("a word");
        assert_eq!((error.tag, error.field('C').as_str()), ('E', "57P03"), "{user}: {error:?}");
    }
    unharmed(&pgusher);
}

/// The command line is a client, too, with libpq's words: it verifies whom it talks to, and is refused where it does not speak TLS.
#[test]
fn operators_on_the_command_line_speak_tls_with_libpqs_words() {
    let users = "[users.ops]\npassword = \"ops\"\nconsole = \"admin\"\n";
    let pgusher = with_tls("require", "", users);
    let plan = |host: &str, more: &str, environment: &[(&str, &str)]| {
        let console = format!("host={host} port={} user=ops password=ops {more}", pgusher.port);
        let output = Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .args(["plan", &pgusher.path("pgusher.toml"), "--console", &console])
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if output.status.success() { Ok(said[0].clone()) } else { Err(said.concat()) }
    };
    let nothing = Ok("Nothing changes.\n".to_owned());
    let (ca, other) = (pgusher.path("ca.crt"), pgusher.path("other_ca.crt"));
    assert_eq!(plan("localhost", "", &[]), nothing, "prefer, as libpq does");
    let verified = format!("sslmode=verify-full sslrootcert='{ca}'");
    assert_eq!(plan("localhost", &verified, &[]), nothing);
    assert_eq!(plan("localhost", "", &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &ca)]), nothing);
    let refused = |said: Result<String, String>, expected: &str| {
        let said = said.unwrap_err();
        assert!(said.contains(expected), "{said}");
    };
    refused(
        plan("localhost", &format!("sslmode=verify-full sslrootcert={other}"), &[]),
        "invalid peer certificate",
    );
    refused(plan("localhost", "sslmode=disable", &[]), "TLS is required");
    refused(plan("localhost", "sslmode=always", &[]), "there are disable");
    refused(plan("localhost", "sslmode=verify-full sslrootcert=/nowhere.pem", &[]), "/nowhere.pem");
}
