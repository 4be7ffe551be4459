//! The configuration file and its environment overrides.
//!
//! Every key has a default that works on one machine. Unknown keys are errors
//! that name the nearest right one, and `PEERSYNC_<SECTION>_<KEY>` overrides
//! the file.

mod eviction;
mod mirror;
mod size;
mod swarm;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use eviction::EvictionConfig;
pub use mirror::{Logins, MirrorConfig};
pub use size::{ByteSize, Share};
pub use swarm::{ByteRate, LimitsConfig, Network, PeerAddress, SwarmConfig};

/// Where a daemon looks for its configuration.
pub const DEFAULT_PATH: &str = "/etc/peersync/config.toml";

/// Sections and keys that a configuration may have.
const KEYS: &[(&str, &[&str])] = &[
    ("store", &["path", "max_size", "min_free", "verify"]),
    ("eviction", &["horizon", "lan_cost", "overhead", "spare_after", "popularity"]),
    (
        "mount",
        &["path", "resolve_group", "no_progress_timeout", "threads", "stack_depth", "readahead"],
    ),
    ("snapshotter", &["socket"]),
    ("admin", &["listen"]),
    ("mirror", &["listen", "upstream", "registries", "logins"]),
    ("registry", &["hosts_dir", "plain_http", "connections"]),
    ("trust", &["index"]),
    (
        "swarm",
        &[
            "listen",
            "control",
            "bootstrap",
            "key_file",
            "revoked_file",
            "peers",
            "open",
            "lan",
            "lan_multicast",
        ],
    ),
    ("limits", &["upload", "background", "download"]),
];

/// All settings of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The block store.
    pub store: StoreConfig,
    /// What the store lets go of.
    pub eviction: EvictionConfig,
    /// The file system.
    pub mount: MountConfig,
    /// The containerd snapshotter.
    pub snapshotter: SnapshotterConfig,
    /// What an operator asks.
    pub admin: AdminConfig,
    /// The registry mirror.
    pub mirror: MirrorConfig,
    /// Registries.
    pub registry: RegistryConfig,
    /// Whom an index is believed from.
    pub trust: TrustConfig,
    /// Peers.
    pub swarm: SwarmConfig,
    /// What peers may cost.
    pub limits: LimitsConfig,
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct StoreConfig {
    /// The store's directory.
    pub path: PathBuf,
    /// Most bytes that the store may hold; none: as the disk allows.
    pub max_size: Option<ByteSize>,
    /// Share of the disk, or bytes, that stay free.
    pub min_free: Share,
    /// When a block that lies on disk is hashed before it is served.
    pub verify: Verify,
}

/// When a block that lies on disk is hashed before it is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// On every read.
    Always,
    /// On the first read after the store was opened.
    #[default]
    FirstRead,
    /// Never: the disk is trusted.
    Never,
}

/// `[mount]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct MountConfig {
    /// Where the daemon mounts its tree.
    pub path: PathBuf,
    /// Members of this group may resolve images by looking them up.
    pub resolve_group: String,
    /// Seconds without any progress after which a read fails with an I/O error.
    pub no_progress_timeout: u64,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// 1: complete files are read past the daemon; 0: file systems can be
    /// stacked on the mount once more.
    pub stack_depth: u32,
    /// Whether blocks that no reader asked for yet are fetched ahead.
    pub readahead: bool,
}

/// `[snapshotter]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct SnapshotterConfig {
    /// Where containerd finds the daemon; empty: nowhere.
    pub socket: PathBuf,
}

/// `[admin]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AdminConfig {
    /// Where `/metrics` and `/healthz` are served over HTTP; none: nowhere.
    #[serde(deserialize_with = "address_or_nothing")]
    pub listen: Option<SocketAddr>,
}

/// `[registry]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct RegistryConfig {
    /// containerd's directory of `hosts.toml` files.
    pub hosts_dir: PathBuf,
    /// Hosts besides loopback that are spoken to in plain HTTP.
    pub plain_http: Vec<String>,
    /// Requests for content in flight at a time.
    pub connections: usize,
}

/// `[trust]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrustConfig {
    /// Where an index is believed from. Without it: `self` and `registry`, and
    /// `swarm` where there is a swarm key.
    pub index: Option<Vec<IndexOrigin>>,
}

/// Where an index can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexOrigin {
    /// Built on this node.
    #[serde(rename = "self")]
    Own,
    /// A referrer in the image's own registry.
    Registry,
    /// A member of the swarm.
    Swarm,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            path: "/var/lib/peersync".into(),
            max_size: None,
            min_free: Share::Percent(10),
            verify: Verify::default(),
        }
    }
}

impl Default for MountConfig {
    fn default() -> Self {
        Self {
            path: "/mnt/peersync".into(),
            resolve_group: "peersync".into(),
            no_progress_timeout: 60,
            threads: 4,
            stack_depth: 1,
            readahead: true,
        }
    }
}

