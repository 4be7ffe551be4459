//! How fast a first pass is, against bare inflate.
//!
//! `PEERSYNC_BENCH_BLOB=layer.tar.gz cargo bench --bench first_pass` reads that
//! blob; without it, one is made of the files of this machine's `/usr`, at most
//! 256 MiB, compressed with gzip. Everything runs from memory into a sink that
//! keeps nothing, with decompression on one thread and the rest on another.
//! Also prints the sizes of the index parts.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use bytes::Bytes;
use peersync::layer::build::{
    BuiltLayer, DecodeLimits, Decoded, Decompressed, Decompressor, LayerBuilder, NullSink, Sink,
    SinkError,
};
use peersync::layer::seek::{SeekTable, SeekTableBuilder};
use peersync::layer::skeleton::SkeletonWriter;
use peersync::layer::tree::TreeLimits;
use peersync::types::{BlockHash, ObjectSpec, VerifiedBlock};

/// Bytes of the blob given at once, as they might come from a connection.
const READ: usize = 256 << 10;
const ROUNDS: usize = 5;

fn main() {
    let blob = Bytes::from(match std::env::var_os("PEERSYNC_BENCH_BLOB") {
        Some(path) => std::fs::read(path).expect("a readable blob"),
        None => own_blob(),
    });
    let mut bare = Duration::MAX;
    let mut one = Duration::MAX;
    let mut two = Duration::MAX;
    let mut stream = 0;
    for _ in 0..ROUNDS {
        let (time, length) = timed(|| bare_inflate(&blob));
        (bare, stream) = (bare.min(time), length);
        one = one.min(timed(|| decompress(&blob, |_| {})).0);
        two = two.min(timed(|| pipeline(&blob, NullSink)).0);
    }
    let speed = |time: Duration| stream as f64 / time.as_secs_f64() / f64::from(1 << 20);
    println!("stream {stream} bytes, blob {} bytes", blob.len());
    println!("bare inflate    {:7.1} MiB/s", speed(bare));
    println!("first stage     {:7.1} MiB/s", speed(one));
    println!("first pass      {:7.1} MiB/s", speed(two));
    let ratio = bare.as_secs_f64() / two.as_secs_f64();
    let verdict = if ratio >= 0.8 { "met" } else { "MISSED" };
    println!("ratio           {ratio:7.3} (target: at least 0.8: {verdict})");
    let (bare, ..) = cpu(|| bare_inflate(&blob));
    let (first, _) = cpu(|| decompress(&blob, |_| {}));
    let (.., (second, ())) = pipeline(&blob, NullSink);
    println!("CPU seconds: bare {bare:.3}, first stage {first:.3}, second stage {second:.3}");
    println!("ratio of CPU    {:7.3} (with two idle cores)", bare / first.max(second));
    sizes(&blob);
}

/// Seconds that this thread ran, whatever else ran on the machine.
fn cpu<T>(run: impl FnOnce() -> T) -> (f64, T) {
    let now = || {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
        let nanos = stat.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        nanos.expect("nanoseconds") / 1e9
    };
    let start = now();
    let result = run();
    (now() - start, result)
}

fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = run();
    (start.elapsed(), result)
}

/// zlib-rs alone, one member after the other; a blob that is not gzip runs
/// through the first stage instead.
fn bare_inflate(blob: &[u8]) -> u64 {
    if !blob.starts_with(&[0x1f, 0x8b]) {
        let mut total = 0;
        decompress(&Bytes::copy_from_slice(blob), |bytes| total += bytes.len() as u64);
        return total;
    }
    let mut out = vec![0; 256 << 10];
    let (mut at, mut total) = (0, 0u64);
    let mut stream = Box::new(libz_rs_sys::z_stream::default());
    // SAFETY: a valid stream with default allocators; 15 + 16 asks for gzip.
    let result = unsafe {
        libz_rs_sys::inflateInit2_(
            &raw mut *stream,
            31,
            libz_rs_sys::zlibVersion(),
            size_of::<libz_rs_sys::z_stream>() as i32,
        )
    };
    assert_eq!(result, libz_rs_sys::Z_OK);
    while at < blob.len() {
        let input = &blob[at..blob.len().min(at + READ)];
        stream.next_in = input.as_ptr().cast_mut();
        stream.avail_in = input.len() as u32;
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = out.len() as u32;
        // SAFETY: both buffers are valid for the lengths given.
        let result = unsafe { libz_rs_sys::inflate(&raw mut *stream, libz_rs_sys::Z_NO_FLUSH) };
        at += input.len() - stream.avail_in as usize;
        total += (out.len() - stream.avail_out as usize) as u64;
        match result {
            libz_rs_sys::Z_OK | libz_rs_sys::Z_BUF_ERROR => {}
            libz_rs_sys::Z_STREAM_END => {
                // SAFETY: the stream is initialised.
                unsafe { libz_rs_sys::inflateReset(&raw mut *stream) };
            }
            other => panic!("inflate: {other}"),
        }
    }
    // SAFETY: the stream is initialised and not used again.
    unsafe { libz_rs_sys::inflateEnd(&raw mut *stream) };
    total
}

