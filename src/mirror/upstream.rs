//! The registries behind the mirror, and as whom they are asked.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::request::Repository;
use crate::oci::registry::{Settings, Timeouts};
use crate::oci::{
    Credentials, Login, Registry, RegistryClient, RegistryError, RetryPolicy, Secret, SourceError,
    Trouble,
};
use crate::types::BlockHash;

/// A registry that could not be reached is not asked for this long where there is
/// another answer.
const DOWN: Duration = Duration::from_secs(5);
/// Logins of clients that are remembered with their connections.
const LOGINS_MAX: usize = 64;
/// Registries that are remembered to be down.
const DOWN_MAX: usize = 256;
/// A client waits, and has registries of its own to ask: little patience.
const RETRY: RetryPolicy = RetryPolicy {
    attempts: 2,
    base: Duration::from_millis(200),
    cap: Duration::from_millis(500),
    retry_after_max: Duration::from_secs(2),
};

/// A login that a client showed.
#[derive(Clone, Debug)]
pub(super) struct ClientLogin {
    login: Login,
    id: BlockHash,
}

impl ClientLogin {
    /// Reads the header of a request.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, value) = text.split_once(' ')?;
        let login = if scheme.eq_ignore_ascii_case("basic") {
            let decoded = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
            let (username, password) = decoded.split_once(':')?;
            Login::Basic { username: username.to_owned(), password: Secret::new(password) }
        } else if scheme.eq_ignore_ascii_case("bearer") {
            Login::Bearer(Secret::new(value.trim()))
        } else {
            return None;
        };
        Some(Self { login, id: BlockHash::of(text.as_bytes()) })
    }
}

/// All registries that may be asked.
pub(super) struct Upstreams {
    settings: Settings,
    /// As everybody, or as the node: what any client may have.
    common: Registry,
    /// As a client, by registry and login.
    private: Mutex<HashMap<(String, BlockHash), Registry>>,
    down: Mutex<HashMap<String, Instant>>,
}

impl Upstreams {
    /// `settings.credentials` are those that all clients share.
    pub(super) fn new(settings: Settings) -> Self {
        let timeouts = Timeouts { connect: Duration::from_secs(5), ..settings.timeouts };
        let settings = Settings { retry: RETRY, timeouts, ..settings };
        let common = Registry::new(settings.clone());
        Self { settings, common, private: Mutex::default(), down: Mutex::default() }
    }

    /// The repository, as any client may see it.
    pub(super) fn common(&self, repository: &Repository) -> Result<RegistryClient, SourceError> {
        Ok(self.common.repository(&repository.reference)?)
    }

    /// The repository as that client may see it.
    pub(super) fn private(
        &self,
        repository: &Repository,
        login: &ClientLogin,
    ) -> Result<RegistryClient, RegistryError> {
        let host = repository.reference.domain().to_owned();
        let mut known = lock(&self.private);
        if known.len() >= LOGINS_MAX {
            known.clear();
        }
        let registry = known.entry((host.clone(), login.id)).or_insert_with(|| {
            let credentials = Credentials::Fixed { host, login: login.login.clone() };
            Registry::new(Settings { credentials, ..self.settings.clone() })
        });
        registry.repository(&repository.reference)
    }

    /// Whether the registry could not be reached a moment ago.
    pub(super) fn is_down(&self, registry: &str) -> bool {
        lock(&self.down).get(registry).is_some_and(|since| since.elapsed() < DOWN)
    }

    /// Notes how a registry answered.
    pub(super) fn note<T>(&self, registry: &str, answer: &Result<T, SourceError>) {
        let mut down = lock(&self.down);
        match answer {
            Err(error) if error.trouble() == Trouble::Transient => {
                if down.len() >= DOWN_MAX {
                    down.clear();
                }
                down.insert(registry.to_owned(), Instant::now());
            }
            _ => drop(down.remove(registry)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_from_requests() {
        let login = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, text.parse().expect("a header"));
            ClientLogin::of(&headers).map(|login| login.login)
        };
        let basic = Login::Basic { username: "u".to_owned(), password: Secret::new("p:q") };
        assert_eq!(login("Basic dTpwOnE="), Some(basic));
        assert_eq!(login("bearer abc"), Some(Login::Bearer(Secret::new("abc"))));
        for none in ["Basic", "Basic !", "Basic dQ==", "Digest x", ""] {
            assert_eq!(login(none), None, "{none}");
        }
    }
}
