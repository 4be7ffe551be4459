//! A store with something of everything in it, and what must be in it.

use peersync::store::{ImageRecord, Store, Stream};
use peersync::types::{BlockHash, Digest, ObjectId};

use crate::layer::Layer;
use crate::util::Content;

/// What was put into a store by [`Populated::fill`].
pub struct Populated {
    /// Complete objects, without those of the layers.
    pub whole: Vec<Content>,
    /// An object of which the even blocks are there.
    pub half: Content,
    /// A layer that is wholly there, and one of which only the index is.
    pub layers: [Layer; 2],
}

pub const IMAGE: &str = "docker.io/library/image:1";
pub const NAME: &str = "images/docker.io";

impl Populated {
    pub fn new() -> Self {
        Self::with([Layer::new(4), Layer::new(5)])
    }

    /// What the golden store of version 1 has.
    pub fn of_version_1() -> Self {
        Self::with([Layer::of_version_1(4), Layer::of_version_1(5)])
    }

    /// As little as there can be of each.
    pub fn small() -> Self {
        Self {
            whole: vec![Content::random(1, 64, 300), Content::random(2, 64, 64)],
            half: Content::random(3, 16, 16 * 80),
            layers: [Layer::small(4), Layer::small(5)],
        }
    }

    fn with(layers: [Layer; 2]) -> Self {
        Self {
            whole: vec![Content::random(1, 4096, 30_000), Content::random(2, 4096, 4096)],
            half: Content::random(3, 512, 512 * 500),
            layers,
        }
    }

    pub fn fill(&self, store: &Store) {
        for content in &self.whole {
            content.put_all(store);
        }
        let half = store.add_object(&self.half.spec).unwrap();
        for index in (0..self.half.spec.block_count()).step_by(2) {
            store.put_block(&half, index, &self.half.block(index)).unwrap();
        }
        let [here, index] = &self.layers;
        let slots = [here.store(store), {
            for part in &index.parts {
                part.put_all(store);
            }
            index.add(store).unwrap()
        }];
        let chain = Digest::of(b"chain");
        store.put_chain(&chain, &slots).unwrap();
        store.name_slot(NAME).unwrap();
        store.put_document(&Digest::of(b"{}"), b"{}").unwrap();
        let image = ImageRecord {
            manifest: Digest::of(b"{}"),
            chain,
            resolved_at: 1_700_000_000,
            platform: "linux/amd64".into(),
        };
        store.put_image(IMAGE, &image).unwrap();
        for layer in &self.layers {
            store.add_origin(&layer.blob(), "registry.example/library/image").unwrap();
        }
        let first = &self.whole[0];
        let hash = BlockHash::of(&first.data[100..200]);
        store.add_contents([(hash, first.spec.id(), 100, 100)]).unwrap();
        let staging = store.stage(&Digest::of(b"staged")).unwrap();
        if staging.resumed().is_some() {
            return;
        }
        staging.append(Stream::Literals, b"header").unwrap();
        staging.put(Stream::File(0), 0, &first.block(0)).unwrap();
        staging.checkpoint(b"state").unwrap();
    }

    /// All contents of which something is there.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        let here = &self.layers[0];
        self.whole
            .iter()
            .chain([&self.half])
            .chain(&here.parts)
            .chain(&here.objects)
            .chain(&self.layers[1].parts)
    }

    /// Whether the block was put into the store.
    pub fn had(&self, id: &ObjectId, index: u32) -> bool {
        *id != self.half.spec.id() || index.is_multiple_of(2)
    }

    /// Reads everything. Never a wrong byte; `lacks` is told what is not there.
    pub fn read(&self, store: &Store, mut lacks: impl FnMut(&ObjectId, u32)) {
        for content in self.contents() {
            let id = content.spec.id();
            for (block, index) in content.spec.blocks().zip(0..) {
                let mut bytes = Vec::new();
                let (start, len) = (block.offset as usize, block.len as usize);
                match store.read_at(&id, block.offset, len, &mut bytes) {
                    Ok(true) => assert_eq!(bytes, content.data[start..start + len]),
                    Ok(false) | Err(_) if self.had(&id, index) => lacks(&id, index),
                    _ => {}
                }
            }
        }
    }

    /// Whether all that is known of layers and images is there.
    pub fn is_known(&self, store: &Store) -> bool {
        let layers = self.layers.iter().all(|layer| {
            let objects = store.layer_objects(&layer.key).map_or(0, |objects| objects.len());
            let blob = store.blob(&layer.blob()).ok().flatten();
            let homes = layer
                .objects
                .iter()
                .all(|o| store.homes(&o.spec.id()).is_ok_and(|homes| homes == [layer.blob()]));
            let origins = store.origins(&layer.blob()).map_or(0, |origins| origins.len());
            objects == layer.parts.len() + layer.objects.len()
                && blob.is_some_and(|blob| blob.root == layer.root.encode())
                && homes
                && origins == 1
        });
        let image = store.image(IMAGE).ok().flatten();
        let chain = store.chain(&Digest::of(b"chain")).ok().flatten();
        let name = store.find_name(NAME).ok().flatten();
        let document = store.document(&Digest::of(b"{}")).ok().flatten();
        let first = &self.whole[0];
        let content = store.find_content(&BlockHash::of(&first.data[100..200]));
        layers
            && image.is_some_and(|image| image.platform == "linux/amd64")
            && chain.is_some_and(|chain| chain.layers.len() == 2)
            && name.is_some()
            && document.as_deref() == Some(b"{}")
            && content.is_ok_and(|found| found == [(first.spec.id(), 100, 100)])
    }
}
