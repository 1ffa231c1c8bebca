//! End-to-end tests: the real binary between real clients and real PostgreSQL servers.

// A test that cannot go on should say so at once; what it casts is its own.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls
)]

mod fake;
mod functions;
mod house;
mod random;
mod readme;
mod reached;
mod sources;
mod wire;

mod abuse;
mod apart;
mod audit;
mod bounds;
mod cancel;
mod cells;
mod certificates;
mod check;
mod console;
mod change;
mod differential;
mod doctor;
mod engines;
mod examples;
mod faults;
mod folded;
mod free;
mod grants;
mod halves;
mod hidden;
mod hostile;
mod isolation;
mod lexer;
mod listen;
mod log;
mod login;
mod main_job;
mod management;
mod meaning;
mod metrics;
mod names;
mod oracle;
mod orders;
mod pids;
mod plan;
mod pool;
mod relay;
mod resets;
mod routing;
mod sequences;
mod service;
mod shapes;
mod soak;
mod startup;
mod state;
mod statements;
mod tls;
mod traces;
mod waits;
mod walks;