impl Default for SnapshotterConfig {
    fn default() -> Self {
        Self { socket: "/run/peersync/snapshotter.sock".into() }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 7070))) }
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { hosts_dir: "/etc/containerd/certs.d".into(), plain_http: Vec::new(), connections: 6 }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("configuration {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not TOML, or a value of the wrong kind.
    #[error("configuration {from}: {message}")]
    Invalid {
        /// The file, or the environment.
        from: String,
        /// What is wrong, and where.
        message: String,
    },
    /// A section or key that does not exist.
    #[error("configuration {from}: unknown key {key:?}{}", hint(.nearest))]
    Unknown {
        /// The file, or the environment.
        from: String,
        /// The key as written.
        key: String,
        /// The nearest key that exists.
        nearest: Option<String>,
    },
}

/// `"HOST:PORT"`, or `""` for none.
fn address_or_nothing<'de, D>(from: D) -> Result<Option<SocketAddr>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |_| serde::de::Error::custom(format!("{text:?} is not an address and a port"));
    text.parse().map(Some).map_err(wrong)
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default()
}

impl Config {
    /// Reads `path`, or [`DEFAULT_PATH`] if it exists, and applies the
    /// overrides in `env`.
    ///
    /// # Errors
    /// [`ConfigError`] where the file is missing although it was named, is not
    /// TOML, or has unknown keys or impossible values.
    pub fn load(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                String::new()
            }
            Err(error) => {
                return Err(ConfigError::Read { path: file.into(), error });
            }
        };
        Self::parse(&text, &file.display().to_string(), env)
    }

    /// As [`Config::load`], from a text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        from: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let invalid =
            |from: &str, message: String| ConfigError::Invalid { from: from.into(), message };
        let mut table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| invalid(from, e.to_string()))?;
        check_keys(&table, from)?;
        for (name, value) in env {
            if let Some((section, key)) = env_key(&name)? {
                let section = table
                    .entry(section)
                    .or_insert_with(|| toml::Table::new().into())
                    .as_table_mut()
                    .ok_or_else(|| invalid(from, format!("{section} is not a section")))?;
                section.insert(key.into(), env_value(&value));
            }
        }
        let config: Self =
            table.try_into().map_err(|e: toml::de::Error| invalid(from, e.to_string()))?;
        config.check().map_err(|message| invalid(from, message))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let bound = |name: &str, value: u64, range: std::ops::RangeInclusive<u64>| {
            range.contains(&value).then_some(()).ok_or_else(|| {
                format!("{name} = {value}: expected {} to {}", range.start(), range.end())
            })
        };
        bound("mount.no_progress_timeout", self.mount.no_progress_timeout, 1..=86_400)?;
        bound("mount.threads", self.mount.threads as u64, 1..=64)?;
        bound("mount.stack_depth", u64::from(self.mount.stack_depth), 0..=1)?;
        bound("registry.connections", self.registry.connections as u64, 2..=64)?;
        self.eviction.check()?;
        self.mirror.check()?;
        self.swarm.check()
    }

    /// Whether an index from there is believed.
    pub fn believes(&self, origin: IndexOrigin) -> bool {
        match &self.trust.index {
            Some(origins) => origins.contains(&origin),
            None => origin != IndexOrigin::Swarm || self.swarm.key_file.is_some(),
        }
    }
}

fn check_keys(table: &toml::Table, from: &str) -> Result<(), ConfigError> {
    let unknown = |key: &str, known: Vec<String>| ConfigError::Unknown {
        from: from.into(),
        key: key.into(),
        nearest: nearest(key, &known),
    };
    for (section, value) in table {
        let Some((_, keys)) = KEYS.iter().find(|(name, _)| name == section) else {
            return Err(unknown(section, KEYS.iter().map(|(name, _)| (*name).into()).collect()));
        };
        for key in value.as_table().into_iter().flat_map(|t| t.keys()) {
            if !keys.contains(&key.as_str()) {
                let all =
                    KEYS.iter().flat_map(|(s, ks)| ks.iter().map(move |k| format!("{s}.{k}")));
                return Err(unknown(&format!("{section}.{key}"), all.collect()));
            }
        }
    }
    Ok(())
}

/// `PEERSYNC_STORE_MAX_SIZE` is `store.max_size`. `PEERSYNC_CONFIG`,
/// `PEERSYNC_STORE` and `PEERSYNC_LOG` are options of the command line.
fn env_key(name: &str) -> Result<Option<(&'static str, &'static str)>, ConfigError> {
    let Some(rest) = name.strip_prefix("PEERSYNC_") else {
        return Ok(None);
    };
    if matches!(rest, "CONFIG" | "STORE" | "LOG") {
        return Ok(None);
    }
    let wanted = rest.to_lowercase();
    let all = || KEYS.iter().flat_map(|(s, ks)| ks.iter().map(move |k| (*s, *k)));
    match all().find(|(s, k)| format!("{s}_{k}") == wanted) {
        Some(found) => Ok(Some(found)),
        None => {
            let known: Vec<String> = all()
                .map(|(s, k)| format!("PEERSYNC_{}_{}", s.to_uppercase(), k.to_uppercase()))
                .collect();
            Err(ConfigError::Unknown {
                from: "environment".into(),
                key: name.into(),
                nearest: nearest(name, &known),
            })
        }
    }
}

