//! Images as mounts: from a name to layers with indexes, and what the file
//! system shows of them.

pub mod artifact;
mod care;
mod catalog;
mod images;
mod index;
mod origins;
mod peers;
mod prepare;
mod table;

pub use care::Care;
pub use catalog::{NodeCatalog, StatusFiles, view_name};
pub use images::{ImageError, Images, IndexMode, Resolved, Settings, Trust};
pub use origins::Repositories;
pub use table::{Mounted, Mounts};
