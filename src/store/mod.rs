//! The block store.
