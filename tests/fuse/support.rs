//! Mounts for tests, and programs that use them.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use peersync::fs::{FileSystem, FsOptions, Root, Slot};
use peersync::fuse::{MountHandle, MountOptions, mount};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::memory::{Item, MemoryCatalog, MemoryReader, layer, slot};

/// How long anything may take that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the tests that mount can run here. Where there is no FUSE at all, or
/// no root, they are left out; where there is, they must work.
pub fn can_mount() -> bool {
    let missing = if !Path::new("/dev/fuse").exists() {
        "no /dev/fuse"
    } else if !nix::unistd::geteuid().is_root() {
        "not root"
    } else {
        return true;
    };
    eprintln!("left out: {missing}");
    false
}

/// A mount over a catalog and a reader in memory.
pub struct Mounted {
    pub catalog: Arc<MemoryCatalog>,
    pub reader: Arc<MemoryReader>,
    pub handle: Arc<MountHandle>,
    pub ended: mpsc::Receiver<()>,
    /// Besides the mount point, a place for files.
    pub dir: TempDir,
    _runtime: Runtime,
}

impl Mounted {
    /// Mounts one chain of these layers: the whole tree, for root.
    pub fn new(layers: &[&[Item]]) -> Self {
        Self::with(layers, Root::Whole, FsOptions::default(), |_| ())
    }

    pub fn with(
        layers: &[&[Item]],
        root: Root,
        fs_options: FsOptions,
        change: impl FnOnce(&mut MountOptions),
    ) -> Self {
        let reader = MemoryReader::new();
        let catalog = MemoryCatalog::new();
        let views: Vec<_> =
            (1..).zip(layers).map(|(number, items)| layer(slot(number), items, &reader)).collect();
        for view in &views {
            catalog.add_layer(view);
        }
        catalog.add_chain(CHAIN(), &views);
        catalog.add_view(VIEW(), CHAIN(), "image", &views);
        Self::over(catalog, reader, root, fs_options, change)
    }

    pub fn over(
        catalog: Arc<MemoryCatalog>,
        reader: Arc<MemoryReader>,
        root: Root,
        fs_options: FsOptions,
        change: impl FnOnce(&mut MountOptions),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let point = dir.path().join("mnt");
        std::fs::create_dir(&point).expect("a mount point");
        // For users other than root.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), mode).expect("own directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime");
        let mut options = MountOptions::new("a test, of course");
        change(&mut options);
        let fs = FileSystem::new(root, catalog.clone(), reader.clone(), fs_options);
        let (tell, ended) = mpsc::channel();
        let on_end = move || {
            let _ = tell.send(());
        };
        let handle = mount(fs, &point, &options, runtime.handle().clone(), on_end)
            .unwrap_or_else(|error| panic!("/dev/fuse is there, but: {error}"));
        Self { catalog, reader, handle: Arc::new(handle), ended, dir, _runtime: runtime }
    }

    pub fn point(&self) -> &Path {
        self.handle.dir()
    }

    /// A path in the chain.
    pub fn chain(&self, path: &str) -> PathBuf {
        let mut names = std::fs::read_dir(self.point().join("chains")).expect("chains");
        let name = names.next().expect("a chain").expect("its name").file_name();
        self.point().join("chains").join(name).join(path)
    }

    /// A path in the layer of this number, counted from 1 at the bottom.
    pub fn layer(&self, number: u32, path: &str) -> PathBuf {
        use peersync::fs::Catalog;
        let name = self.catalog.layer_name(slot(number)).expect("a layer");
        self.point().join("layers").join(name).join(path)
    }
}

#[expect(non_snake_case, reason = "a constant but for its checked constructor")]
pub fn CHAIN() -> Slot {
    slot(100)
}

#[expect(non_snake_case, reason = "a constant but for its checked constructor")]
pub fn VIEW() -> Slot {
    slot(101)
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.handle.unmount(true) {
            eprintln!("unmounting: {error}");
        }
        // Whoever still waits for bytes would keep the mount alive.
        self.reader.set(None, &crate::memory::State::Resident);
        if !std::thread::panicking() {
            let ended = self.ended.recv_timeout(PATIENCE);
            assert!(ended.is_ok() || self.handle.is_ended(), "the mount has not ended");
        }
    }
}

/// Runs a shell script with `$1`, `$2`..., which must succeed; its output.
pub fn sh(script: &str, args: &[&Path]) -> String {
    let output =
        Command::new("sh").args(["-ec", script, "sh"]).args(args).output().expect("a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a program to end; `None` if it has not for long.
pub fn ends(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + patience;
    loop {
        match child.try_wait().expect("our child") {
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            status => return status,
        }
    }
}

/// Starts a program, quietly.
pub fn start(program: &str, args: &[&OsStr]) -> Child {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// This test binary as another program: it does `task` and nothing else.
pub fn as_child(task: &str, arg: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command
        .args(["--exact", "children::child", "--nocapture"])
        .env(crate::children::TASK, task)
        .env(crate::children::ARGUMENT, arg);
    command
}

/// An extended attribute of a file itself, or the errno.
pub fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, i32> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
    let name = std::ffi::CString::new(name).expect("a name");
    let mut value = vec![0u8; 4096];
    // SAFETY: the strings end with NUL, and the buffer is as long as we say.
    let len = unsafe {
        nix::libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    match usize::try_from(len) {
        Ok(len) => {
            value.truncate(len);
            Ok(value)
        }
        Err(_) => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}

/// The errno of a result that must be an error.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().expect("an error of the system"),
    }
}
