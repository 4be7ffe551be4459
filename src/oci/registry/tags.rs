//! The names of a repository's tags.

use reqwest::header::ACCEPT;
use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::transport::Ask;
use super::{Capability, RegistryClient};
use crate::oci::document::DOCUMENT_MAX;
use crate::oci::error::{RegistryError, SourceError};
use crate::oci::reference::is_tag;

/// The specification's answer.
#[derive(Deserialize)]
struct List {
    tags: Option<Vec<String>>,
}

impl RegistryClient {
    /// One page of the tags' names in the registry's order: at most `count` of
    /// those after `last`. What can't be a tag is left out.
    ///
    /// # Errors
    /// [`SourceError`] where the registry can't be asked or its answer is malformed.
    pub async fn tags(
        &self,
        last: Option<&str>,
        count: Option<usize>,
    ) -> Result<Vec<String>, SourceError> {
        let what = self.label("GET tags", "");
        self.in_turn(&what, Capability::Resolve, |turn| {
            let what = &what;
            async move {
                let mut url = self.url(&turn.endpoint, "tags/list")?;
                if let Some(count) = count {
                    url.query_pairs_mut().append_pair("n", &count.to_string());
                }
                if let Some(last) = last {
                    url.query_pairs_mut().append_pair("last", last);
                }
                let mut ask = Ask::new(Method::GET, url, what, &self.scope("pull"))
                    .header(ACCEPT, HeaderValue::from_static("application/json"));
                ask.retry &= turn.is_last;
                let answer = self.transport().send(&turn.endpoint, &ask).await?;
                if answer.response.status() != StatusCode::OK {
                    return Err(self.transport().refusal(answer, what).await.into());
                }
                let host = answer.host.clone();
                let body = self.transport().read_body(answer, what, DOCUMENT_MAX).await?;
                let list: List = serde_json::from_slice(&body).map_err(|_| {
                    let problem = "its list of tags is none".to_owned();
                    RegistryError::Protocol { what: what.clone(), host, problem }
                })?;
                Ok(list.tags.unwrap_or_default().into_iter().filter(|tag| is_tag(tag)).collect())
            }
        })
        .await
    }
}
