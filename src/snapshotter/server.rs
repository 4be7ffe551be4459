//! Serves the snapshotter on its socket.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Server;

use super::engine::Snapshotter;
use super::service::service;
use super::socket::Socket;

/// How long requests under way may take after the signal to stop. What they have
/// changed is durable either way; a remote layer that is cut off is asked for again.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, which is when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket can't be used.
    #[error("snapshotter socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The server broke off.
    #[error("snapshotter service: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Serves `snapshotter` on `socket` until `stop` comes, and then for at most five
/// seconds what is still under way. At the end the snapshotter is closed and the
/// socket's file removed.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    socket: Socket,
    snapshotter: Arc<Snapshotter>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let listener = UnixListener::from_std(socket.listener()?)?;
    // What an earlier life has removed and not deleted.
    let sweeper = Arc::clone(&snapshotter);
    tokio::spawn(async move {
        if let Err(error) = sweeper.cleanup().await {
            tracing::warn!(%error, "removed snapshots can't be deleted yet");
        }
    });
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(service(Arc::clone(&snapshotter)))
        .serve_with_incoming_shutdown(connections(listener), async {
            let _ = stopped.await;
        });
    tokio::pin!(server);
    let ended = tokio::select! {
        ended = &mut server => ended,
        () = stop => {
            snapshotter.stop_background();
            drop(stopping);
            tokio::time::timeout(GRACE, server).await.unwrap_or_else(|_| {
                tracing::info!("requests still under way are cut off");
                Ok(())
            })
        }
    };
    snapshotter.close().await;
    Ok(ended?)
}

/// Connections as they come. One that can't be accepted ends nothing.
fn connections(listener: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "containerd's connection can't be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
