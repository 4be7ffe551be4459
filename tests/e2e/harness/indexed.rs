//! The small real image in a registry, together with its index.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::lab_images;
use super::layout::layer_bytes;
use super::line::Line;
use super::peersync::Peersync;
use super::registry::Registry;

/// Its name in the registry.
pub(crate) const IMAGE: &str = "test/small:v1";

/// A registry that holds the small image and its index, pushed by a node that
/// has built it.
pub(crate) struct Indexed {
    pub(crate) registry: Registry,
    pub(crate) image_bytes: u64,
}

impl Indexed {
    fn new() -> Self {
        let registry = Registry::start();
        let layout = lab_images().join("oci");
        registry.push(&layout, "v1", IMAGE);
        let builder = Peersync::new();
        let image = format!("{}/{IMAGE}", registry.address);
        builder.run(&["index", "build", &image]);
        builder.run(&["index", "push", &image]);
        Self { registry, image_bytes: layer_bytes(&layout, "v1") }
    }

    /// A new line to the registry and the image's name at its near end.
    pub(crate) fn line(&self) -> (Line, String) {
        let line = Line::to(self.registry.address);
        let image = format!("{}/{IMAGE}", line.address);
        (line, image)
    }
}

/// One for all tests that run at the same time, ended by the last of them;
/// each test has its own line to it.
pub(crate) fn lazy_image() -> Arc<Indexed> {
    static SHARED: Mutex<Weak<Indexed>> = Mutex::new(Weak::new());
    // A test that failed while it made one leaves nothing half-made behind.
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let made = Arc::new(Indexed::new());
        *shared = Arc::downgrade(&made);
        made
    })
}
