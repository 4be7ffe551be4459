//! What `/proc` says of the thread that made a request.
//!
//! The kernel gives its number as seen from the process that mounted. 0: it
//! lives in a namespace that can't be seen from here; then nothing is known of
//! it.

use std::fs;

/// Bits of the pending-signals masks.
const SIGKILL: u64 = 1 << (9 - 1);

/// Whether a thread has `group` as a supplementary group. While its request
/// waits, the number can't go to another thread.
pub(super) fn has_group(tid: u32, group: u32) -> bool {
    status(tid).is_some_and(|status| {
        let groups = field(&status, "Groups:").unwrap_or("");
        let mut groups = groups.split_ascii_whitespace();
        groups.any(|g| g.parse() == Ok(group))
    })
}

/// Whether a thread is about to die of a signal. Any fatal signal shows as a
/// pending SIGKILL of each thread of the process. `false` for a thread that is
/// gone: what it asked for may be wanted by others.
pub(super) fn is_dying(tid: u32) -> bool {
    let Some(status) = status(tid) else {
        return false;
    };
    ["SigPnd:", "ShdPnd:"].iter().any(|mask| {
        field(&status, mask)
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .is_some_and(|mask| mask & SIGKILL != 0)
    })
}

fn status(tid: u32) -> Option<String> {
    match tid {
        0 => None,
        _ => fs::read_to_string(format!("/proc/{tid}/status")).ok(),
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_lives_and_has_its_groups() {
        let tid = nix::unistd::gettid().as_raw().unsigned_abs();
        assert!(!is_dying(tid));
        for group in nix::unistd::getgroups().expect("own groups") {
            assert!(has_group(tid, group.as_raw()));
        }
        assert!(!has_group(tid, u32::MAX - 7));
        assert!(!is_dying(0) && !has_group(0, 0));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "Name:\tGroups:\nGroups:\t4 24 \nSigPnd:\t0000000000000100\n";
        assert_eq!(field(status, "Groups:"), Some("4 24"));
        assert_eq!(field(status, "SigPnd:"), Some("0000000000000100"));
        assert_eq!(field(status, "ShdPnd:"), None);
    }
}
