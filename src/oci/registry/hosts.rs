//! Where a registry is reached: containerd's `hosts.toml`, Docker's
//! certificate directories, plain HTTP for loopback.
//!
//! The rules are those of containerd's `core/remotes/docker/config`: the first
//! that exists of `<dir>/<host>_<port>_`, `<dir>/<host>:<port>` and
//! `<dir>/_default` counts; its `hosts.toml` lists mirrors in the order in
//! which they are tried, the registry itself is the last.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::oci::reference::DEFAULT_DOMAIN;

/// The host that serves `docker.io`.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Largest `hosts.toml` or certificate file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Most mirrors in one `hosts.toml`.
const HOSTS_MAX: usize = 64;
/// Most certificate files in one directory.
const CERTS_MAX: usize = 256;

/// Why the configuration of a registry's hosts can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// Not TOML, or not of this form.
    #[error("hosts.toml is malformed: {0}")]
    Toml(String),
    /// A host that is no URL.
    #[error("hosts.toml: {0:?} is not the http or https URL of a host")]
    Url(String),
    /// A word that is no capability.
    #[error("hosts.toml: unknown capability {0:?}: pull, resolve and push are known")]
    Capability(String),
    /// A value that is none for this key.
    #[error("hosts.toml: the value of {0} can't be used")]
    Value(String),
    /// More hosts than anybody has.
    #[error("hosts.toml lists more than {HOSTS_MAX} hosts")]
    TooMany,
    /// A file that can't be read.
    #[error("can't read {}: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Content by digest.
    pub pull: bool,
    /// What a tag means.
    pub resolve: bool,
    /// Taking content.
    pub push: bool,
}

impl Capabilities {
    const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// How to set up TLS with a host. Files are read when the client is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsFiles {
    /// Certificates to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Certificate and key to show; without a key file both are in the first.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    /// Whether to believe any certificate; `None` is not stated.
    pub skip_verify: Option<bool>,
}

impl TlsFiles {
    fn is_stated(&self) -> bool {
        *self != Self::default()
    }
}

/// One entry of a `hosts.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// API root; `None` for a `server` that isn't stated.
    pub url: Option<Url>,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// Its TLS set-up.
    pub tls: TlsFiles,
    /// Headers to send to it, and to nobody else. Marked sensitive.
    pub headers: HeaderMap,
    /// How long connecting may take.
    pub dial_timeout: Option<Duration>,
}

/// A place to send requests to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// API root without a slash at its end: `https://registry-1.docker.io/v2`.
    pub base: String,
    /// `host[:port]`, under which logins are kept.
    pub host: String,
    /// `scheme://host[:port]`.
    pub origin: String,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// Its TLS set-up.
    pub tls: TlsFiles,
    /// Headers for it.
    pub headers: HeaderMap,
    /// How long connecting may take, where stated.
    pub dial_timeout: Option<Duration>,
    /// The registry's name, to be given as `ns` to a host that isn't it.
    pub namespace: Option<String>,
}

/// Parses a `hosts.toml`: the mirrors in order, then the registry itself.
/// Relative file names are taken from `base_dir`. Reads no file.
///
/// # Errors
/// [`HostsError`] where it is malformed or out of bounds.
pub fn parse_hosts(base_dir: &Path, text: &str) -> Result<Vec<HostEntry>, HostsError> {
    let file: RawFile = toml::from_str(text)
        .map_err(|e| HostsError::Toml(e.message().chars().take(200).collect()))?;
    if file.host.len() > HOSTS_MAX {
        return Err(HostsError::TooMany);
    }
    // TOML tables have no order, but the order in the file is that of the mirrors.
    let mut hosts: Vec<_> = file.host.into_iter().collect();
    hosts.sort_by_key(|(_, config)| config.span().start);
    hosts
        .into_iter()
        .map(|(url, config)| config.into_inner().entry(base_dir, Some(&url)))
        .chain([file.root.entry(base_dir, file.server.as_deref())])
        .collect()
}

