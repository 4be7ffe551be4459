//! The reader that fetches what is missing.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

use super::access_points::access_points;
use super::readahead::Readahead;
use super::reader::{BlockReader, ReadError, ReadFuture, ReadRequest, StreamId};
use crate::fetch::{Class, Engine, FetchError};
use crate::store::Store;
use crate::telemetry::Counters;
use crate::types::{ObjectId, ObjectSpec};

/// A block that was here and turned out bad is fetched again this often.
const ROUNDS_MAX: u32 = 3;

/// Reads from the store, and has the engine fetch what is not there.
pub struct ReadThrough {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    engine: Arc<Engine>,
    counters: Arc<Counters>,
    settings: Settings,
    /// Bounded by the number of open files.
    streams: Mutex<HashMap<StreamId, Stream>>,
    next: AtomicU64,
}

/// How a [`ReadThrough`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A read fails after this long without any progress for it.
    pub no_progress: Duration,
    /// Whether anything is fetched that no reader asked for.
    pub readahead: bool,
}

struct Stream {
    object: ObjectId,
    file: Range<u64>,
    readahead: Readahead,
}

impl ReadThrough {
    /// A reader over `store` that misses through `engine`.
    pub fn new(
        store: Arc<Store>,
        engine: Arc<Engine>,
        counters: Arc<Counters>,
        settings: Settings,
    ) -> Self {
        let inner = Inner {
            store,
            engine,
            counters,
            settings,
            streams: Mutex::default(),
            next: AtomicU64::new(1),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl BlockReader for ReadThrough {
    fn open(&self, object: &ObjectId, file: Range<u64>) -> StreamId {
        let inner = &self.inner;
        let id = StreamId(inner.next.fetch_add(1, Ordering::Relaxed));
        let readahead = Readahead::new(file.clone());
        inner.streams().insert(id, Stream { object: *object, file, readahead });
        id
    }

    fn close(&self, stream: StreamId) {
        if self.inner.streams().remove(&stream).is_some() {
            self.inner.engine.close_stream(stream.0);
        }
    }

    fn read_resident(&self, request: &ReadRequest, buf: &mut Vec<u8>) -> Result<bool, ReadError> {
        let inner = &self.inner;
        let here = inner.read_store(&request.object, request.offset, request.len, buf)?;
        inner.store.note_used(&request.object, unix_time());
        if here {
            inner.counters.bytes_read.add(request.len.into());
            inner.counters.bytes_read_resident.add(request.len.into());
            inner.read_ahead(request);
        }
        Ok(here)
    }

    fn read(&self, request: ReadRequest) -> ReadFuture {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let result = inner.fetch(&request).await;
            match &result {
                Ok(bytes) => inner.counters.bytes_read.add(bytes.len() as u64),
                Err(_) => inner.counters.reads_failed.add(1),
            }
            result
        })
    }

    fn backing_file(&self, object: &ObjectId) -> Option<File> {
        let file = self.inner.store.backing_file(object)?;
        self.inner.store.note_used(object, unix_time());
        Some(file)
    }
}

impl Inner {
    async fn fetch(self: &Arc<Self>, request: &ReadRequest) -> Result<Bytes, ReadError> {
        let spec = self.spec(&request.object)?;
        let end = request.offset + u64::from(request.len);
        if end > spec.length() {
            return Err(ReadError::Unknown(request.object));
        }
        let blocks = spec.blocks_in(request.offset, request.len.into());
        for _ in 0..ROUNDS_MAX {
            let missing = self.store.missing(&request.object, blocks.clone());
            let fetch = self.engine.fetch(request.object, missing, self.settings.no_progress);
            self.read_ahead(request);
            let fetched = fetch.await.map_err(read_error)?;
            let mut out = BytesMut::with_capacity(request.len as usize);
            if self.collect(request, &spec, blocks.clone(), &fetched, &mut out)? {
                let out = out.freeze();
                self.look_for_points(request, &out);
                return Ok(out);
            }
        }
        Err(ReadError::Store(format!(
            "object {}: blocks turn out bad again and again",
            request.object
        )))
    }

    /// Puts the span together from what was fetched and what was here; `false`
    /// if something that was here is not any more.
    fn collect(
        &self,
        request: &ReadRequest,
        spec: &ObjectSpec,
        blocks: Range<u32>,
        fetched: &HashMap<u32, Bytes>,
        out: &mut BytesMut,
    ) -> Result<bool, ReadError> {
        let end = request.offset + u64::from(request.len);
        let mut buffer = Vec::new();
        for index in blocks {
            let Some(entry) = spec.block(index) else {
                return Err(ReadError::Unknown(request.object));
            };
            let from = request.offset.max(entry.offset);
            let to = end.min(entry.offset + u64::from(entry.len));
            if let Some(data) = fetched.get(&index) {
                let at = |offset: u64| (offset - entry.offset) as usize;
                out.extend_from_slice(&data[at(from)..at(to)]);
            } else {
                buffer.clear();
                if !self.read_store(&request.object, from, (to - from) as u32, &mut buffer)? {
                    return Ok(false);
                }
                out.extend_from_slice(&buffer);
            }
        }
        Ok(true)
    }

    fn read_store(
        &self,
        object: &ObjectId,
        offset: u64,
        len: u32,
        buf: &mut Vec<u8>,
    ) -> Result<bool, ReadError> {
        self.store
            .read_at(object, offset, len as usize, buf)
            .map_err(|error| ReadError::Store(error.to_string()))
    }

    /// Asks for what a sequential reader will want next.
    fn read_ahead(&self, request: &ReadRequest) {
        if !self.settings.readahead {
            return;
        }
        let span = request.offset..request.offset + u64::from(request.len);
        let ahead = self.streams().get_mut(&request.stream).and_then(|s| s.readahead.read(span));
        if let Some(ahead) = ahead {
            self.prefetch(request, ahead, Class::Sequential);
        }
    }

    /// The beginning of a file may tell where its readers look next.
    fn look_for_points(&self, request: &ReadRequest, data: &[u8]) {
        if !self.settings.readahead {
            return;
        }
        let start = {
            let streams = self.streams();
            let Some(stream) = streams.get(&request.stream) else { return };
            if stream.object != request.object || stream.file.start != request.offset {
                return;
            }
            stream.file.clone()
        };
        for point in access_points(data, start.end - start.start) {
            let point = start.start + point.start..start.start + point.end;
            self.prefetch(request, point, Class::AccessPoint);
        }
    }

    fn prefetch(&self, request: &ReadRequest, span: Range<u64>, class: Class) {
        let Ok(spec) = self.spec(&request.object) else { return };
        let blocks = spec.blocks_in(span.start, span.end - span.start);
        let missing = self.store.missing(&request.object, blocks);
        if !missing.is_empty() {
            self.engine.prefetch(request.stream.0, request.object, missing, class);
        }
    }

    fn spec(&self, object: &ObjectId) -> Result<Arc<ObjectSpec>, ReadError> {
        self.store
            .spec(object)
            .map_err(|error| ReadError::Store(error.to_string()))?
            .ok_or(ReadError::Unknown(*object))
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<StreamId, Stream>> {
        // A panic while the lock was held left no half-made change behind.
        self.streams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn read_error(error: FetchError) -> ReadError {
    match error {
        FetchError::NoProgress(time) => ReadError::NoProgress(time),
        FetchError::Closed => ReadError::Closed,
        error => ReadError::Unavailable(error.to_string()),
    }
}
