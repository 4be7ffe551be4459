use std::time::Duration;
use peersync::fetch::schedule::Class;
use crate::world::*;

#[test]
fn explore() {
    for seed in 0..2 {
        for mode in 0..5 {
            let mut world = World::new(&[3, 3], Layer::of(64 * MIB), seed);
            if mode == 3 { world.layer.span = 4 * MIB; world.layer.run_spans = 4; }
            world.start();
            for node in 0..6 {
                let n = world.layer.count();
                match mode {
                    0 => { world.pull(node, Class::Completion); },
                    1 | 3 => { world.read(node, 0..n, 32, Duration::ZERO) },
                    2 => { let mut v: Vec<u32> = (0..n).collect(); fastrand::Rng::with_seed(seed * 7 + node as u64).shuffle(&mut v); world.read(node, v, 0, Duration::ZERO) },
                    _ => { world.pull(node, Class::Background); world.read(node, 0..n, 32, Duration::ZERO) },
                };
            }
            let t = std::time::Instant::now();
            world.run(Duration::from_secs(120));
            let size = world.layer.size() as f64;
            println!("seed {seed} mode {mode}: {:.3} of line time, lan in {:.3} {:.3}, registry {:.3}, real {:?}", world.now.as_secs_f64() / (size / 12.5e6),
                world.net.lan_in[0].bytes as f64 / size, world.net.lan_in[1].bytes as f64 / size, world.registry_bytes as f64 / size, t.elapsed());
        }
    }
}
