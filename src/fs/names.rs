//! The names below `images/`: `registry/repository:tag` as a path.
//!
//! Whether a component can be a registry, a part of a repository's name or an
//! image follows from its form alone, so that a stray lookup (`.git`,
//! `.Trash-0`) never reaches a registry.

/// What a component can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Component {
    /// A registry or the beginning of a repository's name.
    Directory,
    /// The last component of a reference with a tag or digest.
    Image,
    /// Nothing.
    Nothing,
}

/// Longest reference without its digest, as the distribution specification has it.
const PATH_MAX: usize = 255 + 128 + 80;

/// What `name` can be in the directory at `parent` (empty: `images/` itself).
pub(super) fn classify(parent: &str, name: &str) -> Component {
    if parent.len() + 1 + name.len() > PATH_MAX {
        return Component::Nothing;
    }
    if parent.is_empty() {
        return match is_registry(name) {
            true => Component::Directory,
            false => Component::Nothing,
        };
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    let valid = is_repository_part(repository)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|d| d.parse::<crate::types::Digest>().is_ok());
    match (valid, tag.or(digest)) {
        (false, _) => Component::Nothing,
        (true, None) => Component::Directory,
        (true, Some(_)) => Component::Image,
    }
}

/// The path of `name` in `parent`.
pub(super) fn join(parent: &str, name: &str) -> String {
    match parent {
        "" => name.to_owned(),
        _ => format!("{parent}/{name}"),
    }
}

/// A host as Docker tells it from a repository: with a dot, a port, or
/// `localhost`.
fn is_registry(name: &str) -> bool {
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (name, None),
    };
    let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_is_valid = match literal {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            let inside = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
            let label = label.as_bytes();
            edge(label.first()) && edge(label.last()) && label.iter().all(inside)
        }),
    };
    let is_host = host == "localhost" || literal.is_some() || port.is_some() || host.contains('.');
    host_is_valid && is_host && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or dashes.
fn is_repository_part(name: &str) -> bool {
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let separators_are_valid = bytes
        .split(word)
        .all(|run| matches!(run, [] | b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'));
    bytes.first().is_some_and(word) && bytes.last().is_some_and(word) && separators_are_valid
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(word)
        && bytes.iter().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_components_form_says_what_it_can_be() {
        let hex = "0".repeat(64);
        for (parent, name, expected) in [
            ("", "docker.io", Component::Directory),
            ("", "localhost", Component::Directory),
            ("", "127.0.0.1:5000", Component::Directory),
            ("", "[::1]:5000", Component::Directory),
            ("", "registry:5000", Component::Directory),
            ("", "alpine", Component::Nothing),
            ("", ".git", Component::Nothing),
            ("", "-x.io", Component::Nothing),
            ("", "a.io:port", Component::Nothing),
            ("docker.io", "library", Component::Directory),
            ("docker.io/library", "alpine", Component::Directory),
            ("docker.io/library", "alpine:3.20", Component::Image),
            ("docker.io/library", "a__b-c--d.e:V1_x", Component::Image),
            ("docker.io", ".Trash-0", Component::Nothing),
            ("docker.io", "Upper", Component::Nothing),
            ("docker.io", "a..b", Component::Nothing),
            ("docker.io", "a:", Component::Nothing),
            ("docker.io", ":tag", Component::Nothing),
            ("docker.io", "a:.tag", Component::Nothing),
            ("docker.io", "a@sha256:short", Component::Nothing),
        ] {
            assert_eq!(classify(parent, name), expected, "{parent} {name}");
        }
        let digest = format!("a@sha256:{hex}");
        assert_eq!(classify("docker.io", &digest), Component::Image);
        let both = format!("a:1@sha256:{hex}");
        assert_eq!(classify("docker.io", &both), Component::Image);
        assert_eq!(classify(&"a/".repeat(400), "b"), Component::Nothing);
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("a", "b"), "a/b");
    }
}
