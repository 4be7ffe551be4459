//! Manifests by tag and digest, and the lists of referrers.

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK,
};
use reqwest::{Method, StatusCode, Url};

use super::hosts::origin_of;
use super::transport::Ask;
use super::{Capability, RegistryClient, Turn};
use crate::oci::document::{DOCUMENT_MAX, Descriptor, Document, INDEX_MAX};
use crate::oci::error::{RegistryError, SourceError};
use crate::oci::media::{self, ACCEPT_MANIFEST};
use crate::oci::reference::DEFAULT_TAG;
use crate::oci::referrer::{self, Artifact};
use crate::oci::source::{BlobStream, ImageSource, Target, manifest_document, verify};
use crate::types::Digest;

/// Most pages of a list of referrers.
const PAGES_MAX: usize = 16;
/// What registries state a manifest's digest in.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

impl ImageSource for RegistryClient {
    fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    fn resolve<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>> {
        Box::pin(async move {
            match target {
                Target::Digest(digest) => self.manifest(digest).await,
                Target::Tag(tag) => self.tagged(tag).await,
                Target::Default => self.tagged(DEFAULT_TAG).await,
            }
        })
    }

    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>> {
        Box::pin(async move {
            let what = self.label("GET manifest", &format!("@{digest}"));
            let name = digest.to_string();
            self.in_turn(&what, Capability::Pull, |turn| {
                self.get_manifest(turn, &what, &name, Some(digest))
            })
            .await
        })
    }

    fn current<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(async move {
            let (tag, capability) = match target {
                Target::Digest(digest) => (digest.to_string(), Capability::Pull),
                Target::Tag(tag) => (tag.clone(), Capability::Resolve),
                Target::Default => (DEFAULT_TAG.to_owned(), Capability::Resolve),
            };
            let what = self.label("HEAD manifest", &format!(" {tag}"));
            let stated = self
                .in_turn(&what, capability, |turn| self.head_manifest(turn, &what, &tag))
                .await?;
            match stated {
                Some(descriptor) => Ok(descriptor),
                None => Ok(self.resolve(target).await?.descriptor),
            }
        })
    }

    fn distrust(&self, from: &str) {
        self.registry.health.distrust(from, self.transport().now() + super::DISTRUST);
    }

    fn open_blob<'a>(
        &'a self,
        digest: &'a Digest,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        Box::pin(self.get_blob(digest, range))
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        Box::pin(async move {
            let what = self.label("GET referrers", &format!("@{subject}"));
            self.in_turn(&what, Capability::Resolve, |turn| {
                self.referrers_at(turn, &what, subject, artifact_type)
            })
            .await
        })
    }

    fn push_blob<'a>(
        &'a self,
        digest: &'a Digest,
        data: Bytes,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.put_blob(digest, data))
    }

    fn push_manifest<'a>(
        &'a self,
        tag: Option<&'a str>,
        manifest: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(self.put_manifest(tag, manifest))
    }

    fn push_referrer<'a>(
        &'a self,
        artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(self.put_referrer(artifact))
    }
}

impl RegistryClient {
    async fn tagged(&self, tag: &str) -> Result<Document, SourceError> {
        let what = self.label("GET manifest", &format!(":{tag}"));
        self.in_turn(&what, Capability::Resolve, |turn| self.get_manifest(turn, &what, tag, None))
            .await
    }

    pub(super) async fn get_manifest(
        &self,
        turn: Turn,
        what: &str,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<Document, SourceError> {
        let url = self.url(&turn.endpoint, &format!("manifests/{name}"))?;
        let mut ask = Ask::new(Method::GET, url, what, &self.scope("pull"))
            .header(ACCEPT, HeaderValue::from_static(ACCEPT_MANIFEST));
        ask.retry &= turn.is_last;
        let answer = self.transport().send(&turn.endpoint, &ask).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(self.transport().refusal(answer, what).await.into());
        }
        let headers = answer.response.headers();
        let media_type = media_type(headers);
        let stated = headers.get(CONTENT_DIGEST).and_then(|v| v.to_str().ok()?.parse().ok());
        let body = self.transport().read_body(answer, what, DOCUMENT_MAX).await?;
        if let Some(expected) = expected.copied().or(stated) {
            verify(|| what.to_owned(), &expected, &body)?;
        }
        manifest_document(|| what.to_owned(), media_type.as_deref(), body)
    }

    /// What a registry states about a manifest without sending it (which
    /// counts against no rate limit); `None` where it states too little.
    async fn head_manifest(
        &self,
        turn: Turn,
        what: &str,
        name: &str,
    ) -> Result<Option<Descriptor>, SourceError> {
        let url = self.url(&turn.endpoint, &format!("manifests/{name}"))?;
        let mut ask = Ask::new(Method::HEAD, url, what, &self.scope("pull"))
            .header(ACCEPT, HeaderValue::from_static(ACCEPT_MANIFEST));
        ask.retry &= turn.is_last;
        let answer = self.transport().send(&turn.endpoint, &ask).await?;
        match answer.response.status() {
            StatusCode::OK => {}
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => return Ok(None),
            _ => return Err(self.transport().refusal(answer, what).await.into()),
        }
        let headers = answer.response.headers();
        let digest = headers.get(CONTENT_DIGEST).and_then(|v| v.to_str().ok()?.parse().ok());
        let known = |m: &String| media::is_index(m) || media::is_manifest(m);
        let media_type = media_type(headers).filter(known);
        let size = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        Ok(digest.zip(media_type).map(|(digest, media_type)| Descriptor {
            digest,
            size: size.unwrap_or(0),
            ..Descriptor::of(&media_type, b"")
        }))
    }

