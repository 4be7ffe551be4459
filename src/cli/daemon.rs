//! `daemon`, and the owner that other commands start.

use std::io::Write;

use super::Exit;
use super::args::Limits;
use super::owner::{Owner, READY};
use crate::admin::FailureKind;
use crate::daemon::{Node, NodeError, Role, memory};
use crate::telemetry::init_logging;

/// Serves the whole tree until SIGTERM or Ctrl-C.
pub(super) fn daemon(mut owner: Owner, limits: &Limits) -> Result<(), Exit> {
    let configured = &mut owner.config.limits;
    configured.upload = limits.upload_limit.unwrap_or(configured.upload);
    configured.download = limits.download_limit.unwrap_or(configured.download);
    init_logging(owner.verbose.max(1));
    let runtime = runtime()?;
    runtime.block_on(async {
        let node = Node::open(owner.config.clone(), &owner.store, Role::Daemon).await?;
        let started = async {
            node.mount_tree().await?;
            node.serve_operator().await?;
            node.serve_snapshots().await?;
            node.serve_mirror().await
        };
        if let Err(error) = started.await {
            node.close().await;
            return Err(error.into());
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        node.run().await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        node.close().await;
        Ok(())
    })
}

/// Owns the store while something is mounted or asked for. The first line on
/// standard output says whether it listens.
pub(super) fn serve(owner: &Owner) -> Result<(), Exit> {
    init_logging(owner.verbose);
    let runtime = runtime()?;
    runtime.block_on(async {
        match Node::open(owner.config.clone(), &owner.store, Role::Started).await {
            Ok(node) => {
                say(READY);
                node.run().await;
                node.close().await;
                Ok(())
            }
            Err(error) => {
                let failure = error.failure();
                say(&serde_json::to_string(&failure).unwrap_or_default());
                Err(failure.into())
            }
        }
    })
}

/// One line to whoever started the process, who may be gone.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    memory::keep_little();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().min(4)))
        .enable_all()
        .build()
        .map_err(|error| Exit::new(FailureKind::Failed, format!("starting the runtime: {error}")))
}

impl From<NodeError> for Exit {
    fn from(error: NodeError) -> Self {
        error.failure().into()
    }
}
