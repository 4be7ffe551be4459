//! Registries that speak the OCI distribution specification.
//!
//! [`Registry`] holds what all repositories share: connections, logins, the
//! pace of retries. [`RegistryClient`] is one repository, reached through the
//! endpoints that containerd's `hosts.toml` gives for its registry.

mod auth;
mod blob;
mod challenge;
mod hosts;
mod manifest;
mod push;
mod reach;
mod tags;
mod transport;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;

pub use blob::parse_content_range;
pub use challenge::Challenge;
pub use hosts::{
    Capabilities, Endpoint, HostEntry, HostsError, TlsFiles, endpoints, is_loopback, parse_hosts,
};
pub use reach::own_addresses;
use transport::Transport;

use super::credentials::Credentials;
use super::error::{RegistryError, SourceError, Trouble};
use super::reference::Reference;
use super::retry::RetryPolicy;

/// How long an endpoint that could not be reached is asked last.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// How long one is that gave wrong content.
const DISTRUST: Duration = Duration::from_secs(600);

/// A source of the present time.
pub type Now = Arc<dyn Fn() -> Instant + Send + Sync>;

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the next bytes of an answer, or its head. Not for the whole of it.
    pub idle: Duration,
    /// For the whole of a manifest, configuration or token.
    pub document: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(20),
            document: Duration::from_secs(120),
        }
    }
}

/// How to deal with registries.
#[derive(Clone)]
pub struct Settings {
    /// containerd's directory of `hosts.toml` files, or Docker's of certificates.
    pub hosts_dir: Option<PathBuf>,
    /// Hosts (`host` or `host:port`) that speak plain HTTP. Loopback does anyway.
    pub plain_http: Vec<String>,
    /// `host:port` of our own mirror door, which `hosts.toml` may list for
    /// other programs: we don't ask ourselves.
    pub own_addresses: Vec<String>,
    /// Where logins come from.
    pub credentials: Credentials,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// What we call ourselves.
    pub user_agent: String,
    /// The time, for the expiry of tokens.
    pub now: Now,
    /// Where the jitter of retries starts; `None` for a random start.
    pub seed: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts_dir: Some("/etc/containerd/certs.d".into()),
            plain_http: Vec::new(),
            own_addresses: Vec::new(),
            credentials: Credentials::default(),
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            user_agent: concat!("peersync/", env!("CARGO_PKG_VERSION")).to_owned(),
            now: Arc::new(Instant::now),
            seed: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("hosts_dir", &self.hosts_dir)
            .field("plain_http", &self.plain_http)
            .field("retry", &self.retry)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// All registries, as one machine sees them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    transport: Arc<Transport>,
    health: Arc<Health>,
    places: Arc<blob::Places>,
}

impl Registry {
    /// Prepares to talk to registries. Nothing is contacted or read yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            transport: Arc::new(Transport::new(settings)),
            health: Arc::default(),
            places: Arc::default(),
        }
    }

    /// The repository of a reference. Reads the configuration of its hosts
    /// (small files), so that a change there counts from the next call on.
    ///
    /// # Errors
    /// [`RegistryError::Hosts`] where that can't be used.
    pub fn repository(&self, reference: &Reference) -> Result<RegistryClient, RegistryError> {
        let settings = &self.transport.settings;
        let domain = reference.domain();
        let found = endpoints(domain, settings.hosts_dir.as_deref(), &settings.plain_http);
        let endpoints = found
            .map_err(|problem| RegistryError::Hosts { host: domain.to_owned(), problem })?
            .into_iter()
            .filter(|endpoint| !settings.own_addresses.contains(&endpoint.host))
            .map(Arc::new)
            .collect();
        Ok(RegistryClient {
            registry: self.clone(),
            domain: domain.to_owned(),
            path: reference.path().to_owned(),
            endpoints,
        })
    }
}

/// One repository of a registry. Cheap to clone.
#[derive(Clone)]
pub struct RegistryClient {
    registry: Registry,
    domain: String,
    path: String,
    endpoints: Arc<[Arc<Endpoint>]>,
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryClient({}/{})", self.domain, self.path)
    }
}

/// One endpoint's turn to be asked.
#[derive(Debug, Clone)]
struct Turn {
    endpoint: Arc<Endpoint>,
    /// Nobody who is known to be up is left to be asked after this one.
    is_last: bool,
}

