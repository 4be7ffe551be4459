//! A line between two ends, in user space: it counts, and it can be slow, far,
//! stalled or cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes read at once, and so the grain of delay and rate.
const CHUNK: usize = 16 << 10;
/// Chunks under way in one direction of one connection: like a router's queue.
const QUEUE: usize = 64;

/// A forwarding listener on loopback.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// What the line is like, in both directions.
#[derive(Clone, Copy, Default)]
pub(crate) struct Conditions {
    /// Bytes in a second, all connections together; none: as fast as it goes.
    pub(crate) rate: Option<u64>,
    /// Time on the way, each way.
    pub(crate) delay: Duration,
}

struct Shared {
    upstream: SocketAddr,
    conditions: Conditions,
    state: Mutex<State>,
    changed: Condvar,
    /// When the wire is free again: down, up.
    free: [Mutex<Instant>; 2],
}

#[derive(Default)]
struct State {
    down: u64,
    up: u64,
    connections: u64,
    stalled: bool,
    /// Once this many bytes have come down, the line is cut.
    cut_at: Option<u64>,
    open: Vec<TcpStream>,
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Down,
    Up,
}

impl Line {
    pub(crate) fn to(upstream: SocketAddr) -> Self {
        Self::on(loopback(), upstream)
    }

    pub(crate) fn shaped(upstream: SocketAddr, conditions: Conditions) -> Self {
        Self::between(loopback(), upstream, conditions)
    }

    /// With a listener that stands elsewhere, perhaps in another network.
    pub(crate) fn on(listener: TcpListener, upstream: SocketAddr) -> Self {
        Self::between(listener, upstream, Conditions::default())
    }

    fn between(listener: TcpListener, upstream: SocketAddr, conditions: Conditions) -> Self {
        let address = listener.local_addr().expect("address");
        let now = Instant::now();
        let shared = Arc::new(Shared {
            upstream,
            conditions,
            state: Mutex::default(),
            changed: Condvar::new(),
            free: [Mutex::new(now), Mutex::new(now)],
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&accepting);
                thread::spawn(move || shared.carry(&stream));
            }
        });
        Self { address, shared }
    }

    /// Bytes that have come down to the client so far, headers and all.
    pub(crate) fn down(&self) -> u64 {
        self.shared.state.lock().expect("state").down
    }

    pub(crate) fn up(&self) -> u64 {
        self.shared.state.lock().expect("state").up
    }

    pub(crate) fn connections(&self) -> u64 {
        self.shared.state.lock().expect("state").connections
    }

    /// Nothing comes down any more, but connections stay open.
    pub(crate) fn stall(&self) {
        self.change(|state| state.stalled = true);
    }

    pub(crate) fn resume(&self) {
        self.change(|state| state.stalled = false);
    }

    /// Cuts all connections, now and once they are tried again, after this many
    /// bytes in all have come down.
    pub(crate) fn cut_at(&self, down: u64) {
        self.change(|state| state.cut_at = Some(down));
    }

    pub(crate) fn mend(&self) {
        self.change(|state| state.cut_at = None);
    }

    /// Waits until so many bytes have come down.
    #[track_caller]
    pub(crate) fn wait_for(&self, down: u64, limit: Duration) {
        assert!(self.reaches(down, limit), "{} of {down} bytes after {limit:?}", self.down());
    }

    /// Whether so many bytes have come down before the limit.
    pub(crate) fn reaches(&self, down: u64, limit: Duration) -> bool {
        let state = self.shared.state.lock().expect("state");
        let wait = self.shared.changed.wait_timeout_while(state, limit, |state| state.down < down);
        !wait.expect("state").1.timed_out()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock().expect("state"));
        self.shared.changed.notify_all();
    }
}

fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("loopback listener")
}

impl Drop for Line {
    fn drop(&mut self) {
        // Whoever still waits at a stalled line is let go.
        self.change(|state| {
            state.stalled = false;
            state.cut_at = Some(0);
            state.cut();
        });
    }
}

impl State {
    fn is_cut(&self) -> bool {
        self.cut_at.is_some_and(|at| self.down >= at)
    }

