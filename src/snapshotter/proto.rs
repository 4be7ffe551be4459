//! The generated messages and stubs of containerd's API (see `proto/`).

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// `containerd.types`
pub mod types {
    tonic::include_proto!("containerd.types");
}

/// `containerd.services.snapshots.v1`
pub mod services {
    /// The snapshot services.
    pub mod snapshots {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("containerd.services.snapshots.v1");
        }
    }
}

pub use services::snapshots::v1 as snapshots;
