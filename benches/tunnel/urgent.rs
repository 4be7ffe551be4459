//! What a reader waits for while bulk fills a line of 100 Mbit/s.
//!
//! A 4 KiB read asks for the block that it lies in, 256 KiB. The line is the
//! kernel's: loopback in a network namespace of this thread's own, behind a token
//! bucket with a queue of 128 KiB (10 ms). Needs root, `ip` and `tc`.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use peersync::fetch::tunnel::{Endpoint, EventKind, Events, Target, Transport, Tunnel, Want};
use peersync::store::Store;
use peersync::types::ObjectSpec;
use peersync::wire::Class;

use super::endpoint;

/// Reads of each kind.
const READS: usize = 200;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(30);
/// Bulk in flight, in blocks: four bandwidth-delay products and more.
const BULK: u32 = 16;
/// Names of urgent requests; those of bulk ones are below.
const URGENT: u64 = 1 << 32;
const TARGET: f64 = 3.0;

pub(super) fn run(holder: &Arc<Store>, empty: &Arc<Store>, spec: &Arc<ObjectSpec>) {
    let (holder, empty, spec) = (Arc::clone(holder), Arc::clone(empty), Arc::clone(spec));
    let measured = std::thread::spawn(move || {
        if let Err(why) = line() {
            return println!("urgent reads: not measured: {why}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("runtime");
        for transport in [Transport::Tcp, Transport::Quic] {
            runtime.block_on(measure(&holder, &empty, &spec, transport));
        }
    });
    measured.join().expect("measured");
}

/// A network of this thread's own with a thin loopback.
fn line() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("no network namespace: {e}"))?;
    for words in [
        "ip link set lo up mtu 1500",
        "tc qdisc add dev lo root tbf rate 100mbit burst 16kb limit 128kb",
    ] {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().expect("a program"));
        let done = command.args(words).status().map_err(|e| e.to_string())?;
        if !done.success() {
            return Err(format!("{command:?}: {done}"));
        }
    }
    Ok(())
}

async fn measure(
    holder: &Arc<Store>,
    empty: &Arc<Store>,
    spec: &Arc<ObjectSpec>,
    transport: Transport,
) {
    let (there, _their_events) = endpoint(1, transport, holder);
    let (here, mut events) = endpoint(2, transport, empty);
    let at = Target { peer: Some(there.me()), address: there.address() };
    let tunnel = here.open(at).await.expect("open");
    let mut reader = Reader { tunnel, spec, next_bulk: 0, names: 0 };
    let idle = reads(&mut reader, &mut events, 0).await;
    let busy = reads(&mut reader, &mut events, BULK).await;
    let ratio = busy.1 / idle.1;
    println!(
        "urgent read, 100 Mbit/s, {transport:?}: idle p50 {:.1} p99 {:.1} ms, under bulk p50 \
         {:.1} p99 {:.1} ms: {ratio:.2} times (target: under {TARGET})",
        idle.0, idle.1, busy.0, busy.1
    );
    drop::<Endpoint>(here);
}

struct Reader<'a> {
    tunnel: Arc<dyn Tunnel>,
    spec: &'a Arc<ObjectSpec>,
    next_bulk: u32,
    names: u64,
}

impl Reader<'_> {
    fn ask(&mut self, class: Class, index: u32) {
        self.names += 1;
        let name = if class == Class::Urgent { URGENT + self.names } else { self.names };
        let blocks = index..index + 1;
        let want = Want::Blocks { object: self.spec.id(), spec: Arc::clone(self.spec), blocks };
        self.tunnel.request(name, class, want).expect("room");
    }

    fn bulk(&mut self) {
        let index = self.next_bulk % self.spec.block_count();
        self.next_bulk += 1;
        self.ask(Class::Bulk, index);
    }
}

/// Median and 99th percentile of urgent reads in milliseconds, with so many bulk
/// blocks in flight all the time.
async fn reads(reader: &mut Reader<'_>, events: &mut Events, bulk: u32) -> (f64, f64) {
    let mut took = Vec::with_capacity(READS);
    let mut asked = None;
    let mut flying = 0;
    // The line is full before the first read.
    let mut next = tokio::time::Instant::now() + if bulk > 0 { PAUSE * 20 } else { PAUSE };
    while took.len() < READS || flying > 0 {
        while took.len() < READS && flying < bulk {
            reader.bulk();
            flying += 1;
        }
        let event = tokio::select! {
            event = events.next() => event.expect("open"),
            () = tokio::time::sleep_until(next), if asked.is_none() && took.len() < READS => {
                asked = Some(Instant::now());
                reader.ask(Class::Urgent, (took.len() as u32 * 7) % reader.spec.block_count());
                continue;
            }
        };
        match event.kind {
            EventKind::Content { request, .. } if request > URGENT => {
                let asked: Instant = asked.take().expect("asked");
                took.push(asked.elapsed().as_secs_f64() * 1e3);
                next = tokio::time::Instant::now() + PAUSE;
            }
            EventKind::Done { request } if request < URGENT => flying -= 1,
            EventKind::Busy { .. } | EventKind::Down { .. } => panic!("{event:?}"),
            _ => {}
        }
    }
    took.sort_by(f64::total_cmp);
    (took[READS / 2], took[READS * 99 / 100])
}
