//! Lists: tags, referrers, and the catalog of what is held.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::http::header::{HeaderMap, HeaderName, HeaderValue, LINK};
use serde_json::{Value, json};

use super::Mirror;
use super::answer::{Answer, Asked, Refusal, document};
use super::request::{LIST_MAX, Page, Repository};
use super::upstream::ClientLogin;
use crate::oci::{Descriptor, ImageSource, SourceError, Trouble, media};
use crate::types::Digest;

/// Says that a list of referrers was filtered here.
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

impl Mirror {
    /// The repositories of which something is held.
    pub(super) fn catalog(&self, page: &Page) -> Answer {
        let (names, more) = cut(self.tags.repositories(), page);
        let next = more.then(|| names.last().cloned()).flatten();
        list(&json!({ "repositories": names }), next, "/v2/_catalog", page)
    }

    /// The names of a repository's tags: the registry's, or those known here while
    /// it can't be asked.
    pub(super) async fn tag_list(
        self: &Arc<Self>,
        repository: &Repository,
        page: &Page,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        let upstream = self.upstreams.common(repository).map_err(of_list)?;
        let count = page.count.unwrap_or(LIST_MAX);
        let mut asked = upstream.tags(page.last.as_deref(), Some(count)).await;
        self.upstreams.note(repository.reference.domain(), &asked);
        if let (Err(error), Some(login)) = (&asked, ClientLogin::of(headers))
            && error.trouble() == Trouble::Denied
        {
            let private = self.private(repository, Some(&login))?;
            asked = private.tags(page.last.as_deref(), Some(count)).await;
        }
        let (tags, more) = match asked {
            // Registries that know nothing of pages give all.
            Ok(tags) => {
                let full = tags.len() >= count;
                let (tags, more) = cut(tags, page);
                (tags, more || full)
            }
            Err(error) => {
                let known = self.tags.of(&repository.name());
                if error.trouble() != Trouble::Transient || known.is_empty() {
                    return Err(of_list(error));
                }
                cut(known, page)
            }
        };
        let next = more.then(|| tags.last().cloned()).flatten();
        let name = repository.reference.path();
        Ok(list(&json!({ "name": name, "tags": tags }), next, path, page))
    }

    /// What refers to a manifest.
    pub(super) async fn referrers(
        self: &Arc<Self>,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        let upstream = self.upstreams.common(repository).map_err(of_list)?;
        let mut asked = upstream.referrers(subject, artifact_type).await;
        self.upstreams.note(repository.reference.domain(), &asked);
        if let (Err(error), Some(login)) = (&asked, ClientLogin::of(headers))
            && error.trouble() == Trouble::Denied
        {
            let private = self.private(repository, Some(&login))?;
            asked = private.referrers(subject, artifact_type).await;
        } else if let Ok(found) = &asked {
            for descriptor in found {
                self.rights.set_size(descriptor.digest, descriptor.size);
                self.rights.add(repository, &descriptor.digest).await;
            }
        }
        let manifests: Vec<Value> = asked.map_err(of_list)?.iter().map(described).collect();
        let index =
            json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests });
        let mut answer = document(StatusCode::OK, media::OCI_INDEX, index.to_string().into());
        if artifact_type.is_some() {
            answer.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
        }
        Ok(answer)
    }
}

fn described(descriptor: &Descriptor) -> Value {
    let mut value = json!({
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest.to_string(),
        "size": descriptor.size,
    });
    if let Some(artifact_type) = &descriptor.artifact_type {
        value["artifactType"] = json!(artifact_type);
    }
    if !descriptor.annotations.is_empty() {
        value["annotations"] = json!(descriptor.annotations);
    }
    value
}

/// The page of a list, and whether there is more after it.
fn cut(mut names: Vec<String>, page: &Page) -> (Vec<String>, bool) {
    names.sort_unstable();
    if let Some(last) = &page.last {
        names.retain(|name| name > last);
    }
    let count = page.count.unwrap_or(LIST_MAX);
    let more = names.len() > count;
    names.truncate(count);
    (names, more && count > 0)
}

fn list(value: &Value, next: Option<String>, path: &str, page: &Page) -> Answer {
    let mut answer = document(StatusCode::OK, "application/json", value.to_string().into());
    if let Some(last) = next {
        let count = page.count.unwrap_or(LIST_MAX);
        // Names hold nothing that would have to be encoded.
        let link = HeaderValue::from_str(&format!("<{path}?n={count}&last={last}>; rel=\"next\""));
        answer.headers_mut().extend(link.ok().map(|value| (LINK, value)));
    }
    answer
}

#[expect(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
fn of_list(error: SourceError) -> Refusal {
    Refusal::upstream(&error, Asked::Name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_in_pages() {
        let names = || ["c", "a", "b"].map(String::from).to_vec();
        let page = |last: Option<&str>, count| Page { last: last.map(String::from), count };
        assert_eq!(
            cut(names(), &page(None, None)),
            (vec!["a".into(), "b".into(), "c".into()], false)
        );
        assert_eq!(cut(names(), &page(None, Some(2))), (vec!["a".into(), "b".into()], true));
        assert_eq!(cut(names(), &page(Some("b"), Some(2))), (vec!["c".into()], false));
        assert_eq!(cut(names(), &page(None, Some(0))), (vec![], false));
    }
}
