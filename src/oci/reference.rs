//! Image references, as Docker and containerd parse them.
//!
//! The grammar is that of `distribution/reference`: `[domain/]path[:tag][@digest]`,
//! where a first component without dot, colon or upper case (and not
//! `localhost`) is no domain, `docker.io` is the default one, and its
//! single-name repositories live under `library/`.

use std::fmt;
use std::str::FromStr;

use crate::types::{Digest, DigestError};

/// Docker's own registry, and the default one.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag that a reference without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
/// Longest repository path in bytes, as `distribution/reference` has it.
const PATH_MAX: usize = 255;
/// Longest tag in bytes.
const TAG_MAX: usize = 128;
/// Longest text that is looked at: domain, path, tag and digest with room to spare.
const TEXT_MAX: usize = 1024;

/// A normalised image reference: a domain, a repository path, and a tag, a
/// digest, both or neither.
///
/// Where both are given the digest decides, as in Docker and containerd. The
/// canonical form ([`fmt::Display`]) parses back to the same reference.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("an image reference can't be empty")]
    Empty,
    /// More than a reference can hold.
    #[error("the image reference is too long: at most {TEXT_MAX} bytes")]
    TooLong,
    /// The repository path is over 255 bytes.
    #[error("the repository name is too long: at most {PATH_MAX} bytes")]
    PathTooLong,
    /// Upper-case letters in the repository path.
    #[error("the repository name {0:?} must be lower-case")]
    Uppercase(String),
    /// 64 hexadecimal digits: an image id, which no registry knows.
    #[error("{0:?} looks like an image id: name the image, or write name@sha256:{0}")]
    ImageId(String),
    /// Not the grammar.
    #[error("{0:?} is not an image reference: expected [host[:port]/]name[:tag][@sha256:...]")]
    Malformed(String),
    /// A digest that isn't a SHA-256 one.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// Puts a reference together from parts that came apart already.
    ///
    /// # Errors
    /// [`ReferenceError`] as for parsing `domain/path:tag@digest`.
    pub fn new(
        domain: &str,
        path: &str,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<Self, ReferenceError> {
        let mut text = format!("{domain}/{path}");
        if let Some(tag) = tag {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = digest {
            text = format!("{text}@{digest}");
        }
        text.parse()
    }

    /// The registry's name: `docker.io`, `localhost:5000`. Docker's registry
    /// is reached at another host than this.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag as given; see [`Reference::tag_or_default`].
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest as given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The tag to ask for: `latest` if there is neither tag nor digest, `None`
    /// if only the digest says which image is meant.
    pub fn tag_or_default(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, None) => Some(DEFAULT_TAG),
            (None, Some(_)) => None,
        }
    }

    /// The same image by digest only.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same with the default tag filled in where there is no tag or digest.
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The short form that people write: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let name = if self.domain == DEFAULT_DOMAIN {
            match self.path.strip_prefix(OFFICIAL_PREFIX) {
                Some(name) if !name.contains('/') => name.to_owned(),
                _ => self.path.clone(),
            }
        } else {
            self.repository()
        };
        format!("{name}{}", self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        let digest = self.digest.iter().map(|digest| format!("@{digest}"));
        tag.chain(digest).collect()
    }
}

