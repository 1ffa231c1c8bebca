//! A PostgreSQL server of a few words, for conversations in memory: it answers what the tests send, in the protocol's order.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::tests::row;
use wire::{HEADER, Header, cstr, message};

/// One connection's server process.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// What has come and is not dealt with.
    input: Vec<u8>,
    /// `I`, `T` or `E`; 0 before anything was said is `I`.
    failed: bool,
    in_transaction: bool,
    skips: bool,
    copies: bool,
    /// The COPY was begun by an `Execute`: what ends it is not followed by `ReadyForQuery`.
    copy_is_extended: bool,
    prepared: BTreeMap<Vec<u8>, String>,
    bound: Option<String>,
    listens: BTreeSet<String>,
    /// What sessions have set and not reset.
    pub settings: BTreeMap<String, String>,
    /// Texts that were run here, in order.
    pub ran: Vec<String>,
}

impl Server {
    /// Takes bytes in, and answers all messages that are whole.
    pub(super) fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(Ok(header)) =
            Header::read(&self.input).filter(|h| matches!(h, Ok(h) if h.total <= self.input.len()))
        {
            let whole: Vec<u8> = self.input.drain(..header.total).collect();
            self.message(header.tag, &whole[HEADER..], &mut out);
        }
        out
    }

    /// Nothing was begun here that is not over.
    pub(super) fn is_at_rest(&self) -> bool {
        self.input.is_empty() && !self.in_transaction && !self.skips && !self.copies
    }

    fn status(&self) -> u8 {
        match (self.in_transaction, self.failed) {
            (false, _) => b'I',
            (true, false) => b'T',
            (true, true) => b'E',
        }
    }

    fn message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        if self.copies {
            match tag {
                b'c' => message(out, b'C', |out| out.extend(b"COPY 1\0")),
                b'f' => self.error("57014", out),
                _ => return,
            }
            self.copies = false;
            if !self.copy_is_extended {
                self.ready(out);
            }
            return;
        }
        match tag {
            b'Q' => {
                let text = text(body);
                self.prepared.remove(&b""[..]);
                for statement in text.split(';').filter(|statement| !statement.trim().is_empty()) {
                    if !self.run(statement.trim(), out) || self.copies {
                        break;
                    }
                }
                self.copy_is_extended = false;
                if !self.copies {
                    self.ready(out);
                }
            }
            b'S' => {
                self.skips = false;
                self.ready(out);
            }
            b'H' | b'd' | b'c' | b'f' => {}
            _ if self.skips => {}
            b'P' => {
                let (name, rest) = cstr(body).unwrap();
                let statement = text(rest);
                if statement.starts_with("FAIL TO PARSE")
                    || !name.is_empty() && self.prepared.contains_key(name)
                {
                    self.error("42601", out);
                    self.skips = true;
                } else {
                    self.prepared.insert(name.to_vec(), statement);
                    message(out, b'1', |_| {});
                }
            }
            b'B' => {
                let (_, rest) = cstr(body).unwrap();
                let (name, _) = cstr(rest).unwrap();
                self.bound = self.prepared.get(name).cloned();
                self.done(b'2', self.bound.is_some(), out);
            }
            b'D' => {
                let (name, _) = cstr(&body[1..]).unwrap();
                let known =
                    if body[0] == b'S' { self.prepared.contains_key(name) } else { self.bound.is_some() };
                if known && body[0] == b'S' {
                    message(out, b't', |out| out.extend([0; 2]));
                }
                self.done(b'n', known, out);
            }
            b'E' => match self.bound.clone() {
                Some(statement) => {
                    self.skips = !self.run(&statement, out);
                    self.copy_is_extended = true;
                }
                None => self.done(b'C', false, out),
            },
            b'F' => {
                message(out, b'V', |out| out.extend((-1i32).to_be_bytes()));
                self.ready(out);
            }
            b'C' => {
                let (name, _) = cstr(&body[1..]).unwrap();
                if body[0] == b'S' {
                    self.prepared.remove(name);
                }
                message(out, b'3', |_| {});
            }
            _ => panic!("a message {:?}", tag as char),
        }
    }

    fn done(&mut self, tag: u8, good: bool, out: &mut Vec<u8>) {
        if good {
            return message(out, tag, |_| {});
        }
        self.error("26000", out);
        self.skips = true;
    }

    /// Runs one statement; false if it failed.
    fn run(&mut self, statement: &str, out: &mut Vec<u8>) -> bool {
        self.ran.push(statement.to_owned());
        let words: Vec<&str> = statement.split_whitespace().collect();
        let tag = match words.as_slice() {
            ["ROLLBACK"] => {
                (self.in_transaction, self.failed) = (false, false);
                "ROLLBACK"
            }
            ["COMMIT"] => {
                let tag = if self.failed { "ROLLBACK" } else { "COMMIT" };
                (self.in_transaction, self.failed) = (false, false);
                tag
            }
            _ if self.failed => {
                self.error("25P02", out);
                return false;
            }
            ["BEGIN"] => {
                self.in_transaction = true;
                "BEGIN"
            }
            ["FAIL", ..] => {
                self.error("22012", out);
                return false;
            }
            ["SET", name, "TO", value] => {
                self.settings.insert((*name).to_owned(), (*value).to_owned());
                "SET"
            }
            ["RESET", name] => {
                self.settings.remove(*name);
                "RESET"
            }
            ["LISTEN", name] => {
                self.listens.insert((*name).trim_matches('"').to_owned());
                "LISTEN"
            }
            ["DEALLOCATE", name] => {
                self.prepared.remove(name.trim_matches('"').as_bytes());
                "DEALLOCATE"
            }
            ["UNLISTEN", "*"] => {
                self.listens.clear();
                "UNLISTEN"
            }
            ["NOTIFY", what] => {
                let (channel, payload) = what.split_once(',').unwrap_or((what, "''"));
                let (channel, payload) = (channel.trim_matches('"'), payload.trim_matches('\''));
                if self.listens.contains(channel) {
                    message(out, b'A', |out| {
                        out.extend(7_u32.to_be_bytes());
                        wire::push_cstr(out, channel);
                        wire::push_cstr(out, payload);
                    });
                }
                "NOTIFY"
            }
            ["DISCARD", "ALL"] => {
                let (input, ran) = (std::mem::take(&mut self.input), std::mem::take(&mut self.ran));
                *self = Self { input, ran, ..Self::default() };
                "DISCARD ALL"
            }
            ["COPY", ..] => {
                self.copies = true;
                message(out, b'G', |out| out.extend([0; 3]));
                return true;
            }
            ["SELECT", ..] => {
                let row = self.selects(statement);
                message(out, b'D', |out| out.extend_from_slice(&row));
                "SELECT 1"
            }
            other => panic!("a statement {other:?}"),
        };
        message(out, b'C', |out| wire::push_cstr(out, tag));
        true
    }

    /// What a query of pgusher's own selects; of others, one column.
    fn selects(&mut self, statement: &str) -> Vec<u8> {
        let mut columns: Vec<Option<String>> = Vec::new();
        let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        if statement.contains("set_config(") {
            for call in statement.split("set_config(").skip(1) {
                let mut quoted = call.split('\'').skip(1).step_by(2);
                if let (Some(name), Some(value)) = (quoted.next(), quoted.next()) {
                    self.settings.insert(name.to_owned(), value.to_owned());
                }
            }
        }
        let mut asked = BTreeSet::new();
        for call in statement.split("current_setting(E'").skip(1) {
            let name = call.split('\'').next().unwrap_or_default().to_owned();
            if asked.insert(name.clone()) {
                let value = self.settings.get(&name);
                columns.push(value.map(|value| hex(value)));
                columns.push(Some(if value.is_some() { "t" } else { "f" }.to_owned()));
            }
        }
        if statement.contains("EXISTS(") {
            columns.extend(std::iter::repeat_n(Some("f".to_owned()), 4));
            let listed: Vec<String> = self.listens.iter().map(|channel| hex(channel)).collect();
            columns.push((!listed.is_empty()).then(|| listed.join(",")));
        }
        let proof = statement.rsplit_once("'::pg_catalog.text").and_then(|(head, _)| head.rsplit_once('\''));
        columns.push(Some(proof.map_or("1", |(_, proof)| proof).to_owned()));
        row(&columns.iter().map(Option::as_deref).collect::<Vec<_>>())
    }

    fn error(&mut self, sqlstate: &str, out: &mut Vec<u8>) {
        self.failed = self.in_transaction;
        message(out, b'E', |out| {
            for (field, text) in [(b'S', "ERROR"), (b'V', "ERROR"), (b'C', sqlstate), (b'M', "no")] {
                out.push(field);
                wire::push_cstr(out, text);
            }
            out.push(0);
        });
    }

    fn ready(&self, out: &mut Vec<u8>) {
        wire::ready_for_query(out, self.status());
    }
}

/// The text at the start of a body.
fn text(body: &[u8]) -> String {
    String::from_utf8(cstr(body).unwrap().0.to_vec()).unwrap()
}
