//! Cleaning up, whatever happens: a process of its own that outlives this one.
//!
//! It waits at a pipe whose other end only this process holds. When that end is
//! closed, by a drop, a panic that ends the process, Ctrl-C or a kill, it ends
//! the processes in the lab's namespaces, takes mounts and namespaces away and
//! removes the lab's directory.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Arguments: the names' prefix, the directory. A daemon that is asked to end
/// may take a moment to unmount; one that does not end is killed.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
read -r _
inside() { for space in /run/netns/"$1"-*; do ip netns pids "${space##*/}"; done 2>/dev/null; }
for pid in $(inside "$1"); do kill -CONT "$pid"; kill -TERM "$pid"; done 2>/dev/null
for _ in $(seq 50); do [ -n "$(inside "$1")" ] || break; sleep 0.1; done
for pid in $(inside "$1"); do kill -KILL "$pid"; done 2>/dev/null
while read -r _ _ _ _ point _; do
    case $point in "$2"/*) umount -l "$point" ;; esac
done 2>/dev/null </proc/self/mountinfo
for space in /run/netns/"$1"-*; do ip netns del "${space##*/}"; done 2>/dev/null
rm -rf --one-file-system "$2"
"#;

/// Cleans up when it is dropped, and also if it never is.
pub(super) struct Guard {
    script: Child,
}

impl Guard {
    /// Over the namespaces that begin with `prefix` and the mounts in `directory`.
    pub(super) fn over(prefix: &str, directory: &Path) -> Self {
        let mut command = Command::new("bash");
        command.args(["-c", SCRIPT, "lab-guard", prefix]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // Away from the terminal, so that Ctrl-C does not end it too.
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
        }
        Self { script: command.spawn().expect("bash") }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
