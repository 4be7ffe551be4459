//! `[mirror]`

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer};

/// `[mirror]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct MirrorConfig {
    /// Where clients find the mirror; empty: nowhere.
    #[serde(deserialize_with = "address")]
    pub listen: Option<SocketAddr>,
    /// The registry that is meant where a request names none.
    pub upstream: String,
    /// Others that a request may name.
    pub registries: Vec<String>,
    /// As whom registries are asked.
    pub logins: Logins,
}

/// As whom registries are asked for clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Logins {
    /// As nobody, or with the login that the client shows.
    #[default]
    Client,
    /// As this node: whoever reaches the mirror may have what the node may.
    Node,
}

impl MirrorConfig {
    /// Where the mirror listens if nothing else is said.
    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5005);

    /// The mirror's addresses as `hosts.toml` files may name them. `own` are those
    /// of this machine.
    pub fn own_addresses(&self, own: &[IpAddr]) -> Vec<String> {
        let Some(listen) = self.listen else { return Vec::new() };
        let port = listen.port();
        let mut names = vec![listen.to_string()];
        if listen.ip().is_loopback() || listen.ip().is_unspecified() {
            names.extend(["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}")));
        }
        if listen.ip().is_unspecified() {
            names.extend(own.iter().map(|ip| SocketAddr::new(*ip, port).to_string()));
        }
        names
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let is_host = |name: &str| {
            let part =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-:[]".contains(&b);
            !name.is_empty() && name.len() <= 255 && name.bytes().all(part)
        };
        for name in self.registries.iter().chain([&self.upstream]) {
            if !is_host(name) {
                return Err(format!(
                    "mirror: {name:?} is not a registry: expected host or host:port, as in docker.io"
                ));
            }
        }
        Ok(())
    }
}

impl Default for MirrorConfig {
    fn default() -> Self {
        Self {
            listen: Some(Self::LISTEN),
            upstream: "docker.io".into(),
            registries: Vec::new(),
            logins: Logins::default(),
        }
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        serde::de::Error::custom(format!("{text:?}: expected address:port, as in 127.0.0.1:5005"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(text: &str) -> MirrorConfig {
        MirrorConfig { listen: text.parse().ok(), ..MirrorConfig::default() }
    }

    #[test]
    fn the_mirror_knows_its_own_names() {
        let names = listening("127.0.0.1:5005").own_addresses(&[]);
        assert!(names.contains(&"localhost:5005".to_owned()), "{names:?}");
        let own = ["10.1.0.2".parse().expect("an address")];
        let names = listening("0.0.0.0:80").own_addresses(&own);
        assert!(names.contains(&"10.1.0.2:80".to_owned()), "{names:?}");
        assert_eq!(listening("10.1.0.2:80").own_addresses(&own), ["10.1.0.2:80"]);
    }

    #[test]
    fn registries_are_hosts() {
        let named = |name: &str| {
            let registries = vec![name.to_owned()];
            MirrorConfig { registries, ..MirrorConfig::default() }.check()
        };
        for good in ["quay.io", "127.0.0.1:5000", "[::1]:5000", "localhost:5000"] {
            assert_eq!(named(good), Ok(()), "{good}");
        }
        for bad in ["", "*", "https://quay.io", "quay.io/a", "Quay.io"] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
