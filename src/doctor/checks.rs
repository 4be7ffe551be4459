//! From facts to findings, without a look at the machine.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    Access, ContainerdConfig, ContainerdError, Disk, Facts, Finding, ListenerState, Report,
    Settings, SocketState, Status,
};

/// The kernel since which FUSE files can be backed by local ones.
const PASSTHROUGH: (u32, u32) = (6, 9);
/// The kernel since which FUSE works below overlayfs as we use it, with
/// `user.overlay` attributes and without surprises.
const OLDEST: (u32, u32) = (5, 11);
/// No machine's clock is right before this program was written: 2025-01-01.
const WRITTEN: Duration = Duration::from_secs(1_735_689_600);
/// How far a file may lie in the future: other hosts write on shared disks.
const CLOCK_SLACK: Duration = Duration::from_secs(600);
/// Free inodes below which unpacking an ordinary image may fail.
const INODES_LOW: u64 = 50_000;
const NOT_SERVED: &str = "containerd is not served: `[snapshotter] socket` is empty";
const SNIPPETS: &str = "packaging/containerd (docs/CONTAINERD.md)";

/// Judges the facts. The order is that in which problems are best solved.
pub fn check(settings: &Settings, facts: &Facts) -> Report {
    let mut findings = vec![
        fuse(facts),
        overlayfs(facts),
        store(settings, facts),
        disk(settings, facts),
        passthrough(settings, facts),
        stack_depth(settings, facts),
        plugin(settings, facts),
        running(settings, facts),
        cri(settings, facts),
        annotations(settings, facts),
        socket(settings, facts),
        clock(facts),
    ];
    findings.extend(ports(facts));
    Report { findings }
}

fn fine(check: &'static str, message: impl Into<String>) -> Finding {
    Finding { check, status: Status::Fine, message: message.into(), advice: String::new() }
}

fn not_fine(
    check: &'static str,
    status: Status,
    message: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding { check, status, message: message.into(), advice: advice.into() }
}

fn fuse(facts: &Facts) -> Finding {
    const CHECK: &str = "fuse";
    match (&facts.fuse, &facts.fuse_mount) {
        (Access::Open, Some(Err(reason))) => not_fine(
            CHECK,
            Status::Failed,
            format!("/dev/fuse opens, but nothing can be mounted: {reason}"),
            "Mounts need CAP_SYS_ADMIN: in a container, run it privileged.",
        ),
        (Access::Open, _) if facts.root => fine(CHECK, "/dev/fuse opens and mounts"),
        (Access::Open, _) => not_fine(
            CHECK,
            Status::Warning,
            "/dev/fuse opens, but this is not root",
            "Mounts for containers need root. Run `sudo peersync doctor` to check for the daemon.",
        ),
        (Access::Missing, _) => not_fine(
            CHECK,
            Status::Failed,
            "/dev/fuse is missing",
            "Load the module: modprobe fuse (and put `fuse` into /etc/modules-load.d/fuse.conf). \
             In a container or VM, pass the device in.",
        ),
        (Access::Refused(reason), _) => not_fine(
            CHECK,
            Status::Failed,
            format!("/dev/fuse can't be opened: {reason}"),
            "Run as root, or allow the device in this container's cgroup.",
        ),
    }
}

fn overlayfs(facts: &Facts) -> Finding {
    const CHECK: &str = "overlayfs";
    match facts.overlayfs {
        Some(true) => fine(CHECK, "known to the kernel"),
        Some(false) => not_fine(
            CHECK,
            Status::Failed,
            "the kernel does not list it",
            "Load the module: modprobe overlay (and put `overlay` into /etc/modules-load.d/overlay.conf).",
        ),
        None => not_fine(CHECK, Status::Skipped, "/proc/filesystems can't be read", ""),
    }
}