/// The endpoints of the registry `domain`, in the order in which they are to
/// be tried. Reads the directory `hosts_dir`, if there is one.
///
/// # Errors
/// [`HostsError`] where a file can't be read. Like containerd, a malformed
/// `hosts.toml` is logged and passed over.
pub fn endpoints(
    domain: &str,
    hosts_dir: Option<&Path>,
    plain_http: &[String],
) -> Result<Vec<Endpoint>, HostsError> {
    let dir = hosts_dir.and_then(|root| host_dir(root, domain));
    let mut entries = match dir {
        Some(dir) => load_dir(&dir)?,
        None => vec![HostEntry::default()],
    };
    if let Some(last) = entries.last_mut().filter(|last| last.url.is_none()) {
        last.capabilities = Capabilities::ALL;
        last.url = Some(default_url(domain, &last.tls, plain_http)?);
    }
    entries.into_iter().filter_map(|entry| entry.endpoint(domain)).map(Ok).collect()
}

/// True for a host that plain HTTP is used with unless something else is
/// stated: what is said to it never leaves this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn default_url(domain: &str, tls: &TlsFiles, plain_http: &[String]) -> Result<Url, HostsError> {
    let host = if domain == DEFAULT_DOMAIN { DOCKER_HUB_HOST } else { domain };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let listed = plain_http.iter().any(|plain| plain == host || plain == name);
    let plain = listed || (is_loopback(host) && port != Some("443") && !tls.is_stated());
    let scheme = if plain { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{host}/v2")).map_err(|_| HostsError::Url(domain.to_owned()))
}

