//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use super::examples::with_examples;
use crate::config::ByteRate;
use crate::mount::IndexMode;

/// Use container images and model weights before they are downloaded.
#[derive(Parser)]
#[command(name = "peersync", version, about, long_about = LONG_ABOUT)]
pub(super) struct Args {
    /// Directory of the block store.
    ///
    /// One process owns a store; every other command on it goes through that
    /// process. Default: store.path of the configuration for root, and
    /// $XDG_DATA_HOME/peersync (~/.local/share/peersync) for everybody else.
    #[arg(long, global = true, value_name = "DIR", env = "PEERSYNC_STORE")]
    pub(super) store: Option<PathBuf>,
    /// Configuration file [default: /etc/peersync/config.toml where it exists].
    #[arg(long, global = true, value_name = "FILE", env = "PEERSYNC_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Say more: -v for information, -vv for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// Write results and errors as JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

const LONG_ABOUT: &str = "\
Use container images and model weights before they are downloaded.

An unmodified image (tar+gzip, tar+zstd, plain tar, eStargz, zstd:chunked, or raw model weights) \
becomes a file tree at once; reads fetch just the blocks that they touch, verified against their \
hashes, and keep them in a local store.

An image is named as Docker names it (alpine, ghcr.io/owner/name:tag, host:5000/name@sha256:...), \
or is a tag in an OCI layout directory, oci:DIR[:tag], or lies in a file as docker save writes \
it: docker-archive:FILE[:name].";

#[derive(Subcommand)]
pub(super) enum Command {
    /// Mount an image as a directory.
    ///
    /// Returns when the mount answers. With an index (one that a registry
    /// holds beside the image, or that an earlier mount made) that is before any
    /// content is fetched. Without one, every layer is read once in a stream,
    /// with its progress shown; what has passed is kept and not fetched again,
    /// also when the pass is interrupted.
    Mount(Mount),
    /// Take a mount away.
    ///
    /// Fails while somebody uses it. The process that served it ends with its last
    /// mount; what was fetched stays in the store.
    Umount {
        /// The mount point.
        dir: PathBuf,
        /// Detach it now, and end it when its last user is gone.
        #[arg(short, long)]
        lazy: bool,
    },
    /// Fetch all of an image into the store.
    ///
    /// Every block is verified; what is here already, under whatever name, is not
    /// fetched. Tells at the end how many bytes came from where. An interrupted pull
    /// goes on where it was.
    Pull {
        /// The image.
        image: String,
        /// Speak plain HTTP to the image's registry (loopback: without asking).
        #[arg(long)]
        plain_http: bool,
    },
    /// List the images that the store knows.
    ///
    /// With its manifest, its layers, and how much of their content is here.
    Images,
    /// List the layers that the store knows, and how much of each is here.
    ///
    /// Says for each where its index came from, and whether a registry can be asked
    /// for a part of it: a layer that is one zstd frame is one stream.
    Layers,
    /// List the peers that there are tunnels to: where, how fast, bytes each way.
    Peers,
    /// Show what the store holds, what is mounted and where bytes came from.
    ///
    /// Bytes are counted since the store's owner started: from registries (as on the
    /// line), from peers in the LAN and elsewhere, and what was here under another
    /// name. A daemon gives the same to Prometheus: see `metrics` in the output.
    Status,
    /// Evict what the budget (store.max_size, store.min_free) wants gone, and say why
    /// each thing goes or stays.
    Gc {
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
    },
    /// Keep an image or a layer in the store; without a name, list what is pinned.
    ///
    /// What is pinned goes only when the budget can be met in no other way.
    Pin {
        /// An image that the store knows, or a layer's digest.
        name: Option<String>,
    },
    /// Take a pin away.
    Unpin {
        /// As it was pinned.
        name: String,
    },
    /// Build, publish and show layer indexes.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Show or forget the nodes that are remembered.
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// Make keys of swarms.
    #[command(subcommand)]
    SwarmKey(SwarmKeyCommand),
    /// Serve the whole tree at mount.path, in the foreground.
    ///
    /// `ls /mnt/peersync/layers` shows the layers; looking up
    /// `/mnt/peersync/images/<reference>` resolves and mounts that image. Logs go
    /// to standard error; systemd is told when the daemon is ready.
    Daemon(Limits),
    /// Look whether this machine is set up for PeerSync, and say what to do if not.
    ///
    /// Exits with 1 if something does not work; warnings do not count.
    Doctor {
        /// containerd's configuration.
        #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
        containerd_config: PathBuf,
    },
    /// Own the store for as long as something is mounted or asked for.
    #[command(hide = true)]
    Serve,
    /// Write a completion script for a shell to standard output.
    ///
    /// Put it where the shell looks for completions; a new shell then knows all
    /// commands and options.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What peers may cost, in bytes per second.
#[derive(ClapArgs)]
pub(super) struct Limits {
    /// Most content to send to peers, such as 50MB/s; 0: no limit [default:
    /// limits.upload of the configuration].
    #[arg(long, value_name = "RATE")]
    pub(super) upload_limit: Option<ByteRate>,
    /// Most content to receive from peers, such as 50MB/s; 0: no limit. What a
    /// reader waits for is not held up [default: limits.download].
    #[arg(long, value_name = "RATE")]
    pub(super) download_limit: Option<ByteRate>,
}

#[derive(Subcommand)]
pub(super) enum SwarmCommand {
    /// List the nodes that were good peers before, by network.
    ///
    /// They are called first when this machine comes back to the network, so that
    /// it finds its swarm with no multicast and nobody's address in its
    /// configuration.
    Remembered,
    /// Forget remembered nodes.
    ///
    /// Tunnels that are open stay, and who is a good peer from now on is remembered
    /// anew. Of use when a machine has moved to other people, or a network has got
    /// other addresses.
    Reset {
        /// Only those of the network that this machine is in.
        #[arg(long)]
        here: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum SwarmKeyCommand {
    /// Make a key of a new swarm.
    ///
    /// Whoever has the key is a member: give it to all nodes of the swarm, as the
    /// file that swarm.key_file names, and to nobody else. To change the key, add
    /// the new one to the file of every node as a second line, then put it first
    /// everywhere, then take the old line away.
    New {
        /// The file to write, which must not exist; it is readable by its owner
        /// only. Without it the key goes to standard output.
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub(super) enum IndexCommand {
    /// Make sure that every layer of an image has an index.
    Build {
        /// The image.
        image: String,
        /// Speak plain HTTP to the image's registry (loopback: without asking).
        #[arg(long)]
        plain_http: bool,
    },
    /// Write the index beside the image, as an OCI referrer.
    ///
    /// The image itself is not changed. From then on a mount of the image on any
    /// machine answers before content is fetched.
    Push {
        /// The image.
        image: String,
        /// Speak plain HTTP to the image's registry (loopback: without asking).
        #[arg(long)]
        plain_http: bool,
    },
    /// Show the index of an image that the store knows.
    Show {
        /// The image.
        image: String,
    },
}

#[derive(ClapArgs)]
pub(super) struct Mount {
    /// The image: a reference, oci:DIR[:tag] or docker-archive:FILE[:name].
    pub(super) image: String,
    /// The directory to mount on; it must exist.
    pub(super) dir: PathBuf,
    /// Stay, and take the mount away on Ctrl-C.
    #[arg(short, long)]
    pub(super) foreground: bool,
    /// Mount options, separated by commas: suid, dev, ro. Without suid and dev,
    /// setuid bits and device nodes of the image give nobody any rights.
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    pub(super) options: Vec<MountOption>,
    /// Speak plain HTTP to the image's registry (loopback: without asking).
    #[arg(long)]
    pub(super) plain_http: bool,
    /// Where the layers' indexes come from.
    ///
    /// auto: from the registry where it has one, else built in one pass;
    /// never: always built here; require: fail rather than read the whole image.
    #[arg(long, value_enum, default_value_t)]
    pub(super) index: IndexMode,
}

/// What can stand behind `-o`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MountOption {
    /// Honour setuid bits (root only).
    Suid,
    /// Honour device nodes (root only).
    Dev,
    /// Read-only: always so.
    Ro,
    /// The default.
    Nosuid,
    /// The default.
    Nodev,
}

/// What can be said, and how each command's `--help` ends.
pub(super) fn command() -> clap::Command {
    with_examples(Args::command())
}

impl Args {
    /// What this process was started with; ends it where that makes no sense.
    pub(super) fn of_process() -> Self {
        let mut command = command();
        let matches = command.get_matches_mut();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

/// Writes a completion script for a shell to standard output.
pub(super) fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut command(), "peersync", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }
}
