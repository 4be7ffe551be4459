//! POSIX ACLs that an archive spells out, as the xattr that the kernel keeps.

use super::number::decimal;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const NOBODY: u32 = u32::MAX;

/// The value of `system.posix_acl_access` or `_default` for an ACL in words, as
/// GNU tar and star write it: `user::rwx,user:lisa:r-x:1001,group::r-x,...`.
///
/// `None` if it says no more than the mode does, or can't be converted in full:
/// somebody is named without a number, or an entry is missing or malformed. A
/// part of an ACL would be wrong where none at all is only strict.
pub(super) fn encode(text: &[u8], is_access: bool) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for line in text.split(|b| matches!(b, b',' | b'\n')) {
        let line = line.split(|b| *b == b'#').next()?.trim_ascii();
        if !line.is_empty() {
            entries.push(entry(line)?);
        }
    }
    // The kernel's order: by tag, named ones by number.
    entries.sort_unstable();
    let count = |tag| entries.iter().filter(|e| e.0 == tag).count();
    let named = count(USER) + count(GROUP);
    let unique = entries.windows(2).all(|e| (e[0].0, e[0].1) != (e[1].0, e[1].1));
    let complete = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1);
    if !unique || !complete || (named > 0 && count(MASK) == 0) {
        return None;
    }
    if is_access && entries.len() == 3 {
        return None;
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Some(out)
}

/// (tag, id, permissions) of one entry.
fn entry(line: &[u8]) -> Option<(u16, u32, u16)> {
    let mut fields = line.split(|b| *b == b':').map(<[u8]>::trim_ascii);
    let (tag, who, permissions) = (fields.next()?, fields.next()?, fields.next()?);
    let id = match (fields.next(), who) {
        (Some(id), _) if !id.is_empty() => Some(decimal(id)?),
        (_, b"") => None,
        (_, who) => Some(decimal(who)?),
    };
    let id = id.map(u32::try_from).transpose().ok()?;
    let tag = match (tag, id) {
        (b"user" | b"u", None) => USER_OBJ,
        (b"user" | b"u", Some(_)) => USER,
        (b"group" | b"g", None) => GROUP_OBJ,
        (b"group" | b"g", Some(_)) => GROUP,
        (b"mask" | b"m", None) => MASK,
        (b"other" | b"o", None) => OTHER,
        _ => return None,
    };
    let mut bits = 0;
    for letter in permissions {
        bits |= match letter {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => 0,
            _ => return None,
        };
    }
    Some((tag, id.unwrap_or(NOBODY), bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_entries_need_numbers() {
        let acl = b"user::rwx,group::r-x,mask::r-x,other::---,user:joe:r--:1001,group:7:-w-";
        let value = encode(acl, true).expect("numbers for all");
        let mut expected = vec![2, 0, 0, 0];
        for (tag, bits, id) in [
            (1u16, 7u16, u32::MAX),
            (2, 4, 1001),
            (4, 5, u32::MAX),
            (8, 2, 7),
            (16, 5, u32::MAX),
            (32, 0, u32::MAX),
        ] {
            expected.extend(tag.to_le_bytes());
            expected.extend(bits.to_le_bytes());
            expected.extend(id.to_le_bytes());
        }
        assert_eq!(value, expected);
        assert_eq!(encode(b"user::rwx,group::r-x,mask::r-x,other::---,user:joe:r--", true), None);
    }

    #[test]
    fn what_the_mode_says_needs_no_attribute() {
        let base = b"user::rwx\ngroup::r-x\nother::r-- # all\n";
        assert_eq!(encode(base, true), None);
        assert!(encode(base, false).is_some());
        for bad in [
            &b"user::rwx,group::r-x"[..],
            b"user::rwx,user::rwx,group::r-x,other::r--",
            b"user::rwx,group::r-x,other::r--,user:1:r--",
            b"user::rwq,group::r-x,other::r--",
            b"nonsense",
        ] {
            assert_eq!(encode(bad, false), None);
        }
    }
}
