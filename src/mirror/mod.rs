//! The registry mirror: the pull side of the OCI distribution specification in
//! front of the swarm, for every client that does not load lazily.
//!
//! - `request`, `range`: what is asked for (pure; what comes is hostile);
//! - `manifests`, `blobs`, `lists`: the answers;
//! - `flight`: blobs on their way, one fetch for all who want one;
//! - `body`: a blob's bytes on their way to one client;
//! - `held`: what this node has; `rights`: what belongs to which repository;
//! - `tags`: what tags last stood for; `upstream`: the registries behind;
//! - `connection`: how many connections, how long and how slow.
//!
//! A tag is asked for at its registry each time; what has a digest may come from
//! anywhere. Only registries that are configured are ever asked.

mod answer;
mod blobs;
mod body;
mod connection;
mod flight;
mod held;
mod lists;
mod manifests;
pub mod range;
pub mod request;
mod rights;
mod sendfile;
mod tags;
mod upstream;

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use tokio::net::TcpListener;
use tracing::debug;

use crate::blocks::BlockReader;
use crate::fetch::{Engine, ExactPass};
use crate::oci::registry;
use crate::store::Store;
use crate::telemetry::Counters;
use crate::types::{BlockHash, Digest};
use answer::{Answer, Refusal};
use flight::Flights;
use held::Source;
use request::{Question, Rules, What};
use rights::Rights;
use tags::Tags;
use upstream::Upstreams;

/// Where the mirror keeps its own files, below the store's directory.
const DIR: &str = "mirror";

/// The parts of a node that a mirror works with.
pub struct Parts {
    /// Where blobs are kept.
    pub store: Arc<Store>,
    /// What fetches blocks.
    pub engine: Arc<Engine>,
    /// What reads objects.
    pub reader: Arc<dyn BlockReader>,
    /// What brings blobs from upstream.
    pub pass: ExactPass,
    /// What is counted.
    pub counters: Arc<Counters>,
}

/// How a mirror behaves.
pub struct Settings {
    /// Which registries it serves.
    pub rules: Rules,
    /// How it deals with them; the credentials are those that all clients share.
    pub registry: registry::Settings,
    /// Whether those are the node's own.
    pub as_node: bool,
    /// Whether members of the swarm are believed.
    pub swarm: bool,
}

/// A registry mirror.
pub struct Mirror {
    rules: Rules,
    source: Arc<Source>,
    engine: Arc<Engine>,
    flights: Arc<Flights>,
    rights: Arc<Rights>,
    tags: Arc<Tags>,
    upstreams: Upstreams,
    counters: Arc<Counters>,
    swarm: bool,
}

impl Mirror {
    /// Reads what an earlier one remembered; serves nothing yet. May block.
    pub fn new(parts: Parts, settings: Settings) -> Arc<Self> {
        let Parts { store, engine, reader, pass, counters } = parts;
        let dir: &Path = store.path();
        let kept = if settings.as_node { "tags-as-node" } else { "tags" };
        let tags = Arc::new(Tags::open(&dir.join(DIR).join(kept)));
        let flights = Flights::new(Arc::clone(&engine), Arc::clone(&store), pass, settings.swarm);
        let rights = Rights::new(Arc::clone(&store), settings.as_node);
        let source = Source::new(store, Arc::clone(&engine), reader);
        Arc::new(Self {
            rules: settings.rules,
            source: Arc::new(source),
            engine,
            flights,
            rights,
            tags,
            upstreams: Upstreams::new(settings.registry),
            counters,
            swarm: settings.swarm,
        })
    }

    /// Serves clients until `stopped`. Those that are being served are cut off then.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn serve(
        self: &Arc<Self>,
        listener: std::net::TcpListener,
        stopped: impl Future<Output = ()>,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let mirror = Arc::clone(self);
        let answer = move |request: Request<hyper::body::Incoming>| {
            let mirror = Arc::clone(&mirror);
            async move { mirror.answer(&request.map(drop)).await }
        };
        tokio::select! {
            () = connection::serve(listener, answer) => {}
            () = stopped => {}
        }
        Ok(())
    }

    /// What the name with this hash last stood for, and since when in seconds since
    /// 1970: for peers that can't ask its registry.
    pub fn tag_by_hash(&self, name: &BlockHash) -> Option<(Digest, u64)> {
        let known = self.tags.by_hash(name)?;
        let since = known.seen().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Some((*known.digest(), since.as_secs()))
    }

    async fn answer(self: &Arc<Self>, request: &Request<()>) -> Answer {
        self.counters.mirror_requests.add(1);
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let question = request::parse(method.as_str(), uri.path(), uri.query(), &self.rules);
        let is_head = method == "HEAD";
        let answer = match question {
            Err(refused) => Err(refused.into()),
            Ok(Question::Base) => {
                let empty = Bytes::from_static(b"{}");
                Ok(answer::document(StatusCode::OK, "application/json", empty))
            }
            Ok(Question::Catalog(page)) => Ok(self.catalog(&page)),
            Ok(Question::Of(repository, what)) => match &what {
                What::Tag(tag) => self.tag(&repository, tag, headers).await,
                What::Manifest(digest) => self.manifest(&repository, digest, headers).await,
                What::Blob(digest) => self.blob(&repository, digest, is_head, headers).await,
                What::Tags(page) => self.tag_list(&repository, page, uri.path(), headers).await,
                What::Referrers { subject, artifact_type } => {
                    let artifact_type = artifact_type.as_deref();
                    self.referrers(&repository, subject, artifact_type, headers).await
                }
            },
        };
        let mut answer = answer.unwrap_or_else(Refusal::into_answer);
        debug!(%method, path = uri.path(), status = answer.status().as_u16(), "mirror");
        if is_head {
            // The length is that of the body that a GET would have.
            *answer.body_mut() = Body::empty();
        }
        answer
    }
}
