//! `doctor`.

use std::path::PathBuf;

use super::Exit;
use super::list::print_json;
use super::owner::Owner;
use crate::admin::FailureKind;
use crate::doctor::{Settings, Status, check, collect};

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
        listeners: Vec::new(),
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
