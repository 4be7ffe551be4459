//! Blobs: whole, or in ranges.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::hosts::{Endpoint, origin_of};
use super::transport::{Answer, Ask, network_error};
use super::{Capability, RegistryClient, Turn};
use crate::oci::error::{RegistryError, SourceError};
use crate::oci::source::{BlobFacts, BlobStream, check_range};
use crate::types::Digest;

/// How long the place of a blob is remembered. The signatures in such
/// addresses hold for minutes at least.
const PLACE_KEPT: Duration = Duration::from_secs(60);
/// Most places that are remembered.
const PLACES_MAX: usize = 1024;

/// Where registries redirected requests for blobs to, so that the many ranges
/// of a lazy read don't each cost a round trip to the registry first.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<Url, (Url, Instant)>>);

impl Places {
    fn get(&self, blob: &Url, now: Instant) -> Option<Url> {
        let places = self.lock();
        places.get(blob).filter(|(_, until)| now < *until).map(|(place, _)| place.clone())
    }

    fn remember(&self, blob: &Url, place: &Url, now: Instant) {
        let mut places = self.lock();
        if places.len() >= PLACES_MAX {
            places.retain(|_, (_, until)| now < *until);
        }
        if places.len() < PLACES_MAX {
            places.insert(blob.clone(), (place.clone(), now + PLACE_KEPT));
        }
    }

    fn forget(&self, blob: &Url) {
        self.lock().remove(blob);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Url, (Url, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegistryClient {
    pub(super) async fn get_blob(
        &self,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobStream, SourceError> {
        let what = self.label("GET blob", &format!("@{digest}"));
        check_range(|| what.clone(), range.as_ref())?;
        let range = range.as_ref();
        self.in_turn(&what, Capability::Pull, |turn| self.blob_from(turn, &what, digest, range))
            .await
    }

    async fn blob_from(
        &self,
        turn: Turn,
        what: &str,
        digest: &Digest,
        range: Option<&Range<u64>>,
    ) -> Result<BlobStream, SourceError> {
        let url = self.url(&turn.endpoint, &format!("blobs/{digest}"))?;
        let mut ask = Ask::new(Method::GET, url, what, &self.scope("pull"))
            // Byte ranges are of the blob as it is.
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        ask.retry &= turn.is_last;
        if let Some(range) = range {
            let value = format!("bytes={}-{}", range.start, range.end - 1);
            let value = HeaderValue::try_from(value);
            ask.headers.extend(value.ok().map(|value| (RANGE, value)));
        }
        let answer = self.ask_for_blob(&turn.endpoint, &ask).await?;
        let status = answer.response.status();
        if !has_blob(status) {
            return Err(self.transport().refusal(answer, what).await.into());
        }
        let length = answer.response.content_length();
        let facts = facts(status, answer.response.headers(), length, range).map_err(|problem| {
            RegistryError::Protocol { what: what.to_owned(), host: answer.host.clone(), problem }
        })?;
        let chunks = chunks(answer, what.to_owned(), facts.length, self.idle());
        Ok(BlobStream::new(facts, &turn.endpoint.origin, chunks))
    }

    /// Asks the place that the registry sent us to lately, or the registry.
    async fn ask_for_blob(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer, RegistryError> {
        let (transport, places) = (self.transport(), &self.registry.places);
        if let Some(place) = places.get(&ask.url, transport.now()) {
            let there = Ask { url: place, ..ask.clone() };
            match transport.follow(endpoint, &there, None).await {
                Ok(answer) if has_blob(answer.response.status()) => return Ok(answer),
                // Expired, or gone: the registry knows better.
                _ => places.forget(&ask.url),
            }
        }
        let answer = transport.send(endpoint, ask).await?;
        if has_blob(answer.response.status()) && origin_of(&answer.url) != endpoint.origin {
            places.remember(&ask.url, &answer.url, transport.now());
        }
        Ok(answer)
    }

    fn idle(&self) -> Duration {
        self.transport().settings.timeouts.idle
    }
}

fn has_blob(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
    )
}

/// What the head of an answer promises; an error where it contradicts the
/// question or itself.
fn facts(
    status: StatusCode,
    headers: &HeaderMap,
    content_length: Option<u64>,
    range: Option<&Range<u64>>,
) -> Result<BlobFacts, String> {
    let content_range = headers.get(CONTENT_RANGE).map(|value| value.to_str().unwrap_or_default());
    match (status, range) {
        (StatusCode::OK, _) => Ok(BlobFacts {
            start: 0,
            length: content_length,
            total: content_length,
            range_honoured: range.is_none(),
        }),
        (StatusCode::PARTIAL_CONTENT, Some(range)) => {
            let (given, total) = content_range
                .and_then(parse_content_range)
                .ok_or("it sends a part without saying which (Content-Range)")?;
            let end = total.map_or(given.end, |total| total.min(range.end));
            if given.start != range.start || given.end != end {
                return Err(format!(
                    "it sends bytes {}..{} where {}..{end} were asked for (Content-Range)",
                    given.start, given.end, range.start,
                ));
            }
            let length = given.end - given.start;
            if content_length.is_some_and(|announced| announced != length) {
                return Err("its Content-Length and Content-Range contradict each other".to_owned());
            }
            Ok(BlobFacts { start: given.start, length: Some(length), total, range_honoured: true })
        }
        (StatusCode::PARTIAL_CONTENT, None) => {
            Err("it sends a part where the whole was asked for".to_owned())
        }
        _ => {
            let total = content_range.and_then(|text| text.strip_prefix("bytes */"));
            let total = total.and_then(|total| total.parse::<u64>().ok());
            let of =
                total.map_or_else(String::new, |total| format!(": its blob has {total} bytes"));
            Err(format!("it doesn't have the range that was asked for{of}"))
        }
    }
}

/// Parses `Content-Range`: `bytes first-last/total`, as a range with its end
/// excluded; `*` as the total is `None`. Pure.
pub fn parse_content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| {
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
    };
    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    let sound = unit.eq_ignore_ascii_case("bytes") && first < end && total.is_none_or(|t| end <= t);
    sound.then_some((first..end, total))
}

struct Body {
    response: Response,
    what: String,
    host: String,
    received: u64,
    length: Option<u64>,
    idle: Duration,
}

fn chunks(
    answer: Answer,
    what: String,
    length: Option<u64>,
    idle: Duration,
) -> impl stream::Stream<Item = Result<Bytes, SourceError>> + Send + 'static {
    let Answer { response, host, .. } = answer;
    let body = Body { response, what, host, received: 0, length, idle };
    stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(body))),
            Ok(None) => None,
            Err(error) => Some((Err(error.into()), None)),
        }
    })
}

