//! nginx over a directory, as one sets it up for large files.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::registry::free_address;
use crate::harness::{Running, scratch, wait_until};

/// Ended when dropped.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    process: Running,
    _place: tempfile::TempDir,
}

impl Nginx {
    /// `None` where there is no nginx.
    pub(crate) fn serve(root: &Path) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        let program = program.into_iter().find(|path| Path::new(path).exists())?;
        let (place, address) = (scratch(), free_address());
        let dir = place.path().display();
        let config = place.path().join("nginx.conf");
        // Its workers may not read the scratch directory as somebody else.
        let text = format!(
            "daemon off;\nuser root;\nworker_processes auto;\npid {dir}/pid;\nerror_log {dir}/log;\n\
             events {{}}\nhttp {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  \
             client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  \
             fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  \
             scgi_temp_path {dir}/scgi;\n  server {{\n    listen {address};\n    root {};\n  }}\n}}\n",
            root.display()
        );
        fs::write(&config, text).expect("nginx configuration");
        let process = Running::start(Command::new(program).arg("-c").arg(&config));
        wait_until("nginx answers", Duration::from_secs(20), || {
            TcpStream::connect(address).is_ok()
        });
        Some(Self { address, process, _place: place })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it only where it is asked to end.
        let _ = kill(Pid::from_raw(self.process.id()), Signal::SIGTERM);
        self.process.wait(Duration::from_secs(10));
    }
}
