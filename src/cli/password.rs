//! `pgusher hash-password`: a password from standard input, and the verifier that goes into the configuration.

use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use policy::verifier::{EMPTY, SCRAM_ITERATIONS, ScramVerifier, is_empty};

/// What Ctrl-C types.
const INTERRUPT: u8 = 3;

/// The password comes from standard input, one line: arguments can be seen by everybody on the machine.
pub(super) fn hash() -> ExitCode {
    match read().and_then(|password| verifier(&password)) {
        Ok(verifier) => {
            say!("{verifier}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

pub(super) fn verifier(password: &str) -> Result<ScramVerifier, String> {
    if is_empty(password) {
        return Err(EMPTY.to_owned());
    }
    let mut salt = vec![0; 16];
    getrandom::fill(&mut salt).map_err(|error| format!("no random bytes: {error}"))?;
    Ok(ScramVerifier::derive(password, salt, SCRAM_ITERATIONS))
}

/// At a terminal it is not shown, and so asked for twice.
fn read() -> Result<Zeroizing<String>, String> {
    if !io::stdin().is_terminal() {
        return line();
    }
    let hidden = Hidden::begin().map_err(|error| format!("cannot hide what is typed: {error}"))?;
    let password = hidden.ask("Password: ")?;
    if hidden.ask("Again: ")? != password {
        return Err("the two are not the same".to_owned());
    }
    Ok(password)
}

/// One line of standard input, without its end and a byte-order mark before it.
fn line() -> Result<Zeroizing<String>, String> {
    let mut line = Zeroizing::new(String::new());
    io::stdin().lock().read_line(&mut line).map_err(|error| format!("cannot read the password: {error}"))?;
    let text = line.trim_end_matches(['\r', '\n']);
    Ok(Zeroizing::new(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned()))
}

/// A terminal that shows nothing of what is typed; as it was before when this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin().as_fd())?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO;
        quiet.local_modes |= LocalModes::ECHONL;
        // A signal would end us before the terminal is as it was: Ctrl-C ends the line instead.
        quiet.local_modes -= LocalModes::ISIG;
        quiet.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }

    fn ask(&self, prompt: &str) -> Result<Zeroizing<String>, String> {
        eprint!("{prompt}");
        let _ = io::stderr().flush();
        let mut read = Zeroizing::new(Vec::new());
        let mut input = io::stdin().lock();
        loop {
            let ready = input.fill_buf().map_err(|error| format!("cannot read the password: {error}"))?;
            let end = ready.iter().position(|byte| matches!(*byte, b'\n' | INTERRUPT));
            let taken = end.map_or(ready.len(), |end| end + 1);
            read.extend_from_slice(&ready[..taken]);
            input.consume(taken);
            if end.is_some() || taken == 0 {
                break;
            }
        }
        if read.last() == Some(&INTERRUPT) {
            return Err("\ninterrupted".to_owned());
        }
        let text = std::str::from_utf8(&read).map_err(|_| "the password is not UTF-8".to_owned())?;
        Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &self.0);
    }
}
