//! Looks at everything that a scheduler wants done, before it is done.

use std::time::Duration;

use peersync::fetch::schedule::{Action, BlockKey, Event, Extent, TunnelId, Why, bulk_cap};

use crate::check::Ask;
use crate::world::{Manner, Mutation, World};

impl World {
    /// # Errors
    /// Says what the action does that no action may do.
    pub fn check_action(&mut self, node: usize, action: &Action) -> Result<(), String> {
        match action {
            Action::Fetch { request, tunnel, object, extent, urgent, why } => {
                let keys: Vec<BlockKey> = match extent {
                    Extent::Blocks(range) => {
                        range.clone().map(|index| BlockKey { object: *object, index }).collect()
                    }
                    Extent::Part { index, .. } => vec![BlockKey { object: *object, index: *index }],
                };
                let server = self.tunnels.get(tunnel).and_then(|t| t.server);
                let Some(server) = server else { return Err("asked on no tunnel".into()) };
                self.check_bulk(node, *tunnel, server, *urgent, extent)?;
                let (offset, part) = match extent {
                    Extent::Blocks(_) => (0, false),
                    Extent::Part { offset, .. } => (*offset, true),
                };
                let ask = Ask {
                    source: server,
                    request: *request,
                    at: self.shows(node),
                    offset,
                    part,
                    live: true,
                };
                let (lan, far) = self.nodes[node].scheduler.patience();
                for key in &keys {
                    let number = self.layer.number(key);
                    self.checks.asked(node, *key, number, ask, lan.min(far))?;
                }
                // The rest of what was begun before the neighbour had it may come.
                let begun = offset > 0;
                if !self.net.same_lan(node, server) && *why != Why::Deadline && !begun {
                    keys.iter().try_for_each(|key| self.check_local(node, key))?;
                }
                Ok(())
            }
            Action::Run { request, stream, why, .. } => {
                let block = u64::from(self.layer.block);
                let end = stream.end.min(self.layer.size());
                let blocks = (stream.start / block) as u32..end.div_ceil(block) as u32;
                self.checks.runs.insert((node, *request), (blocks.clone(), self.shows(node)));
                // Only the first block is surely why the run was begun.
                let whole = self.layer.whole;
                match why {
                    Why::Deadline => Ok(()),
                    _ if whole => Ok(()),
                    _ => self.check_local(node, &self.layer.key(blocks.start)),
                }
            }
            Action::Cancel { request } => {
                self.checks.ended(node, *request, false);
                Ok(())
            }
            Action::Close { peer, .. } | Action::Ban { peer } => {
                let source = self.node_of(peer);
                self.checks.source_gone(node, source);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Before a node hears of something: what it is not brought any more.
    pub fn note_event(&mut self, node: usize, event: &Event) {
        match event {
            Event::Done { request } => self.checks.ended(node, *request, true),
            Event::Refused { request, .. } => self.checks.ended(node, *request, false),
            Event::PeerGone { peer } => {
                let source = self.node_of(peer);
                self.checks.source_gone(node, source);
            }
            Event::TunnelDown { tunnel } => {
                if let Some(source) = self.tunnels.get(tunnel).and_then(|t| t.server) {
                    self.checks.source_gone(node, source);
                }
            }
            _ => {}
        }
    }

    /// A block that a living neighbour is known to have is not asked for
    /// elsewhere.
    fn check_local(&self, node: usize, key: &BlockKey) -> Result<(), String> {
        for (peer, has) in &self.nodes[node].known {
            let open = self.nodes[node].tunnels.get(peer).is_some_and(|t| !t.is_empty());
            let honest = self.nodes[*peer].manner == Manner::Honest && self.nodes[*peer].alive;
            if self.net.same_lan(node, *peer) && honest && open && has.contains(key) {
                return Err(format!(
                    "{key:?} asked for across the boundary, neighbour {peer} has it"
                ));
            }
        }
        Ok(())
    }

    /// No bulk goes before an urgent block that the same peer could bring, and
    /// no more of it than the line holds twice.
    fn check_bulk(
        &mut self,
        node: usize,
        tunnel: TunnelId,
        server: usize,
        urgent: bool,
        extent: &Extent,
    ) -> Result<(), String> {
        if urgent && self.mutation != Mutation::SwapPriority {
            return Ok(());
        }
        let bytes = match extent {
            Extent::Blocks(range) => {
                u64::from(range.end - range.start) * u64::from(self.layer.block)
            }
            Extent::Part { len, .. } => u64::from(*len),
        };
        let (scheduler, now) = (&self.nodes[node].scheduler, self.shows(node));
        let known = self.nodes[node].known.get(&server);
        let honest = self.nodes[server].manner == Manner::Honest;
        let waits = |key: &BlockKey| {
            honest
                && known.is_some_and(|k| k.contains(key))
                && matches!(scheduler.state_of(key), Some("queued" | "planned"))
        };
        self.checks.bulk_issued(node, tunnel, now, waits)?;
        if urgent {
            return Ok(());
        }
        let Some((bulk, _, speed, rtt)) = scheduler.tunnel_load(tunnel) else {
            return Err("asked on a tunnel that the scheduler does not know".into());
        };
        let cap = bulk_cap(speed, Duration::from_secs_f64(rtt));
        if bulk > cap.max(bytes) {
            return Err(format!("{bulk} bytes of bulk in flight on a tunnel that may have {cap}"));
        }
        Ok(())
    }

    /// What crosses the boundary, for people.
    pub fn trace(&self, node: usize, action: &Action) {
        let block = u64::from(self.layer.block);
        match action {
            Action::Run { request, stream, class, why, .. } => println!(
                "{:>9.4} node {node} run {request} {}..{} {class:?} {why:?}",
                self.now.as_secs_f64(),
                stream.start / block,
                stream.end / block
            ),
            Action::Fetch { request, tunnel, object, extent, urgent, why } => {
                let first = self.layer.number(&BlockKey { object: *object, index: 0 });
                let server = self.tunnels.get(tunnel).and_then(|t| t.server).unwrap_or(usize::MAX);
                if !self.net.same_lan(node, server) {
                    println!(
                        "{:>9.4} node {node} fetch {request} from {server} {first}+{extent:?} {urgent} {why:?}",
                        self.now.as_secs_f64()
                    );
                }
            }
            Action::Cancel { request } => {
                println!("{:>9.4} node {node} cancel {request}", self.now.as_secs_f64());
            }
            _ => {}
        }
    }
}
