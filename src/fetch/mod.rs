//! The fetch engine.
