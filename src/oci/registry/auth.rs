//! Logging in: challenges, tokens, and when to renew them.
//!
//! A token is kept with the challenge that it answers, so that it is renewed
//! shortly before it expires, without another refused request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::hosts::{Endpoint, is_loopback, origin_of};
use super::reach;
use super::transport::{Ask, Transport};
use crate::oci::credentials::{CredentialError, Login};
use crate::oci::error::RegistryError;
use crate::oci::secret::Secret;

/// How long a token lives whose server doesn't say (Docker's token specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// The longest that a token is kept, whatever its server says.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed when this much of its life is left, or a fifth of it.
const RENEW_BEFORE: Duration = Duration::from_secs(30);
/// Largest answer of a token server, in bytes.
const TOKEN_ANSWER_MAX: u64 = 1 << 20;
/// Most grants that are kept.
const GRANTS_MAX: usize = 4096;
/// Most bytes of scope that a registry may ask for.
const SCOPE_MAX: usize = 4096;

/// The name under which we are known to token servers.
const CLIENT_ID: &str = "peersync";

/// The logins that are at hand.
#[derive(Debug, Default)]
pub(super) struct Auth {
    grants: Mutex<HashMap<Key, Grant>>,
    /// One login at a time for each origin and scope: many ranges that start
    /// together fetch one token.
    turns: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// The registry's origin and the scope.
type Key = (String, String);

#[derive(Debug, Clone)]
struct Grant {
    header: HeaderValue,
    renew_at: Option<Instant>,
    challenge: Option<Bearer>,
    /// A token server may give a new refresh token with each access token.
    refresh: Option<Secret>,
}

/// A bearer challenge that has been checked.
#[derive(Debug, Clone)]
struct Bearer {
    realm: Url,
    service: Option<String>,
    scope: String,
}

/// For whom a login is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grantee<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) scope: &'a str,
    pub(super) what: &'a str,
}

impl Grantee<'_> {
    fn key(&self) -> Key {
        (self.endpoint.origin.clone(), self.scope.to_owned())
    }
}

impl Transport {
    /// The login at hand, renewed if it is about to expire; `None` to try without.
    pub(super) async fn authorization(
        &self,
        grantee: &Grantee<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let Some(grant) = self.grant(grantee) else {
            return Ok(None);
        };
        match grant.challenge {
            Some(challenge) if grant.renew_at.is_some_and(|at| self.now() >= at) => {
                let turn = self.turn(grantee);
                let _turn = turn.lock().await;
                match self.grant(grantee) {
                    // Somebody else renewed it meanwhile.
                    Some(newer) if newer.renew_at > grant.renew_at => Ok(Some(newer.header)),
                    _ => self.renew(grantee, challenge).await.map(Some),
                }
            }
            _ => Ok(Some(grant.header)),
        }
    }

