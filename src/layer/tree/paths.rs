//! Names in an archive, made safe.
//!
//! As umoci and containerd do: a name is first cleaned lexically (`./`, `/`,
//! `//` go, `..` takes the component before it away and stops at the root);
//! then its parent is walked inside the layer's root, and a component that is a
//! symbolic link *of this layer* is followed there, absolute targets starting at
//! the root again. The last component is never followed. What does not exist on
//! the way becomes a directory.

use super::format::{NAME_MAX, PATH_MAX};

/// Symbolic links followed on the way to one name, as the kernel bounds it.
pub(super) const FOLLOW_MAX: u32 = 40;

/// Why a name can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathError {
    TooLong,
    Loop,
}

/// The components of a cleaned path; none for the root.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.len() > PATH_MAX {
        return Err(PathError::TooLong);
    }
    let mut components = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            _ if name.len() > NAME_MAX => return Err(PathError::TooLong),
            _ => components.push(name),
        }
    }
    Ok(components)
}

/// What a walk meets.
pub(super) enum Step<'a> {
    /// A directory, a thing that is no link, or nothing; with its node if any.
    Plain(Option<u32>),
    /// A symbolic link and its target.
    Link(&'a [u8]),
}

/// A component of a walked path and its node, if it exists.
pub(super) type Component = (Box<[u8]>, Option<u32>);

/// Walks `components` from the root. `look(directory, name)` tells what a name
/// is; it is asked only about directories that exist. Returns the components
/// without links, and counts in `walked` those that came out of links.
pub(super) fn walk<'a>(
    components: &[&'a [u8]],
    root: u32,
    walked: &mut u64,
    look: impl Fn(u32, &[u8]) -> Step<'a>,
) -> Result<Vec<Component>, PathError> {
    let mut done: Vec<Component> = Vec::new();
    let mut todo: Vec<&'a [u8]> = components.iter().rev().copied().collect();
    let mut followed = 0;
    while let Some(name) = todo.pop() {
        match name {
            b"" | b"." => continue,
            b".." => {
                done.pop();
                continue;
            }
            _ if name.len() > NAME_MAX => return Err(PathError::TooLong),
            _ => {}
        }
        let parent = done.last().map_or(Some(root), |(_, node)| *node);
        match parent.map_or(Step::Plain(None), |dir| look(dir, name)) {
            Step::Plain(node) => done.push((name.into(), node)),
            Step::Link(target) => {
                followed += 1;
                let before = todo.len();
                todo.extend(target.split(|b| *b == b'/').rev());
                *walked += (todo.len() - before) as u64;
                // `todo` holds at most PATH_MAX components as its bytes do.
                if followed > FOLLOW_MAX || todo.len() > PATH_MAX {
                    return Err(PathError::Loop);
                }
                if target.starts_with(b"/") {
                    done.clear();
                }
            }
        }
    }
    if done.iter().map(|(name, _)| name.len() + 1).sum::<usize>() > PATH_MAX {
        return Err(PathError::TooLong);
    }
    Ok(done)
}
