//! Reads the sources and holds them to the shape that `docs/ARCHITECTURE.md` draws.
//!
//! Imports go strictly downwards and siblings don't know each other, files stay
//! short, pure modules stay pure, and nothing unfinished is left behind. The
//! tables come first, then the checks; each check is itself tested on a seeded
//! violation.

#[path = "tidy/source.rs"]
mod source;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use source::Source;

/// Modules of `src/` by level. A file imports from lower levels and from its
/// own module, never from a sibling or from above.
const LEVELS: &[(&str, u8)] = &[
    // The base: everybody may know these, and they know nobody but each other.
    ("types", 0),
    ("time", 0),
    ("rng", 0),
    ("oci", 1),
    ("layer", 1),
    ("store", 1),
    ("eviction", 1),
    ("swarm", 1),
    ("identity", 1),
    ("wire", 1),
    ("config", 1),
    ("telemetry", 1),
    ("fetch", 2),
    ("blocks", 3),
    ("fs", 4),
    ("fuse", 5),
    ("mount", 6),
    ("snapshotter", 7),
    ("doctor", 7),
    ("mirror", 7),
    ("admin", 7),
    ("daemon", 8),
    ("cli", 9),
];

/// What the checker may share with the node: the formats, never the engine.
const FSCK_MAY_USE: &[&[&str]] = &[&["types"], &["layer"], &["store", "format"]];

/// No sockets, files, processes, threads or clocks: what a pure module never names.
const IO: &[&[&str]] = &[
    &["tokio"],
    &["reqwest"],
    &["fuser"],
    &["nix"],
    &["memmap2"],
    &["std", "fs"],
    // Addresses are values; sockets are not.
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["ToSocketAddrs"],
    &["std", "os", "unix", "net"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "env"],
    &["Instant", "now"],
    &["SystemTime", "now"],
];

/// The file system hands a backing file through and has tasks to wake, so it may
/// name `File`; it knows neither FUSE, nor networks, nor the clock.
const FUSE_NET_CLOCK: &[&[&str]] = &[
    &["fuser"],
    &["reqwest"],
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["ToSocketAddrs"],
    &["std", "os", "unix", "net"],
    &["tokio", "net"],
    &["tokio", "fs"],
    &["std", "process"],
    &["Instant", "now"],
    &["SystemTime", "now"],
];

/// Pure modules (a file or a directory of `src/`, without `.rs`) and what they
/// must not name. A path that is not there yet binds once it is.
const PURE: &[(&str, &[&[&str]])] = &[
    ("types", IO),
    ("rng", IO),
    ("wire", IO),
    ("swarm/address", IO),
    ("swarm/beacon", IO),
    ("swarm/neighbours", IO),
    ("swarm/elect", IO),
    ("swarm/claim", IO),
    ("swarm/differences", IO),
    ("swarm/history", IO),
    ("swarm/lookups", IO),
    ("swarm/popularity", IO),
    ("swarm/tracker", IO),
    ("swarm/overlay", IO),
    ("swarm/dht/names", IO),
    ("swarm/dht/schedule", IO),
    ("swarm/dht/address", IO),
    ("layer", IO),
    ("eviction", IO),
    ("fetch/schedule", IO),
    ("fetch/estimate", IO),
    ("fetch/ladder", IO),
    ("fetch/cuts", IO),
    ("fetch/relay/party", IO),
    ("blocks/readahead", IO),
    ("store/format", IO),
    ("oci/reference", IO),
    ("mirror/request", IO),
    ("mirror/range", IO),
    ("fs", FUSE_NET_CLOCK),
];

/// Files below a pure module that are a seam to the outside, and why.
const SEAMS: &[(&str, &str)] =
    &[("store/format/overlay", "reads the database file of a store that must not be touched")];

/// "About 600 lines", and room to finish a thought. Test modules don't count.
const LENGTH: usize = 640;

/// Macros that mark unfinished work or a forgotten look.
const BANNED_MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Directories and files at the top of the repository; dot-files besides.
const TOP_LEVEL: &[&str] = &[
    "src",
    "fsck",
    "tests",
    "benches",
    "packaging",
    "docs",
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "target",
];

#[test]
fn imports_go_strictly_downwards() {
    report(sources(&["src"]).iter().flat_map(check_levels));
}

#[test]
fn the_checker_shares_formats_only() {
    report(sources(&["fsck/src"]).iter().flat_map(check_fsck));
}

#[test]
fn pure_modules_name_no_io_and_no_clock() {
    report(sources(&["src"]).iter().flat_map(check_purity));
}

