//! The lab is what it says it is, with nodes that know of no peers.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::layout::layer_bytes;
use crate::harness::peersync::is_mounted;
use crate::harness::{lab_images, needs_mounts, wait_until};
use crate::world::{Lab, Line, Plan, Space, address};

/// A line that carries nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// From the namespace of the calling thread.
fn connect(listener: &TcpListener) -> TcpStream {
    let target = listener.local_addr().expect("address");
    TcpStream::connect_timeout(&target, PATIENCE).expect("connect")
}

/// Sends so many bytes from one namespace to another over TCP; gives how long it
/// takes until the last has come.
fn send(from: &Space, to: &Space, at: Ipv4Addr, bytes: usize) -> Duration {
    let listener = to.enter(|| TcpListener::bind((at, 0)).expect("listener"));
    let mut sender = from.enter(|| connect(&listener));
    let (mut stream, _) = listener.accept().expect("accept");
    for end in [&sender, &stream] {
        end.set_read_timeout(Some(PATIENCE)).expect("timeout");
        end.set_write_timeout(Some(PATIENCE)).expect("timeout");
    }
    thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&vec![7; bytes]).expect("send"));
        let start = Instant::now();
        let mut read = Vec::with_capacity(bytes);
        stream.read_to_end(&mut read).expect("receive");
        assert_eq!(read.len(), bytes);
        start.elapsed()
    })
}

fn mbit(bytes: usize, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64() / 1e6
}

#[test]
fn lines_are_as_thin_and_as_long_as_asked_for() {
    needs_mounts!();
    let mut plan = Plan::of(2, 2);
    plan.line = Line { delay: Duration::from_millis(15), ..Line::mbit(40) };
    let lab = Lab::build(&plan);
    let [one, other] = [lab.node(1, 1), lab.node(2, 1)];
    let before = lab.network.line(1);
    let inside = send(&one.space, &lab.node(1, 2).space, address(1, 2), 32 << 20);
    assert_eq!(lab.network.line(1), before, "what stays in a LAN is not on its line");
    let bytes = 4 << 20;
    let across = send(&one.space, &other.space, address(2, 1), bytes);
    let (inside, across) = (mbit(32 << 20, inside), mbit(bytes, across));
    // The machine may be busy: then it is slower, never faster.
    assert!(inside > 100.0, "{inside} Mbit/s inside a LAN");
    assert!((8.0..=41.0).contains(&across), "{across} of 40 Mbit/s between LANs");
    let (out, into) = (lab.network.line(1).since(before).sent, lab.network.line(2).received);
    for counted in [out, into] {
        let share = counted as f64 / bytes as f64;
        assert!((1.0..1.15).contains(&share), "{counted} on the line for {bytes}");
    }
    // There and back over two long lines.
    let start = Instant::now();
    let listener = other.space.enter(|| TcpListener::bind((address(2, 1), 0)).expect("listener"));
    one.space.enter(|| connect(&listener));
    assert!(start.elapsed() >= Duration::from_millis(60), "{:?}", start.elapsed());
}

#[test]
fn multicast_stays_in_its_lan() {
    needs_mounts!();
    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
    let lab = Lab::build(&Plan::of(2, 2));
    let sockets: Vec<UdpSocket> = lab
        .nodes()
        .iter()
        .map(|node| {
            node.space.enter(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7401)).expect("socket");
                socket.join_multicast_v4(&GROUP, &node.address()).expect("join");
                socket.set_multicast_ttl_v4(4).expect("ttl");
                socket.set_multicast_loop_v4(false).expect("loop");
                socket
            })
        })
        .collect();
    let hears = |place: usize, wait| {
        let mut buffer = [0; 16];
        sockets[place].set_read_timeout(Some(wait)).expect("timeout");
        sockets[place].recv_from(&mut buffer).ok().map(|(_, from)| from)
    };
    sockets[0].send_to(b"hello", (GROUP, 7401)).expect("send");
    let long = Duration::from_secs(5);
    assert_eq!(hears(1, long), Some(SocketAddr::from((address(1, 1), 7401))));
    // What is sent after it from there has come by now, had it been let through.
    sockets[3].send_to(b"hello", (GROUP, 7401)).expect("send");
    assert_eq!(hears(2, long), Some(SocketAddr::from((address(2, 2), 7401))));
    assert_eq!(hears(2, Duration::from_millis(1)), None);
    assert_eq!(hears(1, Duration::from_millis(1)), None);
}

