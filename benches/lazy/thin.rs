//! A thin, long line: a pair of TUN devices, one end in a network namespace of
//! its own, with the rate and the delay of the line in between. The kernel's
//! own TCP runs over it, so window growth and handshakes cost what they cost.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::harness::line::Line;
use crate::harness::tool;
use crate::report::{Table, seconds};
use crate::wire::timed;

/// Bits in a second, and the time there and back, of the benchmarks' line.
pub(crate) const RATE: u64 = 100_000_000;
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(40);

const NAMESPACE: &str = "peersync-bench";
const NEAR: &str = "psb-near";
const FAR: &str = "psb-far";
const NEAR_ADDRESS: &str = "10.119.77.1/30";
const FAR_ADDRESS: &str = "10.119.77.2";
/// What waits before the line, like a router's buffer: more is dropped.
const QUEUE_BYTES: usize = 512 << 10;

nix::ioctl_write_ptr_bad!(tun_set, 0x4004_54ca, [u8; 40]);

/// The line; its devices and its namespace go when it is dropped.
pub(crate) struct ThinLine {
    /// Counts at the far end, where the registry stands.
    pub(crate) counted: Line,
}

impl ThinLine {
    /// To `upstream`, with bits in a second and a round trip.
    pub(crate) fn to(upstream: SocketAddr, rate: u64, round_trip: Duration) -> Self {
        remove();
        tool("ip", &["netns", "add", NAMESPACE]);
        let near = tun(NEAR);
        let far = in_namespace(|| tun(FAR));
        tool("ip", &["addr", "add", NEAR_ADDRESS, "dev", NEAR]);
        tool("ip", &["link", "set", NEAR, "up"]);
        let far_address = format!("{FAR_ADDRESS}/30");
        for arguments in [
            &["addr", "add", &far_address, "dev", FAR][..],
            &["link", "set", FAR, "up"],
            &["link", "set", "lo", "up"],
        ] {
            tool("ip", &[&["-n", NAMESPACE], arguments].concat());
        }
        let clone = |file: &File| file.try_clone().expect("clone a device");
        carry(clone(&near), clone(&far), rate, round_trip / 2);
        carry(far, near, rate, round_trip / 2);
        let listener =
            in_namespace(|| TcpListener::bind((FAR_ADDRESS, 0)).expect("listener at the far end"));
        Self { counted: Line::on(listener, upstream) }
    }
}

impl Drop for ThinLine {
    fn drop(&mut self) {
        remove();
    }
}

/// What the line is like: a handshake, and 32 MiB over one connection.
pub(crate) fn itself() {
    const BYTES: usize = 32 << 20;
    let source = TcpListener::bind("127.0.0.1:0").expect("listener");
    let upstream = source.local_addr().expect("address");
    thread::spawn(move || {
        for stream in source.incoming().map_while(Result::ok) {
            let _ = (&stream).write_all(&vec![0; BYTES]);
        }
    });
    let line = ThinLine::to(upstream, RATE, ROUND_TRIP);
    let (handshake, mut stream) =
        timed(|| TcpStream::connect(line.counted.address).expect("connect"));
    let (time, read) = timed(|| std::io::copy(&mut stream, &mut std::io::sink()).expect("read"));
    assert_eq!(read, BYTES as u64);
    let mut table = Table::new(&["the line", "measured"]);
    table.row(["handshake".into(), seconds(handshake)]);
    let rate = BYTES as f64 * 8.0 / time.as_secs_f64() / 1e6;
    table.row(["32 MiB over one connection".into(), format!("{rate:.1} Mbit/s of content")]);
    table.print();
}

fn remove() {
    let quietly = |arguments: &[&str]| {
        let _ = crate::harness::output(std::process::Command::new("ip").args(arguments));
    };
    quietly(&["link", "del", NEAR]);
    quietly(&["netns", "del", NAMESPACE]);
}

/// Runs something on a thread of its own inside the namespace: sockets and
/// devices that it opens belong there.
fn in_namespace<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{NAMESPACE}")).expect("namespace");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            run()
        });
        inside.join().expect("thread in the namespace")
    })
}

fn tun(name: &str) -> File {
    const IFF_TUN: u16 = 0x0001;
    const IFF_NO_PI: u16 = 0x1000;
    let device = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: TUNSETIFF reads an `ifreq`, 40 bytes at the address of the array.
    unsafe { tun_set(device.as_raw_fd(), &raw const request) }.expect("TUNSETIFF");
    device
}

/// One direction: packets take their time on the wire one after the other, and
/// arrive one delay later.
fn carry(mut from: File, mut to: File, rate: u64, delay: Duration) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut packet = vec![0; 65_536];
        let mut free = Instant::now();
        let mut waiting: VecDeque<(Instant, usize)> = VecDeque::new();
        let mut queued = 0;
        while let Ok(read @ 1..) = from.read(&mut packet) {
            let now = Instant::now();
            while waiting.front().is_some_and(|(sent, _)| *sent <= now) {
                queued -= waiting.pop_front().map_or(0, |(_, bytes)| bytes);
            }
            if queued + read > QUEUE_BYTES {
                continue;
            }
            free = free.max(now) + Duration::from_secs_f64(read as f64 * 8.0 / rate as f64);
            waiting.push_back((free, read));
            queued += read;
            if sender.send((free + delay, packet[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, packet) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&packet).is_err() {
                break;
            }
        }
    });
}
