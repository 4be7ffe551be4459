//! `doctor`.

use std::path::PathBuf;

use super::Exit;
use super::list::print_json;
use super::owner::Owner;
use crate::admin::FailureKind;
use crate::config::{Config, SwarmConfig};
use crate::doctor::{Listener, Settings, Status, check, collect};

/// Addresses that a daemon with this configuration listens on.
fn listeners(config: &Config) -> Vec<Listener> {
    let admin = config.admin.listen;
    let swarm = config.swarm.is_on().then(|| config.swarm.listen.unwrap_or(SwarmConfig::LISTEN));
    let listener = |key, udp| move |address| Listener { key, address, udp };
    let admin = admin.map(listener("admin.listen", false));
    let mirror = config.mirror.listen.map(listener("mirror.listen", false));
    let control = config.swarm.control().map(listener("swarm.control", false));
    let swarm = swarm.map(listener("swarm.listen", true));
    admin.into_iter().chain(mirror).chain(swarm).chain(control).collect()
}

/// Checks the machine against the configuration.
pub(super) fn doctor(owner: &Owner, containerd_config: PathBuf) -> Result<(), Exit> {
    let disk = nix::sys::statvfs::statvfs(&owner.store);
    let whole = disk.map_or(0, |disk| disk.blocks() * disk.fragment_size());
    let settings = Settings {
        store: owner.store.clone(),
        min_free: owner.config.store.min_free.of(whole),
        socket: owner.config.snapshotter.socket.clone(),
        stack_depth: owner.config.mount.stack_depth,
        containerd_config,
        listeners: listeners(&owner.config),
    };
    let report = check(&settings, &collect(&settings));
    if owner.json {
        print_json(&report.to_json())?;
    } else {
        println!("{report}");
    }
    if report.status() == Status::Failed {
        return Err(Exit::new(FailureKind::Failed, "something does not work; see above"));
    }
    Ok(())
}
