//! What an operator's monitoring asks: figures, and whether all is well.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tokio::net::TcpListener;
use tracing::{error, info};

use super::{Node, NodeError, Role};
use crate::admin::{Stage, Vitals, serve_http};
use crate::config::Config;
use crate::telemetry::{Readings, render};

impl Node {
    /// Serves `/metrics` and `/healthz` on `admin.listen`, unless it is empty.
    ///
    /// That somebody else listens on the default address is only said: a machine
    /// may have a second daemon, and containers don't need this one's figures.
    ///
    /// # Errors
    /// [`NodeError::Admin`]: an address that was chosen can't be had.
    pub async fn serve_operator(self: &Arc<Self>) -> Result<(), NodeError> {
        let Some(address) = self.config.admin.listen else { return Ok(()) };
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && Config::default().admin.listen == Some(address) =>
            {
                error!("no metrics: {address} is in use; choose another `[admin] listen`");
                return Ok(());
            }
            Err(error) => return Err(NodeError::Admin { address, error }),
        };
        let address = listener.local_addr().unwrap_or(address);
        info!("metrics at http://{address}/metrics");
        if let Ok(mut told) = self.operator.lock() {
            *told = Some(address);
        }
        // Until the runtime ends: also while mounts are being taken away.
        let vitals = Arc::new(Vital(Arc::downgrade(self)));
        self.runtime.spawn(async move {
            if let Err(error) = serve_http(listener, vitals).await {
                error!("metrics: {error}");
            }
        });
        Ok(())
    }

    /// Where `/metrics` is served.
    pub(super) fn operator(&self) -> Option<SocketAddr> {
        *self.operator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is read off the node now. Blocks on the store.
    fn readings(&self) -> Readings {
        let stats = self.store.stats();
        let (store_objects, store_resident) = self.held();
        let peers = self.engine.peers();
        let lan = peers.iter().filter(|peer| peer.near == crate::fetch::tunnel::Near::Lan).count();
        let work = self.work();
        let worked = |stage| work.iter().filter(|work| work.stage == stage).count() as u64;
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let chains = snapshots.as_ref().map_or(0, |served| served.snapshotter.chains().len());
        let copies = |n: usize| self.evictor.copies[n].load(Ordering::Relaxed);
        Readings {
            uptime: self.started.elapsed().as_secs(),
            store_objects,
            store_resident,
            store_free: self.store.space().map_or(0, |space| space.free),
            store_dirty: stats.dirty_bytes,
            store_stored: stats.stored_bytes,
            store_flushes: stats.flushes,
            store_bad_blocks: stats.bad_blocks,
            store_unreadable_blocks: stats.unreadable_blocks,
            store_read_only: u64::from(self.store.is_read_only()),
            peers_lan: lan as u64,
            peers_remote: (peers.len() - lan) as u64,
            work_first_pass: worked(Stage::FirstPass),
            work_fetch: worked(Stage::Fetch),
            copies_one: copies(0),
            copies_two: copies(1),
            copies_more: copies(2),
            mounts: self.mounts.list().len() as u64,
            snapshots_remote: chains as u64,
        }
    }

    /// What does not work.
    fn ailments(&self) -> Vec<String> {
        let mut ailments = Vec::new();
        let tree = &self.config.mount.path;
        if self.role == Role::Daemon && !self.mounts.list().iter().any(|m| m.handle.dir() == tree) {
            ailments.push(format!("nothing is mounted on {}", tree.display()));
        }
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshots.as_ref().is_some_and(|served| served.ended.is_finished()) {
            ailments.push("containerd is not served any more".into());
        }
        ailments
    }
}

/// A node that may be gone by the time it is asked.
struct Vital(std::sync::Weak<Node>);

impl Vitals for Vital {
    fn metrics(self: Arc<Self>) -> Pin<Box<dyn Future<Output = String> + Send>> {
        Box::pin(async move {
            let Some(node) = self.0.upgrade() else { return String::new() };
            let page = move || {
                let mut samples = node.counters.samples();
                samples.extend(node.readings().samples());
                render(samples, env!("CARGO_PKG_VERSION"))
            };
            tokio::task::spawn_blocking(page).await.unwrap_or_default()
        })
    }

    fn ailments(&self) -> Vec<String> {
        match self.0.upgrade() {
            Some(node) => node.ailments(),
            None => vec!["the node is ending".into()],
        }
    }
}
