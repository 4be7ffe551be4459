//! The registry mirror as a part of the node.

use std::net::TcpListener;
use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::{Node, NodeError, registry_settings};
use crate::config::{Config, IndexOrigin, Logins, MirrorConfig};
use crate::fetch::ExactPass;
use crate::mirror::request::Rules;
use crate::mirror::{Mirror, Parts, Settings};
use crate::oci::{Credentials, registry};

/// The mirror while it is served.
pub(super) struct Serving {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl Serving {
    pub(super) async fn end(self) {
        let _ = self.stop.send(());
        let _ = self.ended.await;
    }
}

impl Node {
    /// Serves the registry mirror on `mirror.listen`, unless that is empty.
    ///
    /// That somebody else listens on the default address is only said: it is
    /// another daemon of this machine, or has nothing to do with this one, and the
    /// mount is of use without.
    ///
    /// # Errors
    /// [`NodeError::Mirror`].
    pub async fn serve_mirror(self: &Arc<Self>) -> Result<(), NodeError> {
        let config = &self.config.mirror;
        let Some(address) = config.listen else { return Ok(()) };
        if self.store.is_read_only() {
            warn!("no mirror: the store is read-only");
            return Ok(());
        }
        let listener = match TcpListener::bind(address) {
            Ok(listener) => listener,
            Err(error) if address == MirrorConfig::LISTEN => {
                error!("no mirror on {address}: {error}");
                return Ok(());
            }
            Err(error) => return Err(NodeError::Mirror { address, error }),
        };
        if !address.ip().is_loopback() {
            warn!(
                "the mirror listens on {address}, in plain HTTP and without asking who reads: \
                 whoever reaches it can read what it serves"
            );
        }
        let (parts, settings) = (self.parts_of_mirror(), settings(&self.config));
        let mirror = tokio::task::spawn_blocking(move || Mirror::new(parts, settings)).await?;
        let named = Arc::clone(&mirror);
        let _ = self.names.set(Box::new(move |name| named.tag_by_hash(name)));
        info!(listen = %address, upstream = config.upstream, "the mirror is served");
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = mirror.serve(listener, stopped).await {
                error!("the mirror is not served any more: {error}");
            }
        });
        *self.mirror.lock().unwrap_or_else(PoisonError::into_inner) = Some(Serving { stop, ended });
        Ok(())
    }

    fn parts_of_mirror(&self) -> Parts {
        let (store, counters) = (Arc::clone(&self.store), Arc::clone(&self.counters));
        let pass = ExactPass::new(Arc::clone(&store), Arc::clone(&counters), self.key.clone());
        let (engine, reader) = (Arc::clone(&self.engine), Arc::clone(&self.reader));
        Parts { store, engine, reader, pass, counters }
    }
}

fn settings(config: &Config) -> Settings {
    let mirror = &config.mirror;
    let shared = registry_settings(config);
    let credentials = match mirror.logins {
        Logins::Client => Credentials::Anonymous,
        Logins::Node => shared.credentials.clone(),
    };
    Settings {
        rules: Rules { upstream: mirror.upstream.clone(), registries: mirror.registries.clone() },
        registry: registry::Settings { credentials, ..shared },
        as_node: mirror.logins == Logins::Node,
        swarm: config.believes(IndexOrigin::Swarm),
    }
}
