//! What a LAN needs comes into it once, and from the nearest node that has it:
//! real daemons in two LANs, an image with an index.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::harness::layout::layer_bytes;
use crate::harness::tree::{Allow, Tree};
use crate::harness::{lab_images, needs_mounts, output, scratch, tool, wait_until};
use crate::world::{Lab, Line, Node, Plan};

const SOON: Duration = Duration::from_secs(60);
/// More than nodes of two LANs tell each other during a transfer, in bytes, and far
/// less than the image.
const CHATTER: u64 = 256 << 10;

/// The small image as umoci unpacks it.
fn wanted() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(|| {
        let place = scratch();
        let bundle = place.path().join("bundle").display().to_string();
        let image = format!("{}:v1", lab_images().join("oci").display());
        tool("umoci", &["unpack", "--image", &image, &bundle]);
        Tree::read(&place.path().join("bundle/rootfs"))
    })
}

/// Reads every byte of the image on a node; it must be right.
#[track_caller]
fn read_all(node: &Node, image: &str) {
    let allow = Allow {
        times: [Vec::new()].into(),
        paths: [b".peersync".to_vec()].into(),
        ..Allow::default()
    };
    wanted().assert_same(&Tree::read(&node.image(image)), &allow);
}

/// Bytes of content by source, as a node counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Came {
    lan: u64,
    remote: u64,
    registry: u64,
    /// From registries, as on the wire.
    wire: u64,
}

impl Came {
    fn to(node: &Node) -> Self {
        let status = node.status();
        let count = |name: &str| status["counters"][name].as_u64().expect("a counter");
        Self {
            lan: count("content_lan"),
            remote: count("content_remote"),
            registry: count("content_registry"),
            wire: count("bytes_registry"),
        }
    }

    /// All of it, decompressed.
    fn all(&self) -> u64 {
        self.lan + self.remote + self.registry
    }
}

/// Everybody pulls the image at once; who is killed meanwhile may fail.
fn pull_at_once(lab: &Lab, image: &str) -> Vec<std::thread::JoinHandle<std::process::Output>> {
    let nodes = lab.nodes().iter().filter(|node| node.runs());
    let pulls = nodes.map(|node| {
        let mut command = node.command(&["pull", image]);
        thread::spawn(move || output(&mut command))
    });
    pulls.collect()
}

#[test]
fn a_block_that_the_lan_has_does_not_cross_its_line() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    let image = lab.registry.push_indexed(&layout, "v1", "test/small:v1");
    for place in [(1, 1), (2, 1), (2, 2)] {
        lab.join(place.0, place.1, "");
    }
    lab.meet();
    lab.node(2, 1).run(&["pull", &image]);
    let content = Came::to(lab.node(2, 1)).all();
    assert!(content > layer_bytes(&layout, "v1"));

    let reader = lab.node(2, 2);
    let name = reader.image(&image).join("usr/lib/os-release");
    assert!(name.exists(), "resolved");
    let line = lab.network.line(2);
    assert!(read(&name) == read("/usr/lib/os-release".as_ref()));
    read_all(reader, &image);
    let carried = lab.network.line(2).since(line);
    // What nodes of both LANs tell each other, and no content.
    assert!(carried.received < CHATTER, "{carried:?}");
    assert_eq!(Came::to(reader), Came { lan: content, ..Came::default() });

    // From here on there is no registry, and the other LAN's nodes and the fresh
    // ones have peers only.
    lab.registry.stop();
    lab.node(1, 1).run(&["pull", &image]);
    read_all(lab.node(1, 1), &image);
    assert_eq!(Came::to(lab.node(1, 1)), Came { remote: content, ..Came::default() });
    for lan in [1, 2] {
        lab.join(lan, 3, "");
        let fresh = lab.node(lan, 3);
        wait_until("it has peers", SOON, || fresh.peers().len() >= 3);
        let line = lab.network.line(lan);
        read_all(fresh, &image);
        let carried = lab.network.line(lan).since(line);
        assert_eq!(Came::to(fresh), Came { lan: content, ..Came::default() }, "LAN {lan}");
        assert!(carried.received < CHATTER, "LAN {lan}: {carried:?}");
    }
}

