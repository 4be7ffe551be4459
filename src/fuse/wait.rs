//! Requests that wait: bounded in number, and given up when nobody is left to
//! take the answer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::caller;

/// Requests worked on at once; more wait for their turn. The kernel bounds
/// readahead by itself, and each other request by its process.
const WAITS_MAX: usize = 512;
/// How often the thread behind a waiting request is looked at. A killed process
/// is gone after two to three of these.
const POLL: Duration = Duration::from_millis(100);

/// What came of a wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited<T> {
    /// The answer.
    Ready(T),
    /// Whoever asked is dying and only waits for a reply.
    Dying,
    /// The session has ended.
    Ended,
}

/// Runs what has to wait.
#[derive(Clone)]
pub(super) struct Waits {
    runtime: Handle,
    turns: Arc<Semaphore>,
    ended: CancellationToken,
    given_up: Arc<AtomicU64>,
}

impl Waits {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            turns: Arc::new(Semaphore::new(WAITS_MAX)),
            ended: CancellationToken::new(),
            given_up: Arc::default(),
        }
    }

    /// Waits for `future` on behalf of thread `tid` and passes on what comes of
    /// it. Dropping the future withdraws the want.
    pub(super) fn spawn<T: Send>(
        &self,
        tid: u32,
        future: impl Future<Output = T> + Send + 'static,
        reply: impl FnOnce(Waited<T>) + Send + 'static,
    ) {
        let Self { turns, ended, given_up, .. } = self.clone();
        self.runtime.spawn(async move {
            let turn = async {
                // The semaphore is never closed.
                let _turn = turns.acquire().await;
                future.await
            };
            let waited = tokio::select! {
                biased;
                waited = while_alive(turn, || caller::is_dying(tid)) => waited,
                () = ended.cancelled() => Waited::Ended,
            };
            if matches!(waited, Waited::Dying) {
                given_up.fetch_add(1, Ordering::Relaxed);
            }
            reply(waited);
        });
    }

    /// Ends all waits: there is nobody to reply to.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    /// Number of requests that were given up since their process was dying.
    pub(super) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// Waits for `future`, unless `is_dying` holds twice in a row. Once is not
/// enough: a killed process that waits for pages, not for this reply, is gone by
/// the second look, and others may wait for the same pages.
async fn while_alive<T>(future: impl Future<Output = T>, is_dying: impl Fn() -> bool) -> Waited<T> {
    let mut future = pin!(future);
    let mut was_dying = false;
    loop {
        match tokio::time::timeout(POLL, &mut future).await {
            Ok(ready) => return Waited::Ready(ready),
            Err(_) => {
                let dying = is_dying();
                if dying && was_dying {
                    return Waited::Dying;
                }
                was_dying = dying;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    #[test]
    fn an_answer_is_passed_on_without_a_look_at_anybody() {
        let waited = run(while_alive(ready(7), || unreachable!("nobody waits")));
        assert_eq!(waited, Waited::Ready(7));
    }

    #[test]
    fn only_a_lasting_death_ends_a_wait() {
        let looks = Cell::new(0);
        let script = [true, false, true, true];
        let waited: Waited<()> = run(while_alive(pending(), || {
            looks.set(looks.get() + 1);
            script[looks.get() - 1]
        }));
        assert_eq!(waited, Waited::Dying);
        assert_eq!(looks.get(), 4);
    }
}
