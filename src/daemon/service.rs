//! Requests of the control socket.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, TryStreamExt};

use super::report::{by_source, mount_info, progress};
use super::swarm::place::network;
use super::{Node, evict};
use crate::admin::{
    Event, Events, Failure, FailureKind, LayerInfo, MountArgs, PinInfo, Progress, PullReport,
    RememberedInfo, Request, Service, Stage,
};
use crate::fetch::Sources;
use crate::fs::{Root, Slot};
use crate::mount::{ImageError, IndexMode, Resolved};
use crate::types::ObjectId;

/// How often a client hears of progress.
const TICK: Duration = Duration::from_millis(100);
/// Layers that a pull fetches at the same time.
const LAYERS_AT_ONCE: usize = 3;

type Answer = Result<Event, Failure>;

impl Service for Node {
    fn handle(
        self: Arc<Self>,
        request: Request,
        events: Events,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(async move {
            match request {
                Request::Ping => Ok(Event::Pong { pid: std::process::id() }),
                Request::Mount(args) => self.mount_image(args, events).await,
                Request::Pull { image, plain_http } => self.pull(image, plain_http, events).await,
                Request::IndexBuild { image, plain_http } => {
                    let resolved =
                        self.resolve(&image, plain_http, IndexMode::Auto, &events).await?;
                    self.layers_of(&resolved).await
                }
                Request::IndexPush { image, plain_http } => {
                    self.index_push(image, plain_http, events).await
                }
                Request::Status => {
                    let status = self.blocking(|node| Ok(node.status())).await?;
                    Ok(Event::Status(Box::new(status)))
                }
                Request::Images => {
                    let images = self.blocking(|node| node.image_infos()).await?;
                    Ok(Event::Images { images })
                }
                Request::Peers => {
                    let (node, peers) = self.peers();
                    Ok(Event::Peers { node, peers })
                }
                Request::Gc { dry_run } => {
                    let report = self
                        .blocking(move |node| {
                            node.evictor.gc(node, dry_run).map_err(|error| error.to_string())
                        })
                        .await?;
                    Ok(Event::Gc(Box::new(report)))
                }
                Request::Pin { name } => self.pin(name).await,
                Request::Unpin { name } => self.unpin(name).await,
                Request::Pins => self.pins().await,
                Request::Remembered => Ok(self.remembered()),
                Request::Forget { here } => self.forget(here).await,
                Request::Inventory { object } => self.inventory(object, events).await,
                Request::Layers => {
                    let layers = self.blocking(|node| node.layers()).await?;
                    Ok(Event::Layers { layers })
                }
            }
        })
    }

    fn client(&self, came: bool) {
        if came {
            self.clients.fetch_add(1, Ordering::SeqCst);
        } else {
            self.clients.fetch_sub(1, Ordering::SeqCst);
        }
        self.clients_changed.notify_one();
    }
}

impl Node {
    async fn mount_image(self: &Arc<Self>, args: MountArgs, events: Events) -> Answer {
        let resolved = self.resolve(&args.image, args.plain_http, args.index, &events).await?;
        let slot = Slot::new(resolved.view)
            .ok_or_else(|| Failure::new(FailureKind::Failed, "the store has no slot left"))?;
        let mut options = self.mount_options(&resolved.reference);
        options.suid = args.suid;
        options.dev = args.dev;
        let root = Root::Image(slot);
        let mounted = self
            .mount(root, Some(args.image), args.dir, options)
            .await
            .map_err(|error| Failure::new(FailureKind::Failed, error))?;
        Ok(Event::Mounted(mount_info(&mounted)))
    }

    async fn pull(self: &Arc<Self>, image: String, plain_http: bool, events: Events) -> Answer {
        let before = self.status().bytes;
        let resolved = self.resolve(&image, plain_http, IndexMode::Auto, &events).await?;
        let sources = || {
            let of = resolved.blobs.iter().map(|blob| self.engine.sources(blob));
            of.fold(Sources::default(), |sum, sources| sum.and(&sources))
        };
        let sources_before = sources();
        let work = stream::iter(resolved.blobs.clone().into_iter().map(Ok))
            .try_for_each_concurrent(LAYERS_AT_ONCE, |blob| async move {
                self.images.complete(&blob).await.map_err(failure)
            });
        self.watched(work, &events).await?;
        let layers = self.layers_of(&resolved).await?;
        let Event::Layers { layers } = layers else { return Ok(layers) };
        for layer in &layers {
            let blob = layer.blobs.first().cloned().unwrap_or_default();
            let (done, total) = (layer.resident_bytes, layer.content_bytes);
            let stage = Stage::Complete;
            let event = Progress { layer: blob, stage, done, total, sources: BTreeMap::new() };
            events.send(Event::Progress(event)).await;
        }
        let since = |(name, bytes): (String, u64)| {
            let before = before.get(&name).copied().unwrap_or(0);
            (name, bytes.saturating_sub(before))
        };
        Ok(Event::Pulled(PullReport {
            image: resolved.reference,
            manifest: resolved.manifest.to_string(),
            content_bytes: layers.iter().map(|layer| layer.content_bytes).sum(),
            sources: by_source(&sources().since(&sources_before)),
            bytes: self
                .status()
                .bytes
                .into_iter()
                .map(since)
                .filter(|(n, _)| n != "local")
                .collect(),
        }))
    }

    async fn index_push(
        self: &Arc<Self>,
        image: String,
        plain_http: bool,
        events: Events,
    ) -> Answer {
        self.resolve(&image, plain_http, IndexMode::Auto, &events).await?;
        let work = self.images.push_index(&image, plain_http);
        let (digest, bytes) = self.watched(async { work.await.map_err(failure) }, &events).await?;
        Ok(Event::Pushed { digest: digest.to_string(), bytes })
    }