#[test]
fn an_indexed_image_that_all_pull_at_once_comes_into_each_lan_once() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    let image = lab.registry.push_indexed(&layout, "v1", "test/small:v1");
    let layers = layer_bytes(&layout, "v1");
    lab.join_all("");
    for pull in pull_at_once(&lab, &image) {
        let output = pull.join().expect("a pull");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for lan in [1, 2] {
        let nodes = || lab.nodes().iter().filter(|node| node.lan == lan);
        let sum = |name: &str| nodes().map(|node| node.counter(name)).sum::<u64>();
        let came = lab.network.line(lan).received;
        let told = format!(
            "LAN {lan}: {came} for {layers}; of the registry {} and indexes {}, of peers indexes {}, \
             content from neighbours {}, from afar {}, of the registry {}, twice {}",
            sum("bytes_registry"),
            sum("bytes_index"),
            sum("bytes_index_peers"),
            sum("content_lan"),
            sum("content_remote"),
            sum("content_registry"),
            sum("content_wasted"),
        );
        println!("{told}");
        // Three times is what each for itself would be; 1.02 to 1.08 is what it comes
        // to where the nodes hear each other in time. On a machine that is so busy
        // that they don't, two may read the same (1.46 was seen); how near it comes to
        // once is what `benches/lan` measures.
        assert!(came < layers * 2, "{told}");
        // Two of three have each block of a neighbour.
        assert!(sum("content_lan") > layers, "{told}");
    }
    lab.nodes().iter().for_each(|node| read_all(node, &image));
}

#[test]
fn with_the_registry_gone_one_lan_feeds_the_other_and_each_byte_crosses_once() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    let image = lab.registry.push(&layout, "v1", "test/small:v1");
    let layers = layer_bytes(&layout, "v1");
    for number in 1..=3 {
        lab.join(1, number, "");
    }
    for pull in pull_at_once(&lab, &image) {
        let output = pull.join().expect("a pull");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    lab.registry.stop();
    let before = lab.network.line(2);
    for number in 1..=3 {
        lab.join(2, number, "");
    }
    lab.meet();
    let of_two = || lab.nodes().iter().filter(|node| node.lan == 2);
    let pulls: Vec<_> = of_two()
        .map(|node| {
            let mut command = node.command(&["pull", &image]);
            thread::spawn(move || output(&mut command))
        })
        .collect();
    for pull in pulls {
        let output = pull.join().expect("a pull");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let carried = lab.network.line(2).since(before).received;
    let came: Vec<Came> = of_two().map(Came::to).collect();
    let content = came.iter().map(Came::all).max().unwrap_or(0);
    let remote: u64 = came.iter().map(|came| came.remote).sum();
    let told = format!("{carried} for {layers}, {remote} of {content} from afar: {came:?}");
    println!("{told}");
    assert!(came.iter().all(|came| came.wire == 0 && came.registry == 0), "{told}");
    assert!(came.iter().all(|came| came.all() == content && content > layers), "{told}");
    assert!(remote <= content + content / 20, "{told}");
    // Blocks are compressed one by one: somewhat more than the layers are.
    assert!(carried < layers + layers / 3, "{told}");
    of_two().for_each(|node| read_all(node, &image));
}

#[test]
fn whoever_dies_in_the_middle_all_others_complete() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    let image = lab.registry.push_indexed(&layout, "v1", "test/small:v1");
    lab.join_all("");
    let pulls = pull_at_once(&lab, &image);
    // One that brings something from outside, in each LAN.
    for lan in [1, 2] {
        // Also from the other LAN, where that was faster.
        let brings = |came: Came| came.registry + came.remote > 4 << 20;
        let busy = |n: &&Node| n.lan == lan && brings(Came::to(n));
        let mut found = None;
        wait_until("one is in the middle", SOON, || {
            found = lab.nodes().iter().filter(|n| n.runs()).find(busy).map(|n| n.number);
            found.is_some()
        });
        lab.node_mut(lan, found.expect("found")).kill();
    }
    let running: Vec<bool> = lab.nodes().iter().map(Node::runs).collect();
    for (pull, runs) in pulls.into_iter().zip(&running) {
        let output = pull.join().expect("a pull");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || !runs, "{said}");
    }
    lab.registry.stop();
    let dead: Vec<(u8, u8)> =
        lab.nodes().iter().filter(|n| !n.runs()).map(|n| (n.lan, n.number)).collect();
    let content = lab.nodes().iter().filter(|n| n.runs()).map(|n| Came::to(n).all()).max();
    for node in lab.nodes().iter().filter(|node| node.runs()) {
        read_all(node, &image);
        assert_eq!(
            Came::to(node).remote + Came::to(node).registry + Came::to(node).lan,
            content.unwrap_or(0)
        );
    }
    // Who died comes back with what it had, and there is no registry any more.
    for (lan, number) in dead {
        lab.join(lan, number, "");
        let node = lab.node(lan, number);
        let near = || node.peers().iter().filter(|peer| peer["lan"] == true).count();
        wait_until("it has its neighbours", SOON, || near() == 2);
        node.run(&["pull", &image]);
        read_all(node, &image);
        let came = Came::to(node);
        // Neighbours that are slow to answer are not waited for longer than tau.
        assert!(came.registry == 0 && came.remote < came.lan / 20, "{came:?}");
    }
}

