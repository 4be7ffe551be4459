//! Giving content to a registry.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode};

use super::manifest::upload_location;
use super::transport::Ask;
use super::{Capability, RegistryClient, Turn};
use crate::oci::document::{DOCUMENT_MAX, Descriptor, DocumentError};
use crate::oci::error::{RegistryError, SourceError, Trouble};
use crate::oci::media;
use crate::oci::referrer::{self, Artifact};
use crate::oci::source::{manifest_document, verify};
use crate::types::Digest;

/// By this header a registry says that it keeps the list of referrers itself.
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// How often the list under the fallback tag is written anew when somebody
/// else writes it at the same time.
const LIST_ROUNDS: usize = 5;

impl RegistryClient {
    pub(super) async fn put_blob(&self, digest: &Digest, data: Bytes) -> Result<(), SourceError> {
        let what = self.label("PUT blob", &format!("@{digest}"));
        verify(|| what.clone(), digest, &data)?;
        self.in_turn(&what, Capability::Push, |turn| self.blob_to(turn, &what, digest, &data)).await
    }

    /// An upload that fails half-way is begun anew: what was begun expires.
    async fn blob_to(
        &self,
        turn: Turn,
        what: &str,
        digest: &Digest,
        data: &Bytes,
    ) -> Result<(), SourceError> {
        let mut failures = 0;
        loop {
            let error = match self.upload(&turn, what, digest, data).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures += 1;
            let retry_after = match &error {
                RegistryError::Throttled { retry_after, .. } => *retry_after,
                error if error.trouble() == Trouble::Transient => None,
                _ => return Err(error.into()),
            };
            match self.transport().wait(failures, retry_after).filter(|_| turn.is_last) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error.into()),
            }
        }
    }

    async fn upload(
        &self,
        turn: &Turn,
        what: &str,
        digest: &Digest,
        data: &Bytes,
    ) -> Result<(), RegistryError> {
        let (transport, endpoint) = (self.transport(), &turn.endpoint);
        let scope = self.scope("pull,push");
        let ask = |method, url| {
            let mut ask = Ask::new(method, url, what, &scope);
            ask.retry = false;
            ask
        };
        let url = self.url(endpoint, &format!("blobs/{digest}"))?;
        let answer = transport.send(endpoint, &ask(Method::HEAD, url)).await?;
        match answer.response.status() {
            StatusCode::OK => return Ok(()),
            StatusCode::NOT_FOUND => {}
            _ => return Err(transport.refusal(answer, what).await),
        }
        let url = self.url(endpoint, "blobs/uploads/")?;
        let answer = transport.send(endpoint, &ask(Method::POST, url)).await?;
        if answer.response.status() != StatusCode::ACCEPTED {
            return Err(transport.refusal(answer, what).await);
        }
        let location = answer.response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let location = location.and_then(|location| upload_location(&answer.url, location));
        let mut url = location.ok_or_else(|| RegistryError::Protocol {
            what: what.to_owned(),
            host: answer.host.clone(),
            problem: "it gives no usable place for the upload (Location)".to_owned(),
        })?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let octets = HeaderValue::from_static("application/octet-stream");
        let mut put = ask(Method::PUT, url).header(CONTENT_TYPE, octets);
        put.body = data.clone();
        let answer = transport.send(endpoint, &put).await?;
        match answer.response.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(transport.refusal(answer, what).await),
        }
    }

    pub(super) async fn put_manifest(
        &self,
        tag: Option<&str>,
        manifest: Bytes,
    ) -> Result<Descriptor, SourceError> {
        let name = tag.map_or_else(String::new, |tag| format!(":{tag}"));
        let what = self.label("PUT manifest", &name);
        let document = manifest_document(|| what.clone(), None, manifest)?;
        let name = tag.map_or_else(|| document.descriptor.digest.to_string(), str::to_owned);
        self.in_turn(&what, Capability::Push, |turn| {
            let document = &document;
            let (what, name) = (&what, &name);
            async move {
                let media_type = &document.descriptor.media_type;
                self.manifest_to(&turn, what, name, media_type, &document.bytes).await
            }
        })
        .await?;
        Ok(document.descriptor)
    }

    /// True if the registry says that it listed the manifest as a referrer.
    async fn manifest_to(
        &self,
        turn: &Turn,
        what: &str,
        name: &str,
        media_type: &str,
        manifest: &Bytes,
    ) -> Result<bool, SourceError> {
        let url = self.url(&turn.endpoint, &format!("manifests/{name}"))?;
        let content_type = HeaderValue::try_from(media_type).map_err(|_| {
            SourceError::Document { what: what.to_owned(), problem: DocumentError::MediaType }
        })?;
        let mut ask = Ask::new(Method::PUT, url, what, &self.scope("pull,push"))
            .header(CONTENT_TYPE, content_type);
        ask.retry &= turn.is_last;
        ask.body = manifest.clone();
        let answer = self.transport().send(&turn.endpoint, &ask).await?;
        match answer.response.status() {
            StatusCode::CREATED | StatusCode::OK => {
                Ok(answer.response.headers().contains_key(OCI_SUBJECT))
            }
            _ => Err(self.transport().refusal(answer, what).await.into()),
        }
    }

    pub(super) async fn put_referrer(
        &self,
        artifact: &Artifact,
    ) -> Result<Descriptor, SourceError> {
        let (entry, manifest) = artifact.encode();
        let what = self.label("PUT referrer", &format!("@{}", artifact.subject.digest));
        let empty = Bytes::from_static(referrer::EMPTY_CONFIG);
        self.put_blob(&Digest::of(&empty), empty).await?;
        self.in_turn(&what, Capability::Push, |turn| {
            let (what, entry, manifest) = (&what, &entry, &manifest);
            async move {
                let name = entry.digest.to_string();
                let listed =
                    self.manifest_to(&turn, what, &name, media::OCI_MANIFEST, manifest).await?;
                if listed {
                    return Ok(());
                }
                self.list_at_tag(&turn, what, &artifact.subject.digest, entry).await
            }
        })
        .await?;
        Ok(entry)
    }

    /// Adds an entry to the list under the fallback tag. The protocol has no
    /// conditional write: read it again, and repeat if somebody else's write
    /// took our entry away.
    async fn list_at_tag(
        &self,
        turn: &Turn,
        what: &str,
        subject: &Digest,
        entry: &Descriptor,
    ) -> Result<(), SourceError> {
        let tag = referrer::fallback_tag(subject);
        for _ in 0..LIST_ROUNDS {
            let list = match self.get_manifest(turn.clone(), what, &tag, None).await {
                Ok(document) => document.bytes,
                Err(error) if error.is_not_found() => referrer::empty_list().into(),
                Err(error) => return Err(error),
            };
            let malformed = |problem| SourceError::Document { what: what.to_owned(), problem };
            let index = referrer::parse_list(None, &list).map_err(malformed)?;
            if index.manifests.iter().any(|old| old.digest == entry.digest) {
                return Ok(());
            }
            let updated = referrer::add_entry(&list, entry).map_err(malformed)?;
            debug_assert!(updated.len() as u64 <= DOCUMENT_MAX);
            self.manifest_to(turn, what, &tag, &index.media_type, &updated.into()).await?;
        }
        Err(RegistryError::Protocol {
            what: what.to_owned(),
            host: turn.endpoint.host.clone(),
            problem: "others kept changing its list of referrers; try again".to_owned(),
        }
        .into())
    }
}
