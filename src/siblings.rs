//! Other processes of pgusher at the same addresses, as while one takes the place of another (`so_reuseport`, a socket of the service
//! manager): a cancel request may come to the one that has not its session, which passes it on. The way is an abstract unix socket of
//! each process (unix(7)); both ends see to it that the other one is of the same user.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use crate::cancel::Keys;
use policy::config::Server;
use policy::names::id_of;
use wire::startup::CancelKey;

/// How long the list of siblings holds, and how long one has to take a request.
const KNOWN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);
/// How many there may be: of more, the others are not asked.
const MAX_SIBLINGS: usize = 8;
/// How many requests of theirs are dealt with at once.
const MAX_REQUESTS: usize = 32;
/// The most of `/proc/net/unix` that is read.
const MAX_LIST: u64 = 16 << 20;
/// The longest secret of a key (protocol 3.2).
const MAX_SECRET: u16 = 256;

/// See the module.
pub(crate) struct Siblings {
    /// What the names of their sockets begin with.
    prefix: String,
    own: String,
    known: Mutex<Option<(Instant, Arc<BTreeSet<String>>)>>,
}

impl Siblings {
    /// Those at the addresses of this configuration.
    pub(crate) fn of(server: &Server) -> Self {
        let addresses: Vec<String> = server.listen.iter().map(|address| (**address).to_string()).collect();
        let uid = rustix::process::geteuid().as_raw();
        let prefix = format!("pgusher/{uid}/{}/", id_of("listen", &addresses.join(" ")).simple());
        let own = format!("{prefix}{}", std::process::id());
        Self { prefix, own, known: Mutex::default() }
    }

    /// Where siblings find this process.
    ///
    /// # Errors
    /// As bind(2).
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        UnixListener::bind(format!("\0{}", self.own))
    }

    /// Passes a request on to all of them: one of them may know its key.
    pub(crate) async fn cancel(&self, key: &CancelKey) {
        let mut message = key.pid.to_be_bytes().to_vec();
        message.extend(u16::try_from(key.secret.len()).unwrap_or(0).to_be_bytes());
        message.extend_from_slice(&key.secret);
        for sibling in self.known().await.iter() {
            let told = timeout(PATIENCE, tell(sibling, &message)).await;
            if let Ok(Err(error)) = told {
                debug!(sibling, %error, "a cancel request was not passed on");
            }
        }
    }

    async fn known(&self) -> Arc<BTreeSet<String>> {
        if let Some((at, known)) = &*self.known.lock()
            && at.elapsed() < KNOWN
        {
            return known.clone();
        }
        let (prefix, own) = (self.prefix.clone(), self.own.clone());
        let found = tokio::task::spawn_blocking(move || list(&prefix, &own)).await.unwrap_or_default();
        let found = Arc::new(found);
        *self.known.lock() = Some((Instant::now(), found.clone()));
        found
    }
}

/// The sockets of siblings, as the system lists them.
fn list(prefix: &str, own: &str) -> BTreeSet<String> {
    use std::io::Read;
    let mut text = String::new();
    let read =
        std::fs::File::open("/proc/net/unix").and_then(|file| file.take(MAX_LIST).read_to_string(&mut text));
    if read.is_err() {
        return BTreeSet::new();
    }
    let names = text.lines().filter_map(|line| line.split_whitespace().last()?.strip_prefix('@'));
    let siblings = names.filter(|name| name.starts_with(prefix) && *name != own);
    siblings.take(MAX_SIBLINGS).map(str::to_owned).collect()
}

fn is_ours(stream: &UnixStream) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred()?.uid() == own {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

async fn tell(sibling: &str, message: &[u8]) -> io::Result<()> {
    let mut stream = UnixStream::connect(format!("\0{sibling}")).await?;
    // Anybody may have taken the name: whoever is somebody else gets no key.
    is_ours(&stream)?;
    stream.write_all(message).await?;
    // Until it is done: the client waits for the end of its own connection.
    stream.shutdown().await?;
    stream.read(&mut [0]).await.map(drop)
}

/// Does what siblings ask for, until the process ends.
pub(crate) async fn serve(listener: UnixListener, keys: Arc<Keys>) {
    let permits = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(KNOWN).await;
            continue;
        };
        let keys = keys.clone();
        tokio::spawn(async move {
            let asked = async {
                is_ours(&stream)?;
                let pid = stream.read_u32().await?;
                let length = stream.read_u16().await?;
                if length > MAX_SECRET {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                }
                let mut secret = vec![0; length.into()];
                stream.read_exact(&mut secret).await?;
                Ok(CancelKey { pid, secret: secret.into() })
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(key)) => drop(timeout(PATIENCE, keys.cancel(&key)).await),
                Ok(Err(error)) => debug!(%error, "a sibling's request"),
                Err(_) => debug!("a sibling has asked for nothing"),
            }
            drop(permit);
        });
    }
}