    /// Logs in as an answer with status 401 asks; `stale` is the login that it
    /// refused.
    pub(super) async fn log_in(
        &self,
        grantee: &Grantee<'_>,
        answer: &HeaderMap,
        stale: Option<&HeaderValue>,
        message: &str,
    ) -> Result<HeaderValue, RegistryError> {
        let turn = self.turn(grantee);
        let _turn = turn.lock().await;
        if let Some(grant) = self.grant(grantee).filter(|grant| Some(&grant.header) != stale) {
            return Ok(grant.header);
        }
        let challenges: Vec<_> = answer
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|header| header.to_str().ok())
            .flat_map(Challenge::parse_all)
            .collect();
        let of_scheme = |scheme| challenges.iter().find(move |c| c.scheme == scheme);
        if let Some(challenge) = of_scheme("bearer") {
            let bearer = self.bearer(grantee, challenge)?;
            return self.renew(grantee, bearer).await;
        }
        let refused = |hint| unauthorized(grantee, message, hint);
        if of_scheme("basic").is_none() {
            return Err(refused(
                "it offers no way that is known here (Basic or Bearer)".to_owned(),
            ));
        }
        let header = match self.stored_login(grantee).await {
            Ok(Some(Login::Basic { username, password })) => basic(&username, &password),
            Ok(Some(Login::Bearer(token) | Login::Identity(token))) => bearer_header(&token),
            Ok(None) => return Err(refused(login_hint(grantee))),
            Err(problem) => return Err(credentials_error(grantee, problem)),
        };
        let header = header
            .ok_or_else(|| refused("the stored login has forbidden characters".to_owned()))?;
        if Some(&header) == stale {
            self.forget(grantee);
            return Err(refused(login_hint(grantee)));
        }
        let grant =
            Grant { header: header.clone(), renew_at: None, challenge: None, refresh: None };
        self.remember(grantee, grant);
        Ok(header)
    }

    /// Gets a token for a challenge and keeps it.
    async fn renew(
        &self,
        grantee: &Grantee<'_>,
        bearer: Bearer,
    ) -> Result<HeaderValue, RegistryError> {
        let refresh = self.grant(grantee).and_then(|grant| grant.refresh);
        self.forget(grantee);
        let login = self.stored_login(grantee).await;
        let (login, problem) = match login {
            Ok(login) => (login, None),
            Err(problem) => {
                // Public images need no login: go on, and report it if they do.
                tracing::warn!(host = %grantee.endpoint.host, %problem, "no stored login");
                (None, Some(problem))
            }
        };
        let protocol = |problem: &str| RegistryError::Protocol {
            what: grantee.what.to_owned(),
            host: bearer.realm.host_str().unwrap_or_default().to_owned(),
            problem: problem.to_owned(),
        };
        let issued = self.now();
        let answer = match &login {
            Some(Login::Bearer(token)) => TokenAnswer::of(token.clone()),
            _ => match self.ask_for_token(grantee, &bearer, login.as_ref(), refresh).await {
                Err(RegistryError::Unauthorized { .. }) if problem.is_some() => {
                    return Err(problem.map_or_else(
                        || protocol("it refuses"),
                        |problem| credentials_error(grantee, problem),
                    ));
                }
                other => other?,
            },
        };
        let token = answer.token().ok_or_else(|| protocol("its token server gave no token"))?;
        let header = bearer_header(&token)
            .ok_or_else(|| protocol("its token has characters that no token may have"))?;
        let lifetime = answer.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs);
        let renew_at = issued + usable_for(lifetime);
        self.remember(
            grantee,
            Grant {
                header: header.clone(),
                renew_at: Some(renew_at),
                challenge: Some(bearer),
                refresh: answer.refresh_token.filter(|t| !t.is_empty()),
            },
        );
        Ok(header)
    }

    async fn ask_for_token(
        &self,
        grantee: &Grantee<'_>,
        bearer: &Bearer,
        login: Option<&Login>,
        refresh: Option<Secret>,
    ) -> Result<TokenAnswer, RegistryError> {
        let what = format!("token for {}", grantee.what);
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        pairs.extend(bearer.service.as_deref().map(|service| ("service", service)));
        let identity = match login {
            Some(Login::Identity(token)) => Some(refresh.unwrap_or_else(|| token.clone())),
            _ => None,
        };
        let (method, header) = if let Some(token) = &identity {
            pairs.push(("scope", &bearer.scope));
            pairs.push(("client_id", CLIENT_ID));
            pairs.push(("grant_type", "refresh_token"));
            pairs.push(("refresh_token", token.reveal()));
            (Method::POST, None)
        } else {
            pairs.extend(bearer.scope.split(' ').filter(|s| !s.is_empty()).map(|s| ("scope", s)));
            pairs.push(("client_id", CLIENT_ID));
            match login {
                Some(Login::Basic { username, password }) => {
                    pairs.push(("account", username));
                    (Method::GET, basic(username, password))
                }
                _ => (Method::GET, None),
            }
        };
        if identity.is_some() || header.is_some() {
            self.protect(grantee, &bearer.realm)?;
        }
        let mut ask = Ask::new(method.clone(), bearer.realm.clone(), &what, "");
        // Asking again for a token does no harm.
        ask.retry = true;
        if method == Method::POST {
            let mut form = Url::parse("http://form").unwrap_or_else(|_| bearer.realm.clone());
            form.set_query(None);
            form.query_pairs_mut().extend_pairs(pairs);
            ask.body = Bytes::from(form.query().unwrap_or_default().to_owned());
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            ask = ask.header(CONTENT_TYPE, form);
        } else {
            ask.url.query_pairs_mut().extend_pairs(pairs);
        }
        // To `follow` the token server is the endpoint: what goes to it goes
        // to no other host, and the registry's own headers don't go to it.
        let server = self.token_server(grantee.endpoint, &bearer.realm);
        if server.origin != grantee.endpoint.origin
            && let Err(problem) = reach::check(&grantee.endpoint.host, &bearer.realm).await
        {
            let host = grantee.endpoint.host.clone();
            return Err(RegistryError::Redirect { what, host, problem });
        }
        ask.headers.extend(header.map(|header| (AUTHORIZATION, header)));
        let answer = self.send_token_request(&server, ask).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(match self.refusal(answer, &what).await {
                // Some token servers answer a wrong password with 403 or 400.
                RegistryError::Unauthorized { message, .. }
                | RegistryError::Status { status: 400, message, .. } => {
                    unauthorized(grantee, &message, login_hint(grantee))
                }
                other => other,
            });
        }
        let host = answer.host.clone();
        let body = self.read_body(answer, &what, TOKEN_ANSWER_MAX).await?;
        serde_json::from_slice(&body).map_err(|_| RegistryError::Protocol {
            what,
            host,
            problem: "its token server's answer is malformed".to_owned(),
        })
    }

    async fn send_token_request(
        &self,
        server: &Endpoint,
        mut ask: Ask,
    ) -> Result<super::transport::Answer, RegistryError> {
        // `follow` adds the login for the own origin only, and takes it away elsewhere.
        let login = ask.headers.remove(AUTHORIZATION);
        self.send_with(server, &ask, login.as_ref()).await
    }

    fn token_server(&self, registry: &Endpoint, realm: &Url) -> Endpoint {
        let origin = origin_of(realm);
        let own = origin == registry.origin;
        let mut tls = registry.tls.clone();
        if !own {
            tls.client = None;
        }
        Endpoint {
            base: origin.clone(),
            host: super::hosts::host_of(realm).unwrap_or_default(),
            origin,
            tls,
            headers: if own { registry.headers.clone() } else { HeaderMap::new() },
            namespace: None,
            ..registry.clone()
        }
    }

    /// Reads a bearer challenge, and refuses realms that nobody should ask.
    fn bearer(
        &self,
        grantee: &Grantee<'_>,
        challenge: &Challenge,
    ) -> Result<Bearer, RegistryError> {
        let protocol = |problem: &str| RegistryError::Protocol {
            what: grantee.what.to_owned(),
            host: grantee.endpoint.host.clone(),
            problem: problem.to_owned(),
        };
        let realm = challenge.param("realm").and_then(|realm| Url::parse(realm).ok());
        let mut realm = realm
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .ok_or_else(|| protocol("its Bearer challenge names no token server"))?;
        let _ = realm.set_username("");
        let _ = realm.set_password(None);
        realm.set_fragment(None);
        if grantee.endpoint.origin.starts_with("https:") && realm.scheme() == "http" {
            return Err(insecure(grantee, &realm));
        }
        let scope = challenge.param("scope").filter(|s| !s.is_empty()).unwrap_or(grantee.scope);
        if scope.len() > SCOPE_MAX {
            return Err(protocol("it asks for an impossible scope"));
        }
        Ok(Bearer {
            realm,
            service: challenge.param("service").map(str::to_owned),
            scope: scope.to_owned(),
        })
    }

    /// Credentials go over plain HTTP to the very registry only, where they
    /// would go anyway.
    fn protect(&self, grantee: &Grantee<'_>, realm: &Url) -> Result<(), RegistryError> {
        if realm.scheme() == "https" || origin_of(realm) == grantee.endpoint.origin {
            Ok(())
        } else {
            Err(insecure(grantee, realm))
        }
    }

    async fn stored_login(&self, grantee: &Grantee<'_>) -> Result<Option<Login>, CredentialError> {
        let path = grantee.scope.split(':').nth(1).unwrap_or_default();
        self.settings.credentials.login(&grantee.endpoint.host, path).await
    }

    fn grant(&self, grantee: &Grantee<'_>) -> Option<Grant> {
        lock(&self.auth.grants).get(&grantee.key()).cloned()
    }

    fn remember(&self, grantee: &Grantee<'_>, mut grant: Grant) {
        grant.header.set_sensitive(true);
        let mut grants = lock(&self.auth.grants);
        if grants.len() >= GRANTS_MAX {
            grants.clear();
        }
        grants.insert(grantee.key(), grant);
    }

    fn forget(&self, grantee: &Grantee<'_>) {
        lock(&self.auth.grants).remove(&grantee.key());
    }

    fn turn(&self, grantee: &Grantee<'_>) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = lock(&self.auth.turns);
        if turns.len() >= GRANTS_MAX {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry(grantee.key()).or_default().clone()
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    refresh_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    fn of(token: Secret) -> Self {
        let expires_in = Some(LIFETIME_MAX.as_secs());
        Self { token: Some(token), access_token: None, refresh_token: None, expires_in }
    }

    fn token(&self) -> Option<Secret> {
        let given = |token: &Option<Secret>| token.clone().filter(|t| !t.is_empty());
        given(&self.token).or_else(|| given(&self.access_token))
    }
}

/// How long a token of that lifetime is used before it is renewed.
fn usable_for(lifetime: Duration) -> Duration {
    let lifetime = lifetime.min(LIFETIME_MAX);
    lifetime.saturating_sub(RENEW_BEFORE.min(lifetime / 5))
}

fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
    sensitive(format!("Basic {pair}"))
}

