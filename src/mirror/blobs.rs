//! Blobs: whole and in ranges.

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE,
    RANGE,
};

use super::Mirror;
use super::answer::{Answer, Asked, Refusal, with_body};
use super::body;
use super::flight::{Stage, Wanted, size_of};
use super::held::Held;
use super::range::{Part, part};
use super::request::Repository;
use super::upstream::ClientLogin;
use crate::oci::{ImageSource, RegistryClient, SourceError, Trouble};
use crate::types::Digest;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// A range that begins this far after what has come, in bytes, is asked for by
/// itself: waiting for the bytes before it would take too long.
const AHEAD_MAX: u64 = 8 << 20;

impl Mirror {
    /// Answers with a blob or a part of it.
    pub(super) async fn blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        is_head: bool,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        let upstream = self.upstreams.common(repository).map_err(of_blob)?;
        if !self.rights.has(repository, digest).await {
            match self.ask_for_right(repository, &upstream, digest).await {
                Ok(()) => {}
                Err(error) if error.trouble() == Trouble::Denied => {
                    let Some(login) = ClientLogin::of(headers) else { return Err(of_blob(error)) };
                    let private = self.private(repository, Some(&login))?;
                    return pass(&private, digest, is_head, headers).await;
                }
                // What is held may be another repository's.
                Err(error)
                    if error.trouble() != Trouble::Transient
                        || !self.swarm
                        || self.source.held(digest).await.is_some() =>
                {
                    return Err(of_blob(error));
                }
                // Only members of the swarm can be asked.
                Err(_) => {}
            }
        }
        if let Some(held) = self.source.held(digest).await {
            return Ok(self.give(digest, held, is_head, headers).await);
        }
        if is_head {
            let size = match self.rights.size(digest) {
                Some(size) => size,
                None => size_of(&upstream, digest).await.map_err(of_blob)?,
            };
            return Ok(head(StatusCode::OK, digest, size, Body::empty()));
        }
        self.fetch(digest, upstream, headers).await
    }

    /// Gives what is held.
    async fn give(
        &self,
        digest: &Digest,
        held: Held,
        is_head: bool,
        headers: &HeaderMap,
    ) -> Answer {
        let length = held.length();
        if is_head {
            return head(StatusCode::OK, digest, length, Body::empty());
        }
        let wanted = wanted_part(headers, digest, length);
        let range = match &wanted {
            Part::Whole => 0..length,
            Part::Bytes(range) => range.clone(),
            Part::Unsatisfiable => return unsatisfiable(digest, length),
        };
        let mut file = None;
        let bytes = match held {
            Held::Document(bytes) => {
                Body::from(bytes.slice(range.start as usize..range.end as usize))
            }
            Held::Exact(exact) => {
                file = self.source.file(digest, &exact).await;
                match &file {
                    Some(file) => file.body(range.clone()),
                    None => body::held(&self.source, *digest, exact, range.clone()),
                }
            }
        };
        let mut answer = match wanted {
            Part::Whole => head(StatusCode::OK, digest, length, bytes),
            _ => partial(digest, &range, length, bytes),
        };
        // The connection has the kernel send it.
        file.and_then(|file| answer.extensions_mut().insert(file));
        answer
    }

    /// Has the blob fetched, and gives its bytes as they come.
    async fn fetch(
        self: &Arc<Self>,
        digest: &Digest,
        upstream: RegistryClient,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        let size = self.rights.size(digest);
        let wanted = Wanted { blob: *digest, size, upstream: upstream.clone() };
        let flight = self.flights.join(wanted);
        let mut stage = flight.stage();
        let begun = stage.wait_for(|stage| !matches!(stage, Stage::Opening)).await;
        let begun = begun.map_err(|_| Refusal::failed("the node is shutting down"))?.clone();
        let arriving = match begun {
            Stage::Opening => return Err(Refusal::failed("the node is shutting down")),
            Stage::Failed(failure) => return Err(failure.refusal()),
            Stage::Here => {
                let held = self.source.held(digest).await;
                let held = held.ok_or_else(|| Refusal::failed("the blob is gone"))?;
                return Ok(self.give(digest, held, false, headers).await);
            }
            Stage::Arriving(arriving) => arriving,
        };
        let length = arriving.size();
        let range = match wanted_part(headers, digest, length) {
            Part::Unsatisfiable => return Ok(unsatisfiable(digest, length)),
            Part::Whole => 0..length,
            Part::Bytes(range) => range,
        };
        let received = *arriving.received().borrow();
        let is_far = range.start > received.saturating_add(AHEAD_MAX) && range.end < length;
        let bytes = if is_far {
            let asked = upstream.open_blob(digest, Some(range.clone())).await.map_err(of_blob)?;
            if asked.facts().range_honoured {
                body::passed(asked)
            } else {
                body::flying(&self.source, *digest, flight, arriving, upstream, range.clone())
            }
        } else {
            body::flying(&self.source, *digest, flight, arriving, upstream, range.clone())
        };
        Ok(if range == (0..length) && wanted_part(headers, digest, length) == Part::Whole {
            head(StatusCode::OK, digest, length, bytes)
        } else {
            partial(digest, &range, length, bytes)
        })
    }

    /// Whether the repository's registry gives the blob to everybody.
    async fn ask_for_right(
        self: &Arc<Self>,
        repository: &Repository,
        upstream: &RegistryClient,
        digest: &Digest,
    ) -> Result<(), SourceError> {
        let asked = size_of(upstream, digest).await;
        self.upstreams.note(repository.reference.domain(), &asked);
        self.rights.set_size(*digest, asked?);
        self.rights.add(repository, digest).await;
        Ok(())
    }
}

