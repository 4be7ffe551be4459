//! What a tunnel's peer has asked, in the order in which it is answered. Pure.
//!
//! Invariant: bounded in requests and, by what a request can at most name, in
//! work; what is beyond the bound is answered with busy at once.

use std::collections::VecDeque;

use crate::wire::{Class, Extent, Request, RequestId};

/// Pause that a peer is told that asked too much.
pub(super) const RETRY_MS: u32 = 200;

/// Requests that wait or are being answered on one tunnel.
#[derive(Debug)]
pub(crate) struct ServeQueue {
    waiting: [VecDeque<Open>; 3],
    most: usize,
}

#[derive(Debug)]
struct Open {
    request: Request,
    /// Pieces that have been dealt with.
    done: u32,
    cancelled: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read piece `index` of the request and send it. The step's outcome has no
    /// bearing on what follows.
    Send {
        /// Of which request.
        request: Request,
        /// Number of the block or item.
        index: u64,
    },
    /// The request is over.
    End {
        /// Which.
        request: RequestId,
        /// Whether it was cancelled.
        cancelled: bool,
    },
}

/// Whether requests of a class may be answered by one of the tunnel's workers:
/// urgent ones have a worker of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Urgent requests.
    Urgent,
    /// The others.
    Bulk,
}

impl Lane {
    fn classes(self) -> &'static [Class] {
        match self {
            Self::Urgent => &[Class::Urgent],
            Self::Bulk => &[Class::Bulk, Class::Background],
        }
    }
}

impl ServeQueue {
    /// A queue of at most so many requests.
    pub(crate) fn new(most: u16) -> Self {
        Self { waiting: Default::default(), most: usize::from(most) }
    }

    /// Takes a request in; `false` if it is one too many, or its name is in use.
    pub(crate) fn push(&mut self, request: Request) -> bool {
        let mut open = self.waiting.iter().flatten();
        let known = open.any(|open| open.request.id == request.id);
        if known || self.len() >= self.most {
            return false;
        }
        let open = Open { request, done: 0, cancelled: false };
        self.waiting[request.class as usize].push_back(open);
        true
    }

    /// The peer has no use for the answer any more.
    pub(crate) fn cancel(&mut self, id: RequestId) {
        for open in self.waiting.iter_mut().flatten().filter(|open| open.request.id == id) {
            open.cancelled = true;
        }
    }

    /// What the lane's worker does next; nothing if nobody waits.
    pub(crate) fn next(&mut self, lane: Lane) -> Option<Step> {
        // What was cancelled is over at once: whoever asked may wait to ask anew.
        for class in lane.classes() {
            let queue = &mut self.waiting[*class as usize];
            let at = queue.iter().position(|open| open.cancelled || open.done == open.count());
            if let Some(open) = at.and_then(|at| queue.remove(at)) {
                return Some(Step::End { request: open.request.id, cancelled: open.cancelled });
            }
        }
        let mut queues = lane.classes().iter().map(|class| *class as usize);
        let class = queues.find(|class| !self.waiting[*class].is_empty())?;
        let open = self.waiting[class].front_mut()?;
        let index = open.first() + u64::from(open.done);
        open.done += 1;
        Some(Step::Send { request: open.request, index })
    }

    /// The request has been answered by other means than an end.
    pub(crate) fn forget(&mut self, id: RequestId) {
        self.waiting.iter_mut().for_each(|queue| queue.retain(|open| open.request.id != id));
    }

    /// Whether the request is still to be answered.
    pub(crate) fn is_wanted(&self, id: RequestId) -> bool {
        self.waiting.iter().flatten().any(|open| open.request.id == id && !open.cancelled)
    }

    /// Requests that wait or are being answered.
    pub(crate) fn len(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }
}

impl Open {
    fn first(&self) -> u64 {
        match self.request.extent {
            Extent::Blocks { first, .. } => u64::from(first),
            Extent::Part { index, .. } => u64::from(index),
            Extent::Items { first, .. } => first,
            Extent::Roots { .. }
            | Extent::Spec { .. }
            | Extent::Document { .. }
            | Extent::Image { .. } => 0,
        }
    }

    fn count(&self) -> u32 {
        match self.request.extent {
            Extent::Blocks { count, .. } | Extent::Items { count, .. } => count,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ObjectId;

    fn request(id: u64, class: Class, count: u32) -> Request {
        let object = ObjectId::from_bytes([1; 32]);
        Request { id, class, zstd: false, extent: Extent::Blocks { object, first: 10, count } }
    }

    fn send(step: Option<Step>) -> Option<(u64, u64)> {
        match step {
            Some(Step::Send { request, index }) => Some((request.id, index)),
            _ => None,
        }
    }

    #[test]
    fn requests_are_answered_in_order_of_their_class() {
        let mut queue = ServeQueue::new(10);
        assert!(queue.push(request(1, Class::Background, 1)));
        assert!(queue.push(request(2, Class::Bulk, 2)));
        assert!(queue.push(request(3, Class::Urgent, 1)));
        assert!(!queue.push(request(3, Class::Bulk, 1)), "the name is in use");
        assert_eq!(send(queue.next(Lane::Bulk)), Some((2, 10)));
        assert_eq!(send(queue.next(Lane::Bulk)), Some((2, 11)));
        assert_eq!(queue.next(Lane::Bulk), Some(Step::End { request: 2, cancelled: false }));
        assert_eq!(send(queue.next(Lane::Bulk)), Some((1, 10)));
        assert_eq!(send(queue.next(Lane::Urgent)), Some((3, 10)));
        assert_eq!(queue.next(Lane::Urgent), Some(Step::End { request: 3, cancelled: false }));
        assert_eq!(queue.next(Lane::Urgent), None);
    }

    #[test]
    fn what_is_cancelled_ends_at_once_and_makes_room() {
        let mut queue = ServeQueue::new(2);
        assert!(queue.push(request(1, Class::Bulk, 100)) && queue.push(request(2, Class::Bulk, 1)));
        assert!(!queue.push(request(3, Class::Bulk, 1)), "full");
        assert_eq!(send(queue.next(Lane::Bulk)), Some((1, 10)));
        queue.cancel(2);
        assert!(!queue.is_wanted(2) && queue.is_wanted(1));
        assert_eq!(queue.next(Lane::Bulk), Some(Step::End { request: 2, cancelled: true }));
        assert!(queue.push(request(3, Class::Bulk, 1)));
        queue.forget(1);
        assert_eq!(send(queue.next(Lane::Bulk)), Some((3, 10)));
    }
}
