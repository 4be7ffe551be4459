//! A deterministic simulation of nodes, lines and a registry around the real
//! schedulers. The seed is printed with every failure.

mod check;
mod net;
mod world;

mod basics;