fn store(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "store";
    let path = settings.store.display();
    let disk = match &facts.disk {
        Ok(disk) => disk,
        Err(reason) => {
            return not_fine(
                CHECK,
                Status::Failed,
                format!("{path}: {reason}"),
                "Set `[store] path` to a directory that can be made.",
            );
        }
    };
    let kind = &disk.kind;
    match kind.as_str() {
        _ if disk.read_only => not_fine(
            CHECK,
            Status::Failed,
            format!("{path} is on a read-only {kind}"),
            "Set `[store] path` to a disk that can be written.",
        ),
        "overlay" => not_fine(
            CHECK,
            Status::Failed,
            format!("{path} is on overlayfs"),
            "Containers' own layers can't lie on overlayfs, and there is no passthrough. Put the \
             store on a real disk (a volume, when the daemon runs in a container).",
        ),
        "nfs" | "cifs" | "fuse" | "9p" => not_fine(
            CHECK,
            Status::Failed,
            format!("{path} is on {kind}"),
            "Overlayfs can't have its upper directory there. Put the store on a local disk.",
        ),
        "tmpfs" => not_fine(
            CHECK,
            Status::Warning,
            format!("{path} is on tmpfs"),
            "The cache takes memory and is gone after a reboot, with all snapshots.",
        ),
        _ => fine(CHECK, format!("{path} on {kind}")),
    }
}

fn disk(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "disk";
    let Ok(Disk { total, free, inodes_free, .. }) = facts.disk else {
        return not_fine(CHECK, Status::Skipped, "the store's disk is not known", "");
    };
    let shown = format!("{} of {} free", bytes(free), bytes(total));
    if free < settings.min_free {
        let advice = format!(
            "The store keeps {} free and evicts what is cached to get there: with so little left \
             lazy reads are not cached. Free space, or lower `[store] min_free`.",
            bytes(settings.min_free)
        );
        return not_fine(CHECK, Status::Warning, shown, advice);
    }
    match inodes_free {
        Some(inodes) if inodes < INODES_LOW => not_fine(
            CHECK,
            Status::Warning,
            format!("{shown}, but only {inodes} inodes"),
            "Images that containerd unpacks itself take an inode for each file.",
        ),
        _ => fine(CHECK, shown),
    }
}

fn passthrough(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "passthrough";
    let Some(version) = kernel_version(&facts.kernel) else {
        return not_fine(
            CHECK,
            Status::Skipped,
            format!("kernel release {:?} is not understood", facts.kernel),
            "",
        );
    };
    let kernel = format!("kernel {}.{}", version.0, version.1);
    if version < OLDEST {
        let advice =
            format!("Lazy layers below containers are tested from {}.{} on.", OLDEST.0, OLDEST.1);
        return not_fine(CHECK, Status::Warning, format!("{kernel} is old"), advice);
    }
    let slower = "Files are read through the daemon: the same bytes, at less speed.";
    if let Some(Ok(offer)) = facts.fuse_mount
        && !offer.passthrough
    {
        let message =
            format!("{kernel} does not offer it ({}.{} can)", PASSTHROUGH.0, PASSTHROUGH.1);
        return not_fine(CHECK, Status::Warning, message, slower);
    }
    if version < PASSTHROUGH {
        let message = format!("{kernel}: needs {}.{}", PASSTHROUGH.0, PASSTHROUGH.1);
        return not_fine(CHECK, Status::Warning, message, slower);
    }
    if settings.stack_depth == 0 {
        let message = "switched off by `[mount] stack_depth = 0`";
        return not_fine(CHECK, Status::Warning, message, slower);
    }
    if facts.disk.as_ref().is_ok_and(|disk| disk.kind == "overlay") {
        let message = "the store is on overlayfs, which can't back files";
        return not_fine(CHECK, Status::Warning, message, slower);
    }
    let certain = if facts.fuse_mount.is_some() { "offers it" } else { "should have it" };
    fine(CHECK, format!("{kernel} {certain}"))
}

fn stack_depth(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "stack-depth";
    let nested = facts.disk.as_ref().is_ok_and(|disk| disk.kind == "overlay");
    match settings.stack_depth {
        0 => fine(CHECK, "0: overlays may be nested on the mount, without passthrough"),
        1 if nested => not_fine(
            CHECK,
            Status::Warning,
            "1, on a host that nests overlays",
            "The kernel allows two levels: an overlay on an overlay on the mount fails. Set \
             `[mount] stack_depth = 0` for that.",
        ),
        1 => fine(CHECK, "1: passthrough, and containers' overlays on the mount"),
        depth => not_fine(
            CHECK,
            Status::Failed,
            format!("{depth}: no overlay can be mounted on it"),
            "Set `[mount] stack_depth = 1`, or 0 on hosts that nest overlays.",
        ),
    }
}

