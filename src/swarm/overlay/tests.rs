//! The machine by itself; among many of its kind it is in `tests/overlay`.

use super::*;

const S: Duration = Duration::from_secs(1);
const ME: PeerId = PeerId([0xee; 32]);

fn name(n: u32) -> PeerId {
    let mut name = [0; 32];
    name[..4].copy_from_slice(&n.to_be_bytes());
    PeerId(name)
}

fn address(n: u32) -> SocketAddr {
    (std::net::Ipv4Addr::from(0x0a00_0000 + n), 7400).into()
}

fn named(source: Source, n: u32) -> Input {
    Input::Named { source, peer: name(n), address: address(n) }
}

fn up(n: u32) -> Input {
    Input::Up { peer: name(n), address: Some(address(n)), near: false, kept: false }
}

fn up_near(n: u32) -> Input {
    Input::Up { peer: name(n), address: Some(address(n)), near: true, kept: false }
}

fn overlay() -> Overlay {
    Overlay::new(ME, 7)
}

fn probed(actions: &[Action]) -> Vec<PeerId> {
    let probes = actions.iter().filter_map(|action| match action {
        Action::Probe(peer, _) => Some(*peer),
        _ => None,
    });
    probes.collect()
}

#[test]
fn sources_have_their_turns_and_two_are_probed_at_a_time() {
    let mut overlay = overlay();
    for n in 0..20 {
        overlay.apply(S, named(Source::Table, n));
    }
    overlay.apply(S, named(Source::Memory, 100));
    let first = probed(&overlay.tick(S));
    assert_eq!(first.len(), PROBES_MAX);
    assert!(first.contains(&name(100)), "the one of memory is not behind twenty others");
    assert_eq!(overlay.tick(S * 2), [], "both are under way");
    // A probe that nobody ends ends by its time.
    assert_eq!(probed(&overlay.tick(S + PROBE)).len(), PROBES_MAX);
    overlay.check(S + PROBE).expect("in order");
}

#[test]
fn a_node_that_fails_is_left_alone_longer_each_time_and_then_forgotten() {
    let mut overlay = overlay();
    overlay.apply(S, named(Source::Table, 1));
    let mut now = S;
    assert_eq!(probed(&overlay.tick(now)), [name(1)]);
    for failures in 1..FAILURES_MAX {
        overlay.apply(now, Input::Failed(name(1)));
        let rest = REST_MIN * 2u32.pow(failures - 1);
        assert_eq!(overlay.tick(now + rest - S), []);
        now += rest;
        assert_eq!(probed(&overlay.tick(now)), [name(1)], "after {failures} failures");
    }
    overlay.apply(now, Input::Failed(name(1)));
    assert!(!overlay.knows(&name(1)));
}

#[test]
fn a_neighbour_names_nodes_when_it_was_asked_and_no_more_than_one_answer_holds() {
    let mut overlay = overlay();
    let by = Source::Neighbour(name(1));
    overlay.apply(S, named(by, 50));
    assert!(overlay.is_empty(), "of nobody's neighbour");
    let actions = overlay.apply(S, up(1));
    assert_eq!(actions, [Action::Ask(name(1))]);
    for n in 100..200 {
        overlay.apply(S, named(by, n));
    }
    assert_eq!(overlay.len(), 1 + TOLD_MAX);
    let asked = |actions: &[Action]| actions.contains(&Action::Ask(name(1)));
    assert!(!asked(&overlay.tick(ASK_FEW)) && asked(&overlay.tick(S + ASK_FEW)));
    overlay.check(S + ASK_FEW).expect("in order");
}

#[test]
fn who_names_nobody_that_is_there_is_asked_less_and_its_others_are_not_tried() {
    let mut overlay = overlay();
    overlay.apply(S, up(1));
    let by = Source::Neighbour(name(1));
    for n in 100..100 + TOLD_MAX as u32 {
        overlay.apply(S, named(by, n));
    }
    let mut tries = 0;
    for second in 2..40 {
        for peer in probed(&overlay.tick(S * second)) {
            tries += 1;
            overlay.apply(S * second, Input::Failed(peer));
        }
    }
    assert!(tries <= VAIN_MAX + PROBES_MAX as u32, "{tries}");
    assert_eq!(overlay.len(), 1, "only the neighbour itself is known");
    assert_eq!(overlay.tick(S + ASK_FEW), []);
    assert_eq!(overlay.tick(S + ASK_FEW * 2), [Action::Ask(name(1))], "half as often");
    // One that is there makes up for it.
    overlay.apply(S + ASK_FEW * 2, named(by, 300));
    overlay.tick(S + ASK_FEW * 2);
    overlay.apply(S + ASK_FEW * 2, up(300));
    assert!(overlay.tick(S + ASK_FEW * 3).contains(&Action::Ask(name(1))));
}

