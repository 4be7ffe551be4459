//! containerd's API over its socket, message by message.

use std::path::Path;

use peersync::snapshotter::proto::snapshots as api;
use peersync::snapshotter::proto::snapshots::snapshots_client::SnapshotsClient;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Names the namespace in every request, as containerd's clients do.
#[derive(Clone)]
pub(crate) struct InNamespace(&'static str);

impl tonic::service::Interceptor for InNamespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(self.0));
        Ok(request)
    }
}

/// A connection to a Unix socket.
pub(crate) async fn channel(socket: &Path) -> Channel {
    let address = format!("unix:{}", socket.display());
    Endpoint::from_shared(address).expect("address").connect().await.expect("connection")
}

/// One snapshotter behind a socket: containerd's, or a plugin's own.
#[derive(Clone)]
pub(crate) struct Snapshots {
    client: SnapshotsClient<InterceptedService<Channel, InNamespace>>,
    snapshotter: &'static str,
}

type Labels = std::collections::BTreeMap<String, String>;

impl Snapshots {
    pub(crate) async fn connect(socket: &Path, snapshotter: &'static str) -> Self {
        let channel = channel(socket).await;
        let client = SnapshotsClient::with_interceptor(channel, InNamespace("test"));
        Self { client, snapshotter }
    }

    pub(crate) async fn prepare(
        &mut self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<String>, Status> {
        let request = api::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        Ok(mounts(self.client.prepare(request).await?.into_inner().mounts))
    }

    pub(crate) async fn view(
        &mut self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<String>, Status> {
        let request = api::ViewSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        Ok(mounts(self.client.view(request).await?.into_inner().mounts))
    }

    pub(crate) async fn mounts(&mut self, key: &str) -> Result<Vec<String>, Status> {
        let request = api::MountsRequest { snapshotter: self.snapshotter.into(), key: key.into() };
        Ok(mounts(self.client.mounts(request).await?.into_inner().mounts))
    }

    pub(crate) async fn commit(
        &mut self,
        name: &str,
        key: &str,
        labels: Labels,
    ) -> Result<(), Status> {
        let request = api::CommitSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            name: name.into(),
            key: key.into(),
            labels,
        };
        self.client.commit(request).await.map(drop)
    }

    pub(crate) async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request =
            api::RemoveSnapshotRequest { snapshotter: self.snapshotter.into(), key: key.into() };
        self.client.remove(request).await.map(drop)
    }

    pub(crate) async fn stat(&mut self, key: &str) -> Result<api::Info, Status> {
        let request =
            api::StatSnapshotRequest { snapshotter: self.snapshotter.into(), key: key.into() };
        let response = self.client.stat(request).await?.into_inner();
        Ok(response.info.expect("info"))
    }

    pub(crate) async fn update(
        &mut self,
        name: &str,
        labels: Labels,
        paths: &[&str],
    ) -> Result<api::Info, Status> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = api::UpdateSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            info: Some(api::Info { name: name.into(), labels, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let response = self.client.update(request).await?.into_inner();
        Ok(response.info.expect("info"))
    }

    pub(crate) async fn list(&mut self, filters: &[&str]) -> Result<Vec<api::Info>, Status> {
        let request = api::ListSnapshotsRequest {
            snapshotter: self.snapshotter.into(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
        };
        let mut stream = self.client.list(request).await?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await? {
            assert!(message.info.len() <= 100);
            found.extend(message.info);
        }
        Ok(found)
    }

    pub(crate) async fn usage(&mut self, key: &str) -> Result<(i64, i64), Status> {
        let request = api::UsageRequest { snapshotter: self.snapshotter.into(), key: key.into() };
        let usage = self.client.usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub(crate) async fn cleanup(&mut self) -> Result<(), Status> {
        let request = api::CleanupRequest { snapshotter: self.snapshotter.into() };
        self.client.cleanup(request).await.map(drop)
    }
}

/// One line for each mount.
fn mounts(mounts: Vec<peersync::snapshotter::proto::types::Mount>) -> Vec<String> {
    let line = |mount: peersync::snapshotter::proto::types::Mount| {
        format!("{} {} {} {}", mount.r#type, mount.source, mount.target, mount.options.join(","))
    };
    mounts.into_iter().map(line).collect()
}
