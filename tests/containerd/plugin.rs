//! Who serves the snapshotter's socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use peersync::snapshotter::{RemoteLayers, Snapshotter, Socket, serve};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A snapshotter that can be stopped and started again on the same state.
pub(crate) trait Plugin {
    /// Where containerd finds it.
    fn socket(&self) -> &Path;
    /// Its part of the store: `snapshots/<id>/...` lie below.
    fn state(&self) -> &Path;
    /// Serves; returns when the socket answers.
    fn start(&mut self);
    /// Ends in good order; nothing answers afterwards.
    fn stop(&mut self);
}

/// The service in this process.
pub(crate) struct InProcess {
    socket: PathBuf,
    state: PathBuf,
    remote: Arc<dyn RemoteLayers>,
    runtime: Option<Runtime>,
    serving: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl InProcess {
    pub(crate) fn new(socket: &Path, state: &Path, remote: Arc<dyn RemoteLayers>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        Self {
            socket: socket.to_owned(),
            state: state.to_owned(),
            remote,
            runtime: Some(runtime),
            serving: None,
        }
    }
}

impl Plugin for InProcess {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn state(&self) -> &Path {
        &self.state
    }

    fn start(&mut self) {
        let socket = Socket::bind(&self.socket).expect("socket");
        let snapshotter =
            Arc::new(Snapshotter::open(&self.state, Arc::clone(&self.remote)).expect("state"));
        let (stop, stopped) = oneshot::channel();
        let task = self.runtime.as_ref().expect("runtime").spawn(async move {
            let ended = async {
                let _ = stopped.await;
            };
            serve(socket, snapshotter, ended).await.expect("serve");
        });
        self.serving = Some((stop, task));
    }

    fn stop(&mut self) {
        if let Some((stop, task)) = self.serving.take() {
            let _ = stop.send(());
            self.runtime.as_ref().expect("runtime").block_on(task).expect("server task");
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
