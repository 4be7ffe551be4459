//! The repositories that blobs come from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::fetch::Origins;
use crate::oci::registry::Settings;
use crate::oci::{DockerArchive, ImageSource, Registry, Source, SourceError, Target};
use crate::store::Store;
use crate::types::Digest;

/// Archives whose list of contents is kept: a range of a layer then costs no
/// walk through the file.
const ARCHIVES_MAX: usize = 64;

/// Opens sources of images, and remembers which of them has which blob.
pub struct Repositories {
    store: Arc<Store>,
    registries: Mutex<Registries>,
}

struct Registries {
    settings: Settings,
    registry: Registry,
    /// Archives that were read, at most [`ARCHIVES_MAX`].
    archives: HashMap<PathBuf, Arc<DockerArchive>>,
}

impl Registries {
    fn archive(&mut self, file: &Path) -> Arc<DockerArchive> {
        if self.archives.len() >= ARCHIVES_MAX && !self.archives.contains_key(file) {
            self.archives.clear();
        }
        let new = || Arc::new(DockerArchive::new(file));
        Arc::clone(self.archives.entry(file.to_owned()).or_insert_with(new))
    }
}

impl Repositories {
    /// Registries as `settings` describe them.
    pub fn new(store: Arc<Store>, settings: Settings) -> Self {
        let registry = Registry::new(settings.clone());
        let registries = Registries { settings, registry, archives: HashMap::new() };
        Self { store, registries: Mutex::new(registries) }
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
        if let Source::Archive { file, target } = source {
            return Ok((Arc::new(registries.archive(file)), target.clone()));
        }
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
