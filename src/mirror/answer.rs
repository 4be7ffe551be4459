//! What is answered: errors in the specification's form, and the heads that all
//! answers share.

use axum::body::Body;
use axum::http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{Response, StatusCode};
use serde_json::json;

use super::request::Refused;
use crate::oci::{RegistryError, SourceError, Trouble};

/// What says that this is a registry.
const VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// Longest message of an error, in characters.
const MESSAGE_MAX: usize = 300;

/// An answer of the mirror.
pub(super) type Answer = Response<Body>;

/// Why a question is not answered.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// Seconds to wait.
    retry_after: Option<u64>,
}

/// What was asked for, for the right word where it is not there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Manifest,
    Blob,
    Name,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into().chars().take(MESSAGE_MAX).collect();
        Self { status, code, message, retry_after: None }
    }

    /// What an upstream said, or that it can't be asked.
    pub(super) fn upstream(error: &SourceError, asked: Asked) -> Self {
        let (status, code) = match error.trouble() {
            Trouble::NotFound => return Self::unknown(asked, error.to_string()),
            Trouble::Denied => match error {
                SourceError::Registry(RegistryError::Forbidden { .. }) => {
                    (StatusCode::FORBIDDEN, "DENIED")
                }
                _ => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            },
            Trouble::Busy => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Trouble::Transient => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Trouble::Corrupt | Trouble::Permanent => (StatusCode::BAD_GATEWAY, "UNAVAILABLE"),
        };
        let retry_after = match error {
            SourceError::Registry(RegistryError::Throttled { retry_after, .. }) => {
                retry_after.map(|wait| wait.as_secs().max(1))
            }
            _ => None,
        };
        Self { retry_after, ..Self::new(status, code, error.to_string()) }
    }

    pub(super) fn unknown(asked: Asked, message: impl Into<String>) -> Self {
        let code = match asked {
            Asked::Manifest => "MANIFEST_UNKNOWN",
            Asked::Blob => "BLOB_UNKNOWN",
            Asked::Name => "NAME_UNKNOWN",
        };
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
    }

    pub(super) fn into_answer(self) -> Answer {
        let body = json!({"errors": [{"code": self.code, "message": self.message}]}).to_string();
        let mut answer = document(self.status, "application/json", body.into());
        let headers = answer.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            let realm = HeaderValue::from_static("Basic realm=\"the registry behind this mirror\"");
            headers.insert(WWW_AUTHENTICATE, realm);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let bad = StatusCode::BAD_REQUEST;
        let (status, code, message) = match refused {
            Refused::NoSuchPath => (StatusCode::NOT_FOUND, "UNSUPPORTED", "there is no such path"),
            Refused::Name => (bad, "NAME_INVALID", "that is no name of a repository"),
            Refused::Digest => {
                (bad, "DIGEST_INVALID", "that is no digest: sha256 is what can be checked here")
            }
            Refused::Tag => (bad, "TAG_INVALID", "that is no tag"),
            Refused::Count => (bad, "PAGINATION_NUMBER_INVALID", "n is no number"),
            Refused::Registry => (
                StatusCode::FORBIDDEN,
                "DENIED",
                "this mirror does not serve that registry: mirror.registries lists those that it does",
            ),
            Refused::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "a mirror is only read from")
            }
            Refused::TooLong => {
                (StatusCode::URI_TOO_LONG, "UNSUPPORTED", "the request is too long")
            }
        };
        Self::new(status, code, message)
    }
}

/// An answer whose body is at hand.
pub(super) fn document(status: StatusCode, media_type: &str, bytes: bytes::Bytes) -> Answer {
    let length = bytes.len() as u64;
    let mut answer = with_body(status, length, Body::from(bytes));
    let media_type = HeaderValue::from_str(media_type);
    answer.headers_mut().extend(media_type.ok().map(|value| (CONTENT_TYPE, value)));
    answer
}

/// An answer of a known length.
pub(super) fn with_body(status: StatusCode, length: u64, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    answer
}
