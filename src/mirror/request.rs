//! What a request asks for. Pure: a method, a path, a query and the rules in, a
//! question or a refusal out. All of it is hostile.

use crate::oci::Reference;
use crate::types::Digest;

/// Longest path and query that are looked at, in bytes.
const TARGET_MAX: usize = 2048;
/// Most entries of a list that are given at a time.
pub const LIST_MAX: usize = 1000;

/// Which registries may be asked for.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The one that is meant where a request names none.
    pub upstream: String,
    /// Others that a request may name.
    pub registries: Vec<String>,
}

impl Rules {
    fn allows(&self, registry: &str) -> bool {
        self.upstream == registry || self.registries.iter().any(|other| other == registry)
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether this is a registry.
    Base,
    /// The repositories of which something is held.
    Catalog(Page),
    /// Something of a repository.
    Of(Repository, What),
}

/// A repository of an upstream registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Without tag or digest.
    pub reference: Reference,
}

impl Repository {
    /// Its full name: `docker.io/library/alpine`.
    pub fn name(&self) -> String {
        self.reference.repository()
    }
}

/// What of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A manifest by its tag.
    Tag(String),
    /// A manifest by its digest.
    Manifest(Digest),
    /// A blob.
    Blob(Digest),
    /// The names of its tags.
    Tags(Page),
    /// What refers to a manifest.
    Referrers {
        /// Which manifest.
        subject: Digest,
        /// Only artifacts of this type.
        artifact_type: Option<String>,
    },
}

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Only what comes after this in the order of bytes.
    pub last: Option<String>,
    /// At most so many.
    pub count: Option<usize>,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is nothing at that path.
    NoSuchPath,
    /// The repository's name is none.
    Name,
    /// A digest is none, or of an algorithm that can't be checked.
    Digest,
    /// A tag is none.
    Tag,
    /// The number of entries is no number.
    Count,
    /// The registry is not among those that this mirror serves.
    Registry,
    /// A mirror takes nothing.
    Method,
    /// More than a request may be.
    TooLong,
}

/// Reads a request's method, path and query.
///
/// The registry is named by `ns` in the query, as containerd does; by the first
/// component of the repository's name, where that is a registry that is
/// configured; else it is the default one.
///
/// # Errors
/// [`Refused`].
pub fn parse(
    method: &str,
    path: &str,
    query: Option<&str>,
    rules: &Rules,
) -> Result<Question, Refused> {
    if path.len() + query.map_or(0, str::len) > TARGET_MAX {
        return Err(Refused::TooLong);
    }
    let path = decode(path, false).ok_or(Refused::Name)?;
    let rest = path.strip_prefix("/v2").ok_or(Refused::NoSuchPath)?;
    if !matches!(method, "GET" | "HEAD") {
        return Err(Refused::Method);
    }
    if matches!(rest, "" | "/") {
        return Ok(Question::Base);
    }
    let rest = rest.strip_prefix('/').ok_or(Refused::NoSuchPath)?;
    let query = Query::parse(query.unwrap_or_default());
    if rest == "_catalog" {
        return Ok(Question::Catalog(query.page()?));
    }
    let (head, last) = rest.rsplit_once('/').ok_or(Refused::NoSuchPath)?;
    let (name, kind) = head.rsplit_once('/').ok_or(Refused::NoSuchPath)?;
    let what = match (kind, last) {
        ("manifests", last) if last.contains(':') => {
            What::Manifest(last.parse().map_err(|_| Refused::Digest)?)
        }
        ("manifests", tag) => What::Tag(tag.to_owned()),
        ("blobs", digest) => What::Blob(digest.parse().map_err(|_| Refused::Digest)?),
        ("tags", "list") => What::Tags(query.page()?),
        ("referrers", digest) => What::Referrers {
            subject: digest.parse().map_err(|_| Refused::Digest)?,
            artifact_type: query.artifact_type.clone(),
        },
        _ => return Err(Refused::NoSuchPath),
    };
    let (registry, name) = match query.namespace {
        Some(namespace) if rules.allows(&namespace) => (namespace, name),
        Some(_) => return Err(Refused::Registry),
        None => match name.split_once('/') {
            Some((first, name)) if rules.allows(first) => (first.to_owned(), name),
            _ => (rules.upstream.clone(), name),
        },
    };
    let tag = match &what {
        What::Tag(tag) => Some(tag.as_str()),
        _ => None,
    };
    // A name with a tag or digest in it would be another one's.
    if name.is_empty() || name.contains([':', '@']) {
        return Err(Refused::Name);
    }
    let reference = Reference::new(&registry, name, None, None).map_err(|_| Refused::Name)?;
    if Reference::new(&registry, name, tag, None).is_err() {
        return Err(Refused::Tag);
    }
    // What was read must be what was written.
    if reference.domain() != registry {
        return Err(Refused::Registry);
    }
    Ok(Question::Of(Repository { reference }, what))
}

