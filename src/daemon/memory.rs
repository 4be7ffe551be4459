//! What the allocator keeps of memory that nobody uses any more.

/// Most arenas of the allocator. glibc takes eight for each processor, and each
/// keeps what was once allocated in it; a node allocates large buffers, few at a time.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 4;
/// From so many bytes on, an allocation is a mapping of its own: pages that nobody
/// touches take no memory, and all go back when it is freed. Left to itself glibc
/// raises this to the largest mapping ever freed, and then clears each of the
/// 16 MiB buffers that FUSE reads requests into, of which those use little.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: nix::libc::c_int = 4 << 20;
/// Free memory at the end of an arena that stays: some buffers of blocks, or every
/// one that is freed would be given back and asked for again.
#[cfg(target_env = "gnu")]
const KEPT_FREE: nix::libc::c_int = 8 << 20;

/// Keeps the allocator from spreading over many arenas and from keeping large
/// buffers. To be called before there are threads.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers only, and changes what later allocations do.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, KEPT_FREE);
    }
}

/// Gives free memory back to the system: after a first pass most of what it
/// allocated is free, and would stay with the process for ever.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: looks at free memory only, under the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
