//! A peer that did not give a block is asked again once it says anew that it has it.

use std::time::Duration;

use peersync::fetch::schedule::{
    Action, BlockKey, Class, Event, Holding, Home, Near, Refusal, Scheduler, Settings, Wanted,
};
use peersync::types::{Digest, ObjectId, PeerId};

const PEER: PeerId = PeerId([1; 32]);
const KEY: BlockKey = BlockKey { object: ObjectId::from_bytes([2; 32]), index: 3 };

/// A scheduler that wants one block, and a clock.
struct One {
    scheduler: Scheduler,
    now: Duration,
}

impl One {
    /// The peer says that it has the block's object.
    fn new() -> Self {
        let scheduler = Scheduler::new(PeerId([9; 32]), Settings::default(), 1);
        let mut one = Self { scheduler, now: Duration::ZERO };
        let home = Home::Layer(Digest::of(b"layer"));
        one.apply(Event::Home { home, size: 1 << 20, whole: false, registry: false });
        one.apply(Event::PeerUp { peer: PEER, near: Near::Lan });
        one.apply(Event::TunnelUp { peer: PEER, tunnel: 1, rtt: Duration::from_millis(1) });
        one.has();
        one
    }

    fn want(&mut self) -> Option<u64> {
        let home = Home::Layer(Digest::of(b"layer"));
        let blocks = vec![Wanted { key: KEY, len: 1 << 18, place: None }];
        let class = Class::Urgent;
        self.apply(Event::Want { interest: 1, class, deadline: None, blocks, home })
    }

    fn has(&mut self) -> Option<u64> {
        let holding = Holding::Add(0..10);
        self.apply(Event::Have { peer: PEER, object: KEY.object, holding })
    }

    /// Tells it something; the request that it makes then, if any.
    fn apply(&mut self, event: Event) -> Option<u64> {
        self.now += Duration::from_millis(1);
        let actions = self.scheduler.apply(self.now, event);
        self.scheduler.check().expect("the invariants hold");
        actions.iter().find_map(|action| match action {
            Action::Fetch { request, .. } => Some(*request),
            _ => None,
        })
    }
}

#[test]
fn who_says_anew_that_it_has_a_block_is_asked_anew() {
    let mut one = One::new();
    let first = one.want().expect("it is asked");
    // It ends its answer without the block.
    assert_eq!(one.apply(Event::Done { request: first }), None, "not asked again");
    assert_eq!(one.apply(Event::Tick), None);
    let second = one.has().expect("it is asked anew");
    // It says that it has not got it, and then it has.
    assert_eq!(one.apply(Event::Refused { request: second, why: Refusal::NotHave }), None);
    assert_eq!(one.apply(Event::Tick), None);
    let third = one.has().expect("it is asked anew");
    assert_eq!(one.apply(Event::Block { request: third, key: KEY, len: 1 << 18 }), None);
    assert!(one.scheduler.is_empty());
}