fn decompress(blob: &Bytes, mut out: impl FnMut(Bytes)) -> (SeekTable, Decompressed) {
    let mut decompressor = Decompressor::new(DecodeLimits::default());
    let mut table = SeekTableBuilder::new();
    let mut take = |decoded| match decoded {
        Decoded::Stream(bytes) => out(bytes),
        Decoded::Point(point) => table.push(point),
    };
    for at in (0..blob.len()).step_by(READ) {
        let mut input = blob.slice(at..blob.len().min(at + READ));
        while let Some(decoded) = decompressor.step(&mut input).expect("a good blob") {
            take(decoded);
        }
    }
    while let Some(decoded) = decompressor.end().expect("a good blob") {
        take(decoded);
    }
    let end = decompressor.finish();
    let table = table.finish(end.compression, end.blob_length, end.stream_length);
    (table, end)
}

fn pipeline<S: Sink + Send>(blob: &Bytes, mut sink: S) -> (SeekTable, BuiltLayer, S, (f64, ())) {
    let (sender, receiver) = sync_channel::<Bytes>(8);
    std::thread::scope(|scope| {
        let second = scope.spawn(move || {
            let mut builder = LayerBuilder::tar(TreeLimits::default());
            let time = cpu(|| {
                for bytes in receiver {
                    builder.feed(bytes, &mut sink).expect("a good layer");
                }
            });
            let built = builder.finish(&mut sink).expect("a good layer");
            (built, sink, time)
        });
        let (table, _) = decompress(blob, |bytes| sender.send(bytes).expect("a live stage"));
        drop(sender);
        let (built, sink, time) = second.join().expect("a stage that ends");
        (table, built, sink, time)
    })
}

/// Keeps the literals.
struct Literals(Vec<u8>);

impl Sink for Literals {
    fn block(
        &mut self,
        _: peersync::layer::build::BuildObject,
        _: u64,
        _: VerifiedBlock,
    ) -> Result<(), SinkError> {
        Ok(())
    }

    fn literal(&mut self, bytes: &Bytes) -> Result<(), SinkError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn file_done(&mut self, _: u32, _: &ObjectSpec, _: &BlockHash) -> Result<(), SinkError> {
        Ok(())
    }
}

fn sizes(blob: &Bytes) {
    let (table, built, literals, _) = pipeline(blob, Literals(Vec::new()));
    let (time, skeleton) = timed(|| {
        let mut writer = SkeletonWriter::new(&built.layout).expect("memory");
        writer.literal(&literals.0).expect("its literals");
        writer.finish().expect("all literals")
    });
    let seek = table.encode();
    let parts = [
        ("tree", built.tree.len()),
        ("blocks", built.blocks.len()),
        ("seek", seek.len()),
        ("skeleton", skeleton.len()),
    ];
    let percent = |len: usize| 100.0 * len as f64 / built.stream_length as f64;
    for (name, len) in parts {
        println!("{name:<9} {len:>10} bytes {:6.3} %", percent(len));
    }
    let all = parts.iter().map(|(_, len)| len).sum();
    let verdict = if percent(all) <= 1.0 { "met" } else { "MISSED" };
    println!("index     {all:>10} bytes {:6.3} % (target: at most 1: {verdict})", percent(all));
    println!(
        "{} objects, {} seek points, {} literal bytes packed in {time:.1?}",
        built.objects.len(),
        table.points().len(),
        literals.0.len(),
    );
}

/// A layer of this machine's own files.
fn own_blob() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut todo = vec![std::path::PathBuf::from("/usr")];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if builder.get_ref().len() > 256 << 20 {
                break;
            } else if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                let name = entry.path();
                let name = name.strip_prefix("/").expect("below /usr");
                builder.append_path_with_name(entry.path(), name).ok();
            }
        }
    }
    gzip(&builder.into_inner().expect("in memory"))
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; data.len() + data.len() / 100 + 1024];
    let mut stream = Box::new(libz_rs_sys::z_stream::default());
    stream.next_in = data.as_ptr().cast_mut();
    stream.avail_in = data.len() as u32;
    stream.next_out = out.as_mut_ptr();
    stream.avail_out = out.len() as u32;
    // SAFETY: a valid stream with default allocators and buffers that are valid
    // for the lengths given; it is not used after it was ended.
    let result = unsafe {
        libz_rs_sys::deflateInit2_(
            &raw mut *stream,
            6,
            libz_rs_sys::Z_DEFLATED,
            31,
            8,
            libz_rs_sys::Z_DEFAULT_STRATEGY,
            libz_rs_sys::zlibVersion(),
            size_of::<libz_rs_sys::z_stream>() as i32,
        );
        let result = libz_rs_sys::deflate(&raw mut *stream, libz_rs_sys::Z_FINISH);
        libz_rs_sys::deflateEnd(&raw mut *stream);
        result
    };
    assert_eq!(result, libz_rs_sys::Z_STREAM_END);
    out.truncate(stream.total_out as usize);
    out
}
