//! The `peersync-fsck` command.

fn main() {}