#[test]
fn one_machine_is_not_called_at_all_its_ports() {
    let mut overlay = overlay();
    for n in 0..100 {
        let address = (std::net::Ipv4Addr::new(10, 0, 0, 1), 1000 + n as u16).into();
        let (source, peer) = (Source::Table, name(n));
        overlay.apply(S, Input::Named { source, peer, address });
    }
    assert_eq!(overlay.len(), PER_ADDRESS_MAX);
}

#[test]
fn floods_of_names_are_bounded_by_source_and_in_all() {
    let mut overlay = overlay();
    for n in 0..1000 {
        overlay.apply(S, named(Source::Table, n));
    }
    assert_eq!(overlay.len(), PER_SOURCE_MAX);
    for neighbour in 2000..2400 {
        overlay.apply(S, up_near(neighbour));
    }
    overlay.apply(S, named(Source::Memory, 5000));
    assert!(overlay.knows(&name(5000)), "memory has room beside the table");
    for n in 0..500 {
        overlay.apply(S, Input::Banned(name(3000 + n)));
        overlay.apply(S, up(3000 + n));
    }
    assert!(!overlay.knows(&name(3000)) && overlay.len() <= NODES_MAX);
    overlay.check(S).expect("in order");
}

#[test]
fn a_slow_neighbour_makes_room_if_another_waits_and_nothing_comes_from_it() {
    let mut overlay = overlay();
    let neighbours = NEIGHBOURS_WANTED as u32;
    for n in 0..neighbours {
        overlay.apply(S, up(n));
        let speed = if n == 3 { 1e5 } else { 1e6 };
        overlay.apply(S, Input::Measured(name(n), speed));
    }
    let dropped = |actions: &[Action]| actions.contains(&Action::Drop(name(3)));
    let late = S + GRACE + BUSY;
    assert!(!dropped(&overlay.tick(late)), "nobody waits");
    overlay.apply(late, Input::Carried(name(3)));
    for n in 100..104 {
        overlay.apply(late, named(Source::Table, n));
    }
    assert!(!dropped(&overlay.tick(late)), "it brings something just now");
    assert!(dropped(&overlay.tick(late + BUSY)));
    assert_eq!(overlay.neighbours().len(), neighbours as usize - 1);
    // It is not called again before others had their time.
    let mut all = Vec::new();
    for second in 1..500 {
        all.extend(probed(&overlay.tick(late + BUSY + S * second)));
    }
    assert!(!all.contains(&name(3)) && all.contains(&name(100)), "{all:?}");
}

fn dropped(actions: &[Action]) -> Vec<PeerId> {
    let dropped = actions.iter().filter_map(|action| match action {
        Action::Drop(peer) => Some(*peer),
        _ => None,
    });
    dropped.collect()
}

/// One that has all the neighbours that it may have.
fn full() -> Overlay {
    let mut overlay = overlay();
    for n in 0..NEIGHBOURS_MAX as u32 {
        overlay.apply(S, up(n));
        overlay.apply(S, Input::Measured(name(n), 1e6));
    }
    overlay
}

#[test]
fn who_comes_to_a_full_node_stays_and_the_slowest_that_carries_nothing_goes() {
    let mut overlay = full();
    overlay.apply(S, Input::Measured(name(5), 1e5));
    let came = S * 60;
    assert_eq!(dropped(&overlay.apply(came, up(100))), [name(5)]);
    assert_eq!(dropped(&overlay.tick(came)), []);
    overlay.check(came).expect("in order");
}

#[test]
fn a_visitor_stays_as_long_as_it_is_new_or_something_is_carried() {
    let mut overlay = full();
    let all_carry = |overlay: &mut Overlay, at| {
        for n in 0..NEIGHBOURS_MAX as u32 {
            overlay.apply(at, Input::Carried(name(n)));
        }
    };
    let (came, late) = (S * 60, S * 60 + VISIT);
    all_carry(&mut overlay, came);
    assert_eq!(dropped(&overlay.apply(came, up(100))), []);
    all_carry(&mut overlay, late);
    overlay.apply(late, Input::Carried(name(100)));
    assert_eq!(dropped(&overlay.tick(late)), []);
    all_carry(&mut overlay, late + CARRIES);
    assert_eq!(dropped(&overlay.tick(late + CARRIES)), [name(100)]);
    overlay.check(late + CARRIES).expect("in order");
}

