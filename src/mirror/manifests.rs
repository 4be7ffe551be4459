//! Manifests, by tag and by digest.

use std::sync::Arc;
use std::time::SystemTime;

use axum::http::StatusCode;
use axum::http::header::{ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, WARNING};
use bytes::Bytes;
use tracing::{info, warn};

use super::Mirror;
use super::answer::{Answer, Asked, Refusal, document, with_body};
use super::request::Repository;
use super::upstream::ClientLogin;
use crate::oci::{
    Descriptor, Document, ImageSource, Manifest, RegistryClient, SourceError, Target, Trouble,
};
use crate::types::Digest;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Says when a tag that could not be asked for was last known to be this.
const STALE: HeaderName = HeaderName::from_static("x-peersync-stale-since");

/// A manifest, and how it was had.
struct Found {
    document: Document,
    /// Its tag could not be asked for; it is what it was then.
    stale: Option<SystemTime>,
}

impl Mirror {
    /// Answers with what a tag stands for.
    pub(super) async fn tag(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        let login = ClientLogin::of(headers);
        let found = self.find_tag(repository, tag, login.as_ref()).await?;
        Ok(answer(found, headers))
    }

    /// Answers with a manifest.
    pub(super) async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        let login = ClientLogin::of(headers);
        let upstream = self.upstreams.common(repository).map_err(of_manifest)?;
        let known = self.rights.has(repository, digest).await;
        let found = match self.find(repository, &upstream, digest, known).await {
            Err(error) if error.trouble() == Trouble::Denied && login.is_some() => {
                let private = self.private(repository, login.as_ref())?;
                private.manifest(digest).await.map_err(of_manifest)?
            }
            found => found.map_err(of_manifest)?,
        };
        Ok(answer(Found { document: found, stale: None }, headers))
    }

    async fn find_tag(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &str,
        login: Option<&ClientLogin>,
    ) -> Result<Found, Refusal> {
        let registry = repository.reference.domain();
        let (name, target) = (repository.name(), Target::Tag(tag.to_owned()));
        let upstream = self.upstreams.common(repository).map_err(of_manifest)?;
        if self.upstreams.is_down(registry)
            && let Some(found) = self.last_known(repository, &upstream, tag).await
        {
            return Ok(found);
        }
        let current = upstream.current(&target).await;
        self.upstreams.note(registry, &current);
        match current {
            Ok(current) => {
                let found = self.find(repository, &upstream, &current.digest, true).await;
                let document = found.map_err(of_manifest)?;
                let (tags, tag) = (Arc::clone(&self.tags), tag.to_owned());
                let put = move || tags.put(&name, &tag, current.digest, SystemTime::now());
                let _ = tokio::task::spawn_blocking(put).await;
                Ok(Found { document, stale: None })
            }
            Err(error) => match error.trouble() {
                // A client's own access is its own: nothing of it is kept.
                Trouble::Denied if login.is_some() => {
                    let private = self.private(repository, login)?;
                    let document = private.resolve(&target).await.map_err(of_manifest)?;
                    Ok(Found { document, stale: None })
                }
                Trouble::Transient | Trouble::Busy => {
                    let found = self.last_known(repository, &upstream, tag).await;
                    let found = found.ok_or_else(|| of_manifest(error))?;
                    Ok(found)
                }
                Trouble::NotFound => {
                    let (tags, tag) = (Arc::clone(&self.tags), tag.to_owned());
                    let _ = tokio::task::spawn_blocking(move || tags.forget(&name, &tag)).await;
                    Err(of_manifest(error))
                }
                _ => Err(of_manifest(error)),
            },
        }
    }

    /// What a tag stood for when somebody could ask: this node, or a peer.
    async fn last_known(
        self: &Arc<Self>,
        repository: &Repository,
        upstream: &RegistryClient,
        tag: &str,
    ) -> Option<Found> {
        let name = repository.name();
        let (digest, since) = match self.tags.get(&name, tag) {
            Some(known) => (*known.digest(), known.seen()),
            None if self.swarm => {
                let digest = self.engine.image_from_peers(&format!("{name}:{tag}")).await?;
                (digest, SystemTime::now())
            }
            None => return None,
        };
        let document = self.find_without_upstream(repository, &digest).await?;
        warn!(
            repository = name, tag, %digest,
            "{} can't be asked: served as it was last known", upstream.name()
        );
        self.counters.mirror_stale.add(1);
        Some(Found { document, stale: Some(since) })
    }

    /// A manifest from the store, a peer or upstream. `known`: that the repository
    /// has it is known already.
    async fn find(
        self: &Arc<Self>,
        repository: &Repository,
        upstream: &RegistryClient,
        digest: &Digest,
        known: bool,
    ) -> Result<Document, SourceError> {
        if known && let Some(found) = self.find_without_upstream(repository, digest).await {
            return Ok(found);
        }
        let registry = repository.reference.domain();
        let asked = upstream.manifest(digest).await;
        self.upstreams.note(registry, &asked);
        match asked {
            Ok(document) => {
                self.counters.bytes_index.add(document.bytes.len() as u64);
                self.keep(repository, document.clone()).await;
                Ok(document)
            }
            // What this node holds may be another repository's, and what it is not
            // known to belong to it is not served from. Members of the swarm give
            // what they let others have.
            Err(error) if error.trouble() == Trouble::Transient && self.swarm => {
                let held = self.source.document(digest).await;
                let from_peer = match held {
                    Some(_) => None,
                    None => self.from_peers(repository, digest).await,
                };
                from_peer.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn find_without_upstream(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Document> {
        if let Some(bytes) = self.source.document(digest).await
            && let Some(document) = parsed(bytes)
        {
            self.note(repository, &document).await;
            return Some(document);
        }
        self.from_peers(repository, digest).await
    }

    async fn from_peers(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Document> {
        let bytes = self.engine.document_from_peers(digest).await?;
        let document = parsed(bytes)?;
        info!(%digest, "manifest from a peer");
        self.keep(repository, document.clone()).await;
        Some(document)
    }

    /// Keeps a manifest, and what it says of others.
    async fn keep(self: &Arc<Self>, repository: &Repository, document: Document) {
        self.note(repository, &document).await;
        let store = Arc::clone(&self.source.store);
        let put = move || store.put_document(&document.descriptor.digest, &document.bytes);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(put).await {
            warn!("a manifest is not kept: {error}");
        }
    }

    async fn note(self: &Arc<Self>, repository: &Repository, document: &Document) {
        let media_type = &document.descriptor.media_type;
        if let Ok(manifest) = Manifest::parse(Some(media_type), &document.bytes) {
            self.rights.add_manifest(repository, document.descriptor.digest, manifest).await;
        }
    }

    pub(super) fn private(
        &self,
        repository: &Repository,
        login: Option<&ClientLogin>,
    ) -> Result<RegistryClient, Refusal> {
        let denied = || Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "a login is needed");
        let login = login.ok_or_else(denied)?;
        self.upstreams.private(repository, login).map_err(|e| of_manifest(e.into()))
    }
}

/// Bytes that have the digest asked for, as a manifest.
fn parsed(bytes: Bytes) -> Option<Document> {
    let manifest = Manifest::parse(None, &bytes).ok()?;
    Some(Document { descriptor: Descriptor::of(manifest.media_type(), &bytes), bytes })
}

#[expect(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
fn of_manifest(error: SourceError) -> Refusal {
    Refusal::upstream(&error, Asked::Manifest)
}

fn answer(found: Found, headers: &HeaderMap) -> Answer {
    let Found { document: manifest, stale } = found;
    let Descriptor { digest, media_type, .. } = &manifest.descriptor;
    let tag = format!("\"{digest}\"");
    let same = headers.get_all(IF_NONE_MATCH).iter().any(|value| {
        let text = value.to_str().unwrap_or_default();
        text.split(',').map(str::trim).any(|one| one.trim_start_matches("W/") == tag || one == "*")
    });
    let mut answer = if same {
        let mut answer = with_body(StatusCode::NOT_MODIFIED, 0, axum::body::Body::empty());
        answer.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        answer
    } else {
        document(StatusCode::OK, media_type, manifest.bytes)
    };
    let headers = answer.headers_mut();
    headers.extend(HeaderValue::from_str(&tag).ok().map(|value| (ETAG, value)));
    let digest = HeaderValue::from_str(&digest.to_string());
    headers.extend(digest.ok().map(|value| (CONTENT_DIGEST, value)));
    if let Some(since) = stale {
        let warning = HeaderValue::from_static("110 peersync \"the registry can't be asked\"");
        headers.insert(WARNING, warning);
        let since = HeaderValue::from_str(&httpdate::fmt_http_date(since));
        headers.extend(since.ok().map(|value| (STALE, value)));
    }
    answer
}
