//! A long line: a pair of TUN devices with the rate and the delay of the line in
//! between, for kernels without netem. The kernel's own TCP runs over it, so
//! window growth and handshakes cost what they cost.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::space::Space;

/// What waits before the line, like a router's buffer: more is dropped.
const QUEUE_BYTES: usize = 512 << 10;

nix::ioctl_write_ptr_bad!(tun_set, 0x4004_54ca, [u8; 40]);

/// Makes a device at each end and carries packets between them for as long as
/// both exist. `rate` is in bits a second each way, `delay` the time one way.
pub(super) fn join(ends: [(&Space, &str); 2], rate: u64, delay: Duration) {
    let [one, other] = ends.map(|(space, device)| space.enter(|| tun(device)));
    let clone = |file: &File| file.try_clone().expect("clone a device");
    carry(clone(&one), clone(&other), rate, delay);
    carry(other, one, rate, delay);
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
/// arrive one delay later. What arrives at a device that is not up is lost, like
/// everything else that comes to a host that is not there yet. Ends when the device
/// that it takes from goes with its namespace.
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
            let _lost_if_down = to.write_all(&packet);
        }
    });
}