/// What an endpoint is asked for.
#[derive(Debug, Clone, Copy)]
enum Capability {
    Pull,
    Resolve,
    Push,
}

impl RegistryClient {
    /// Where requests go, in order.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().map(|endpoint| &**endpoint)
    }

    fn transport(&self) -> &Transport {
        &self.registry.transport
    }

    fn label(&self, operation: &str, object: &str) -> String {
        format!("{operation} {}/{}{object}", self.domain, self.path)
    }

    fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.path)
    }

    /// `<base>/<repository>/<rest>`, with the registry's name for mirrors.
    fn url(&self, endpoint: &Endpoint, rest: &str) -> Result<Url, RegistryError> {
        let mut url = Url::parse(&format!("{}/{}/{rest}", endpoint.base, self.path))
            .map_err(|_| RegistryError::Name(self.domain.clone()))?;
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Asks the endpoints in turn until one has an answer. Only the last that
    /// is not known to be down is asked with all retries: a mirror that is
    /// down should cost little, and for a while it is asked after the others.
    async fn in_turn<T, F>(
        &self,
        what: &str,
        capability: Capability,
        ask: impl Fn(Turn) -> F,
    ) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let now = self.transport().now();
        let health = &self.registry.health;
        let can = |endpoint: &&Arc<Endpoint>| match capability {
            Capability::Pull => endpoint.capabilities.pull,
            Capability::Resolve => endpoint.capabilities.resolve,
            Capability::Push => endpoint.capabilities.push,
        };
        // Like containerd, give content to one place only.
        let most = if matches!(capability, Capability::Push) { 1 } else { usize::MAX };
        let able = self.endpoints.iter().filter(can).take(most).cloned();
        let (up, down): (Vec<_>, Vec<_>) =
            able.partition(|endpoint| !health.is_down(&endpoint.origin, now));
        let last = up.len().saturating_sub(1);
        let mut error: Option<SourceError> = None;
        let mut its_own = false;
        for (n, endpoint) in up.into_iter().chain(down).enumerate() {
            let (origin, own) = (endpoint.origin.clone(), endpoint.namespace.is_none());
            match ask(Turn { endpoint, is_last: n >= last }).await {
                Ok(answer) => {
                    health.is_up(&origin);
                    return Ok(answer);
                }
                Err(problem) => {
                    tracing::debug!(%what, %origin, error = %problem, "this endpoint doesn't help");
                    if matches!(problem.trouble(), Trouble::Transient | Trouble::Busy) {
                        health.went_down(&origin, now + COOL_DOWN);
                    }
                    // What the registry itself says matters more than what a
                    // mirror does.
                    if own || !its_own {
                        (error, its_own) = (Some(problem), own);
                    }
                }
            }
        }
        Err(error.unwrap_or_else(|| {
            let capability = match capability {
                Capability::Pull => "pull",
                Capability::Resolve => "resolve",
                Capability::Push => "push",
            };
            let (what, host) = (what.to_owned(), self.domain.clone());
            RegistryError::NoEndpoint { what, host, capability }.into()
        }))
    }
}

/// Which endpoints failed lately, and until when they are asked last.
#[derive(Debug, Default)]
struct Health(Mutex<HashMap<String, Setback>>);

#[derive(Debug, Clone, Copy)]
struct Setback {
    until: Instant,
    /// It answers, and wrongly: an answer is no proof of recovery.
    distrusted: bool,
}

impl Health {
    /// Most endpoints that are remembered.
    const MAX: usize = 1024;

    fn is_down(&self, origin: &str, now: Instant) -> bool {
        self.lock().get(origin).is_some_and(|setback| setback.until > now)
    }

    fn is_up(&self, origin: &str) {
        let mut setbacks = self.lock();
        if setbacks.get(origin).is_some_and(|setback| !setback.distrusted) {
            setbacks.remove(origin);
        }
    }

    fn went_down(&self, origin: &str, until: Instant) {
        self.set(origin, Setback { until, distrusted: false });
    }

    fn distrust(&self, origin: &str, until: Instant) {
        self.set(origin, Setback { until, distrusted: true });
    }

    fn set(&self, origin: &str, setback: Setback) {
        let mut setbacks = self.lock();
        if setbacks.len() >= Self::MAX {
            setbacks.clear();
        }
        let longer = |old: &Setback| old.until > setback.until;
        if !setbacks.get(origin).is_some_and(longer) {
            setbacks.insert(origin.to_owned(), setback);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Setback>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
