//! A client (and a server) that speaks the protocol byte by byte, for what no driver would send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A message from the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub tag: char,
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an error or notice.
    pub(crate) fn field(&self, code: char) -> String {
        wire::error_field(&self.body, code as u8)
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .unwrap_or_default()
    }

    /// The columns of a `DataRow` as text.
    pub(crate) fn columns(&self) -> Vec<String> {
        let mut rest = &self.body[2..];
        let mut columns = Vec::new();
        while rest.len() >= 4 {
            let length = i32::from_be_bytes(rest[..4].try_into().unwrap()).max(0) as usize;
            columns.push(String::from_utf8_lossy(&rest[4..4 + length]).into_owned());
            rest = &rest[4 + length..];
        }
        columns
    }
}

pub(crate) fn message(tag: char, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag as u8];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    message('Q', format!("{sql}\0").as_bytes())
}

pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    message('P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

pub(crate) fn bind(portal: &str, name: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = format!("{portal}\0{name}\0\0\0").into_bytes();
    body.extend((parameters.len() as u16).to_be_bytes());
    for parameter in parameters {
        body.extend((parameter.len() as u32).to_be_bytes());
        body.extend(parameter.as_bytes());
    }
    body.extend([0, 0]);
    message('B', &body)
}

pub(crate) fn describe_statement(name: &str) -> Vec<u8> {
    message('D', format!("S{name}\0").as_bytes())
}

pub(crate) fn execute() -> Vec<u8> {
    message('E', b"\0\0\0\0\0")
}

pub(crate) fn close_statement(name: &str) -> Vec<u8> {
    message('C', format!("S{name}\0").as_bytes())
}

pub(crate) fn sync() -> Vec<u8> {
    message('S', b"")
}

pub(crate) fn flush() -> Vec<u8> {
    message('H', b"")
}

pub(crate) fn startup(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in pairs {
        body.extend(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let mut bytes = (body.len() as u32 + 4).to_be_bytes().to_vec();
    bytes.extend(body);
    bytes
}

/// A raw connection.
pub(crate) struct Raw {
    pub stream: TcpStream,
    /// The process ID and secret of `BackendKeyData`.
    pub key: (u32, Vec<u8>),
    /// `ParameterStatus` at login.
    pub parameters: Vec<(String, String)>,
}

impl Raw {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(super::house::PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, key: (0, Vec::new()), parameters: Vec::new() }
    }

    /// From another address of this machine (127.0.0.2, say).
    pub(crate) fn connect_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(super::house::PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, key: (0, Vec::new()), parameters: Vec::new() }
    }

    /// A trusted user, logged in.
    pub(crate) fn login(address: SocketAddr, user: &str) -> Self {
        Self::login_with(address, 0x0003_0000, &[("user", user), ("database", "warehouse")])
    }

    pub(crate) fn login_with(address: SocketAddr, version: u32, pairs: &[(&str, &str)]) -> Self {
        let mut raw = Self::connect(address);
        raw.send(&startup(version, pairs));
        let answer = raw.until_ready();
        let last = answer.last().map(|message| message.tag);
        assert!(matches!(last, Some('Z' | 'E')), "the connection was lost during the login: {answer:?}");
        for message in answer {
            match message.tag {
                'K' => {
                    let pid = u32::from_be_bytes(message.body[..4].try_into().unwrap());
                    raw.key = (pid, message.body[4..].to_vec());
                }
                'S' => {
                    let text = String::from_utf8(message.body).unwrap();
                    let mut parts = text.split('\0');
                    let pair = (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned());
                    raw.parameters.push(pair);
                }
                'E' => panic!("login refused: {}", message.field('M')),
                _ => {}
            }
        }
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message; `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let mut header = [0; 5];
        if let Err(error) = self.stream.read_exact(&mut header) {
            let ended = matches!(
                error.kind(),
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
            );
            assert!(ended, "no answer: {error}");
            return None;
        }
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).ok()?;
        Some(Message { tag: header[0] as char, body })
    }

    /// Everything up to `ReadyForQuery`, or to the end.
    pub(crate) fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next() {
            let last = message.tag == 'Z';
            messages.push(message);
            if last {
                break;
            }
        }
        messages
    }

    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.send(bytes);
        self.until_ready()
    }

    /// The tags of what comes, as a word.
    pub(crate) fn tags(&mut self, bytes: &[u8]) -> String {
        self.ask(bytes).iter().map(|m| m.tag).collect()
    }

    /// The first column of the first row of a simple query; an error's SQLSTATE and text in place of it.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let answer = self.ask(&query(sql));
        if let Some(error) = answer.iter().find(|m| m.tag == 'E') {
            return format!("{} {}", error.field('C'), error.field('M'));
        }
        answer.iter().find(|m| m.tag == 'D').map(|m| m.columns().remove(0)).unwrap_or_default()
    }

    /// Sends a cancel request for this connection's key, and waits until it is dealt with.
    pub(crate) fn cancel(&self, address: SocketAddr) {
        cancel(address, self.key.0, &self.key.1);
    }

    /// Whether anything comes within this time.
    pub(crate) fn answers_within(&self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(super::house::PATIENCE)).unwrap();
        peeked.is_ok()
    }

    /// True if the other side closes the connection within a second.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

pub(crate) fn cancel(address: SocketAddr, pid: u32, secret: &[u8]) {
    let mut packet = (12 + secret.len() as u32).to_be_bytes().to_vec();
    packet.extend(80_877_102u32.to_be_bytes());
    packet.extend(pid.to_be_bytes());
    packet.extend_from_slice(secret);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(super::house::PATIENCE)).unwrap();
    stream.write_all(&packet).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
}
