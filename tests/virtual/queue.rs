//! What is going to happen, on a virtual clock: the earliest first, and of one time
//! what was put in first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

/// Events by time.
pub(crate) struct Queue<E> {
    order: BinaryHeap<Reverse<(Duration, u64)>>,
    events: HashMap<u64, E>,
    next: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { order: BinaryHeap::new(), events: HashMap::new(), next: 0 }
    }

    pub(crate) fn push(&mut self, at: Duration, event: E) {
        self.next += 1;
        self.order.push(Reverse((at, self.next)));
        self.events.insert(self.next, event);
    }

    /// When something happens next.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.order.peek().map(|Reverse((at, _))| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<(Duration, E)> {
        let Reverse((at, number)) = self.order.pop()?;
        self.events.remove(&number).map(|event| (at, event))
    }
}
