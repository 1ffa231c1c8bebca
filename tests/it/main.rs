//! End-to-end tests: the real binary between real clients and real PostgreSQL servers.

mod fake;
mod house;
mod wire;

mod abuse;
mod change;
mod faults;
mod login;
mod main_job;
mod relay;
mod routing;