#[test]
fn files_are_short() {
    report(sources(&["src", "fsck/src", "tests", "benches"]).iter().flat_map(check_length));
}

#[test]
fn nothing_unfinished_is_left() {
    report(sources(&["src", "fsck/src", "tests", "benches"]).iter().flat_map(check_macros));
}

#[test]
fn the_top_of_the_tree_holds_what_it_should() {
    let names = fs::read_dir(root())
        .expect("repository root")
        .map(|entry| entry.expect("entry of the root").file_name().to_string_lossy().into_owned());
    report(names.filter_map(|name| check_top_level(&name)));
}

/// One thing that is not as it should be, and where.
struct Violation {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

fn check_levels(source: &Source) -> Vec<Violation> {
    let Some(own) = source.module() else {
        return Vec::new();
    };
    let Some(own_level) = level(&own) else {
        return vec![source.violation(1, format!("module `{own}` has no level in tests/tidy.rs"))];
    };
    let mut found = Vec::new();
    for path in source.paths() {
        let Some(target) = source.crate_module(&path) else {
            continue;
        };
        let Some(target_level) = level(target) else {
            continue;
        };
        let both_base = target_level == 0 && own_level == 0;
        if target != own && target_level >= own_level && !both_base {
            let what = format!(
                "`{own}` (level {own_level}) imports `{target}` (level {target_level}): \
                 imports go strictly downwards"
            );
            found.push(source.violation(path.line, what));
        }
    }
    found
}

fn check_fsck(source: &Source) -> Vec<Violation> {
    let paths = source.paths();
    let used = paths.iter().filter(|path| path.names.first() == Some(&"peersync"));
    let wrong = used
        .filter(|path| !FSCK_MAY_USE.iter().any(|allowed| path.names[1..].starts_with(allowed)));
    wrong
        .map(|path| {
            let what = format!("the checker shares formats only, not `{}`", path.names.join("::"));
            source.violation(path.line, what)
        })
        .collect()
}

fn check_purity(source: &Source) -> Vec<Violation> {
    let stem = source.path.trim_start_matches("src/").trim_end_matches(".rs");
    let Some((_, banned)) = PURE
        .iter()
        .find(|(pure, _)| Path::new(stem).starts_with(pure))
        .filter(|_| !source.is_test && !SEAMS.iter().any(|(seam, _)| *seam == stem))
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for path in source.paths() {
        if let Some(hit) = banned.iter().find(|banned| path.names_in_a_row(banned)) {
            let what = format!("a pure module names `{}`", hit.join("::"));
            found.push(source.violation(path.line, what));
        }
    }
    found
}

fn check_length(source: &Source) -> Option<Violation> {
    let lines = source.text.lines().count() - source.test_lines;
    (!source.is_test && lines > LENGTH)
        .then(|| source.violation(1, format!("{lines} lines, at most {LENGTH}: split it")))
}

fn check_macros(source: &Source) -> Vec<Violation> {
    let tokens = &source.tokens;
    let calls = tokens.windows(2).filter(|pair| pair[1].text == "!");
    calls
        .filter(|pair| BANNED_MACROS.contains(&pair[0].text.as_str()))
        .map(|pair| source.violation(pair[0].line, format!("`{}!` is left in", pair[0].text)))
        .collect()
}

fn check_top_level(name: &str) -> Option<Violation> {
    (!name.starts_with('.') && !TOP_LEVEL.contains(&name)).then(|| Violation {
        path: name.to_owned(),
        line: 0,
        what: "does not belong at the top of the repository".to_owned(),
    })
}

fn level(module: &str) -> Option<u8> {
    LEVELS.iter().find(|(name, _)| *name == module).map(|(_, level)| *level)
}

fn report(violations: impl IntoIterator<Item = Violation>) {
    let lines: Vec<String> = violations.into_iter().map(|found| found.to_string()).collect();
    assert!(lines.is_empty(), "\n{}", lines.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Source {
    fn violation(&self, line: usize, what: String) -> Violation {
        Violation { path: self.path.clone(), line, what }
    }
}

/// All Rust files below the directories, read.
fn sources(directories: &[&str]) -> Vec<Source> {
    let mut waiting: Vec<PathBuf> = directories.iter().map(|dir| root().join(dir)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name == "target") {
                continue;
            }
            let entries = fs::read_dir(&path).expect("source directory");
            waiting.extend(entries.map(|entry| entry.expect("source entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root");
            let text = fs::read_to_string(&path).expect("source file is UTF-8");
            found.push(Source::new(name.to_string_lossy().into_owned(), text));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[cfg(test)]
mod seeded {
    //! Each check finds what it is for, and only that.

    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path.to_owned(), text.to_owned())
    }

    fn lines(found: impl IntoIterator<Item = Violation>) -> Vec<usize> {
        found.into_iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn an_upward_import_is_found() {
        let text = "use crate::types::Digest;\n\nfn f() { crate::fuse::session(); }\n";
        assert_eq!(lines(check_levels(&source("src/fs/inode.rs", text))), [3]);
    }

    #[test]
    fn a_sibling_in_a_group_is_found() {
        let text = "use crate::{\n    types::{self, Digest},\n    store::Store,\n};\n";
        assert_eq!(lines(check_levels(&source("src/oci/client.rs", text))), [3]);
    }

    #[test]
    fn a_climb_to_the_root_is_an_import() {
        let text = "use super::tree::Tree;\nuse super::super::store;\n";
        assert_eq!(lines(check_levels(&source("src/layer/build.rs", text))), [2]);
        assert!(check_levels(&source("src/layer/build/deep.rs", text)).is_empty());
    }

    #[test]
    fn downward_and_own_imports_are_right() {
        let text = "use crate::fs::{inode, tree};\nuse crate::fuse::errno;\nuse crate::types::*;";
        assert!(check_levels(&source("src/fuse/session.rs", text)).is_empty());
    }

    #[test]
    fn a_module_without_a_level_is_found() {
        assert_eq!(lines(check_levels(&source("src/misc/helpers.rs", ""))), [1]);
        assert!(check_levels(&source("src/main.rs", "use crate::anything;")).is_empty());
    }

    #[test]
    fn comments_strings_and_lifetimes_are_not_code() {
        let text = concat!(
            "// crate::fuse\n/* crate::fuse /* nested */ crate::fuse */\n",
            "const A: &str = \"crate::fuse \\\" crate::fuse\";\n",
            "const B: &str = r#\"crate::fuse \" crate::fuse\"#;\n",
            "fn f<'a>(x: &'a str) -> char { '\"' }\n",
            "const C: &[u8] = b\"crate::fuse\"; const D: u8 = b'\"'; const E: char = '\\'';\n",
            "use crate::fuse;\n",
        );
        assert_eq!(lines(check_levels(&source("src/fs/x.rs", text))), [7]);
    }

    #[test]
    fn io_in_a_pure_module_is_found_outside_its_tests() {
        let text = "use std::{collections::HashMap, fs};\nfn f() { Instant::now(); }\n\
                    #[cfg(test)]\nmod tests {\n    use std::fs;\n}\nuse tokio::sync::Mutex;\n\
                    use std::net::{Ipv6Addr, UdpSocket};\n";
        assert_eq!(lines(check_purity(&source("src/layer/tree.rs", text))), [1, 2, 7, 8]);
        assert!(check_purity(&source("src/layer/tests.rs", text)).is_empty());
        assert!(check_purity(&source("src/oci/client.rs", text)).is_empty());
        assert!(check_purity(&source("src/layer2/tree.rs", text)).is_empty());
    }

    #[test]
    fn the_file_system_may_hand_a_file_through_but_not_read_the_clock() {
        let text = "use std::fs::File;\nlet now = std::time::Instant::now();\nuse fuser::Request;";
        assert_eq!(lines(check_purity(&source("src/fs/handle.rs", text))), [2, 3]);
    }

    #[test]
    fn the_checker_may_not_use_the_engine() {
        let text = "use peersync::{layer::root, types};\nuse peersync::store::format::Record;\n\
                    use peersync::store::Store;\nuse peersync::fetch;\n";
        assert_eq!(lines(check_fsck(&source("fsck/src/main.rs", text))), [3, 4]);
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let long = "fn f() {}\n".repeat(LENGTH + 1);
        assert!(check_length(&source("src/fs/a.rs", &long)).is_some());
        let tested = format!("#[cfg(test)]\nmod tests {{\n{long}}}\nfn f() {{}}\n");
        assert!(check_length(&source("src/fs/a.rs", &tested)).is_none());
        let both = format!("{long}{tested}");
        assert!(check_length(&source("src/fs/a.rs", &both)).is_some());
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = "fn f() {\n    todo!()\n}\n// dbg!(x)\nlet x = \"unimplemented!\";\ndbg!(y);\n";
        assert_eq!(lines(check_macros(&source("src/fs/a.rs", text))), [2, 6]);
    }

    #[test]
    fn a_stray_top_level_entry_is_found() {
        assert!(check_top_level("scripts").is_some());
        assert!(check_top_level("src").is_none() && check_top_level(".ci").is_none());
    }
}