#[test]
fn a_node_that_has_called_meanwhile_has_not_failed() {
    let mut overlay = overlay();
    overlay.apply(S, named(Source::Table, 1));
    overlay.apply(S, up(1));
    overlay.apply(S, Input::Failed(name(1)));
    assert_eq!(overlay.neighbours().len(), 1);
    overlay.apply(S, Input::Down(name(1)));
    assert_eq!(overlay.neighbours().len(), 0);
}

#[test]
fn a_tunnel_has_room_in_a_book_that_is_full_of_others() {
    let mut overlay = overlay();
    for n in 0..NODES_MAX as u32 {
        overlay.apply(S, up(n));
        overlay.apply(S, Input::Dismissed(name(n)));
    }
    assert_eq!(overlay.len(), NODES_MAX);
    overlay.apply(S, up(5000));
    assert!(overlay.knows(&name(5000)));
    overlay.check(S).expect("in order");
}

#[test]
fn of_a_crowd_as_many_stay_as_there_is_room_for() {
    let mut overlay = full();
    let came = S * 60;
    // Neighbours that carry something are worth more than whoever has just come.
    for n in 0..NEIGHBOURS_MAX as u32 {
        overlay.apply(came, Input::Carried(name(n)));
    }
    let crowd = 1000..1000 + VISITORS_MAX as u32 + 5;
    let gone: Vec<PeerId> = crowd.flat_map(|n| dropped(&overlay.apply(came, up(n)))).collect();
    assert_eq!(gone.len(), 5);
    assert!((0..NEIGHBOURS_MAX as u32).all(|n| !gone.contains(&name(n))));
    overlay.check(came).expect("in order");
}

#[test]
fn trackers_are_not_chosen_until_they_are_none_any_more() {
    let mut overlay = full();
    let up = |n, kept| Input::Up { peer: name(n), address: Some(address(n)), near: false, kept };
    for n in 100..300 {
        assert_eq!(dropped(&overlay.apply(S, up(n, true))), []);
    }
    assert_eq!(dropped(&overlay.tick(S * 60)), []);
    let mut gone = Vec::new();
    for n in 100..300 {
        gone.extend(dropped(&overlay.apply(S * 60, up(n, false))));
        overlay.check(S * 60).expect("in order");
    }
    assert_eq!(gone.len(), 200);
}

#[test]
fn who_was_sent_away_does_not_come_back_at_once() {
    let mut overlay = overlay();
    overlay.apply(S, up(1));
    overlay.apply(S, Input::Dismissed(name(1)));
    assert_eq!(overlay.tick(DISMISSED), []);
    assert_eq!(probed(&overlay.tick(S + DISMISSED)), [name(1)]);
    // One that just went is looked for much sooner.
    overlay.apply(S + DISMISSED, up(1));
    overlay.apply(S + DISMISSED, Input::Down(name(1)));
    assert_eq!(probed(&overlay.tick(S + DISMISSED + REST_MIN)), [name(1)]);
}

#[test]
fn who_asks_is_told_of_others_and_not_too_often() {
    let mut overlay = overlay();
    assert_eq!(overlay.tell(S, &name(1)), None, "not a neighbour");
    for n in 1..=20 {
        overlay.apply(S, up(n));
    }
    let told = overlay.tell(S, &name(1)).expect("told");
    let names: BTreeSet<PeerId> = told.iter().map(|(peer, _)| *peer).collect();
    assert_eq!(names.len(), TOLD_MAX);
    assert!(!names.contains(&name(1)) && !names.contains(&ME));
    assert_eq!(overlay.tell(S + TELL / 2, &name(1)), None);
    assert!(overlay.tell(S + TELL, &name(1)).is_some());
}

#[test]
fn of_the_lan_one_is_asked_at_a_time() {
    let mut overlay = overlay();
    let mut asked = Vec::new();
    for n in 0..50 {
        asked.extend(overlay.apply(S, up_near(n)));
    }
    (2..600).for_each(|second| asked.extend(overlay.tick(S * second)));
    let asked: Vec<_> = asked
        .into_iter()
        .map(|action| match action {
            Action::Ask(peer) => peer,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked.len(), 5, "in ten minutes");
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), 5, "another one each time");
}