impl Default for HostEntry {
    fn default() -> Self {
        Self {
            url: None,
            capabilities: Capabilities::ALL,
            tls: TlsFiles::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

impl HostEntry {
    fn endpoint(self, domain: &str) -> Option<Endpoint> {
        let url = self.url?;
        let host = host_of(&url)?;
        // A URL leaves out the port that its scheme implies; a name may state it.
        let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
        let stated = with_port.is_some_and(|full| full.eq_ignore_ascii_case(domain));
        let host = if stated { domain.to_owned() } else { host };
        let itself = host.eq_ignore_ascii_case(domain)
            || (domain == DEFAULT_DOMAIN && host == DOCKER_HUB_HOST);
        Some(Endpoint {
            base: url.as_str().trim_end_matches('/').to_owned(),
            origin: origin_of(&url),
            host,
            capabilities: self.capabilities,
            tls: self.tls,
            headers: self.headers,
            dial_timeout: self.dial_timeout,
            namespace: (!itself).then(|| domain.to_owned()),
        })
    }
}

/// `host[:port]` as a URL states it.
pub(super) fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// `scheme://host[:port]`: no path, no user, no query.
pub(super) fn origin_of(url: &Url) -> String {
    format!("{}://{}", url.scheme(), host_of(url).unwrap_or_default())
}

#[derive(Deserialize)]
struct RawFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, toml::Spanned<RawHost>>,
    #[serde(flatten)]
    root: RawHost,
}

#[derive(Deserialize, Default)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<RawClient>,
    skip_verify: Option<bool>,
    header: Option<BTreeMap<String, OneOrMany>>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawClient {
    One(String),
    Many(Vec<OneOrMany>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl RawHost {
    fn entry(self, base_dir: &Path, server: Option<&str>) -> Result<HostEntry, HostsError> {
        let path = |p: String| base_dir.join(p);
        let url = server.map(|server| api_root(server, self.override_path)).transpose()?;
        let client = match self.client {
            None => None,
            Some(RawClient::One(file)) => Some((path(file), None)),
            Some(RawClient::Many(pairs)) => match pairs.into_iter().next().map(OneOrMany::into_vec)
            {
                None => None,
                // Of several pairs the first one is shown.
                Some(pair) if pair.len() <= 2 => {
                    let mut pair = pair.into_iter().map(path);
                    pair.next().map(|cert| (cert, pair.next()))
                }
                Some(_) => return Err(HostsError::Value("client".to_owned())),
            },
        };
        let ca = self.ca.map(OneOrMany::into_vec).unwrap_or_default();
        Ok(HostEntry {
            url,
            capabilities: capabilities(self.capabilities.unwrap_or_default())?,
            tls: TlsFiles {
                ca: ca.into_iter().map(path).collect(),
                client,
                skip_verify: self.skip_verify,
            },
            headers: headers(self.header.unwrap_or_default())?,
            dial_timeout: self.dial_timeout.map(|text| go_duration(&text)).transpose()?,
        })
    }
}

fn api_root(server: &str, override_path: bool) -> Result<Url, HostsError> {
    let bad = || HostsError::Url(server.chars().take(200).collect());
    let text =
        if server.starts_with("http") { server.to_owned() } else { format!("https://{server}") };
    let mut url = Url::parse(&text).map_err(|_| bad())?;
    let web = matches!(url.scheme(), "http" | "https");
    // A login in the URL would end up in messages.
    if !web || url.host_str().is_none() || !url.username().is_empty() || url.password().is_some() {
        return Err(bad());
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    if override_path || path.ends_with("/v2") {
        url.set_path(&path);
    } else {
        url.set_path(&format!("{path}/v2"));
    }
    Ok(url)
}

fn capabilities(words: Vec<String>) -> Result<Capabilities, HostsError> {
    if words.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut found = Capabilities { pull: false, resolve: false, push: false };
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" => found.push = true,
            // Newer versions have one for the referrers list; asking for it
            // is bound to `resolve` here.
            "referrers" => {}
            _ => return Err(HostsError::Capability(word.chars().take(60).collect())),
        }
    }
    Ok(found)
}

fn headers(raw: BTreeMap<String, OneOrMany>) -> Result<HeaderMap, HostsError> {
    let mut headers = HeaderMap::new();
    for (name, values) in raw {
        let bad =
            || HostsError::Value(format!("header {:?}", name.chars().take(60).collect::<String>()));
        let key = HeaderName::try_from(&name).map_err(|_| bad())?;
        for value in values.into_vec() {
            let mut value = HeaderValue::try_from(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// A Go duration of one unit or several: `300ms`, `10s`, `1m30s`.
fn go_duration(text: &str) -> Result<Duration, HostsError> {
    let bad = || HostsError::Value("dial_timeout".to_owned());
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u32 = rest[..end].parse().map_err(|_| bad())?;
        let unit = &rest[end..];
        let unit = &unit[..unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len())];
        let one = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return Err(bad()),
        };
        sum += one.checked_mul(number).ok_or_else(bad)?;
        rest = &rest[end + unit.len()..];
    }
    if sum.is_zero() { Err(bad()) } else { Ok(sum) }
}

fn host_dir(root: &Path, domain: &str) -> Option<PathBuf> {
    let with_port = domain
        .rsplit_once(':')
        .filter(|(_, port)| !port.ends_with(']'))
        .map(|(host, port)| format!("{host}_{port}_"));
    let names = with_port.into_iter().chain([domain.to_owned(), "_default".to_owned()]);
    names.map(|name| root.join(name)).find(|dir| dir.is_dir())
}

fn load_dir(dir: &Path) -> Result<Vec<HostEntry>, HostsError> {
    let path = dir.join("hosts.toml");
    match read_file(&path) {
        Ok(text) if text.is_empty() => cert_files(dir),
        Ok(text) => parse_hosts(dir, &String::from_utf8_lossy(&text)).or_else(|error| {
            tracing::error!(path = %path.display(), %error, "hosts.toml is ignored");
            cert_files(dir)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => cert_files(dir),
        Err(error) => Err(HostsError::File { path, problem: error.to_string() }),
    }
}

/// Docker's certificate directory: `*.crt` to trust, `*.cert` with `*.key` to show.
fn cert_files(dir: &Path) -> Result<Vec<HostEntry>, HostsError> {
    let bad = |error: std::io::Error| HostsError::File {
        path: dir.to_owned(),
        problem: error.to_string(),
    };
    let mut tls = TlsFiles::default();
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(bad)?
        .take(CERTS_MAX)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    names.sort();
    for name in names {
        match name.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(name),
            Some("cert") if tls.client.is_none() => {
                let key = name.with_extension("key");
                tls.client = Some((name, Some(key)));
            }
            _ => {}
        }
    }
    Ok(vec![HostEntry { tls, ..HostEntry::default() }])
}

/// Reads a bounded file whole.
pub(super) fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(std::io::Error::other("the file is too large"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
