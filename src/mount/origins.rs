//! The repositories that blobs come from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::fetch::Origins;
use crate::oci::registry::Settings;
use crate::oci::{ImageSource, Registry, Source, SourceError, Target};
use crate::store::Store;
use crate::types::Digest;

/// Opens sources of images, and remembers which of them has which blob.
pub struct Repositories {
    store: Arc<Store>,
    registries: Mutex<Registries>,
}

struct Registries {
    settings: Settings,
    registry: Registry,
}

impl Repositories {
    /// Registries as `settings` describe them.
    pub fn new(store: Arc<Store>, settings: Settings) -> Self {
        let registry = Registry::new(settings.clone());
        Self { store, registries: Mutex::new(Registries { settings, registry }) }
    }

    /// Opens the source of an image. With `plain_http` its registry is spoken
    /// to in plain HTTP from now on.
    ///
    /// # Errors
    /// [`SourceError`] where a layout or a host's configuration can't be used.
    pub fn open(
        &self,
        source: &Source,
        plain_http: bool,
    ) -> Result<(Arc<dyn ImageSource>, Target), SourceError> {
        let mut registries = self.registries();
        if let (Source::Registry(reference), true) = (source, plain_http) {
            let host = reference.domain();
            if !registries.settings.plain_http.iter().any(|known| known == host) {
                registries.settings.plain_http.push(host.to_owned());
                registries.registry = Registry::new(registries.settings.clone());
            }
        }
        source.open(&registries.registry)
    }

    /// Notes that a source has a blob.
    pub fn add(&self, blob: &Digest, source: &dyn ImageSource) {
        if let Err(error) = self.store.add_origin(blob, &source.name()) {
            warn!(%blob, "where it came from is not kept: {error}");
        }
    }

    fn registries(&self) -> MutexGuard<'_, Registries> {
        self.registries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origins for Repositories {
    fn sources(&self, blob: &Digest) -> Vec<Arc<dyn ImageSource>> {
        let names = self.store.origins(blob).unwrap_or_else(|error| {
            warn!(%blob, "{error}");
            Vec::new()
        });
        let open = |name: &String| {
            let source: Source = name.parse().ok()?;
            match self.open(&source, false) {
                Ok((source, _)) => Some(source),
                Err(error) => {
                    warn!(%blob, "{error}");
                    None
                }
            }
        };
        names.iter().filter_map(open).collect()
    }
}