    async fn referrers_at(
        &self,
        turn: Turn,
        what: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, SourceError> {
        let mut found = match self.referrers_api(&turn, what, subject, artifact_type).await? {
            Some(found) => found,
            None => self.referrers_tag(&turn, what, subject).await?,
        };
        referrer::keep_type(&mut found, artifact_type);
        if found.is_empty() && !turn.is_last {
            // A mirror that knows of none may just not mirror them.
            let (what, message) = (what.to_owned(), "no referrers here".to_owned());
            return Err(RegistryError::NotFound { what, message }.into());
        }
        Ok(found)
    }

    /// Asks the referrers API; `None` where there is none.
    async fn referrers_api(
        &self,
        turn: &Turn,
        what: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, SourceError> {
        let mut url = self.url(&turn.endpoint, &format!("referrers/{subject}"))?;
        if let Some(artifact_type) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", artifact_type);
        }
        let (mut next, mut found) = (Some(url), Vec::new());
        for _ in 0..PAGES_MAX {
            let Some(url) = next.take() else { break };
            let mut ask = Ask::new(Method::GET, url, what, &self.scope("pull"))
                .header(ACCEPT, HeaderValue::from_static(media::OCI_INDEX));
            ask.retry &= turn.is_last;
            let answer = self.transport().send(&turn.endpoint, &ask).await?;
            match answer.response.status().as_u16() {
                200 => {}
                // 404 is the specification's answer for "no such API", the
                // others are what registries give in practice.
                400 | 404 | 405 | 406 | 501 => return Ok(None),
                _ => return Err(self.transport().refusal(answer, what).await.into()),
            }
            let link = answer.response.headers().get(LINK).and_then(|v| v.to_str().ok());
            next = link.and_then(next_page).and_then(|link| ask.url.join(link).ok());
            if next.as_ref().is_some_and(|next| origin_of(next) != turn.endpoint.origin) {
                let problem = "its list of referrers goes on at another host".to_owned();
                let (what, host) = (what.to_owned(), answer.host.clone());
                return Err(RegistryError::Protocol { what, host, problem }.into());
            }
            let body = self.transport().read_body(answer, what, DOCUMENT_MAX).await?;
            found.extend(self.parse_list(what, None, &body)?);
            if found.len() > INDEX_MAX {
                break;
            }
        }
        found.truncate(INDEX_MAX);
        Ok(Some(found))
    }

    /// Reads the list under the tag that stands for the missing API.
    async fn referrers_tag(
        &self,
        turn: &Turn,
        what: &str,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, SourceError> {
        let tag = referrer::fallback_tag(subject);
        match self.get_manifest(turn.clone(), what, &tag, None).await {
            Ok(document) => {
                self.parse_list(what, Some(&document.descriptor.media_type), &document.bytes)
            }
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn parse_list(
        &self,
        what: &str,
        media_type: Option<&str>,
        bytes: &[u8],
    ) -> Result<Vec<Descriptor>, SourceError> {
        referrer::parse_list(media_type, bytes)
            .map(|index| index.manifests)
            .map_err(|problem| SourceError::Document { what: what.to_owned(), problem })
    }
}

/// The media type without its parameters.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The target of `rel="next"` in a `Link` header (RFC 8288).
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|link| {
        let (target, params) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = params.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
        next.then_some(target)
    })
}

/// Where an upload goes on: relative to where it began, and never from HTTPS
/// to plain HTTP.
pub(super) fn upload_location(from: &Url, location: &str) -> Option<Url> {
    let mut next = from.join(location).ok()?;
    let safe = next.scheme() == "https" || (next.scheme() == "http" && from.scheme() == "http");
    let _ = next.set_username("");
    let _ = next.set_password(None);
    (safe && next.host_str().is_some()).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found() {
        assert_eq!(next_page("</v2/x?n=2>; rel=\"next\""), Some("/v2/x?n=2"));
        assert_eq!(next_page("<a>; rel=prev, <b>; title=x; rel=next"), Some("b"));
        for none in ["", "<a>", "a; rel=\"next\"", "<a; rel=next"] {
            assert_eq!(next_page(none), None, "{none}");
        }
    }

    #[test]
    fn uploads_stay_where_they_are_protected() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let https = url("https://r.io/v2/a/blobs/uploads/");
        let plain = url("http://127.0.0.1:5000/v2/a/blobs/uploads/");
        assert_eq!(upload_location(&https, "/up?s=1"), Some(url("https://r.io/up?s=1")));
        assert_eq!(upload_location(&https, "https://u:p@s.io/x"), Some(url("https://s.io/x")));
        assert_eq!(upload_location(&https, "http://r.io/up"), None);
        assert_eq!(
            upload_location(&plain, "http://127.0.0.1:5000/up"),
            Some(url("http://127.0.0.1:5000/up"))
        );
        assert_eq!(upload_location(&plain, "ftp://x/y"), None);
    }
}