/// Passes a blob through, as a client with a login of its own asked for it.
async fn pass(
    upstream: &RegistryClient,
    digest: &Digest,
    is_head: bool,
    headers: &HeaderMap,
) -> Result<Answer, Refusal> {
    let opened = upstream.open_blob(digest, None).await.map_err(of_blob)?;
    let no_length = || Refusal::failed("the registry does not say how long the blob is");
    let length = opened.facts().total.ok_or_else(no_length)?;
    match wanted_part(headers, digest, length) {
        _ if is_head => Ok(head(StatusCode::OK, digest, length, Body::empty())),
        Part::Whole => Ok(head(StatusCode::OK, digest, length, body::passed(opened))),
        Part::Unsatisfiable => Ok(unsatisfiable(digest, length)),
        Part::Bytes(range) => {
            drop(opened);
            let opened = upstream.open_blob(digest, Some(range.clone())).await.map_err(of_blob)?;
            if !opened.facts().range_honoured {
                return Err(Refusal::failed("the registry gives no ranges"));
            }
            Ok(partial(digest, &range, length, body::passed(opened)))
        }
    }
}

/// The part that is asked for. A condition that names another thing than this blob
/// makes it the whole.
fn wanted_part(headers: &HeaderMap, digest: &Digest, length: u64) -> Part {
    let text =
        |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_this = text(&IF_RANGE).is_none_or(|tag| tag == format!("\"{digest}\""));
    // Several headers are several ranges.
    let several = headers.get_all(RANGE).iter().count() > 1;
    part(text(&RANGE).filter(|_| is_this && !several), length)
}

fn head(status: StatusCode, digest: &Digest, length: u64, bytes: Body) -> Answer {
    let mut answer = with_body(status, length, bytes);
    let headers = answer.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let text = |text: String| HeaderValue::from_str(&text).ok();
    headers.extend(text(digest.to_string()).map(|value| (CONTENT_DIGEST, value)));
    headers.extend(text(format!("\"{digest}\"")).map(|value| (ETAG, value)));
    answer
}

fn partial(digest: &Digest, range: &std::ops::Range<u64>, length: u64, bytes: Body) -> Answer {
    let mut answer = head(StatusCode::PARTIAL_CONTENT, digest, range.end - range.start, bytes);
    let said = format!("bytes {}-{}/{length}", range.start, range.end - 1);
    let said = HeaderValue::from_str(&said).ok();
    answer.headers_mut().extend(said.map(|value| (CONTENT_RANGE, value)));
    answer
}

fn unsatisfiable(digest: &Digest, length: u64) -> Answer {
    let mut answer = head(StatusCode::RANGE_NOT_SATISFIABLE, digest, 0, Body::empty());
    let said = HeaderValue::from_str(&format!("bytes */{length}")).ok();
    answer.headers_mut().extend(said.map(|value| (CONTENT_RANGE, value)));
    answer
}

#[expect(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
fn of_blob(error: SourceError) -> Refusal {
    Refusal::upstream(&error, Asked::Blob)
}