#[test]
fn a_line_that_is_cut_comes_back() {
    needs_mounts!();
    let lab = Lab::build(&Plan::of(2, 1));
    let listener = lab.node(2, 1).space.enter(|| TcpListener::bind((address(2, 1), 0)));
    let listener = listener.expect("listener");
    let target = listener.local_addr().expect("address");
    let reach = || {
        let limit = Duration::from_millis(700);
        lab.node(1, 1).space.enter(|| TcpStream::connect_timeout(&target, limit)).is_ok()
    };
    assert!(reach());
    lab.network.set_line(2, false);
    assert!(!reach());
    lab.network.set_line(2, true);
    assert!(reach());
}

#[test]
fn nodes_without_peers_read_from_the_registry_and_its_line_counts() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 1));
    let layout = lab_images().join("oci");
    let image = lab.registry.push(&layout, "v1", "test/small:v1");
    let layers = layer_bytes(&layout, "v1");
    for lan in [1, 2] {
        let before = lab.network.registry_line().sent;
        lab.node_mut(lan, 1).start("");
        let node = lab.node(lan, 1);
        node.run(&["pull", &image]);
        let release = fs::read(node.image(&image).join("usr/lib/os-release")).expect("os-release");
        assert_eq!(release, fs::read("/usr/lib/os-release").expect("os-release"));
        let carried = lab.network.registry_line().sent - before;
        let share = carried as f64 / layers as f64;
        assert!((1.0..1.1).contains(&share), "{carried} on the line for {layers}");
        let came = lab.network.line(lan).received;
        assert!(came >= layers, "{came} into LAN {lan} for {layers}");
    }
    // What is here needs no registry; what is not can't come.
    lab.registry.stop();
    let node = lab.node(2, 1);
    assert!(fs::read(node.image(&image).join("etc/passwd")).is_ok());
    assert!(fs::read(node.image("10.200.0.1:5000/test/other:v1").join("etc/passwd")).is_err());
    lab.registry.start();
}

/// The program below stands in for any that dies in the middle of a test.
#[test]
fn nothing_is_left_of_a_lab_whose_process_was_killed() {
    needs_mounts!();
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", "by_hand::by_hand", "--nocapture"]);
    command.env("LAB_LANS", "1").env("LAB_NODES", "1").stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("this program");
    let prefix = format!("pslab{}x", child.id());
    let said = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let lines = std::io::BufRead::lines(said).map(|line| line.expect("output"));
    let said: Vec<String> = lines.take_while(|line| !line.starts_with("Ctrl-C")).collect();
    let log = said.iter().find_map(|line| line.strip_prefix("  log    tail -f "));
    let log = PathBuf::from(log.unwrap_or_else(|| panic!("it does not stand: {said:?}")));
    let place = log.parent().expect("a node's directory").to_owned();
    let mount = place.join("mnt");
    assert!(spaces_of(&prefix) > 0 && log.exists() && is_mounted(&mount), "it stands");
    child.kill().expect("kill");
    child.wait().expect("wait");
    wait_until("all is cleaned up", Duration::from_secs(30), || {
        spaces_of(&prefix) == 0 && !place.exists()
    });
    assert!(!is_mounted(&mount));
}

/// How many namespaces have names that begin so.
fn spaces_of(prefix: &str) -> usize {
    let spaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    spaces.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
}
