//! The threads of an eviction: one that looks and acts, and one that answers the
//! neighbours meanwhile.

use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::warn;

use super::{Looked, Node};
use crate::daemon::caretaker::step_back;

/// How often it looks,
const LOOK: Duration = Duration::from_secs(2);
/// and while neighbours are being asked.
const SOON: Duration = Duration::from_millis(250);
/// A look at a large store takes long: this many times as long nothing is done then.
const REST: u32 = 4;
/// How often uses are written down.
const RECORD: Duration = Duration::from_secs(60);
/// How often it is looked whether the node still is there.
const WATCH: Duration = Duration::from_secs(2);

/// Wakes the thread that looks.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<Rung>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Rung {
    rung: bool,
    stopped: bool,
    interrupted: bool,
}

impl Bell {
    /// There is something to look at.
    pub(super) fn ring(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).rung = true;
        self.changed.notify_all();
    }

    /// Whoever rests is to come to an end, now or when it next would rest.
    pub(super) fn interrupt(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).interrupted = true;
        self.changed.notify_all();
    }

    /// Rests; `false` when it was interrupted or stopped.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let on = |state: &mut Rung| !state.stopped && !state.interrupted;
        let waited = self.changed.wait_timeout_while(state, time, on);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        !std::mem::take(&mut state.interrupted) && !state.stopped
    }

    fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.changed.notify_all();
    }

    /// Waits so long, `deaf` of it whatever rings; `false` when it has been stopped.
    fn wait(&self, most: Duration, deaf: Duration) -> bool {
        let started = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let since = started.elapsed();
            if state.stopped || since >= most.max(deaf) || (state.rung && since >= deaf) {
                state.rung = false;
                return !state.stopped;
            }
            let until = if state.rung { deaf } else { most.max(deaf) };
            let left = until.saturating_sub(since).max(Duration::from_millis(1));
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Both threads; they end with [`Thread::stop`].
pub(in crate::daemon) struct Thread {
    bell: Arc<Bell>,
    looking: JoinHandle<()>,
}

impl Thread {
    /// Looks and answers from now on, as long as there is a node.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub(in crate::daemon) fn start(node: &Arc<Node>) -> std::io::Result<Self> {
        let bell = Arc::clone(&node.evictor.bell);
        let weak: Weak<Node> = Arc::downgrade(node);
        let rings = Arc::clone(&bell);
        let looking = thread::Builder::new().name("evict".into()).spawn(move || {
            step_back();
            look(&weak, &rings);
        })?;
        if let Some(heard) = node.evictor.heard() {
            let weak: Weak<Node> = Arc::downgrade(node);
            // Ends with the node: nobody speaks to it then.
            thread::Builder::new().name("evict-answers".into()).spawn(move || {
                loop {
                    let said = heard.recv_timeout(WATCH);
                    let Some(node) = weak.upgrade() else { return };
                    match said {
                        Ok(said) => node.evictor.said(&node, said),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        }
        Ok(Self { bell, looking })
    }

    /// Ends it. Blocks until the objects at hand are gone.
    pub(in crate::daemon) fn stop(self) {
        self.bell.stop();
        // A panic there was already reported.
        let _ = self.looking.join();
    }
}

fn look(node: &Weak<Node>, bell: &Bell) {
    let mut recorded = Instant::now();
    let (mut most, mut deaf) = (LOOK, Duration::ZERO);
    while bell.wait(most, deaf) {
        let Some(node) = node.upgrade() else { return };
        let done = node.evictor.round(&node);
        let (looked, mut done) = match done {
            Ok(looked) => (looked, Ok(())),
            Err(error) => (Looked::default(), Err(error)),
        };
        deaf = looked.took * REST;
        most = if looked.again { SOON } else { LOOK };
        if recorded.elapsed() >= RECORD {
            recorded = Instant::now();
            done = done.and(node.evictor.record(&node));
        }
        if let Err(error) = done {
            warn!("eviction: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_bell_that_rings_ends_the_wait_and_a_stopped_one_all_waits() {
        let bell = Bell::default();
        bell.ring();
        assert!(bell.wait(LONG, Duration::ZERO));
        assert!(bell.wait(Duration::ZERO, Duration::ZERO), "time is up");
        thread::scope(|scope| {
            scope.spawn(|| bell.ring());
            assert!(bell.wait(LONG, Duration::from_millis(1)));
        });
        bell.stop();
        assert!(!bell.wait(LONG, LONG));
        assert!(!bell.rest(LONG));
    }

    #[test]
    fn a_rest_that_is_interrupted_ends_and_the_next_one_does_not() {
        let bell = Bell::default();
        bell.interrupt();
        assert!(!bell.rest(LONG));
        assert!(bell.rest(Duration::from_millis(1)));
        thread::scope(|scope| {
            scope.spawn(|| bell.interrupt());
            assert!(!bell.rest(LONG));
        });
    }
}
