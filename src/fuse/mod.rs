//! The FUSE adapter: it translates requests and outcomes, and nothing more.
//!
//! [`mount`] shows a [`FileSystem`](crate::fs::FileSystem) at a directory. What
//! is at hand is answered on the thread that the kernel's request arrived on;
//! what has to be fetched goes to the async runtime together with the reply.
//!
//! # Processes that wait
//!
//! A process that reads through the page cache waits for pages and can be
//! killed at any time; so can one whose request has not been taken up. A
//! request that is being worked on (a lookup that resolves an image, a read
//! with O_DIRECT or of a single page) is different: the kernel asks the file
//! system to give up by FUSE_INTERRUPT, and if that is not supported, even
//! SIGKILL waits for the reply. `fuser` does not support it. So while a request
//! waits, the state of the thread that made it is looked at a few times a
//! second, and when a fatal signal is pending the request is answered with
//! EINTR (`wait.rs`). A signal that the process handles itself does
//! not end a read, as on a local disk.

mod caller;
mod convert;
mod errno;
mod kernel_mount;
mod mountinfo;
mod ops;
mod session;
mod wait;

pub use kernel_mount::{MountError, MountOptions, UnmountError, unmount};
pub use session::{MountHandle, SessionStats, mount};