fn plugin(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "containerd-plugin";
    match containerd(CHECK, settings, facts) {
        Err(finding) => finding,
        Ok(config) => match name_of(config, &settings.socket) {
            Some(name) => {
                fine(CHECK, format!("{} is registered as {name:?}", settings.socket.display()))
            }
            None => not_fine(
                CHECK,
                Status::Failed,
                format!("{} is not registered", settings.socket.display()),
                format!(
                    "Run packaging/containerd/setup {0}, or add [proxy_plugins.peersync] from \
                     {SNIPPETS} to {0}; then restart containerd.",
                    settings.containerd_config.display()
                ),
            ),
        },
    }
}

/// containerd reads its configuration when it starts, and only then.
fn running(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "containerd-running";
    let skipped = |message: &str| not_fine(CHECK, Status::Skipped, message, "");
    let Ok(config) = containerd(CHECK, settings, facts) else {
        return skipped("no configuration to go by");
    };
    let Some(name) = name_of(config, &settings.socket) else {
        return skipped("nothing is registered that it could have loaded");
    };
    match &facts.loaded {
        _ if !facts.root => skipped("containerd answers root only"),
        None => skipped("there is no ctr to ask containerd with"),
        Some(Ok(loaded)) if loaded.iter().any(|known| known == name) => {
            fine(CHECK, format!("has loaded {name:?}"))
        }
        Some(Ok(_)) => not_fine(
            CHECK,
            Status::Failed,
            format!("containerd runs, and has not loaded {name:?}"),
            "It was started with another configuration: systemctl restart containerd.",
        ),
        Some(Err(reason)) => not_fine(
            CHECK,
            Status::Warning,
            format!("containerd does not answer: {reason}"),
            format!("systemctl start containerd (it listens on {}).", config.address),
        ),
    }
}

fn cri(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "containerd-cri";
    let config = match containerd(CHECK, settings, facts) {
        Err(finding) => {
            return Finding { status: Status::Skipped, advice: String::new(), ..finding };
        }
        Ok(config) => config,
    };
    let name = name_of(config, &settings.socket);
    match (&config.cri, name) {
        (None, _) => not_fine(
            CHECK,
            Status::Skipped,
            "the CRI plugin is switched off; ctr and nerdctl work with --snapshotter",
            "",
        ),
        (Some(cri), Some(name)) if cri.snapshotter == name => {
            fine(CHECK, format!("Kubernetes' images use {name:?}"))
        }
        (Some(cri), name) => not_fine(
            CHECK,
            Status::Warning,
            format!("Kubernetes' images use {:?}", cri.snapshotter),
            format!("Set snapshotter = {:?} as in {SNIPPETS}.", name.unwrap_or("peersync")),
        ),
    }
}

fn annotations(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "snapshot-annotations";
    let Ok(config) = containerd(CHECK, settings, facts) else {
        return not_fine(CHECK, Status::Skipped, "no configuration to go by", "");
    };
    let name = name_of(config, &settings.socket).unwrap_or_default();
    match config.annotates(name) {
        None => not_fine(CHECK, Status::Skipped, "the CRI plugin is switched off", ""),
        Some(true) => fine(CHECK, "switched on"),
        Some(false) => not_fine(
            CHECK,
            Status::Failed,
            "switched off: containerd does not say which image a layer is of",
            format!(
                "Set disable_snapshot_annotations = false and the plugin's exports as in \
                 {SNIPPETS}. Until then containerd downloads whole images."
            ),
        ),
    }
}

