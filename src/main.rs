//! The `peersync` command.

fn main() {}
