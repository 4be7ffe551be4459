//! The FUSE adapter: translates requests and replies, nothing more.
