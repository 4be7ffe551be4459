//! The thread that looks after the store, behind all other work.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc;
use tracing::debug;

use super::memory;
use crate::mount::Care;
use crate::store::Store;

/// How often it looks whether something was stored since its last round.
const LOOK: Duration = Duration::from_secs(5);

/// The thread; ends with [`Caretaker::stop`].
pub(super) struct Caretaker {
    care: Arc<Care>,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Caretaker {
    /// Begins with a round, and goes on with one after every time that something
    /// was stored.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub(super) fn start(store: &Arc<Store>, care: Care) -> std::io::Result<Self> {
        let care = Arc::new(care);
        let (stop, stopped) = mpsc::channel();
        let (store, caring) = (Arc::clone(store), Arc::clone(&care));
        let thread = thread::Builder::new().name("caretaker".into()).spawn(move || {
            step_back();
            let (mut last, mut quiet) = (None, false);
            loop {
                let now = store.stats().stored_blocks;
                if last.replace(now) != Some(now) {
                    caring.round();
                    quiet = false;
                } else if !std::mem::replace(&mut quiet, true) {
                    memory::give_back();
                }
                if stopped.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { care, stop, thread })
    }

    /// Ends it. Blocks until the object at hand is through.
    pub(super) fn stop(self) {
        self.care.stop();
        drop(self.stop);
        // A panic there was already reported.
        let _ = self.thread.join();
    }
}

/// Steps back behind other work. Not to idle priority: what it locks would then
/// be locked for as long as the machine is busy.
pub(super) fn step_back() {
    // IOPRIO_WHO_PROCESS, this thread, the lowest level of IOPRIO_CLASS_BE.
    const LOW_IO: libc::c_int = (2 << 13) | 7;
    // SAFETY: both calls take numbers only, and act on this thread.
    let (processor, disk) = unsafe {
        (
            libc::setpriority(libc::PRIO_PROCESS, 0, 10),
            libc::syscall(libc::SYS_ioprio_set, 1, 0, LOW_IO),
        )
    };
    if processor != 0 || disk != 0 {
        debug!("the caretaker runs at ordinary priority");
    }
}
