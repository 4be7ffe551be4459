//! Requests and answers: connections, time limits, redirects, retries.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, Url};

use super::Settings;
use super::auth::{Auth, Grantee};
use super::hosts::{Endpoint, TlsFiles, host_of, is_loopback, origin_of, read_file};
use super::reach;
use crate::oci::error::RegistryError;
use crate::oci::retry::{Jitter, is_retryable, parse_retry_after};

/// Most redirects that are followed for one request; containerd's limit too.
const REDIRECTS_MAX: usize = 10;
/// Most of an error's body that is read, in bytes.
const ERROR_BODY_MAX: u64 = 16 << 10;
/// How long its text is waited for: it only makes the message better.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);
/// The slowest upload that is waited for, in bytes per second.
const UPLOAD_RATE_MIN: u64 = 32 << 10;
/// Most connections to one host that are kept while nothing is asked of it.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Most sets of connections that are kept.
const CLIENTS_MAX: usize = 64;

/// What all repositories of a [`super::Registry`] share.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) settings: Settings,
    pub(super) auth: Auth,
    jitter: Mutex<Jitter>,
    clients: Mutex<HashMap<ClientKey, Client>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    /// `None` for plain HTTP, which needs no certificates: a machine may have none.
    tls: Option<TlsFiles>,
    dial_timeout: Option<Duration>,
    loopback: bool,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// For messages: `GET manifest docker.io/library/x:1`.
    pub(super) what: String,
    /// Whom a token is needed for, and what for.
    pub(super) scope: String,
    /// It may be repeated: that does no harm, and nobody else is to be asked instead.
    pub(super) retry: bool,
}

impl Ask {
    pub(super) fn new(method: Method, url: Url, what: &str, scope: &str) -> Self {
        Self {
            retry: matches!(method, Method::GET | Method::HEAD | Method::PUT),
            method,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            what: what.to_owned(),
            scope: scope.to_owned(),
        }
    }

    pub(super) fn header(mut self, name: reqwest::header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// An answer, and who gave it after all redirects.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// Where the answer came from.
    pub(super) url: Url,
    /// For messages.
    pub(super) host: String,
}

impl Transport {
    pub(super) fn new(settings: Settings) -> Self {
        let seed = settings.seed.unwrap_or_else(|| getrandom::u64().unwrap_or_default());
        Self {
            auth: Auth::default(),
            jitter: Mutex::new(Jitter::new(seed)),
            clients: Mutex::default(),
            settings,
        }
    }

    /// Sends a request to an endpoint, logs in where that is asked for, follows
    /// redirects, and tries again as the policy says. Any status but the
    /// retryable ones is an answer.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
    ) -> Result<Answer, RegistryError> {
        self.retrying(ask, || self.attempt(endpoint, ask)).await
    }

    /// The same with the login that is given, or none.
    pub(super) async fn send_with(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        login: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        self.retrying(ask, || self.follow(endpoint, ask, login)).await
    }

