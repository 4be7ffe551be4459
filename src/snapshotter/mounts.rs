//! What containerd is told to mount.
//!
//! For ordinary snapshots this is what its overlayfs snapshotter returns, option
//! by option. A remote chain below counts as one lower directory, whatever the
//! number of its layers:
//!
//! | snapshot | below it | mount |
//! |---|---|---|
//! | active | nothing | writable bind of its own directory |
//! | view | nothing | read-only bind of its own (empty) directory |
//! | active | anything | overlay: own directory over the ordinary layers, then the chain |
//! | view | one directory or a chain | read-only bind of that |
//! | view | more | overlay without upper directory |

use std::path::{Path, PathBuf};

use super::meta::{Content, Kind, Snapshot};

/// One mount(2) for containerd to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// The directory to bind; `overlay` for an overlay.
    pub source: String,
    /// Options in the style of fstab.
    pub options: Vec<String>,
}

/// Options that the kernel of this machine wants in every overlay mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// `index=off`: the kernel knows inode indexes, which snapshots can't keep.
    pub index_off: bool,
    /// `userxattr`: in a user namespace, whiteouts are `user.overlay.*`.
    pub userxattr: bool,
}

/// Where the directories of ordinary snapshots are.
pub trait Directories {
    /// The files of the snapshot `id`.
    fn fs(&self, id: u64) -> PathBuf;
    /// Overlayfs' scratch directory beside them.
    fn work(&self, id: u64) -> PathBuf;
}

/// Whether a path can stand in overlayfs' options, which separate by these.
pub fn is_mountable(path: &Path) -> bool {
    path.is_absolute() && path.to_str().is_some_and(|text| !text.contains([',', ':', '\\', '\n']))
}

/// The mounts of `snapshot`. `chain` is where [`Snapshot::chain_below`] is, if
/// there is one.
pub fn mounts(
    snapshot: &Snapshot,
    chain: Option<&Path>,
    directories: &impl Directories,
    overlay: OverlayOptions,
) -> Vec<Mount> {
    let mut lower: Vec<String> = snapshot
        .parents
        .iter()
        .take_while(|layer| layer.content == Content::Directory)
        .map(|layer| text(directories.fs(layer.id)))
        .collect();
    lower.extend(chain.map(text));

    let writable = snapshot.kind == Kind::Active;
    if lower.is_empty() {
        return bind(text(directories.fs(snapshot.id)), writable);
    }
    if !writable && lower.len() == 1 {
        return bind(lower.remove(0), false);
    }
    let mut options = Vec::with_capacity(5);
    if overlay.index_off {
        options.push("index=off".to_owned());
    }
    if overlay.userxattr {
        options.push("userxattr".to_owned());
    }
    if writable {
        options.push(format!("workdir={}", text(directories.work(snapshot.id))));
        options.push(format!("upperdir={}", text(directories.fs(snapshot.id))));
    }
    options.push(format!("lowerdir={}", lower.join(":")));
    vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
}

fn bind(source: String, writable: bool) -> Vec<Mount> {
    let access = if writable { "rw" } else { "ro" };
    vec![Mount { kind: "bind", source, options: vec![access.to_owned(), "rbind".to_owned()] }]
}

/// Paths were checked to be text when they came in ([`is_mountable`]).
fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshotter::meta::Layer;
    use crate::types::Digest;

    struct Plain;

    impl Directories for Plain {
        fn fs(&self, id: u64) -> PathBuf {
            format!("/s/{id}/fs").into()
        }
        fn work(&self, id: u64) -> PathBuf {
            format!("/s/{id}/work").into()
        }
    }

    const LINUX: OverlayOptions = OverlayOptions { index_off: true, userxattr: false };

    /// Parents nearest first: `d` a directory, `c` a chain; identifiers from 1.
    fn shown(kind: Kind, parents: &str) -> String {
        let parents = parents
            .bytes()
            .zip(1..)
            .map(|(letter, id)| Layer {
                id,
                content: match letter {
                    b'd' => Content::Directory,
                    _ => Content::Chain(Digest::of(&[0])),
                },
            })
            .collect();
        let snapshot = Snapshot { id: 9, kind, content: Content::Directory, parents };
        let chain = snapshot.chain_below().map(|_| Path::new("/m/chains/sha256-0"));
        let mounts = mounts(&snapshot, chain, &Plain, LINUX);
        assert_eq!(mounts.len(), 1);
        format!("{} {} {}", mounts[0].kind, mounts[0].source, mounts[0].options.join(","))
    }

    #[test]
    fn every_shape_of_chain_has_its_mount() {
        const OVER: &str = "overlay overlay index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=";
        const CHAIN: &str = "/m/chains/sha256-0";
        for (kind, parents, expected) in [
            (Kind::Active, "", "bind /s/9/fs rw,rbind".to_owned()),
            (Kind::View, "", "bind /s/9/fs ro,rbind".to_owned()),
            (Kind::Active, "d", format!("{OVER}/s/1/fs")),
            (Kind::Active, "ddd", format!("{OVER}/s/1/fs:/s/2/fs:/s/3/fs")),
            (Kind::View, "d", "bind /s/1/fs ro,rbind".to_owned()),
            (Kind::View, "dd", "overlay overlay index=off,lowerdir=/s/1/fs:/s/2/fs".to_owned()),
            (Kind::Active, "c", format!("{OVER}{CHAIN}")),
            (Kind::Active, "ccc", format!("{OVER}{CHAIN}")),
            (Kind::View, "c", format!("bind {CHAIN} ro,rbind")),
            (Kind::View, "cc", format!("bind {CHAIN} ro,rbind")),
            (Kind::Active, "ddcc", format!("{OVER}/s/1/fs:/s/2/fs:{CHAIN}")),
            (Kind::View, "dc", format!("overlay overlay index=off,lowerdir=/s/1/fs:{CHAIN}")),
        ] {
            assert_eq!(shown(kind, parents), expected, "{kind:?} on {parents:?}");
        }
    }

    #[test]
    fn options_follow_the_kernel() {
        let parents = vec![Layer { id: 1, content: Content::Directory }];
        let snapshot = Snapshot { id: 2, kind: Kind::Active, content: Content::Directory, parents };
        let options = |index_off, userxattr| {
            let overlay = OverlayOptions { index_off, userxattr };
            mounts(&snapshot, None, &Plain, overlay).remove(0).options
        };
        let tail = ["workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"];
        assert_eq!(options(false, false), tail);
        assert_eq!(options(true, true)[..2], ["index=off", "userxattr"]);
        assert_eq!(options(true, true)[2..], tail);
    }

    #[test]
    fn paths_that_options_can_not_hold_are_refused() {
        assert!(is_mountable(Path::new("/var/lib/peersync")));
        for bad in ["relative", "/a,b", "/a:b", "/a\\b", "/a\nb"] {
            assert!(!is_mountable(Path::new(bad)), "{bad}");
        }
    }

    proptest! {
        /// A writable snapshot never writes below itself, and one that is not
        /// writable has no upper directory and no writable bind.
        #[test]
        fn only_the_snapshot_itself_is_ever_writable(
            active in any::<bool>(),
            parents in "d{0,4}c{0,4}",
        ) {
            let kind = if active { Kind::Active } else { Kind::View };
            let shown = shown(kind, &parents);
            let writes = shown.contains("upperdir=/s/9/fs,") || shown == "bind /s/9/fs rw,rbind";
            prop_assert_eq!(writes, active);
            prop_assert!(!shown.contains("upperdir=/m"));
        }
    }
}
