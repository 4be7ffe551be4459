use std::path::PathBuf;

use super::*;
use crate::doctor::{CriConfig, FuseOffer, Listener, ProxyPlugin};

fn settings() -> Settings {
    Settings {
        store: "/var/lib/peersync".into(),
        min_free: 10 << 30,
        socket: "/run/peersync/snapshotter.sock".into(),
        stack_depth: 1,
        containerd_config: "/etc/containerd/config.toml".into(),
        listeners: vec![listener()],
    }
}

fn listener() -> Listener {
    Listener { key: "mirror.listen", address: "127.0.0.1:5005".parse().unwrap(), udp: false }
}

/// A machine on which all is well.
fn healthy() -> Facts {
    let plugin = ProxyPlugin {
        kind: "snapshot".into(),
        address: "/run/peersync/snapshotter.sock".into(),
        remote_annotations: true,
    };
    Facts {
        root: true,
        kernel: "6.12.9-amd64".into(),
        fuse: Access::Open,
        fuse_mount: Some(Ok(FuseOffer { passthrough: true })),
        overlayfs: Some(true),
        disk: Ok(Disk {
            kind: "ext4".into(),
            total: 100 << 30,
            free: 50 << 30,
            inodes_free: Some(1_000_000),
            read_only: false,
        }),
        socket: SocketState::Answers,
        containerd: Some(Ok(ContainerdConfig {
            files: vec![PathBuf::from("/etc/containerd/config.toml")],
            version: 3,
            proxy_plugins: [("peersync".to_owned(), plugin)].into(),
            cri: Some(CriConfig {
                snapshotter: "peersync".into(),
                disable_snapshot_annotations: false,
                local_pull: false,
            }),
            address: "/run/containerd/containerd.sock".into(),
        })),
        loaded: Some(Ok(vec!["overlayfs".into(), "peersync".into()])),
        listeners: vec![(listener(), ListenerState::Ours)],
        now: UNIX_EPOCH + WRITTEN + Duration::from_secs(86_400),
        latest_change: Some(UNIX_EPOCH + WRITTEN),
        clock_synchronised: Some(true),
    }
}

/// The status of one check after a change to a healthy machine.
fn after(check_name: &str, change: impl FnOnce(&mut Settings, &mut Facts)) -> (Status, String) {
    let (mut settings, mut facts) = (settings(), healthy());
    change(&mut settings, &mut facts);
    let report = check(&settings, &facts);
    let found: Vec<_> =
        report.findings.iter().filter(|finding| finding.check == check_name).collect();
    assert_eq!(found.len(), 1, "{report}");
    let advised = !found[0].advice.is_empty();
    let fine = matches!(found[0].status, Status::Fine | Status::Skipped);
    assert!(advised || fine, "what is not fine comes with advice: {report}");
    (found[0].status, format!("{} {}", found[0].message, found[0].advice))
}

fn cri(facts: &mut Facts) -> &mut ContainerdConfig {
    match &mut facts.containerd {
        Some(Ok(config)) => config,
        _ => unreachable!("healthy"),
    }
}

#[test]
fn a_healthy_machine_is_fine() {
    let report = check(&settings(), &healthy());
    assert_eq!(report.status(), Status::Fine, "{report}");
    assert!(report.to_string().ends_with("all is well"));
    assert_eq!(report.to_json()["status"], "ok");
    assert_eq!(report.to_json()["checks"][0]["check"], "fuse");
}

