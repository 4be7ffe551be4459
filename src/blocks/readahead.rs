//! How far to read ahead of a stream. Pure.
//!
//! The window opens when a read continues where the last one ended, doubles
//! with each such read that comes near its end, and closes on a jump.

use std::ops::Range;

/// First window of a stream that turned out to be sequential, in bytes.
const WINDOW_MIN: u64 = 512 << 10;
/// Largest window, in bytes: one second of a 256 Mbit/s line.
const WINDOW_MAX: u64 = 32 << 20;
/// A read that begins this close to where the last one ended still continues
/// it: the kernel's readers overtake one another.
const NEAR: u64 = 1 << 20;

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Readahead {
    /// The part of the object that the stream's file occupies.
    file: Range<u64>,
    /// Where a sequential reader would go on.
    next: u64,
    /// End of what was asked for ahead.
    asked: u64,
    window: u64,
}

impl Readahead {
    /// A stream over the given part of an object.
    pub(super) fn new(file: Range<u64>) -> Self {
        Self { next: file.start, asked: file.start, file, window: 0 }
    }

    /// A read of `span` takes place; gives what to ask for ahead of it, if
    /// anything. A stream that begins at the file's start counts as sequential
    /// from its second read on.
    pub(super) fn read(&mut self, span: Range<u64>) -> Option<Range<u64>> {
        let continues = span.start <= self.next + NEAR && span.end + NEAR >= self.next;
        let first =
            self.next == self.file.start && self.window == 0 && self.asked == self.file.start;
        if !continues || (first && span.start != self.file.start) {
            self.window = 0;
            self.next = span.end;
            self.asked = span.end;
            return None;
        }
        self.next = self.next.max(span.end);
        self.asked = self.asked.max(self.next);
        if first {
            return None;
        }
        if self.window == 0 {
            self.window = WINDOW_MIN;
        } else if self.asked - self.next > self.window / 2 {
            return None;
        } else {
            self.window = (self.window * 2).min(WINDOW_MAX);
        }
        let ahead = self.asked..(self.next + self.window).min(self.file.end);
        if ahead.is_empty() {
            return None;
        }
        self.asked = ahead.end;
        Some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_read_asks_for_nothing_ahead() {
        let mut stream = Readahead::new(0..1 << 30);
        assert_eq!(stream.read(0..4096), None);
        let mut stream = Readahead::new(0..1 << 30);
        assert_eq!(stream.read(1 << 29..(1 << 29) + 4096), None);
    }

    #[test]
    fn a_sequential_stream_opens_its_window_step_by_step() {
        let mut stream = Readahead::new(0..1 << 30);
        let mut longest = 0;
        for n in 0..2048u64 {
            if let Some(ahead) = stream.read(n << 17..(n + 1) << 17) {
                longest = longest.max(ahead.end - ((n + 1) << 17));
            }
        }
        assert_eq!(longest, WINDOW_MAX);
    }

    #[test]
    fn a_jump_closes_the_window() {
        let mut stream = Readahead::new(0..1 << 30);
        for n in 0..64u64 {
            stream.read(n << 17..(n + 1) << 17);
        }
        assert_eq!(stream.read(1 << 29..(1 << 29) + 4096), None);
        let again = stream.read((1 << 29) + 4096..(1 << 29) + 8192).expect("continues");
        assert!(again.end - again.start <= WINDOW_MIN + 4096);
    }

    proptest! {
        #[test]
        fn what_is_asked_lies_in_the_file_and_is_asked_once_per_run(
            start in 0u64..1 << 20,
            len in 1u64..1 << 26,
            reads in prop::collection::vec((0u64..1 << 26, 1u64..1 << 18), 1..200),
        ) {
            let file = start..start + len;
            let mut stream = Readahead::new(file.clone());
            for (offset, size) in reads {
                let from = (start + offset % len).min(file.end - 1);
                let span = from..(from + size).min(file.end);
                if let Some(ahead) = stream.read(span.clone()) {
                    prop_assert!(ahead.start < ahead.end && ahead.end <= file.end);
                    prop_assert!(ahead.end - span.end.min(ahead.end) <= WINDOW_MAX + NEAR);
                }
            }
        }
    }
}