    async fn retrying<F>(&self, ask: &Ask, attempt: impl Fn() -> F) -> Result<Answer, RegistryError>
    where
        F: Future<Output = Result<Answer, RegistryError>>,
    {
        let mut failures = 0;
        loop {
            let outcome = attempt().await;
            failures += 1;
            let retry_after = match &outcome {
                Ok(answer) if is_retryable(answer.response.status().as_u16()) => {
                    retry_after(answer.response.headers())
                }
                Err(error) if is_worth_retrying(error) => None,
                _ => return outcome,
            };
            let wait = self.wait(failures, retry_after).filter(|_| ask.retry);
            let Some(wait) = wait else {
                return match outcome {
                    Ok(answer) => Err(self.refusal(answer, &ask.what).await),
                    Err(error) => Err(error),
                };
            };
            tracing::debug!(what = %ask.what, failures, ?wait, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    /// How long to wait before the next attempt; `None` to give up.
    pub(super) fn wait(&self, failures: u32, retry_after: Option<Duration>) -> Option<Duration> {
        let random = self.jitter.lock().unwrap_or_else(PoisonError::into_inner).next();
        self.settings.retry.wait(failures, retry_after, random)
    }

    /// Sends a request once, with a new login if the one at hand doesn't do.
    async fn attempt(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer, RegistryError> {
        let grantee = Grantee { endpoint, scope: &ask.scope, what: &ask.what };
        // Credentials are for the registry, not for where its uploads go.
        let ours = origin_of(&ask.url) == endpoint.origin;
        let login = if ours { self.authorization(&grantee).await? } else { None };
        let answer = self.follow(endpoint, ask, login.as_ref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED
            || origin_of(&answer.url) != endpoint.origin
        {
            return Ok(answer);
        }
        let challenges = answer.response.headers().clone();
        let answer_text = self.error_text(answer).await;
        let login = self.log_in(&grantee, &challenges, login.as_ref(), &answer_text).await?;
        self.follow(endpoint, ask, Some(&login)).await
    }

    /// Sends a request and follows its redirects by hand: the login and the
    /// configured headers go to the endpoint's own origin only.
    pub(super) async fn follow(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        login: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut url = ask.url.clone();
        let mut secure = url.scheme() == "https" || endpoint.base.starts_with("https:");
        let refused = |host: &str, problem: &str| RegistryError::Redirect {
            what: ask.what.clone(),
            host: host.to_owned(),
            problem: problem.to_owned(),
        };
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.exchange(endpoint, ask, url.clone(), login).await?;
            let status = answer.response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let reading = matches!(ask.method, Method::GET | Method::HEAD);
            if !reading && !matches!(status, 307 | 308) {
                return Err(refused(&answer.host, "a request that changes something"));
            }
            let location = answer.response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            url = next_hop(&url, location.unwrap_or_default(), secure)
                .map_err(|problem| refused(&answer.host, &problem))?;
            secure |= url.scheme() == "https";
        }
        let problem = format!("more than {REDIRECTS_MAX} times");
        Err(refused(&endpoint.host, &problem))
    }

    /// One request, one answer's head.
    async fn exchange(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        url: Url,
        login: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let ours = origin_of(&url) == endpoint.origin;
        let host = host_of(&url).unwrap_or_default();
        if !ours {
            let allowed = if self.settings.own_addresses.contains(&host) {
                Err("to this node's own mirror".to_owned())
            } else {
                reach::check(&endpoint.host, &url).await
            };
            allowed.map_err(|problem| {
                let (what, host) = (ask.what.clone(), endpoint.host.clone());
                RegistryError::Redirect { what, host, problem }
            })?;
        }
        let client = self.client(endpoint, ours, &url)?;
        let mut headers = ask.headers.clone();
        if ours {
            headers.extend(endpoint.headers.clone());
            headers.extend(login.map(|login| (AUTHORIZATION, login.clone())));
        }
        let mut request = client.request(ask.method.clone(), url.clone()).headers(headers);
        if !matches!(ask.method, Method::GET | Method::HEAD) {
            request = request.header(CONTENT_LENGTH, ask.body.len()).body(ask.body.clone());
        }
        let upload = Duration::from_secs(ask.body.len() as u64 / UPLOAD_RATE_MIN);
        let limit = self.settings.timeouts.idle + upload;
        let sent = tokio::time::timeout(limit, request.send()).await;
        let timeout =
            || RegistryError::Timeout { what: ask.what.clone(), host: host.clone(), after: limit };
        let response = sent
            .map_err(|_| timeout())?
            .map_err(|error| network_error(&ask.what, &host, error, 0, limit))?;
        tracing::trace!(what = %ask.what, origin = %origin_of(&url), status = %response.status(), "answer");
        Ok(Answer { response, url, host })
    }

    /// The connections to use: an endpoint's own certificate is shown to its
    /// own origin only, and proxies of the environment are not for loopback.
    fn client(&self, endpoint: &Endpoint, ours: bool, url: &Url) -> Result<Client, RegistryError> {
        let tls = (url.scheme() == "https").then(|| TlsFiles {
            client: endpoint.tls.client.clone().filter(|_| ours),
            ..endpoint.tls.clone()
        });
        let dial_timeout = endpoint.dial_timeout;
        let loopback = is_loopback(url.host_str().unwrap_or_default());
        let key = ClientKey { tls, dial_timeout, loopback };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        let client = self.build(&key)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, key: &ClientKey) -> Result<Client, RegistryError> {
        let setup = |problem: String| RegistryError::Setup(problem);
        let read = |path: &std::path::Path| {
            read_file(path).map_err(|e| setup(format!("{}: {e}", path.display())))
        };
        let timeouts = &self.settings.timeouts;
        let mut builder = Client::builder()
            .user_agent(&self.settings.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(key.dial_timeout.unwrap_or(timeouts.connect))
            // One connection for each range that is under way: several
            // connections carry more over a lossy line than streams of one.
            .http1_only()
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        if key.loopback {
            builder = builder.no_proxy();
        }
        let Some(tls) = &key.tls else {
            let builder = builder.tls_certs_only([]);
            return builder.build().map_err(|error| setup(chain(&error)));
        };
        let mut certificates = Vec::new();
        for path in &tls.ca {
            let found = reqwest::Certificate::from_pem_bundle(&read(path)?)
                .map_err(|_| setup(format!("{} holds no certificates", path.display())))?;
            certificates.extend(found);
        }
        builder = builder.tls_certs_merge(certificates);
        if let Some((cert, private)) = &tls.client {
            let mut pem = read(cert)?;
            if let Some(private) = private {
                pem.push(b'\n');
                pem.extend(read(private)?);
            }
            let identity = reqwest::Identity::from_pem(&pem).map_err(|_| {
                setup(format!("{} holds no certificate with its key", cert.display()))
            })?;
            builder = builder.identity(identity);
        }
        if tls.skip_verify == Some(true) {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        builder.build().map_err(|error| setup(chain(&error)))
    }

    /// Turns an answer that is not the wanted one into an error.
    pub(super) async fn refusal(&self, answer: Answer, what: &str) -> RegistryError {
        let what = what.to_owned();
        let status = answer.response.status().as_u16();
        let retry_after = retry_after(answer.response.headers());
        let host = answer.host.clone();
        let message = self.error_text(answer).await;
        match status {
            401 => {
                let hint = format!(
                    "check the repository's name, or log in again with `docker login {host}`"
                );
                RegistryError::Unauthorized { what, host, message, hint }
            }
            403 => RegistryError::Forbidden { what, message },
            404 => RegistryError::NotFound { what, message },
            429 => RegistryError::Throttled { what, message, retry_after },
            408 | 500..=599 => RegistryError::Server { what, status, message },
            _ => RegistryError::Status { what, status, message },
        }
    }

    /// What an error's body says, made fit for a message; empty if nothing.
    async fn error_text(&self, answer: Answer) -> String {
        let what = String::new();
        let body = self.read_body(answer, &what, ERROR_BODY_MAX);
        match tokio::time::timeout(ERROR_BODY_TIME, body).await {
            Ok(Ok(body)) => error_message(&body),
            _ => String::new(),
        }
    }

    /// Reads a whole body of at most `limit` bytes. The time for all of it is
    /// bounded, so that a trickle of bytes doesn't hold a caller for ever.
    pub(super) async fn read_body(
        &self,
        answer: Answer,
        what: &str,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let Answer { mut response, host, .. } = answer;
        let too_large = || RegistryError::TooLarge { what: what.to_owned(), limit };
        let announced = response.content_length();
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let after = self.settings.timeouts.document;
        let idle = self.settings.timeouts.idle;
        let mut body = Vec::with_capacity(announced.unwrap_or(0) as usize);
        let timeout =
            |after| RegistryError::Timeout { what: what.to_owned(), host: host.clone(), after };
        let read = async {
            loop {
                let chunk = tokio::time::timeout(idle, response.chunk()).await;
                let chunk = chunk.map_err(|_| timeout(idle))?;
                let received = body.len() as u64;
                match chunk.map_err(|e| network_error(what, &host, e, received, idle))? {
                    None => return Ok(()),
                    Some(chunk) if received + chunk.len() as u64 > limit => return Err(too_large()),
                    Some(chunk) => body.extend_from_slice(&chunk),
                }
            }
        };
        tokio::time::timeout(after, read).await.map_err(|_| timeout(after))??;
        Ok(body.into())
    }

    /// The time, as the settings have it.
    pub(super) fn now(&self) -> Instant {
        (self.settings.now)()
    }
}

/// Where a redirect leads: to the web, without a login of its own, and never
/// from HTTPS (`secure`: somewhere on the way) to plain HTTP.
fn next_hop(from: &Url, location: &str, secure: bool) -> Result<Url, String> {
    if location.is_empty() {
        return Err("to nowhere".to_owned());
    }
    let next = from.join(location).ok();
    let next = next.filter(|next| matches!(next.scheme(), "http" | "https"));
    let mut next = next
        .filter(|next| next.host_str().is_some())
        .ok_or("to something that is no web address")?;
    if secure && next.scheme() == "http" {
        return Err(format!("from HTTPS to plain HTTP ({})", origin_of(&next)));
    }
    let _ = next.set_username("");
    let _ = next.set_password(None);
    next.set_fragment(None);
    Ok(next)
}

/// How long an answer asks us to wait, measured by its own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let date = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    parse_retry_after(text(RETRY_AFTER)?, date.unwrap_or_else(SystemTime::now))
}

fn is_worth_retrying(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Connect { .. }
            | RegistryError::Dns { .. }
            | RegistryError::Timeout { .. }
            | RegistryError::Broken { .. }
    )
}

/// Says what went wrong on the network, without the URL: it may hold a signature.
pub(super) fn network_error(
    what: &str,
    host: &str,
    error: reqwest::Error,
    received: u64,
    limit: Duration,
) -> RegistryError {
    let error = error.without_url();
    let (what, host) = (what.to_owned(), host.to_owned());
    let mut problem = chain(&error);
    if problem.contains("CaUsedAsEndEntity") {
        // What `openssl req -x509` makes by default, and Go's TLS lets pass.
        problem = "it shows the certificate of an authority (CA:TRUE): make it one of its own, or \
                   set skip_verify in hosts.toml"
            .to_owned();
    }
    let tls = ["certificate", "corrupt message", "handshake", "fatal alert"];
    if error.is_dns() {
        RegistryError::Dns { what, host }
    } else if tls.iter().any(|word| problem.contains(word)) {
        RegistryError::Tls { what, host, problem }
    } else if error.is_timeout() {
        RegistryError::Timeout { what, host, after: limit }
    } else if error.is_connect() {
        RegistryError::Connect { what, host, problem }
    } else {
        RegistryError::Broken { what, host, received, problem }
    }
}

/// An error's innermost cause: the outer ones only say "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    printable(&last.to_string())
}

/// The first message of the specification's error document, or the text itself.
fn error_message(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let text = match &json {
        Some(json) => {
            let error = &json["errors"][0];
            let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let (code, message) = (word(&error["code"]), word(&error["message"]));
            // Token servers have another form.
            let fallback = word(&json["error_description"]) + &word(&json["details"]);
            match (code.is_empty(), message.is_empty()) {
                (false, false) => format!("{code}: {message}"),
                _ => code + &message + &fallback,
            }
        }
        None if body.starts_with(b"<") => String::new(),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    printable(&text)
}

/// A text from elsewhere, fit for one line of a message.
pub(super) fn printable(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_web_and_stay_protected() {
        let from = Url::parse("https://r.io/v2/a/blobs/x?ns=b").expect("a URL");
        let next = |location| next_hop(&from, location, true).map(String::from);
        assert_eq!(next("/y"), Ok("https://r.io/y".to_owned()));
        assert_eq!(next("https://u:p@s.io/y#z"), Ok("https://s.io/y".to_owned()));
        assert_eq!(next("//s.io/y"), Ok("https://s.io/y".to_owned()));
        assert!(next("http://r.io/y").is_err_and(|e| e.contains("http://r.io")));
        for bad in ["", "file:///etc/passwd", "mailto:a@b", "https://", "data:,x"] {
            assert!(next(bad).is_err(), "{bad}");
        }
        let plain = Url::parse("http://127.0.0.1:5000/x").expect("a URL");
        assert!(next_hop(&plain, "http://10.0.0.1/y", false).is_ok());
        assert!(next_hop(&plain, "https://s.io/y", false).is_ok());
    }

    #[test]
    fn messages_of_registries_are_found() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"no\u0007 access","detail":{}}]}"#,
                "DENIED: no access",
            ),
            (r#"{"errors":[{"code":"UNKNOWN"}]}"#, "UNKNOWN"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("404 page not found\n", "404 page not found"),
            ("<html>nginx</html>", ""),
            ("", ""),
            ("[]", ""),
        ] {
            assert_eq!(error_message(body.as_bytes()), expected);
        }
        assert_eq!(error_message(&[b'x'; 5000]).len(), 300);
    }
}
