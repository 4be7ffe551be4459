//! containerd's configuration, as far as the snapshotter depends on it.
//!
//! Versions 2 (containerd 1.x) and 3 (containerd 2.x) differ in where the CRI
//! plugin keeps its image settings. Files that the main one imports are merged
//! over it, as containerd does: what comes later wins, in version 2 a plugin's
//! section as a whole.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::{Table, Value};

/// Where version 2 and version 3 have the CRI plugin's image settings.
const CRI_V2: &str = "io.containerd.grpc.v1.cri";
const CRI_V3: &str = "io.containerd.cri.v1.images";
/// Where containerd listens if its configuration does not say.
const ADDRESS: &str = "/run/containerd/containerd.sock";

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerdConfig {
    /// The files that were read, the main one first.
    pub files: Vec<PathBuf>,
    /// The format's version: 2 with containerd 1.x, 3 with 2.x; 1 if none is said.
    pub version: i64,
    /// Plugins in other processes, by name.
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// The CRI plugin; none where it is switched off.
    pub cri: Option<CriConfig>,
    /// The socket of containerd itself.
    pub address: String,
}

/// A plugin in another process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyPlugin {
    /// `snapshot` or `content`.
    pub kind: String,
    /// Its socket.
    pub address: String,
    /// Whether the transfer service shall say which image a layer is of.
    pub remote_annotations: bool,
}

/// What Kubernetes' images use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriConfig {
    /// The snapshotter's name.
    pub snapshotter: String,
    /// Whether layers come without the labels that say which image they are of.
    pub disable_snapshot_annotations: bool,
    /// Whether the CRI plugin pulls by itself; since containerd 2.1 the transfer
    /// service does that by default.
    pub local_pull: bool,
}

impl Default for CriConfig {
    fn default() -> Self {
        Self {
            snapshotter: "overlayfs".to_owned(),
            disable_snapshot_annotations: true,
            local_pull: false,
        }
    }
}

/// Why the configuration can't be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerdError {
    /// A file can't be read.
    #[error("{path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file is not TOML.
    #[error("{path}: not TOML: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ContainerdConfig {
    /// Merges the texts of the files, the main one first.
    ///
    /// # Errors
    /// A text is not TOML.
    pub fn parse(files: &[(PathBuf, String)]) -> Result<Self, ContainerdError> {
        let mut config = Self {
            version: 1,
            cri: Some(CriConfig::default()),
            address: ADDRESS.to_owned(),
            ..Self::default()
        };
        for (path, text) in files {
            let table = parse_file(path, text)?;
            config.files.push(path.clone());
            config.merge(&table);
        }
        Ok(config)
    }

    /// The name under which containerd knows the snapshotter at `socket`.
    pub fn snapshotter_at(&self, socket: &str) -> Option<&str> {
        self.proxy_plugins
            .iter()
            .find(|(_, plugin)| {
                let address = plugin.address.trim_start_matches("unix://");
                plugin.kind == "snapshot" && address == socket
            })
            .map(|(name, _)| name.as_str())
    }

    /// Whether layers come with the labels that say which image they are of, when
    /// Kubernetes pulls through the plugin `name`; none without CRI.
    pub fn annotates(&self, name: &str) -> Option<bool> {
        let cri = self.cri.as_ref()?;
        let by_transfer = self.version >= 3 && !cri.local_pull;
        let plugin = self.proxy_plugins.get(name);
        let exported = plugin.is_some_and(|plugin| plugin.remote_annotations);
        Some(!cri.disable_snapshot_annotations && (exported || !by_transfer))
    }

    fn merge(&mut self, table: &Table) {
        if let Some(version) = table.get("version").and_then(Value::as_integer) {
            self.version = version;
        }
        let address = table.get("grpc").and_then(|grpc| grpc.get("address")?.as_str());
        if let Some(address) = address.filter(|address| !address.is_empty()) {
            address.clone_into(&mut self.address);
        }
        let disabled = table.get("disabled_plugins").and_then(Value::as_array);
        let off = disabled.into_iter().flatten().filter_map(Value::as_str);
        if off.into_iter().any(|name| name == "cri" || name == CRI_V2 || name == CRI_V3) {
            self.cri = None;
        }
        for (name, plugin) in
            table.get("proxy_plugins").and_then(Value::as_table).into_iter().flatten()
        {
            let text = |key| plugin.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let exports = plugin.get("exports");
            let annotations = exports.and_then(|all| all.get("enable_remote_snapshot_annotations"));
            let plugin = ProxyPlugin {
                kind: text("type"),
                address: text("address"),
                remote_annotations: annotations.and_then(Value::as_str) == Some("true"),
            };
            self.proxy_plugins.insert(name.clone(), plugin);
        }
        let Some(cri) = &mut self.cri else { return };
        let plugins = table.get("plugins");
        // containerd 1.x takes a plugin's section whole from the last file that has
        // it; 2.x merges key by key.
        if self.version < 3 && plugins.is_some_and(|all| all.get(CRI_V2).is_some()) {
            *cri = CriConfig::default();
        }
        let v2 = plugins.and_then(|all| all.get(CRI_V2)?.get("containerd"));
        let v3 = plugins.and_then(|all| all.get(CRI_V3));
        for settings in [v2, v3].into_iter().flatten() {
            if let Some(name) = settings.get("snapshotter").and_then(Value::as_str) {
                name.clone_into(&mut cri.snapshotter);
            }
            let disable = settings.get("disable_snapshot_annotations").and_then(Value::as_bool);
            if let Some(disable) = disable {
                cri.disable_snapshot_annotations = disable;
            }
            if let Some(local) = settings.get("use_local_image_pull").and_then(Value::as_bool) {
                cri.local_pull = local;
            }
        }
    }
}

