//! What stands at the end of every command's `--help`: examples, and what the exit
//! codes mean.

use clap::Command;

/// The exit codes of all commands.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line or the configuration is wrong
  3  no such image, tag or layer
  4  the registry asks for credentials or refuses them
  5  the registry can't be reached
  6  what came is not what its digest or format says";

/// Examples of each command, by its words. A test parses every line of them.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "",
        "  peersync mount docker.io/library/debian:12 /mnt/debian
  peersync umount /mnt/debian
  peersync --store /tmp/s mount oci:./layout:v1 /mnt/x
  peersync index push registry.example/team/app:1   # lazy for everybody from now on",
    ),
    (
        "mount",
        "  peersync mount docker.io/library/debian:12 /mnt/debian
  peersync mount --foreground oci:./layout:v1 /mnt/x     # until Ctrl-C
  peersync mount --index require registry.example/app:1 /mnt/app
  peersync mount -o suid,dev registry.example/os:1 /mnt/os",
    ),
    (
        "umount",
        "  peersync umount /mnt/debian
  peersync umount --lazy /mnt/debian                     # although it is in use",
    ),
    (
        "pull",
        "  peersync pull docker.io/library/debian:12
  peersync pull --plain-http registry.lan:5000/team/model:v2",
    ),
    ("images", "  peersync images\n  peersync --json images"),
    ("layers", "  peersync layers\n  peersync --json layers"),
    ("peers", "  peersync peers\n  peersync --json peers"),
    ("status", "  peersync status\n  peersync --json status\n  peersync --store /tmp/s status"),
    ("gc", "  peersync gc --dry-run\n  peersync --json gc"),
    ("pin", "  peersync pin docker.io/library/debian:12\n  peersync pin"),
    ("unpin", "  peersync unpin docker.io/library/debian:12"),
    ("index", "  peersync index build registry.example/team/app:1"),
    ("index build", "  peersync index build registry.example/team/app:1"),
    (
        "index push",
        "  peersync index push registry.example/team/app:1
  peersync --store /tmp/ci index push --plain-http registry.lan:5000/app:1   # in a CI job",
    ),
    ("index show", "  peersync index show registry.example/team/app:1"),
    ("swarm", "  peersync swarm remembered\n  peersync swarm reset"),
    ("swarm remembered", "  peersync swarm remembered\n  peersync --json swarm remembered"),
    ("swarm reset", "  peersync swarm reset\n  peersync swarm reset --here"),
    ("swarm-key", "  peersync swarm-key new /etc/peersync/swarm.key"),
    (
        "swarm-key new",
        "  peersync swarm-key new /etc/peersync/swarm.key
  peersync swarm-key new                                 # to standard output",
    ),
    (
        "daemon",
        "  peersync daemon
  peersync --config ./node.toml daemon --upload-limit 50MB/s",
    ),
    (
        "doctor",
        "  peersync doctor
  peersync --json doctor
  peersync doctor --containerd-config /etc/containerd/config.toml",
    ),
    (
        "completions",
        "  peersync completions bash >/etc/bash_completion.d/peersync
  peersync completions zsh >/usr/local/share/zsh/site-functions/_peersync
  peersync completions fish >~/.config/fish/completions/peersync.fish",
    ),
];

/// The command with its examples, and those of the commands below it.
pub(super) fn with_examples(command: Command) -> Command {
    below(command, "")
}

fn below(mut command: Command, words: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for name in names {
        let words = format!("{words} {name}");
        command = command.mut_subcommand(name, |sub| below(sub, words.trim_start()));
    }
    match examples(words) {
        Some(examples) => command.after_long_help(format!("Examples:\n{examples}\n\n{EXIT_CODES}")),
        None => command,
    }
}

fn examples(words: &str) -> Option<&'static str> {
    EXAMPLES.iter().find(|(of, _)| *of == words).map(|(_, examples)| *examples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &Command, words: &str, visit: &mut impl FnMut(&Command, &str)) {
        visit(command, words);
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            each(sub, format!("{words} {}", sub.get_name()).trim_start(), visit);
        }
    }

    #[test]
    fn every_command_teaches_and_every_example_is_right() {
        let command = super::super::args::command();
        let mut left: Vec<&str> = EXAMPLES.iter().map(|(words, _)| *words).collect();
        each(&command, "", &mut |sub, words| {
            let help = sub.clone().render_long_help().to_string();
            assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{words}: {help}");
            left.retain(|of| *of != words);
            for line in examples(words).into_iter().flat_map(str::lines) {
                let said = line.split('#').next().expect("a line").trim();
                let said = said.split(" >").next().expect("a command");
                let parsed = command.clone().try_get_matches_from(said.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {}", parsed.expect_err("wrong"));
                assert!(
                    said.starts_with(format!("peersync {words}").trim_end())
                        || said.contains(&format!(" {words}")),
                    "{words}: {line}"
                );
            }
        });
        assert!(left.is_empty(), "examples of no command: {left:?}");
    }
}
