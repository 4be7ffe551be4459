//! containerd's gRPC service: translates, nothing more.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use tonic::{Request, Response, Status};

use super::engine::Snapshotter;
use super::meta::{Kind, Labels, Record, Timestamp};
use super::mounts::Mount;
use super::proto::snapshots as api;
use super::proto::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use super::proto::types;

/// Largest message that is read or written; containerd's own bound.
const MESSAGE_MAX: usize = 16 << 20;
/// Most entries in one message of a list, as in containerd.
const LIST_ENTRIES: usize = 100;
/// Bytes after which a message of a list is sent.
const LIST_BYTES: usize = 1 << 20;

/// The service to be added to a tonic server.
pub fn service(snapshotter: Arc<Snapshotter>) -> SnapshotsServer<Service> {
    SnapshotsServer::new(Service { snapshotter })
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX)
}

/// Implements `containerd.services.snapshots.v1.Snapshots`.
///
/// The `snapshotter` field of requests is not looked at: containerd fills it with
/// the name that its configuration gives this plugin.
pub struct Service {
    snapshotter: Arc<Snapshotter>,
}

type Infos = Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        tracing::debug!(key = request.key, parent = request.parent, "prepare");
        let mounts =
            self.snapshotter.prepare(&request.key, &request.parent, &request.labels).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: to_mounts(mounts) }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        tracing::debug!(key = request.key, parent = request.parent, "view");
        let mounts = self.snapshotter.view(&request.key, &request.parent, &request.labels).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: to_mounts(mounts) }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let mounts = self.snapshotter.mounts(&request.into_inner().key).await?;
        Ok(Response::new(api::MountsResponse { mounts: to_mounts(mounts) }))
    }

    async fn commit(
        &self,
        request: Request<api::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        tracing::debug!(name = request.name, key = request.key, "commit");
        self.snapshotter.commit(&request.name, &request.key, &request.labels).await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<api::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        tracing::debug!(key = request.key, "remove");
        self.snapshotter.remove(&request.key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let record = self.snapshotter.stat(&key)?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(to_info(key, record)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let info = request.info.ok_or_else(|| Status::invalid_argument("info is missing"))?;
        let paths = request.update_mask.unwrap_or_default().paths;
        let record = self.snapshotter.update(&info.name, &info.labels, &paths).await?;
        let info = to_info(info.name, record);
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info) }))
    }

    type ListStream = Infos;

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Infos>, Status> {
        let found = self.snapshotter.list(&request.into_inner().filters)?;
        Ok(Response::new(Box::pin(stream::iter(messages(found)))))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let usage = self.snapshotter.usage(&request.into_inner().key).await?;
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse {
            size: signed(usage.bytes),
            inodes: signed(usage.inodes),
        }))
    }

    async fn cleanup(
        &self,
        _request: Request<api::CleanupRequest>,
    ) -> Result<Response<()>, Status> {
        self.snapshotter.cleanup().await?;
        Ok(Response::new(()))
    }
}

/// Cuts a list into messages that stay well below what a client takes.
fn messages(
    found: Vec<(String, Record)>,
) -> impl Iterator<Item = Result<api::ListSnapshotsResponse, Status>> {
    let mut found = found.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut info = Vec::new();
        let mut bytes = 0;
        while info.len() < LIST_ENTRIES && bytes < LIST_BYTES {
            let Some((name, record)) = found.next() else { break };
            bytes += name.len() + record.parent.len() + label_bytes(&record.labels);
            info.push(to_info(name, record));
        }
        (!info.is_empty()).then_some(Ok(api::ListSnapshotsResponse { info }))
    })
}

fn label_bytes(labels: &Labels) -> usize {
    labels.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn to_info(name: String, record: Record) -> api::Info {
    let kind = match record.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name,
        parent: record.parent,
        kind: kind.into(),
        created_at: Some(to_time(record.created)),
        updated_at: Some(to_time(record.updated)),
        labels: record.labels,
    }
}

fn to_time(time: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(time.nanos).unwrap_or(999_999_999);
    prost_types::Timestamp { seconds: time.seconds, nanos }
}

fn to_mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let to_mount = |mount: Mount| types::Mount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    mounts.into_iter().map(to_mount).collect()
}