/// What of a query counts here; all else in it is passed over.
#[derive(Default)]
struct Query {
    namespace: Option<String>,
    last: Option<String>,
    count: Option<String>,
    artifact_type: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match name {
                "ns" => &mut query.namespace,
                "last" => &mut query.last,
                "n" => &mut query.count,
                "artifactType" => &mut query.artifact_type,
                _ => continue,
            };
            if let Some(value) = decode(value, true).filter(|value| !value.is_empty()) {
                place.get_or_insert(value);
            }
        }
        query
    }

    fn page(&self) -> Result<Page, Refused> {
        let count = match &self.count {
            None => None,
            Some(text) if text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit()) => {
                Some(text.parse::<usize>().map_err(|_| Refused::Count)?.min(LIST_MAX))
            }
            Some(_) => return Err(Refused::Count),
        };
        Ok(Page { last: self.last.clone(), count })
    }
}

/// Undoes percent-encoding. `None` where it is broken, or hides a control
/// character, a slash, a dot or bytes that are no text.
fn decode(text: &str, form: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let byte = u8::try_from(digit()? << 4 | digit()?).ok()?;
                if byte < b' ' || byte == 0x7f || (!form && matches!(byte, b'/' | b'.' | b'%')) {
                    return None;
                }
                bytes.push(byte);
            }
            b'+' if form => bytes.push(b' '),
            byte if byte < b' ' || byte == 0x7f => return None,
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> Rules {
        let registries = vec!["quay.io".to_owned(), "127.0.0.1:5000".to_owned()];
        Rules { upstream: "docker.io".to_owned(), registries }
    }

    fn get(path: &str, query: &str) -> Result<Question, Refused> {
        parse("GET", path, Some(query), &rules())
    }

    fn of(path: &str, query: &str) -> (String, What) {
        match get(path, query) {
            Ok(Question::Of(repository, what)) => (repository.name(), what),
            other => panic!("{path}?{query}: {other:?}"),
        }
    }

    #[test]
    fn registries_are_named_in_three_ways() {
        let tag = || What::Tag("3".to_owned());
        let name = |text: &str| (text.to_owned(), tag());
        assert_eq!(of("/v2/alpine/manifests/3", ""), name("docker.io/library/alpine"));
        assert_eq!(of("/v2/library/alpine/manifests/3", ""), name("docker.io/library/alpine"));
        assert_eq!(of("/v2/a/b/manifests/3", "ns=quay.io"), name("quay.io/a/b"));
        assert_eq!(of("/v2/quay.io/a/b/manifests/3", ""), name("quay.io/a/b"));
        assert_eq!(of("/v2/a/manifests/3", "ns=127.0.0.1%3A5000"), name("127.0.0.1:5000/a"));
        assert_eq!(of("/v2/127.0.0.1:5000/a/manifests/3", ""), name("127.0.0.1:5000/a"));
        // A stranger's name is that of a repository of the default registry.
        assert_eq!(of("/v2/evil.com/a/manifests/3", ""), name("docker.io/evil.com/a"));
        for ns in ["evil.com", "169.254.169.254", "127.0.0.1", "quay.io:1", "quay.io/a"] {
            assert_eq!(get("/v2/a/manifests/3", &format!("ns={ns}")), Err(Refused::Registry));
        }
    }

    #[test]
    fn everything_that_can_be_asked_is_understood() {
        let digest = Digest::of(b"x");
        assert_eq!(get("/v2/", ""), Ok(Question::Base));
        assert_eq!(get("/v2", ""), Ok(Question::Base));
        assert_eq!(get("/v2/_catalog", ""), Ok(Question::Catalog(Page::default())));
        assert_eq!(of(&format!("/v2/a/manifests/{digest}"), "").1, What::Manifest(digest));
        assert_eq!(of(&format!("/v2/a/blobs/{digest}"), "").1, What::Blob(digest));
        let encoded = digest.to_string().replace(':', "%3a");
        assert_eq!(of(&format!("/v2/a/blobs/{encoded}"), "").1, What::Blob(digest));
        let page = Page { last: Some("a b".to_owned()), count: Some(7) };
        assert_eq!(of("/v2/a/tags/list", "n=7&last=a+b").1, What::Tags(page));
        let most = Page { last: None, count: Some(LIST_MAX) };
        assert_eq!(of("/v2/a/tags/list", "n=999999999").1, What::Tags(most));
        let artifact_type = Some("a/b+c".to_owned());
        assert_eq!(
            of(&format!("/v2/a/referrers/{digest}"), "artifactType=a/b%2Bc").1,
            What::Referrers { subject: digest, artifact_type }
        );
        // Words of the protocol can be names.
        let (name, what) = of("/v2/manifests/blobs/manifests/tags", "");
        assert_eq!((name.as_str(), what), ("docker.io/manifests/blobs", What::Tag("tags".into())));
    }

    #[test]
    fn tricks_are_refused() {
        for (path, refused) in [
            ("/", Refused::NoSuchPath),
            ("/v1/a/manifests/3", Refused::NoSuchPath),
            ("/v2x/a/manifests/3", Refused::NoSuchPath),
            ("/v2/a", Refused::NoSuchPath),
            ("/v2/a/uploads/x", Refused::NoSuchPath),
            ("/v2//manifests/3", Refused::Name),
            ("/v2/../manifests/3", Refused::Name),
            ("/v2/a/../b/manifests/3", Refused::Name),
            ("/v2/a%2f..%2fb/manifests/3", Refused::Name),
            ("/v2/a/%2e%2e/b/manifests/3", Refused::Name),
            ("/v2/A/manifests/3", Refused::Name),
            ("/v2/a:1/manifests/3", Refused::Name),
            ("/v2/a@b/manifests/3", Refused::Name),
            ("/v2/a\0/manifests/3", Refused::Name),
            ("/v2/a%00/manifests/3", Refused::Name),
            ("/v2/a%/manifests/3", Refused::Name),
            ("/v2/a/manifests/", Refused::Tag),
            ("/v2/a/manifests/-x", Refused::Tag),
            ("/v2/a/manifests/x@y", Refused::Tag),
            ("/v2/a/manifests/md5:00", Refused::Digest),
            ("/v2/a/blobs/3", Refused::Digest),
            ("/v2/a/referrers/3", Refused::Digest),
        ] {
            assert_eq!(get(path, ""), Err(refused), "{path}");
        }
        assert_eq!(get("/v2/a/tags/list", "n=-1"), Err(Refused::Count));
        assert_eq!(
            get(&format!("/v2/{}/manifests/3", "a/".repeat(2000)), ""),
            Err(Refused::TooLong)
        );
        let long = format!("/v2/{}/manifests/3", "a".repeat(300));
        assert_eq!(get(&long, ""), Err(Refused::Name));
        for method in ["PUT", "POST", "PATCH", "DELETE", "CONNECT", "get"] {
            assert_eq!(parse(method, "/v2/a/manifests/3", None, &rules()), Err(Refused::Method));
        }
    }

    proptest! {
        #[test]
        fn what_is_served_is_of_a_configured_registry(
            path in "(/v2/)?([a-z.:/%0-9@]{0,40}|quay.io/[a-z/]{1,9})(/manifests/|/blobs/)[a-z0-9:.]{0,10}",
            query in "(ns=[a-z0-9.:%/@]{0,12}&?)?[a-z=%+&]{0,12}",
        ) {
            if let Ok(Question::Of(repository, _)) = get(&path, &query) {
                prop_assert!(rules().allows(repository.reference.domain()));
                let again: Reference = repository.name().parse().expect("a name");
                prop_assert_eq!(again, repository.reference);
            }
        }
    }
}
