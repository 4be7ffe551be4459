//! The little of Kubernetes' CRI that pulls images.

use std::path::Path;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::api::channel;

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// `PullImageRequest` and `RemoveImageRequest`, as far as they are used.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RemoveImageResponse {}

/// containerd's image service for the kubelet.
#[derive(Clone)]
pub(crate) struct Images(tonic::client::Grpc<Channel>);

impl Images {
    pub(crate) async fn connect(socket: &Path) -> Self {
        Self(tonic::client::Grpc::new(channel(socket).await))
    }

    /// Pulls an image; gives its identifier.
    pub(crate) async fn pull(&mut self, reference: &str) -> Result<String, Status> {
        let pulled: PullImageResponse = self.call("PullImage", reference).await?;
        Ok(pulled.image_ref)
    }

    pub(crate) async fn remove(&mut self, reference: &str) -> Result<(), Status> {
        self.call::<RemoveImageResponse>("RemoveImage", reference).await.map(drop)
    }

    async fn call<R>(&mut self, method: &str, reference: &str) -> Result<R, Status>
    where
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let path = format!("/runtime.v1.ImageService/{method}");
        let path = PathAndQuery::try_from(path).expect("path");
        let image = Some(ImageSpec { image: reference.to_owned() });
        self.0.ready().await.expect("containerd is there");
        let codec = ProstCodec::<ImageRequest, R>::default();
        Ok(self.0.unary(Request::new(ImageRequest { image }), path, codec).await?.into_inner())
    }
}
