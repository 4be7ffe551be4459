//! What the allocator keeps of memory that nobody uses any more.

/// Most arenas of the allocator. glibc takes eight for each processor, and each
/// keeps what was once allocated in it; a node allocates large buffers, few at a time.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 4;

/// Keeps the allocator from spreading over many arenas. To be called before
/// there are threads.
pub(crate) fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers only, and changes what later allocations do.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
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
