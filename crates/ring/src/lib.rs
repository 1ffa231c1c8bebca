//! Sockets on Linux's io_uring (io_uring(7)): a thread says what it wants of all of them, and one system call (io_uring_enter(2))
//! does it and tells what has been done.
//!
//! [`kernel`] is the only place of pgusher that is not safe Rust: what it gives the kernel is owned by it until the kernel has given
//! it back. [`sockets`] is what a thread's sockets have to read and to send, over any [`Kernel`]; it is plain code, and tested with
//! one that lies in wait.

pub mod lent;
pub mod kernel;
pub mod socket;
pub mod sockets;

pub use kernel::{Bell, Ring, Unavailable};
pub use lent::{Done, Kernel, Lent, Operation, Wait, grow};
pub use socket::{Ending, Freed, Notice};
pub use sockets::{Sockets, Token, Woken};
