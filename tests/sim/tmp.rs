use std::time::Duration;
use peersync::fetch::schedule::Class;
use crate::world::*;

#[test]
fn explore() {
    for seed in 0..1 {
        for mode in 0..1 {
            let mut world = World::new(&[3, 3], Layer::of(64 * MIB), seed);
            world.start();
            for node in 0..6 {
                match mode {
                    0 => world.pull(node, Class::Completion),
                    1 => { let n = world.layer.count(); world.read(node, 0..n, 32, Duration::ZERO) },
                    _ => { let n = world.layer.count(); let mut v: Vec<u32> = (0..n).collect(); fastrand::Rng::with_seed(seed * 7 + node as u64).shuffle(&mut v); world.read(node, v, 0, Duration::ZERO) },
                };
            }
            let t = std::time::Instant::now();
            world.run(Duration::from_secs(120));
            let size = world.layer.size() as f64;
            println!("seed {seed} mode {mode}: {:.3} of line time, lan in {:.3} {:.3}, registry {:.3}, real {:?}", world.now.as_secs_f64() / (size / 12.5e6),
                world.net.lan_in[0].bytes as f64 / size, world.net.lan_in[1].bytes as f64 / size, world.registry_bytes as f64 / size, t.elapsed());
            for n in &world.nodes { println!("    {:?}", n.scheduler.totals()); }
        }
    }
}