/// A value of the environment: TOML where it reads as TOML, else a string.
fn env_value(text: &str) -> toml::Value {
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.into()))
}

fn nearest(key: &str, known: &[String]) -> Option<String> {
    known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(key, k), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len() / 2)
        .map(|(_, k)| k.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, "test", [])
    }

    #[test]
    fn nothing_is_needed_and_every_key_is_known() {
        let config = parse("").expect("defaults");
        assert_eq!(config.store.min_free, Share::Percent(10));
        let config = parse(
            "[store]\npath='/s'\nmax_size='20GiB'\nmin_free='5%'\nverify='always'\n\
             [eviction]\nhorizon=60\nlan_cost=0.1\noverhead='1MiB'\nspare_after=600\npopularity=1\n\
             [mount]\npath='/m'\nresolve_group='g'\nno_progress_timeout=5\nthreads=2\nstack_depth=0\nreadahead=false\n\
             [snapshotter]\nsocket='/x'\n[admin]\nlisten=''\n[mirror]\nlisten='127.0.0.1:1'\nupstream='a.b'\nregistries=['c.d:1']\nlogins='node'\n[registry]\nhosts_dir='/h'\nplain_http=['a:1']\nconnections=2\n[trust]\nindex=['self']\n\
             [swarm]\nlisten='127.0.0.1:7400'\ncontrol='127.0.0.1:7401'\nbootstrap=['a.b:7401']\nlan_multicast=false\nkey_file='/k'\nrevoked_file='/r'\npeers=['10.1.0.2:7400','a.b:1']\nopen=false\nlan=['10.1.0.0/16']\n\
             [limits]\nupload='50MB/s'\nbackground='1MB/s'\ndownload=0\n",
        )
        .expect("all keys");
        assert_eq!(config.store.max_size, Some(ByteSize(20 << 30)));
        assert_eq!((config.eviction.horizon, config.eviction.spare_after), (60, 600));
        assert!(!config.believes(IndexOrigin::Registry) && config.believes(IndexOrigin::Own));
        assert_eq!(config.limits.upload.per_second(), Some(50_000_000));
        assert_eq!(config.swarm.peers.len(), 2);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let message = parse("[store]\nmax_sise = '1GiB'").expect_err("unknown").to_string();
        assert!(message.contains("did you mean \"store.max_size\"?"), "{message}");
        let message = parse("[stor]\n").expect_err("unknown").to_string();
        assert!(message.contains("did you mean \"store\"?"), "{message}");
    }

    #[test]
    fn impossible_values_are_refused() {
        for bad in [
            "[mount]\nthreads = 0",
            "[mount]\nthreads = 'x'",
            "[store]\nmax_size = 'many'",
            "[store]\nmin_free = '101%'",
            "store = 1",
            "[eviction]\nhorizon = 0",
            "[eviction]\nlan_cost = 1.5",
            "[eviction]\nlan_cost = nan",
            "[eviction]\noverhead = '2GiB'",
            "[eviction]\nspare_after = 1",
            "[eviction]\npopularity = -1",
            "[admin]\nlisten = '7070'",
            "[mirror]\nlisten = '5005'",
            "[mirror]\nupstream = 'https://docker.io'",
            "[mirror]\nlogins = 'all'",
            "[swarm]\nlisten = '7400'",
            "[swarm]\npeers = ['10.1.0.2']",
            "[swarm]\nlan = ['10.1.0.0/64']",
            "[swarm]\nopen = true\nkey_file = '/k'",
            "[swarm]\nbootstrap = ['10.1.0.2']",
            "[limits]\nupload = '50MB'",
            "[limits]\nupload = 50",
            "[",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_swarm_is_believed_where_there_is_a_key() {
        let believes = |text| parse(text).expect("valid").believes(IndexOrigin::Swarm);
        assert!(!believes("") && !believes("[swarm]\nopen = true"));
        assert!(believes("[swarm]\nkey_file = '/k'"));
        assert!(!believes("[swarm]\nkey_file = '/k'\n[trust]\nindex = ['self', 'registry']"));
        assert!(believes("[trust]\nindex = ['swarm']"));
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let env = |k: &str, v: &str| [(k.to_string(), v.to_string())];
        let config =
            Config::parse("[store]\nmax_size='1GiB'", "t", env("PEERSYNC_STORE_MAX_SIZE", "2GiB"));
        assert_eq!(config.expect("valid").store.max_size, Some(ByteSize(2 << 30)));
        let config = Config::parse("", "t", env("PEERSYNC_MOUNT_THREADS", "3")).expect("valid");
        assert_eq!(config.mount.threads, 3);
        let wrong = Config::parse("", "t", env("PEERSYNC_MOUNT_THREAD", "3")).expect_err("unknown");
        assert!(wrong.to_string().contains("PEERSYNC_MOUNT_THREADS"), "{wrong}");
    }
}
