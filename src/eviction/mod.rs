//! What the store lets go of, so that a site keeps one good copy of everything.
//!
//! Pure: [`plan`] decides from the inventory, from what the neighbours are known
//! to have and from what was promised ([`Ledger`]); who calls it finds out and
//! acts. Two holders never drop the last two copies at once, as each needs the
//! other's promise ([`promise`]).

mod budget;
mod keeper;
mod pace;
mod plan;
pub mod promise;
mod proof;
mod value;

pub use budget::{Budget, Disk, Pressure};
pub use keeper::{LAN_MAX, Member, PeerSet, keeper, outranks, score};
pub use pace::Pace;
pub use plan::{ASKS_MAX, Ask, Class, Drop, EvictionPlan, Item, Verdict, View, plan};
pub use promise::Ledger;
pub use proof::Parties;
pub use value::{Weights, value};

#[cfg(test)]
mod tests;