impl Body {
    /// The next bytes: never more in all than were promised, and the end not
    /// before all of them came.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let chunk = tokio::time::timeout(self.idle, self.response.chunk()).await;
        let (what, host, received) = (&self.what, &self.host, self.received);
        let broken = |problem: &str| RegistryError::Broken {
            what: what.clone(),
            host: host.clone(),
            received,
            problem: problem.to_owned(),
        };
        let timeout =
            |_| RegistryError::Timeout { what: what.clone(), host: host.clone(), after: self.idle };
        let chunk = chunk
            .map_err(timeout)?
            .map_err(|error| network_error(what, host, error, received, self.idle))?;
        let Some(chunk) = chunk else {
            return match self.length {
                Some(length) if received < length => Err(broken("it ended too early")),
                _ => Ok(None),
            };
        };
        self.received += chunk.len() as u64;
        if self.length.is_some_and(|length| self.received > length) {
            return Err(RegistryError::Protocol {
                what: what.clone(),
                host: host.clone(),
                problem: "it sends more bytes than it said".to_owned(),
            });
        }
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(
        status: u16,
        content_range: Option<&str>,
        length: Option<u64>,
        range: Option<&Range<u64>>,
    ) -> Result<BlobFacts, String> {
        let mut headers = HeaderMap::new();
        if let Some(text) = content_range {
            headers.insert(CONTENT_RANGE, HeaderValue::from_str(text).expect("a header"));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        facts(status, &headers, length, range)
    }

    #[test]
    fn honest_answers_are_accepted() {
        let part = |start, end: u64, total| BlobFacts {
            start,
            length: Some(end - start),
            total,
            range_honoured: true,
        };
        let asked = Some(&(10..20));
        for (content_range, length, expected) in [
            ("bytes 10-19/100", Some(10), part(10, 20, Some(100))),
            ("bytes 10-19/100", None, part(10, 20, Some(100))),
            ("bytes 10-19/*", Some(10), part(10, 20, None)),
            ("bytes 10-14/15", Some(5), part(10, 15, Some(15))),
        ] {
            assert_eq!(answer(206, Some(content_range), length, asked), Ok(expected));
        }
        let whole = |range_honoured| BlobFacts {
            start: 0,
            length: Some(100),
            total: Some(100),
            range_honoured,
        };
        assert_eq!(answer(200, None, Some(100), asked), Ok(whole(false)));
        assert_eq!(answer(200, None, Some(100), None), Ok(whole(true)));
    }

    #[test]
    fn lies_are_errors() {
        for (content_range, length) in [
            (None, Some(10)),
            (Some("bytes 10-19"), Some(10)),
            (Some("bytes 9-18/100"), Some(10)),
            (Some("bytes 10-20/100"), Some(11)),
            (Some("bytes 10-18/100"), Some(9)),
            (Some("bytes 10-19/15"), Some(10)),
            (Some("bytes 10-19/100"), Some(9)),
            (Some("bytes 10-19/100"), Some(100)),
            (Some("bytes 19-10/100"), None),
            (Some("bytes 10-18446744073709551615/*"), None),
            (Some("octets 10-19/100"), Some(10)),
            (Some("bytes +10-19/100"), Some(10)),
        ] {
            assert!(
                answer(206, content_range, length, Some(&(10..20))).is_err(),
                "{content_range:?}"
            );
        }
        assert!(answer(206, Some("bytes 0-9/10"), Some(10), None).is_err());
        let beyond =
            answer(416, Some("bytes */5"), None, Some(&(10..20))).expect_err("no such range");
        assert!(beyond.contains("5 bytes"), "{beyond}");
    }

    proptest! {
        #[test]
        fn content_ranges_never_panic_and_are_sound(text in "(bytes )?[0-9*]{0,21}-[0-9]{0,21}/[0-9*]{0,21}") {
            if let Some((range, total)) = parse_content_range(&text) {
                prop_assert!(range.start < range.end);
                prop_assert!(total.is_none_or(|total| range.end <= total));
            }
        }
    }
}
