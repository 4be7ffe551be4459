//! The commands as a person uses them.

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::Peersync;
use crate::harness::tar::Tar;
use crate::harness::{lab_images, needs_mounts, scratch};

fn small() -> (tempfile::TempDir, Layout) {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut tar = Tar::new();
    tar.file(b"file", b"content");
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    (place, layout)
}

#[test]
fn help_names_every_command() {
    let peersync = Peersync::new();
    let help = peersync.run(&["--help"]);
    for command in [
        "mount",
        "umount",
        "pull",
        "images",
        "layers",
        "index",
        "status",
        "swarm",
        "daemon",
        "completions",
    ] {
        assert!(help.contains(command), "{command} in\n{help}");
    }
    for command in ["mount", "pull", "index"] {
        let help = peersync.run(&[command, "--help"]);
        assert!(help.lines().count() > 8, "help that teaches:\n{help}");
    }
}

#[test]
fn what_was_pulled_is_listed() {
    needs_mounts!();
    let peersync = Peersync::new();
    let image = format!("oci:{}:v1", lab_images().join("oci").display());
    peersync.run(&["pull", &image]);
    assert!(peersync.run(&["images"]).contains("v1"));
    assert!(peersync.run(&["layers"]).lines().count() > 3);
    let json: serde_json::Value =
        serde_json::from_str(&peersync.run(&["--json", "layers"])).expect("JSON");
    assert!(json.to_string().matches("sha256:").count() >= 3, "{json}");
}

#[test]
fn a_layer_of_one_zstd_frame_is_pointed_out() {
    needs_mounts!();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut content = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let mut tar = Tar::new();
    tar.file(b"file", &content);
    layout.image("v1", &[tar.finish()], Compression::Zstd);
    let peersync = Peersync::new();
    peersync.run(&["pull", &layout.reference("v1")]);
    let layers = peersync.run(&["layers"]);
    assert!(layers.contains("frame"), "{layers}");
}

#[test]
fn an_index_can_be_built_and_shown() {
    needs_mounts!();
    let (_place, layout) = small();
    let peersync = Peersync::new();
    peersync.run(&["index", "build", &layout.reference("v1")]);
    let shown = peersync.run(&["index", "show", &layout.reference("v1")]);
    assert!(shown.contains("gzip"), "{shown}");
}

#[test]
fn an_index_pushed_into_a_layout_is_found_there() {
    needs_mounts!();
    let (_place, layout) = small();
    let builder = Peersync::new();
    builder.run(&["index", "build", &layout.reference("v1")]);
    builder.run(&["index", "push", &layout.reference("v1")]);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("v1"), &["--index", "require"]);
    assert_eq!(std::fs::read(mount.join("file")).expect("file"), b"content");
}

#[test]
fn completions_are_written_for_every_shell() {
    let peersync = Peersync::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(peersync.run(&["completions", shell]).contains("umount"), "{shell}");
    }
}

#[test]
fn mistakes_are_explained() {
    let (_place, layout) = small();
    let peersync = Peersync::new();
    let point = peersync.mount_point().display().to_string();
    let fails = |arguments: &[&str], word: &str| {
        let said = peersync.fails(arguments);
        assert!(said.to_lowercase().contains(word), "{arguments:?}: {word} in\n{said}");
    };
    fails(&["mount", "oci:/nowhere:v1", &point], "/nowhere");
    fails(&["mount", &layout.reference("other"), &point], "other");
    fails(&["mount", &layout.reference("v1"), "/nowhere/at/all"], "/nowhere/at/all");
    fails(&["mount", "not a reference", &point], "reference");
    fails(&["mounnt", &layout.reference("v1"), &point], "mount");
    fails(&["pull", "127.0.0.1:1/test/image:v1"], "127.0.0.1:1");
    fails(&["mount", "--index", "maybe", &layout.reference("v1"), &point], "require");
}

#[test]
fn an_unknown_key_of_the_configuration_is_an_error_with_the_right_name() {
    let peersync = Peersync::new();
    let config = peersync.path("config.toml");
    std::fs::write(&config, "[store]\nmax_sise = \"1GiB\"\n").expect("configuration");
    let said = peersync.fails(&["--config", &config.display().to_string(), "images"]);
    assert!(said.contains("max_sise") && said.contains("max_size"), "{said}");
}

#[test]
fn the_packaged_configuration_is_right_as_it_is_and_with_every_line_enabled() {
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/config.toml");
    let shipped = std::fs::read_to_string(shipped).expect("packaging/config.toml");
    let enabled: String = shipped
        .lines()
        .map(|line| match line.strip_prefix('#') {
            // `#key = value` is a default; `# words` is a comment.
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(shipped, enabled);
    let peersync = Peersync::new();
    for text in [shipped, enabled] {
        let config = peersync.path("config.toml");
        std::fs::write(&config, text).expect("configuration");
        peersync.run(&["--config", &config.display().to_string(), "images"]);
    }
}