    async fn resolve(
        self: &Arc<Self>,
        image: &str,
        plain_http: bool,
        index: IndexMode,
        events: &Events,
    ) -> Result<Resolved, Failure> {
        let told = |message| events.tell(Event::Note { message });
        let work = self.images.resolve(image, plain_http, index, &told);
        self.watched(async { work.await.map_err(failure) }, events).await
    }

    /// Does work, and tells the client how far all work on layers is meanwhile.
    async fn watched<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
        events: &Events,
    ) -> Result<T, Failure> {
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = ticks.tick() => {
                    for work in self.images.board().all() {
                        events.tell(Event::Progress(progress(&work)));
                    }
                }
            }
        }
    }

    /// Gives a checker the inventory, line by line.
    async fn inventory(self: &Arc<Self>, object: Option<String>, events: Events) -> Answer {
        let failed = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Usage, error);
        let object: Option<ObjectId> =
            object.map(|id| id.parse()).transpose().map_err(|e| failed(&e))?;
        self.blocking(move |node| {
            let lines = match &object {
                Some(object) => node.store.inventory_object(object),
                None => node.store.inventory(),
            };
            let mut last = serde_json::Value::Null;
            for line in lines {
                let line = serde_json::to_value(&line).map_err(|e| e.to_string())?;
                let previous = std::mem::replace(&mut last, line);
                if !previous.is_null() && !events.send_blocking(Event::Line(previous)) {
                    return Err("the client is gone".into());
                }
            }
            Ok(Event::Line(last))
        })
        .await
    }

    async fn pin(self: &Arc<Self>, name: String) -> Answer {
        let name = pin_name(&name);
        let known = name.clone();
        let slots = self
            .blocking(move |node| evict::slots_of(&node.store, &known).map_err(|e| e.to_string()))
            .await?;
        if slots.is_empty() {
            let message = format!("{name} is not known here: pull or mount it first");
            return Err(Failure::new(FailureKind::NotFound, message));
        }
        self.blocking(move |node| {
            node.store.pin(&name, evict::unix_time()).map_err(|e| e.to_string())
        })
        .await?;
        self.pins().await
    }

    async fn unpin(self: &Arc<Self>, name: String) -> Answer {
        let pinned = pin_name(&name);
        let there =
            self.blocking(move |node| node.store.unpin(&pinned).map_err(|e| e.to_string())).await?;
        if !there {
            return Err(Failure::new(FailureKind::NotFound, format!("{name} is not pinned")));
        }
        self.pins().await
    }

    async fn pins(self: &Arc<Self>) -> Answer {
        let pins = self.blocking(|node| node.store.pins().map_err(|e| e.to_string())).await?;
        let pins = pins.into_iter().map(|(name, since)| PinInfo { name, since }).collect();
        Ok(Event::Pins { pins })
    }

    fn remembered(&self) -> Event {
        let history = self.memory.history();
        let of = |network: &str| {
            let nodes = history.of(network).into_iter().map(|node| RememberedInfo {
                network: network.to_owned(),
                id: node.peer.to_string(),
                address: node.tunnels,
                speed: node.speed,
                seen: node.seen,
                failures: node.failures,
            });
            nodes.collect::<Vec<_>>()
        };
        let nodes = history.networks().into_iter().flat_map(of).collect();
        Event::Remembered { here: network(), nodes }
    }

    async fn forget(self: &Arc<Self>, here: bool) -> Answer {
        let gone = self
            .blocking(move |node| {
                let network = here.then(network);
                node.memory.reset(network.as_deref()).map_err(|e| e.to_string())
            })
            .await?;
        Ok(Event::Forgotten { networks: gone.0 as u64, nodes: gone.1 as u64 })
    }

    async fn layers_of(self: &Arc<Self>, resolved: &Resolved) -> Answer {
        let all = self.blocking(|node| node.layers()).await?;
        let of = |blob: &crate::types::Digest| {
            let blob = blob.to_string();
            all.iter().find(|layer| layer.blobs.contains(&blob)).cloned()
        };
        let layers: Vec<LayerInfo> = resolved.blobs.iter().filter_map(of).collect();
        Ok(Event::Layers { layers })
    }

    /// Does what waits for the disk where it may.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, String> + Send + 'static,
    ) -> Result<T, Failure> {
        let node = Arc::clone(self);
        let failed = |message: String| Failure::new(FailureKind::Failed, message);
        match tokio::task::spawn_blocking(move || work(&node)).await {
            Ok(result) => result.map_err(failed),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// A name as the store has it.
fn pin_name(name: &str) -> String {
    match (name.parse::<crate::types::Digest>(), name.parse::<crate::oci::Reference>()) {
        (Err(_), Ok(reference)) if !name.starts_with("oci:") => reference.to_string(),
        _ => name.to_owned(),
    }
}

fn failure(error: ImageError) -> Failure {
    let kind = match &error {
        ImageError::Name(_) => FailureKind::Usage,
        ImageError::NotFound(_) | ImageError::NoIndex(_) => FailureKind::NotFound,
        ImageError::Denied(_) => FailureKind::Denied,
        ImageError::Unreachable(_) => FailureKind::Unreachable,
        ImageError::Corrupt(_) => FailureKind::Corrupt,
        ImageError::Refused(_) | ImageError::Store(_) | ImageError::Failed(_) => {
            FailureKind::Failed
        }
    };
    Failure::new(kind, error)
}