    fn cut(&mut self) {
        for stream in self.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn carry(self: &Arc<Self>, client: &TcpStream) {
        // A handshake takes a round trip.
        thread::sleep(2 * self.conditions.delay);
        let Ok(server) = TcpStream::connect(self.upstream) else {
            return;
        };
        {
            let mut state = self.state.lock().expect("state");
            state.connections += 1;
            if state.is_cut() {
                let _ = client.shutdown(Shutdown::Both);
                return;
            }
            state.open.extend([client, &server].into_iter().filter_map(|s| s.try_clone().ok()));
        }
        for (from, to, direction) in
            [(&server, client, Direction::Down), (client, &server, Direction::Up)]
        {
            let _ = to.set_nodelay(true);
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                return;
            };
            let (sender, receiver) = sync_channel(QUEUE);
            let delay = self.conditions.delay;
            thread::spawn(move || take_in(from, &sender, delay));
            let shared = Arc::clone(self);
            thread::spawn(move || shared.deliver(to, &receiver, direction));
        }
    }

    fn deliver(&self, mut to: TcpStream, chunks: &Receiver<(Instant, Vec<u8>)>, way: Direction) {
        for (due, chunk) in chunks {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.wait_for_wire(chunk.len(), way);
            if way == Direction::Down {
                let state = self.state.lock().expect("state");
                drop(self.changed.wait_while(state, |state| state.stalled).expect("state"));
            }
            if to.write_all(&chunk).is_err() {
                break;
            }
            let mut state = self.state.lock().expect("state");
            match way {
                Direction::Down => state.down += chunk.len() as u64,
                Direction::Up => state.up += chunk.len() as u64,
            }
            if state.is_cut() {
                state.cut();
            }
            self.changed.notify_all();
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// One wire carries all connections: each chunk takes its time on it.
    fn wait_for_wire(&self, bytes: usize, way: Direction) {
        let Some(rate) = self.conditions.rate else {
            return;
        };
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let done = {
            let mut free = self.free[usize::from(way == Direction::Up)].lock().expect("wire");
            *free = (*free).max(Instant::now()) + takes;
            *free
        };
        thread::sleep(done.saturating_duration_since(Instant::now()));
    }
}

fn take_in(mut from: TcpStream, chunks: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if chunks.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends so many bytes to everyone and then closes.
    fn source(bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let address = listener.local_addr().expect("address");
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = (&stream).write_all(&vec![7; bytes]);
            }
        });
        address
    }

    fn drain(address: SocketAddr) -> usize {
        let mut bytes = Vec::new();
        let mut stream = TcpStream::connect(address).expect("connect");
        let _ = stream.read_to_end(&mut bytes);
        bytes.len()
    }

    #[test]
    fn a_line_counts_what_comes_down() {
        let line = Line::to(source(100_000));
        assert_eq!(drain(line.address), 100_000);
        assert_eq!(line.down(), 100_000);
        assert_eq!(line.connections(), 1);
    }

    #[test]
    fn rate_and_delay_hold() {
        let conditions = Conditions { rate: Some(1_000_000), delay: Duration::from_millis(20) };
        let line = Line::shaped(source(200_000), conditions);
        let start = Instant::now();
        assert_eq!(drain(line.address), 200_000);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(250), "{took:?}");
    }

    #[test]
    fn a_cut_line_is_cut_until_it_is_mended() {
        let line = Line::to(source(1_000_000));
        line.cut_at(300_000);
        assert!(drain(line.address) < 1_000_000);
        assert_eq!(drain(line.address), 0);
        line.mend();
        assert_eq!(drain(line.address), 1_000_000);
    }

    #[test]
    fn a_stalled_line_goes_on_when_it_is_resumed() {
        let line = Line::to(source(1_000_000));
        line.stall();
        let address = line.address;
        let reader = thread::spawn(move || drain(address));
        assert_eq!(line.down(), 0);
        line.resume();
        assert_eq!(reader.join().expect("reader"), 1_000_000);
    }
}
