//! What a question to a tracker takes, and an election, in a LAN of real daemons.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peersync::types::Digest;
use peersync::wire::{Control, Message};
use serde_json::Value;

use crate::harness::member::Member;
use crate::harness::{lab_images, needs_mounts, wait_until};
use crate::together::{name, one_tracker, start, swarm_key, tracker};
use crate::world::{Lab, Node, Plan, address};

const LONG: Duration = Duration::from_secs(60);
const QUESTIONS: usize = 2000;

/// `cargo test --test lab what_a_look_up_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn what_a_look_up_costs() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(1, 6));
    let key = swarm_key(&lab, "key");
    start(&mut lab.nodes_mut()[..5], &format!("[swarm]\nkey_file = {key:?}\n"));
    let image = lab.registry.push(&lab_images().join("oci"), "v1", "test/small:v1");
    let holder = lab.node(1, 1);
    holder.run(&["pull", &image]);
    wait_until("a tracker", LONG, || tracker(holder).is_some());
    let elected = tracker(holder).expect("a tracker");
    let place = lab.nodes()[..5].iter().position(|node| name(node) == elected);
    let place = place.expect("one of the five");
    let layers: Value =
        serde_json::from_str(&holder.run(&["--json", "layers"])).expect("JSON of layers");
    let layer = layers["layers"][0]["blobs"][0].as_str().expect("a blob");
    let layer: Digest = layer.parse().expect("a digest");

    // The sixth place of the LAN is this test's.
    let asker = lab.node(1, 6);
    let at = SocketAddr::from((lab.nodes()[place].address(), 7400));
    let listen = SocketAddr::from((address(1, 6), 7400));
    let (mut took, named) = asker.space.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let mut member = Member::join(9, &key, listen, at).await;
            let (mut took, mut named) = (Vec::new(), 0);
            for question in 0..QUESTIONS {
                // A tracker answers 64 questions of a node in a second.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let id = question as u64;
                let began = Instant::now();
                member.say(Control::WhoHas { id, layers: vec![layer] });
                named = loop {
                    let said = member.hear().await.expect("the tunnel is up");
                    if let Message::Control(Control::Holders { id: answered, layers }) = said
                        && answered == id
                    {
                        break layers[0].len();
                    }
                };
                took.push(began.elapsed());
            }
            (took, named)
        })
    });
    took.sort_unstable();
    let of = |percent: usize| took[took.len() * percent / 100];
    let (half, most, worst) = (of(50), of(95), took[took.len() - 1]);
    println!(
        "{QUESTIONS} questions to the tracker, {named} holders: half within {half:?}, 95 % within \
         {most:?}, all within {worst:?}"
    );
}

/// `cargo test --test lab what_an_election_takes -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn what_an_election_takes() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(1, 6));
    let key = swarm_key(&lab, "key");
    let config = format!("[swarm]\nkey_file = {key:?}\n");
    let began = Instant::now();
    start(lab.nodes_mut(), &config);
    let started = began.elapsed();
    wait_until("all know all", LONG, || {
        lab.nodes().iter().all(|node| crate::together::known(node).len() == 5)
    });
    println!("six daemons started in {started:?}, all knew all after {:?}", began.elapsed());
    for _ in 0..5 {
        let all: Vec<&Node> = lab.nodes().iter().collect();
        wait_until("one tracker", LONG, || one_tracker(&all).is_some());
        let place = one_tracker(&all).expect("a tracker");
        let dead = name(all[place]);
        lab.nodes_mut()[place].kill();
        let began = Instant::now();
        let alive: Vec<&Node> = lab.nodes().iter().filter(|node| node.runs()).collect();
        wait_until("another tracker", LONG, || {
            one_tracker(&alive).is_some_and(|place| name(alive[place]) != dead)
        });
        println!("the tracker was killed; all agree on another after {:?}", began.elapsed());
        lab.nodes_mut()[place].start(&config);
    }
}