fn socket(settings: &Settings, facts: &Facts) -> Finding {
    const CHECK: &str = "socket";
    let path = settings.socket.display();
    if settings.socket.as_os_str().is_empty() {
        return not_fine(CHECK, Status::Skipped, NOT_SERVED, "");
    }
    let start = "Start the daemon: systemctl start peersync, or peersync daemon.";
    match &facts.socket {
        SocketState::Answers => fine(CHECK, format!("{path} answers")),
        SocketState::Missing => {
            not_fine(CHECK, Status::Warning, format!("{path} is not there"), start)
        }
        SocketState::Stale => {
            not_fine(CHECK, Status::Warning, format!("nobody listens on {path}"), start)
        }
        SocketState::NotASocket => not_fine(
            CHECK,
            Status::Failed,
            format!("{path} is not a socket"),
            "Remove it, or set `[snapshotter] socket` to another path.",
        ),
        SocketState::Refused(reason) => not_fine(
            CHECK,
            Status::Warning,
            format!("{path}: {reason}"),
            "It is for root only: run `sudo peersync doctor`.",
        ),
    }
}

fn clock(facts: &Facts) -> Finding {
    const CHECK: &str = "clock";
    let advice = "TLS and registry tokens fail with a wrong clock. Run a time service \
                  (systemd-timesyncd, chrony).";
    if facts.now < UNIX_EPOCH + WRITTEN {
        return not_fine(CHECK, Status::Failed, "is years behind", advice);
    }
    let behind = |latest: &SystemTime| *latest > facts.now + CLOCK_SLACK;
    if facts.latest_change.as_ref().is_some_and(behind) {
        return not_fine(CHECK, Status::Failed, "is behind files of this machine", advice);
    }
    match facts.clock_synchronised {
        Some(true) => fine(CHECK, "kept by a time service"),
        Some(false) => not_fine(CHECK, Status::Warning, "is not synchronised", advice),
        None => fine(CHECK, "plausible"),
    }
}

fn ports(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "ports";
    let running = facts.socket == SocketState::Answers;
    let mut findings: Vec<Finding> = facts
        .listeners
        .iter()
        .filter_map(|(listener, state)| {
            let at = format!("{} = {}", listener.key, listener.address);
            match state {
                ListenerState::Free | ListenerState::Ours => None,
                ListenerState::InUse if !facts.root => Some(not_fine(
                    CHECK,
                    Status::Skipped,
                    format!("{at} is in use, and only root can tell by whom"),
                    "",
                )),
                ListenerState::InUse => Some(not_fine(
                    CHECK,
                    Status::Failed,
                    format!("{at} is in use"),
                    format!("Stop what listens there (ss -lntup), or change {}.", listener.key),
                )),
                ListenerState::Refused(reason) => Some(not_fine(
                    CHECK,
                    Status::Failed,
                    format!("{at}: {reason}"),
                    format!("Change {}.", listener.key),
                )),
            }
        })
        .collect();
    if findings.is_empty() {
        let count = facts.listeners.len();
        findings.push(match running {
            true => fine(CHECK, format!("{count} addresses, the daemon runs")),
            false => fine(CHECK, format!("{count} addresses are free")),
        });
    }
    findings
}

/// The configuration, or the finding that there is none to judge.
fn containerd<'a>(
    check: &'static str,
    settings: &Settings,
    facts: &'a Facts,
) -> Result<&'a ContainerdConfig, Finding> {
    let path = settings.containerd_config.display();
    if settings.socket.as_os_str().is_empty() {
        return Err(not_fine(check, Status::Skipped, NOT_SERVED, ""));
    }
    match &facts.containerd {
        Some(Ok(config)) => Ok(config),
        None => Err(not_fine(
            check,
            Status::Skipped,
            format!("{path} is not there"),
            format!("With containerd: add the snippet from {SNIPPETS}."),
        )),
        Some(Err(error @ ContainerdError::Read { .. })) => {
            Err(not_fine(check, Status::Skipped, error.to_string(), "Run `sudo peersync doctor`."))
        }
        Some(Err(error @ ContainerdError::Parse { .. })) => Err(not_fine(
            check,
            Status::Failed,
            error.to_string(),
            "containerd does not start with it either.",
        )),
    }
}

fn name_of<'a>(config: &'a ContainerdConfig, socket: &Path) -> Option<&'a str> {
    config.snapshotter_at(socket.to_str()?)
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// With one decimal and a binary unit.
fn bytes(count: u64) -> String {
    let mut unit = "B";
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64;
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests;
