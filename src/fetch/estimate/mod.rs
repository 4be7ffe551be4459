//! What a node knows about its sources: speeds, round trips, scores. Pure.
//!
//! Every estimator takes the time as an argument, counted from an epoch of the
//! caller's choice that never goes backwards, and has bounded memory.

mod piece_time;
mod rtt;
mod score;
mod speed;

pub use piece_time::{PieceTime, Quantile};
pub use rtt::{RttWindow, TAU_DEFAULT, TAU_MAX, TAU_MIN};
pub use score::{
    CustomScore, LAN_NET, NoCustomScore, PeerSpeed, ROUND, SpeedWindow, TAU_S, TEMPERATURE,
    Weights, choose, net_scores, softmax, utility,
};
pub use speed::{DEFAULT_SPEED, SpeedMeter, tunnels_for};
