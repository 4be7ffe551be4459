//! Those who call: heard out for a bounded time, and a bounded number at once.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::super::link::Link;
use super::super::{quic, tcp};
use super::Inner;

/// A pause after the system could not accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Inner {
    pub(super) async fn accept_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly.
                    warn!("accepting a tunnel: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(caller) = self.caller(address.ip()) else {
                debug!(%address, "too many callers");
                continue;
            };
            let inner = Arc::clone(&self);
            let connect = async move {
                tcp::accept(&inner.tls, inner.me, stream, address, tcp::READ_MAX).await
            };
            self.receive(caller, address, connect);
        }
    }

    pub(super) async fn accept_quic(self: Arc<Self>) {
        let Some(quic) = &self.quic else { return };
        while let Some(incoming) = quic.incoming().await {
            let address = incoming.remote_address();
            // Where there are many, each must show that it is where it says it is
            // before it costs more than a packet.
            let many =
                self.table().callers.values().sum::<usize>() * 2 >= self.settings.callers_max;
            if many && !incoming.remote_address_validated() && incoming.may_retry() {
                let _ = incoming.retry();
                continue;
            }
            let Some(caller) = self.caller(address.ip()) else {
                incoming.refuse();
                continue;
            };
            self.receive(caller, address, quic::accept(self.me, incoming));
        }
    }

    /// Hears out somebody who has called.
    fn receive(
        self: &Arc<Self>,
        caller: Caller,
        address: SocketAddr,
        connect: impl Future<Output = io::Result<Link>> + Send + 'static,
    ) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let time = inner.settings.handshake;
            let greet = async { inner.greet(connect.await?).await };
            let greeted = inner.closed.run_until_cancelled(timeout(time, greet)).await;
            drop(caller);
            match greeted {
                Some(Ok(Ok(greeted))) => {
                    inner.start(greeted).await;
                }
                Some(Ok(Err(error))) => debug!(%address, "caller not let in: {error}"),
                Some(Err(_)) => debug!(%address, "caller took too long"),
                None => {}
            }
        });
    }

    /// Counts a caller in; `None` if there are too many.
    pub(super) fn caller(self: &Arc<Self>, address: IpAddr) -> Option<Caller> {
        let source = source(address);
        let mut table = self.table();
        let all: usize = table.callers.values().sum();
        let here = table.callers.get(&source).copied().unwrap_or(0);
        if all >= self.settings.callers_max || here >= self.settings.callers_per_source {
            return None;
        }
        table.callers.insert(source, here + 1);
        Some(Caller { inner: Arc::clone(self), source })
    }
}

/// Whoever has an IPv6 address has a whole network of them.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

/// A caller that has not proved itself yet.
pub(super) struct Caller {
    inner: Arc<Inner>,
    source: IpAddr,
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut table = self.inner.table();
        if let Some(count) = table.callers.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                table.callers.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_address_or_a_network() {
        let source = |text: &str| source(text.parse().expect("address")).to_string();
        assert_eq!(source("10.0.0.1"), "10.0.0.1");
        assert_eq!(source("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(source("2001:db8:1:2:3::4"), "2001:db8:1:2::");
    }
}
