//! Rebuilds a layer's exact tar stream out of its skeleton and objects.

use crate::types::{Digest, DigestHasher};

use super::skeleton::{SegmentKind, Skeleton, SkeletonError};

/// Bytes handled at once, at most.
const CHUNK: usize = 256 << 10;

/// Where the content of a layer's objects is read.
pub trait ReadObject {
    /// Why content can't be read.
    type Error;

    /// Fills `out` with bytes of object number `object`, from byte `offset`.
    ///
    /// # Errors
    /// Anything that keeps all of `out` from being filled.
    fn read(&mut self, object: u32, offset: u64, out: &mut [u8]) -> Result<(), Self::Error>;
}

/// Why a stream can't be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError<R, W> {
    /// The skeleton is damaged.
    #[error(transparent)]
    Skeleton(#[from] SkeletonError),
    /// Content can't be read.
    #[error("the layer's content could not be read")]
    Read(R),
    /// The stream can't be written.
    #[error("the rebuilt stream could not be written")]
    Write(W),
}

/// Writes the whole stream, piece by piece. Memory is constant.
///
/// # Errors
/// [`RebuildError`], with whatever the reader or writer fails with.
pub fn rebuild<R: ReadObject, W>(
    skeleton: &Skeleton,
    objects: &mut R,
    mut write: impl FnMut(&[u8]) -> Result<(), W>,
) -> Result<(), RebuildError<R::Error, W>> {
    let layout = skeleton.layout();
    let mut literals = skeleton.literals()?;
    let mut buffer = vec![0; CHUNK];
    for segment in layout.segments_in(0..layout.stream_length()) {
        let mut at = segment.stream.start;
        while at < segment.stream.end {
            let left = segment.stream.end - at;
            let piece = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let piece = &mut buffer[..piece];
            match segment.kind {
                SegmentKind::Literal => literals.fill(piece)?,
                SegmentKind::Content { object, offset } => {
                    let offset = offset + (at - segment.stream.start);
                    objects.read(object, offset, piece).map_err(RebuildError::Read)?;
                }
            }
            write(piece).map_err(RebuildError::Write)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// The SHA-256 of the rebuilt stream: the layer's diffID, if all is as it should be.
///
/// # Errors
/// [`RebuildError`].
pub fn rebuilt_digest<R: ReadObject>(
    skeleton: &Skeleton,
    objects: &mut R,
) -> Result<Digest, RebuildError<R::Error, std::convert::Infallible>> {
    let mut hasher = DigestHasher::default();
    rebuild(skeleton, objects, |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hasher.finish())
}