fn bearer_header(token: &Secret) -> Option<HeaderValue> {
    sensitive(format!("Bearer {}", token.reveal()))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn unauthorized(grantee: &Grantee<'_>, message: &str, hint: String) -> RegistryError {
    RegistryError::Unauthorized {
        what: grantee.what.to_owned(),
        host: grantee.endpoint.host.clone(),
        message: message.to_owned(),
        hint,
    }
}

fn insecure(grantee: &Grantee<'_>, realm: &Url) -> RegistryError {
    RegistryError::InsecureRealm {
        what: grantee.what.to_owned(),
        host: grantee.endpoint.host.clone(),
        realm: origin_of(realm),
    }
}

fn credentials_error(grantee: &Grantee<'_>, problem: CredentialError) -> RegistryError {
    RegistryError::Credentials { what: grantee.what.to_owned(), problem }
}

fn login_hint(grantee: &Grantee<'_>) -> String {
    let host = &grantee.endpoint.host;
    let name = if host == "registry-1.docker.io" { "" } else { host.as_str() };
    let command = format!("docker login {name}");
    let loopback = if is_loopback(host) { " (or podman login --tls-verify=false)" } else { "" };
    format!("log in with `{}`{loopback}, and check the repository's name", command.trim_end())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_before_they_expire() {
        let seconds = Duration::from_secs;
        assert_eq!(usable_for(seconds(60)), seconds(48));
        assert_eq!(usable_for(seconds(300)), seconds(270));
        assert_eq!(usable_for(seconds(5)), seconds(4));
        assert_eq!(usable_for(seconds(0)), seconds(0));
        assert!(usable_for(Duration::MAX) < LIFETIME_MAX);
    }

    #[test]
    fn logins_are_not_printed() {
        let header = basic("user", &Secret::new("geheim")).expect("a header");
        assert!(!format!("{header:?}").contains("Basic"));
        assert!(bearer_header(&Secret::new("a\nb")).is_none());
    }
}