#[test]
fn each_check_finds_what_it_is_for() {
    use Status::{Failed, Fine, Skipped, Warning};
    type Change = fn(&mut Settings, &mut Facts);
    let disk = |facts: &mut Facts, kind: &str| {
        facts.disk.as_mut().expect("healthy").kind = kind.to_owned();
    };
    let cases: &[(&str, Status, Change)] = &[
        ("fuse", Failed, |_, f| f.fuse = Access::Missing),
        ("fuse", Failed, |_, f| f.fuse = Access::Refused("denied".into())),
        ("fuse", Failed, |_, f| f.fuse_mount = Some(Err("not permitted".into()))),
        ("fuse", Warning, |_, f| (f.root, f.fuse_mount) = (false, None)),
        ("overlayfs", Failed, |_, f| f.overlayfs = Some(false)),
        ("overlayfs", Skipped, |_, f| f.overlayfs = None),
        ("store", Failed, |_, f| f.disk = Err("no".into())),
        ("store", Failed, |_, f| f.disk.as_mut().unwrap().read_only = true),
        ("disk", Warning, |_, f| f.disk.as_mut().unwrap().free = 1 << 30),
        ("disk", Warning, |_, f| f.disk.as_mut().unwrap().inodes_free = Some(100)),
        ("disk", Fine, |_, f| f.disk.as_mut().unwrap().inodes_free = None),
        ("disk", Skipped, |_, f| f.disk = Err("no".into())),
        ("passthrough", Warning, |_, f| {
            f.fuse_mount = Some(Ok(FuseOffer { passthrough: false }));
        }),
        ("passthrough", Fine, |_, f| f.fuse_mount = None),
        ("passthrough", Warning, |_, f| f.kernel = "6.8.0-51-generic".into()),
        ("passthrough", Fine, |_, f| f.kernel = "6.9.0".into()),
        ("passthrough", Warning, |_, f| f.kernel = "4.19.0".into()),
        ("passthrough", Skipped, |_, f| f.kernel = "unknown".into()),
        ("passthrough", Warning, |s, _| s.stack_depth = 0),
        ("stack-depth", Fine, |s, _| s.stack_depth = 0),
        ("stack-depth", Failed, |s, _| s.stack_depth = 2),
        ("containerd-plugin", Failed, |s, _| s.socket = "/elsewhere".into()),
        ("containerd-plugin", Failed, |_, f| cri(f).proxy_plugins.clear()),
        ("containerd-plugin", Skipped, |_, f| f.containerd = None),
        ("containerd-running", Failed, |_, f| f.loaded = Some(Ok(vec!["overlayfs".into()]))),
        ("containerd-running", Warning, |_, f| f.loaded = Some(Err("nobody".into()))),
        ("containerd-running", Skipped, |_, f| f.loaded = None),
        ("containerd-running", Skipped, |_, f| f.root = false),
        ("containerd-running", Skipped, |_, f| f.containerd = None),
        ("containerd-running", Skipped, |_, f| cri(f).proxy_plugins.clear()),
        ("containerd-plugin", Skipped, |s, _| s.socket = PathBuf::new()),
        ("snapshot-annotations", Skipped, |s, _| s.socket = PathBuf::new()),
        ("socket", Skipped, |s, _| s.socket = PathBuf::new()),
        ("ports", Skipped, |_, f| (f.root, f.listeners[0].1) = (false, ListenerState::InUse)),
        ("containerd-cri", Warning, |_, f| {
            cri(f).cri = Some(CriConfig::default());
        }),
        ("containerd-cri", Skipped, |_, f| cri(f).cri = None),
        ("snapshot-annotations", Failed, |_, f| cri(f).cri = Some(CriConfig::default())),
        ("snapshot-annotations", Failed, |_, f| {
            cri(f).proxy_plugins.get_mut("peersync").unwrap().remote_annotations = false;
        }),
        ("snapshot-annotations", Skipped, |_, f| f.containerd = None),
        ("snapshot-annotations", Skipped, |_, f| cri(f).cri = None),
        ("socket", Warning, |_, f| f.socket = SocketState::Stale),
        ("socket", Failed, |_, f| f.socket = SocketState::NotASocket),
        ("socket", Warning, |_, f| f.socket = SocketState::Refused("denied".into())),
        ("clock", Failed, |_, f| f.now = UNIX_EPOCH),
        ("clock", Failed, |_, f| f.latest_change = Some(f.now + Duration::from_secs(7200))),
        ("clock", Fine, |_, f| f.latest_change = Some(f.now + Duration::from_secs(60))),
        ("clock", Warning, |_, f| f.clock_synchronised = Some(false)),
        ("clock", Fine, |_, f| f.clock_synchronised = None),
        ("ports", Failed, |_, f| f.listeners[0].1 = ListenerState::InUse),
        ("ports", Fine, |_, f| f.listeners[0].1 = ListenerState::Free),
        ("ports", Failed, |_, f| f.listeners[0].1 = ListenerState::Refused("no".into())),
    ];
    for (index, (name, expected, change)) in cases.iter().enumerate() {
        let (status, text) = after(name, change);
        assert_eq!(status, *expected, "case {index}, {name}: {text}");
    }
    for (kind, expected) in
        [("overlay", Failed), ("nfs", Failed), ("fuse", Failed), ("tmpfs", Warning), ("xfs", Fine)]
    {
        assert_eq!(after("store", |_, facts| disk(facts, kind)).0, expected, "{kind}");
    }
    assert_eq!(after("stack-depth", |_, facts| disk(facts, "overlay")).0, Warning);
}

#[test]
fn advice_names_the_file_and_the_snippet() {
    let (_, text) = after("containerd-plugin", |_, facts| cri(facts).proxy_plugins.clear());
    assert!(text.contains("/etc/containerd/config.toml"), "{text}");
    assert!(text.contains("packaging/containerd"), "{text}");
    let mut facts = healthy();
    facts.containerd = Some(Err(ContainerdError::Parse {
        path: "/etc/containerd/config.toml".into(),
        reason: "expected a key".into(),
    }));
    assert_eq!(check(&settings(), &facts).status(), Status::Failed);
}
