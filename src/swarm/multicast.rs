//! Beacons on the LAN: IPv4 multicast that no router forwards.
//!
//! A node calls when it starts, asking the others to answer, and then every
//! [`INTERVAL`]. It looks at its interfaces before each call, so a node that
//! moves, or stands in two networks, is heard where it is.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::beacon::{BEACON_MAX, Beacon, BeaconKey};
use super::neighbours::{Heard, Neighbours};
use crate::types::PeerId;

/// Where beacons go: an address of the block for use inside an organisation
/// (RFC 2365).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 74, 1);
/// Between two beacons of a node that nobody asks. 50 neighbours cost 1.2 kB/s.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// More beacons after the first, so that a lost one does not cost an interval.
const FIRST: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(1200)];
/// However many ask, a node answers once in this time.
const ANSWER_PAUSE: Duration = Duration::from_millis(250);
/// Interfaces that are used at most.
const INTERFACES_MAX: usize = 16;
/// Datagrams that are looked at in a second; a flood costs no more.
const LOOKED_AT_MAX: u32 = 2000;

/// Who calls, and by which keys.
#[derive(Clone)]
pub struct Caller {
    /// The node's key.
    pub node: SigningKey,
    /// Of the swarm's keys; without any nobody is heard.
    pub keys: Vec<BeaconKey>,
    /// Port of the node's tunnels.
    pub tunnels: u16,
    /// Port of the beacons.
    pub port: u16,
    /// The only address to call from; `None`: from every one that there is.
    pub from: Option<Ipv4Addr>,
}

/// A node to open a tunnel to, unless there is one by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who must be there.
    pub peer: PeerId,
    /// Where.
    pub address: SocketAddrV4,
}

/// Calls and listens until the receiver of what is found is dropped.
///
/// # Errors
/// Where the port can't be had. A network that can't be used later is logged, and
/// tried again at the next call.
pub async fn run(caller: Caller, found: mpsc::Sender<Found>) -> io::Result<()> {
    let mut lan = Lan::open(caller)?;
    let mut first = FIRST.iter();
    let mut next = Duration::ZERO;
    let mut starts = true;
    let mut asked: Option<Duration> = None;
    let mut buffer = [0; BEACON_MAX + 1];
    loop {
        let due = asked.map_or(next, |asked| asked.min(next));
        tokio::select! {
            () = found.closed() => return Ok(()),
            () = tokio::time::sleep_until((lan.start + due).into()) => {
                let now = lan.start.elapsed();
                // Who is asked answers without asking.
                lan.call(starts && now >= next).await;
                asked = None;
                if now >= next {
                    let early = first.next();
                    starts = early.is_some();
                    next = early.map_or(now + INTERVAL, |at| *at);
                }
            }
            got = lan.socket.recv_from(&mut buffer) => match got {
                Ok((length, from)) => {
                    if let Some(beacon) = lan.hear(&buffer[..length], from) {
                        let now = lan.start.elapsed();
                        if beacon.asks && asked.is_none() {
                            asked = Some(lan.answers_at(now));
                        }
                        if let Heard::Call(peer, address) = lan.neighbours.hear(&beacon, now) {
                            // Who does not keep up hears of it at a later beacon.
                            let _ = found.try_send(Found { peer, address });
                        }
                    }
                }
                Err(error) => {
                    debug!("beacons: {error}");
                    tokio::time::sleep(ANSWER_PAUSE).await;
                }
            },
        }
    }
}

struct Lan {
    caller: Caller,
    me: PeerId,
    socket: UdpSocket,
    joined: HashSet<Ipv4Addr>,
    neighbours: Neighbours,
    sequence: u64,
    start: Instant,
    answered: Option<Duration>,
    /// The second in which datagrams are counted, and how many came.
    counted: (u64, u32),
}

impl Lan {
    fn open(caller: Caller) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        // Several nodes on one machine all hear what is sent to the group.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.set_multicast_ttl_v4(1)?;
        socket.set_multicast_loop_v4(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, caller.port)).into())?;
        let me = PeerId(caller.node.verifying_key().to_bytes());
        Ok(Self {
            me,
            caller,
            socket: UdpSocket::from_std(socket.into())?,
            joined: HashSet::new(),
            neighbours: Neighbours::new(me),
            sequence: 0,
            start: Instant::now(),
            answered: None,
            counted: (0, 0),
        })
    }

    /// One beacon on each interface.
    async fn call(&mut self, asks: bool) {
        let mut addresses = interfaces();
        addresses.retain(|address| self.caller.from.is_none_or(|only| only == *address));
        self.joined.retain(|address| addresses.contains(address));
        for address in addresses {
            if let Err(error) = self.call_on(address, asks).await {
                debug!(%address, "beacon: {error}");
            }
        }
    }

    async fn call_on(&mut self, from: Ipv4Addr, asks: bool) -> io::Result<()> {
        let socket = socket2::SockRef::from(&self.socket);
        if self.joined.insert(from)
            && let Err(error) = socket.join_multicast_v4(&GROUP, &from)
            // An address that came back is in the group still.
            && error.kind() != io::ErrorKind::AddrInUse
        {
            self.joined.remove(&from);
            warn!(address = %from, "can't listen for neighbours: {error}");
            return Err(error);
        }
        socket.set_multicast_if_v4(&from)?;
        // Higher than in an earlier life, as long as the clock is not set back.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.sequence = (self.sequence + 1).max(clock.as_micros() as u64);
        let address = SocketAddrV4::new(from, self.caller.tunnels);
        let beacon = Beacon { peer: self.me, sequence: self.sequence, address, asks };
        let sealed = beacon.seal(&self.caller.node, &self.caller.keys);
        self.socket.send_to(&sealed, (GROUP, self.caller.port)).await.map(drop)
    }

    /// A datagram: a beacon of another member, if it is one.
    fn hear(&mut self, bytes: &[u8], from: SocketAddr) -> Option<Beacon> {
        let SocketAddr::V4(from) = from else { return None };
        let second = self.start.elapsed().as_secs();
        if self.counted.0 != second {
            self.counted = (second, 0);
        }
        self.counted.1 += 1;
        if self.counted.1 > LOOKED_AT_MAX {
            return None;
        }
        match Beacon::open(bytes, *from.ip(), &self.caller.keys) {
            Ok(beacon) => (beacon.peer != self.me).then_some(beacon),
            Err(error) => {
                debug!(%from, "beacon: {error}");
                None
            }
        }
    }

    /// When to answer somebody who asks now. Nodes answer one after another, by
    /// their names, so that not all speak at once.
    fn answers_at(&mut self, now: Duration) -> Duration {
        let spread = Duration::from_millis(u64::from(self.me.0[0]) / 4);
        let free = self.answered.map_or(now, |last| now.max(last + ANSWER_PAUSE));
        self.answered = Some(free + spread);
        free + spread
    }
}

/// Addresses of the interfaces that can multicast, loopback apart.
fn interfaces() -> Vec<Ipv4Addr> {
    let needed = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST;
    let all = getifaddrs().into_iter().flatten();
    let usable = all.filter(|interface| {
        interface.flags.contains(needed) && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let mut addresses: Vec<Ipv4Addr> =
        usable.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip())).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(INTERFACES_MAX);
    addresses
}
