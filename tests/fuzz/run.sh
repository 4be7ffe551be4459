#!/bin/sh
# Builds every fuzz target and runs each for a fixed time from the kept corpus.
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]
#
# Without SECONDS, 20 for each target.
#
# A stable compiler will do: the flags below are what cargo-fuzz uses, less the
# address sanitizer. `cargo +nightly fuzz run --fuzz-dir tests/fuzz TARGET` has
# that too. What a run finds beyond the corpus is left out; what makes a target
# fail is kept in tests/fuzz/artifacts.
set -eu

seconds=${1:-20}
[ $# -eq 0 ] || shift
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
# Flags of its own, so a directory of its own.
export CARGO_TARGET_DIR="$PWD/target"
[ $# -gt 0 ] || set -- tar gzip zstd span index wire handshake mirror manifest

RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" \
    cargo build --quiet --release --target "$host" --bins

mkdir -p artifacts
for target in "$@"; do
    found=$(mktemp -d)
    log=$(mktemp)
    echo "fuzz: $target for $seconds s"
    if ! "target/$host/release/$target" "$found" "corpus/$target" \
        -max_total_time="$seconds" -rss_limit_mb=1024 -malloc_limit_mb=512 -timeout=20 \
        -max_len=65536 -artifact_prefix="artifacts/$target-" -print_final_stats=1 >"$log" 2>&1; then
        tail -60 "$log"
        rm -rf "$found" "$log"
        exit 1
    fi
    grep -E "stat::number_of_executed_units|stat::peak_rss_mb" "$log" | sed 's/^/    /'
    rm -rf "$found" "$log"
done