/// The files that a configuration imports: paths whose last part may hold `*`.
///
/// # Errors
/// The text is not TOML.
pub(super) fn imports(path: &std::path::Path, text: &str) -> Result<Vec<PathBuf>, ContainerdError> {
    let table = parse_file(path, text)?;
    let imports = table.get("imports").and_then(Value::as_array);
    Ok(imports.into_iter().flatten().filter_map(Value::as_str).map(PathBuf::from).collect())
}

/// The snapshotters that work, in what `ctr plugins ls` says: type, name, platforms,
/// status.
pub(super) fn loaded(said: &str) -> Vec<String> {
    let works = |line: &str| {
        let mut words = line.split_whitespace();
        let is_snapshotter = words.next() == Some("io.containerd.snapshotter.v1");
        let name = words.next().filter(|_| is_snapshotter)?;
        (words.next_back() == Some("ok")).then(|| name.to_owned())
    };
    said.lines().filter_map(works).collect()
}

fn parse_file(path: &std::path::Path, text: &str) -> Result<Table, ContainerdError> {
    text.parse().map_err(|error: toml::de::Error| ContainerdError::Parse {
        path: path.to_owned(),
        reason: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> ContainerdConfig {
        let files: Vec<_> =
            texts.iter().map(|text| (PathBuf::from("config.toml"), (*text).to_owned())).collect();
        ContainerdConfig::parse(&files).unwrap()
    }

    const V2: &str = include_str!("../../packaging/containerd/config-v2.toml");
    const V3: &str = include_str!("../../packaging/containerd/config-v3.toml");

    #[test]
    fn the_snippets_that_we_ship_are_what_the_doctor_wants() {
        for snippet in [V2, V3] {
            let config = parse(&[snippet]);
            assert_eq!(config.snapshotter_at("/run/peersync/snapshotter.sock"), Some("peersync"));
            assert_eq!(config.annotates("peersync"), Some(true));
            assert_eq!(config.cri.unwrap().snapshotter, "peersync");
        }
    }

    #[test]
    fn without_settings_the_defaults_hold() {
        let config = parse(&["version = 2"]);
        assert_eq!(config.cri, Some(CriConfig::default()));
        assert_eq!(config.snapshotter_at("/run/peersync/snapshotter.sock"), None);
        assert_eq!(config.address, "/run/containerd/containerd.sock");
        assert_eq!(parse(&["[grpc]\naddress = \"/c.sock\""]).address, "/c.sock");
    }

    #[test]
    fn loaded_snapshotters_are_told_from_what_ctr_says() {
        let said = "TYPE                            ID          PLATFORMS      STATUS    \n\
                    io.containerd.content.v1        content     -              ok        \n\
                    io.containerd.snapshotter.v1    btrfs       linux/amd64    skip      \n\
                    io.containerd.snapshotter.v1    overlayfs   linux/amd64    ok        \n\
                    io.containerd.snapshotter.v1    peersync    -              ok        \n";
        assert_eq!(loaded(said), ["overlayfs", "peersync"]);
    }

    #[test]
    fn imports_win_and_can_be_listed() {
        let main = "imports = [\"/etc/containerd/conf.d/*.toml\"]\n[proxy_plugins.a]\n\
                    type = \"snapshot\"\naddress = \"unix:///x\"";
        let config = parse(&[
            main,
            V2,
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"a\"",
        ]);
        assert_eq!(config.snapshotter_at("/x"), Some("a"));
        assert_eq!(config.cri.unwrap().snapshotter, "a");
        let found = imports("x".as_ref(), main).unwrap();
        assert_eq!(found, [PathBuf::from("/etc/containerd/conf.d/*.toml")]);
    }

    #[test]
    fn an_import_replaces_the_whole_section_of_a_plugin_in_containerd_1() {
        let other = "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause\"";
        assert_eq!(parse(&[V2, other]).annotates("peersync"), Some(false));
        assert_eq!(parse(&[other, V2]).annotates("peersync"), Some(true));
        let other = "[plugins.\"io.containerd.cri.v1.images\"]\ndiscard_unpacked_layers = true";
        assert_eq!(parse(&[V3, other]).annotates("peersync"), Some(true));
    }

    #[test]
    fn since_version_3_the_plugin_has_to_ask_for_annotations() {
        let without = V3.replace("enable_remote_snapshot_annotations", "other");
        assert_eq!(parse(&[&without]).annotates("peersync"), Some(false));
        let local = "[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = true";
        assert_eq!(parse(&[&without, local]).annotates("peersync"), Some(true));
        let without = V2.replace("enable_remote_snapshot_annotations", "other");
        assert_eq!(parse(&[&without]).annotates("peersync"), Some(true));
        assert_eq!(parse(&["version = 2"]).annotates("peersync"), Some(false));
    }

    #[test]
    fn docker_switches_cri_off() {
        assert_eq!(parse(&["disabled_plugins = [\"cri\"]", V2]).cri, None);
    }

    #[test]
    fn odd_values_and_noise_are_no_panic() {
        for odd in [
            "plugins = 3",
            "proxy_plugins = []",
            "disabled_plugins = \"cri\"",
            "[proxy_plugins]\na = 1",
            "[plugins]\n\"io.containerd.grpc.v1.cri\" = true",
            "grpc = true",
            "[grpc]\naddress = 1",
        ] {
            parse(&[odd]);
        }
        let noise = [(PathBuf::from("c"), "][".to_owned())];
        assert!(matches!(ContainerdConfig::parse(&noise), Err(ContainerdError::Parse { .. })));
    }
}
