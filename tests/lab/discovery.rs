//! Nodes of a LAN find each other by multicast; nobody else finds them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use peersync::swarm::beacon::{Beacon, BeaconKey};
use peersync::swarm::multicast::{Caller, Found, GROUP, run};
use peersync::types::PeerId;
use tokio::sync::mpsc;

use crate::harness::needs_mounts;
use crate::world::{Lab, Plan, Space, address};

const PORT: u16 = 7401;
/// Whatever is waited for is there long before: nodes find each other within 3 s.
const LONG: Duration = Duration::from_secs(60);
/// The beacons of a start are over by then.
const START: Duration = Duration::from_secs(3);

/// Who called whom where.
#[derive(Default)]
struct Seen {
    found: Mutex<BTreeSet<(PeerId, PeerId, SocketAddrV4)>>,
    changed: Condvar,
}

impl Seen {
    /// What has been found once there is so much of it, or the time is over.
    fn after(&self, count: usize, limit: Duration) -> BTreeSet<(PeerId, PeerId, SocketAddrV4)> {
        let found = self.found.lock().expect("found");
        let few = |found: &mut BTreeSet<_>| found.len() < count;
        self.changed.wait_timeout_while(found, limit, few).expect("found").0.clone()
    }
}

fn node(lan: u8, number: u8) -> SigningKey {
    SigningKey::from_bytes(&[lan * 16 + number; 32])
}

fn name(lan: u8, number: u8) -> PeerId {
    PeerId(node(lan, number).verifying_key().to_bytes())
}

fn key(n: u8) -> Vec<BeaconKey> {
    vec![BeaconKey::new(&[n; 32])]
}

/// Calls and listens in a namespace until `until`.
fn take_part(space: &Space, caller: Caller, seen: &Seen, until: &Mutex<()>) {
    let me = PeerId(caller.node.verifying_key().to_bytes());
    space.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let (sender, mut receiver) = mpsc::channel(64);
            let running = run(caller, sender);
            let collect = async {
                loop {
                    let next = tokio::time::timeout(Duration::from_millis(50), receiver.recv());
                    match next.await {
                        Ok(Some(Found { peer, address })) => {
                            seen.found.lock().expect("found").insert((me, peer, address));
                            seen.changed.notify_all();
                        }
                        Ok(None) => return,
                        Err(_) if until.try_lock().is_ok() => receiver.close(),
                        Err(_) => {}
                    }
                }
            };
            let (ended, ()) = tokio::join!(running, collect);
            ended.expect("multicast");
        });
    });
}

fn caller(node: SigningKey, keys: Vec<BeaconKey>) -> Caller {
    Caller { node, keys, tunnels: 7400, port: PORT, from: None }
}

/// Every pair of a LAN, the smaller name first: it is the one that calls.
fn pairs(lan: u8, nodes: std::ops::RangeInclusive<u8>) -> BTreeSet<(PeerId, PeerId, SocketAddrV4)> {
    let mut pairs = BTreeSet::new();
    for (a, b) in nodes.clone().flat_map(|a| nodes.clone().map(move |b| (a, b))) {
        if name(lan, a) < name(lan, b) {
            pairs.insert((name(lan, a), name(lan, b), SocketAddrV4::new(address(lan, b), 7400)));
        }
    }
    pairs
}

#[test]
fn six_nodes_with_one_key_find_their_lan_and_strangers_find_nobody() {
    needs_mounts!();
    let lab = Lab::build(&Plan::of(2, 4));
    let (seen, until) = (Seen::default(), Mutex::new(()));
    thread::scope(|scope| {
        let running = until.lock().expect("until");
        for lan in [1, 2] {
            for number in 1..=4 {
                let (seen, until, space) = (&seen, &until, &lab.node(lan, number).space);
                // The fourth is of another swarm.
                let keys = key(if number == 4 { 9 } else { 1 });
                scope.spawn(move || {
                    take_part(space, caller(node(lan, number), keys), seen, until);
                });
            }
        }
        let start = Instant::now();
        let wanted: BTreeSet<_> = pairs(1, 1..=3).union(&pairs(2, 1..=3)).copied().collect();
        assert_eq!(seen.after(wanted.len(), LONG), wanted, "after {:?}", start.elapsed());
        // The later beacons of the start change nothing.
        let all = seen.after(usize::MAX, START.saturating_sub(start.elapsed()));
        drop(running);
        assert_eq!(all, wanted);
    });
}

#[test]
fn recorded_and_forged_beacons_lead_nowhere() {
    needs_mounts!();
    let lab = Lab::build(&Plan::of(1, 3));
    let (seen, until) = (Seen::default(), Mutex::new(()));
    // Whoever has the greater name is called at once.
    let (small, great) =
        if name(1, 1) < name(1, 2) { (node(1, 1), node(1, 2)) } else { (node(1, 2), node(1, 1)) };
    let great_name = PeerId(great.verifying_key().to_bytes());
    let attacker = lab.node(1, 3);
    let socket = attacker.space.enter(|| UdpSocket::bind((attacker.address(), 0)).expect("socket"));
    let say = |bytes: &[u8]| {
        socket.send_to(bytes, (GROUP, PORT)).expect("send");
    };
    let beacon = |address: Ipv4Addr, sequence| Beacon {
        peer: great_name,
        sequence,
        address: SocketAddrV4::new(address, 7400),
        asks: true,
    };
    thread::scope(|scope| {
        let running = until.lock().expect("until");
        let (place, seen, until) = (&lab.node(1, 1).space, &seen, &until);
        let listener = caller(small, key(1));
        scope.spawn(move || take_part(place, listener, seen, until));
        let own = beacon(attacker.address(), 5).seal(&great, &key(1));
        // A second of everything that must not be heeded, while the listener starts.
        for n in 0..1000_u64 {
            say(&beacon(address(1, 2), n).seal(&great, &key(1))); // recorded elsewhere
            say(&beacon(attacker.address(), n).seal(&great, &key(2))); // another swarm
            say(&beacon(attacker.address(), u64::MAX).seal(&node(1, 3), &key(1))); // for another
            say(&own[..own.len() - 1]);
            say(&[7; 900]);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(seen.after(1, Duration::ZERO), BTreeSet::new());
        // The flood is over, and what is right is heeded: the limit of what is
        // looked at counts by the second.
        let start = Instant::now();
        let mut found = BTreeSet::new();
        while found.is_empty() && start.elapsed() < LONG {
            say(&own);
            found = seen.after(1, Duration::from_millis(100));
        }
        drop(running);
        assert_eq!(found.len(), 1);
        assert!(
            found.iter().all(|(_, peer, at)| *peer == great_name && *at.ip() == attacker.address())
        );
    });
}