/// The canonical form: domain and full path always, tag and digest as given.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > TEXT_MAX {
            return Err(ReferenceError::TooLong);
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || is_hex_lower(b)) {
            return Err(ReferenceError::ImageId(text.to_owned()));
        }
        let malformed = || ReferenceError::Malformed(text.chars().take(120).collect());

        let (domain, rest) = split_domain(text);
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (rest, None),
        };
        // A path has no colon, so the first one starts the tag.
        let (path, tag) = match name.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name, None),
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(path.chars().take(120).collect()));
        }
        let official = domain == DEFAULT_DOMAIN && !path.contains('/');
        let path = format!("{}{path}", if official { OFFICIAL_PREFIX } else { "" });
        if !is_domain(domain) || !path.split('/').all(is_path_component) {
            return Err(malformed());
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(malformed());
        }
        if path.len() > PATH_MAX {
            return Err(ReferenceError::PathTooLong);
        }
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::parse).transpose()?,
        })
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Parts a text into its domain, stated or implied, and what follows it
/// (`splitDockerDomain` of `distribution/reference`).
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((LEGACY_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

/// `component(.component)*[:port]` or `[v6 address][:port]`.
fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        let v6 = |b: u8| b.is_ascii_hexdigit() || b == b':';
        if address.is_empty() || !address.bytes().all(v6) {
            return false;
        }
        match port.strip_prefix(':') {
            None if port.is_empty() => return true,
            None => return false,
            Some(port) => (None, Some(port)),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        let inner = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
        ends.iter().all(|b| b.is_some_and(u8::is_ascii_alphanumeric)) && bytes.iter().all(inner)
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_path_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alnum(*first)
        && alnum(*last)
        && bytes
            .split(|b| alnum(*b))
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
pub(super) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_hex_lower(b: u8) -> bool {
    matches!(b, b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    fn parse(text: &str) -> Result<Reference, ReferenceError> {
        text.parse()
    }

    #[test]
    fn names_are_normalised_as_docker_does() {
        let at = format!("@sha256:{HEX}");
        let by_digest = format!("docker.io/library/alpine{at}");
        let both = format!("docker.io/library/alpine:3.20{at}");
        for (text, canonical, familiar) in [
            ("alpine", "docker.io/library/alpine", "alpine"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
            ("library/alpine", "docker.io/library/alpine", "alpine"),
            ("docker.io/alpine", "docker.io/library/alpine", "alpine"),
            ("index.docker.io/alpine", "docker.io/library/alpine", "alpine"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine", "alpine"),
            ("user/app", "docker.io/user/app", "user/app"),
            ("library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("localhost:5000/app:x", "localhost:5000/app:x", "localhost:5000/app:x"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
            ("[2001:db8::1]/a", "[2001:db8::1]/a", "[2001:db8::1]/a"),
            ("Host/app", "Host/app", "Host/app"),
            ("ghcr.io/o/a_b__c---d.e", "ghcr.io/o/a_b__c---d.e", "ghcr.io/o/a_b__c---d.e"),
            // No slash: the colon starts a tag, not a port.
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            (&format!("alpine{at}"), &by_digest, &format!("alpine{at}")),
            (&format!("alpine:3.20{at}"), &both, &format!("alpine:3.20{at}")),
        ] {
            let reference = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        assert_eq!(parse(""), Err(ReferenceError::Empty));
        assert_eq!(parse(HEX), Err(ReferenceError::ImageId(HEX.to_owned())));
        for upper in ["Alpine", "docker.io/Alpine", "ghcr.io/Foo/bar:tag", "a/Foo"] {
            assert!(matches!(parse(upper), Err(ReferenceError::Uppercase(_))), "{upper}");
        }
        for bad in [
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            ".a/b",
            "a:",
            "a:-x",
            "a:b:c",
            "a@",
            "http://a/b",
            "a b",
            "a/b?c",
            "host:/a",
            "host:x/a",
            "[::1/a",
            "[]/a",
            "[::1]x/a",
            "-host.io/a",
            "ho..st/a",
            "a/../b",
            "a\0",
            "ünïcode",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(parse("a@sha512:00"), Err(ReferenceError::Digest(_))));
        assert!(matches!(parse("a@sha256:00"), Err(ReferenceError::Digest(_))));
        let upper = format!("a@sha256:{}", HEX.to_uppercase());
        assert!(matches!(parse(&upper), Err(ReferenceError::Digest(_))));
    }

    #[test]
    fn lengths_are_bounded() {
        let tag = |n| format!("a:{}", "t".repeat(n));
        assert!(parse(&tag(128)).is_ok());
        assert!(parse(&tag(129)).is_err());
        let path = |n| format!("ghcr.io/{}", "a".repeat(n));
        assert!(parse(&path(255)).is_ok());
        assert_eq!(parse(&path(256)), Err(ReferenceError::PathTooLong));
        // The limit is on the normalised path.
        assert_eq!(parse(&"a".repeat(250)), Err(ReferenceError::PathTooLong));
        assert_eq!(parse(&"a".repeat(100_000)), Err(ReferenceError::TooLong));
    }

    #[test]
    fn a_digest_decides_and_latest_is_the_default() {
        assert_eq!(parse("a").expect("valid").tag_or_default(), Some("latest"));
        assert_eq!(parse("a:b").expect("valid").tag_or_default(), Some("b"));
        let digest = parse(&format!("a@sha256:{HEX}")).expect("valid");
        assert_eq!(digest.tag_or_default(), None);
        assert_eq!(digest.clone().with_default_tag(), digest);
        assert_eq!(
            parse("a").expect("valid").with_default_tag(),
            parse("a:latest").expect("valid")
        );
    }

    /// `distribution/reference`'s grammar as regular expressions.
    fn reference_text() -> impl Strategy<Value = String> {
        let component = "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}";
        let domain =
            "([a-zA-Z0-9]([a-zA-Z0-9-]{0,5}[a-zA-Z0-9])?(\\.[a-z]{2,4}){1,2}(:[0-9]{1,5})?/)?";
        let tag = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?";
        let digest = "(@sha256:[0-9a-f]{64})?";
        // A first component with a dot would be taken for a domain.
        let first = "[a-z0-9]{1,6}(_|__|-)?[a-z0-9]{1,5}";
        proptest::string::string_regex(&format!(
            "{domain}{first}(/{component}){{0,3}}{tag}{digest}"
        ))
        .expect("a valid expression")
    }

    proptest! {
        #[test]
        fn the_whole_grammar_parses_and_both_forms_parse_back(text in reference_text()) {
            let reference = parse(&text).expect("within the grammar");
            prop_assert_eq!(parse(&reference.to_string()), Ok(reference.clone()));
            prop_assert_eq!(parse(&reference.familiar()), Ok(reference.clone()));
            prop_assert!(reference.to_string().ends_with(&text) || text.starts_with("index."));
        }

        #[test]
        fn any_text_gives_an_answer(text in "\\PC{0,80}") {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(parse(&reference.to_string()), Ok(reference));
            }
        }

        #[test]
        fn agrees_with_another_implementation(text in "[a-zA-Z0-9:/@._-]{1,24}") {
            let theirs = oci_spec::distribution::Reference::try_from(text.as_str()).is_ok();
            // They normalise only part of what Docker does, so only the
            // direction that matters for safety is compared.
            if let Ok(ours) = parse(&text) {
                let canonical = ours.to_string();
                prop_assert!(
                    theirs || oci_spec::distribution::Reference::try_from(canonical.as_str()).is_ok(),
                    "{}", text
                );
            }
        }
    }
}