#[test]
fn a_blob_without_an_index_comes_into_each_lan_once() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    let image = lab.registry.push(&layout, "v1", "test/small:v1");
    let layers = layer_bytes(&layout, "v1");
    lab.join_all("");
    for pull in pull_at_once(&lab, &image) {
        let output = pull.join().expect("a pull");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for lan in [1, 2] {
        let nodes = || lab.nodes().iter().filter(|node| node.lan == lan);
        let sum = |name: &str| nodes().map(|node| node.counter(name)).sum::<u64>();
        let (beyond, relayed) = (sum("bytes_registry"), sum("bytes_relayed"));
        // Each byte once, and each of the other two has it of a neighbour.
        assert!((layers..layers + layers / 20).contains(&beyond), "{beyond} for {layers}");
        assert!((2 * layers - layers / 20..=2 * layers).contains(&relayed), "{relayed}");
        assert!(lab.network.line(lan).received < layers + layers / 10);
        nodes().for_each(|node| read_all(node, &image));
    }
}

#[test]
fn when_the_builder_dies_a_neighbour_goes_on_where_it_stopped() {
    needs_mounts!();
    let mut plan = Plan::of(1, 3);
    plan.line = Line::mbit(60);
    let mut lab = Lab::build(&plan);
    let layout = lab_images().join("oci");
    let image = lab.registry.push(&layout, "v1", "test/small:v1");
    let layers = layer_bytes(&layout, "v1");
    lab.join_all("");
    let pulls = pull_at_once(&lab, &image);
    let mut builder = 0;
    wait_until("half of it is in the LAN", SOON, || {
        let of = |node: &Node| node.counter("bytes_registry");
        let most = lab.nodes().iter().max_by_key(|node| of(node)).expect("nodes");
        builder = most.number;
        lab.nodes().iter().map(of).sum::<u64>() > layers / 2
    });
    lab.node_mut(1, builder).kill();
    for (pull, number) in pulls.into_iter().zip(1..) {
        let output = pull.join().expect("a pull");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || number == builder, "{said}");
    }
    // What was on its way when it died came twice, and no more.
    let came = lab.network.line(1).received;
    assert!(came < layers + layers / 5, "{came} for {layers}");
    for node in lab.nodes().iter().filter(|node| node.runs()) {
        read_all(node, &image);
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}
