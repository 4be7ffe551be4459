//! `swarm remembered` and `swarm reset`.

use super::Exit;
use super::list::{print_json, table};
use super::owner::Owner;
use crate::admin::{Event, Request};
use crate::config::ByteSize;

pub(super) fn remembered(owner: &Owner) -> Result<(), Exit> {
    match owner.ask(&Request::Remembered, |_| ())? {
        Event::Remembered { here, nodes } if !owner.json => {
            println!("this machine is in  {here}");
            let rows = nodes.iter().map(|node| {
                [
                    node.network.clone(),
                    node.id.clone(),
                    node.address.to_string(),
                    node.speed.map_or("-".to_owned(), |speed| format!("{}/s", ByteSize(speed))),
                    node.failures.to_string(),
                ]
            });
            if !nodes.is_empty() {
                print!("{}", table(["NETWORK", "NODE", "ADDRESS", "SPEED", "IN VAIN"], rows));
            }
            Ok(())
        }
        answer => print_json(&answer),
    }
}

pub(super) fn reset(owner: &Owner, here: bool) -> Result<(), Exit> {
    match owner.ask(&Request::Forget { here }, |_| ())? {
        Event::Forgotten { networks, nodes } if !owner.json => {
            println!("{nodes} nodes of {networks} networks are forgotten");
            Ok(())
        }
        answer => print_json(&answer),
    }
}
