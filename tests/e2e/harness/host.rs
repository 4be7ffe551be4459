//! A registry that can lie: a small HTTP/1.1 server over an OCI layout, with a
//! say in each answer. Real registries are well-behaved; this one is what the
//! tests for bad input talk to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use super::layout::{blob_path, read_manifest_bytes};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

/// An answer: what is said in the head need not be true of the body.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// The connection ends after this many bytes of the body.
    pub(crate) cut: Option<usize>,
}

type Behaviour = dyn Fn(&Request, Reply) -> Reply + Send + Sync;

/// The server; it listens on loopback until the process ends.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        let body = format!("{{\"errors\":[{{\"code\":\"TEST\",\"message\":\"{status}\"}}]}}");
        Self::new(status, body.into_bytes()).with("Content-Type", "application/json")
    }

    pub(crate) fn new(status: u16, body: Vec<u8>) -> Self {
        let length = body.len().to_string();
        let reply = Self { status, headers: BTreeMap::new(), body, cut: None };
        reply.with("Content-Length", &length)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }
}

impl Host {
    /// Serves the layout under every repository name; `behaviour` sees each
    /// right answer and gives the one that is sent.
    pub(crate) fn serve(
        layout: &Path,
        behaviour: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback listener");
        let address = listener.local_addr().expect("address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (layout, seen) = (layout.to_owned(), Arc::clone(&requests));
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let session = Session {
                    layout: layout.clone(),
                    behaviour: Arc::clone(&behaviour),
                    seen: Arc::clone(&seen),
                };
                thread::spawn(move || session.run(stream));
            }
        });
        Self { address, requests }
    }

    /// `HOST/test/image:TAG`.
    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("{}/test/image:{tag}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("requests").clone()
    }
}

struct Session {
    layout: PathBuf,
    behaviour: Arc<Behaviour>,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Session {
    fn run(&self, stream: TcpStream) {
        let Ok(mut writer) = stream.try_clone() else {
            return;
        };
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader) {
            self.seen.lock().expect("requests").push(request.clone());
            let right = right_answer(&self.layout, &request);
            let reply = (self.behaviour)(&request, right);
            let head_only = request.method == "HEAD";
            if write_reply(&mut writer, &reply, head_only).is_err() || reply.cut.is_some() {
                break;
            }
        }
        let _ = writer.shutdown(std::net::Shutdown::Both);
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, headers })
}

/// What an honest registry would say.
fn right_answer(layout: &Path, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/v2/" {
        return Reply::new(200, b"{}".to_vec());
    }
    if let Some((_, reference)) = path.split_once("/manifests/") {
        return match read_manifest_bytes(layout, reference) {
            Some((digest, media_type, bytes)) => Reply::new(200, bytes)
                .with("Content-Type", &media_type)
                .with("Docker-Content-Digest", &digest),
            None => Reply::status(404),
        };
    }
    let blob = path.split_once("/blobs/").map(|(_, digest)| blob_path(layout, digest));
    let Some(bytes) = blob.and_then(|path| fs::read(path).ok()) else {
        return Reply::status(404);
    };
    let whole = bytes.len();
    match request.headers.get("range").and_then(|range| parse_range(range, whole)) {
        Some((first, last)) => Reply::new(206, bytes[first..=last].to_vec())
            .with("Content-Range", &format!("bytes {first}-{last}/{whole}")),
        None => Reply::new(200, bytes),
    }
    .with("Accept-Ranges", "bytes")
    .with("Content-Type", "application/octet-stream")
}

fn parse_range(range: &str, whole: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    let last = last.parse().map_or(whole - 1, |last: usize| last.min(whole - 1));
    (first <= last).then_some((first, last))
}

fn write_reply(writer: &mut impl Write, reply: &Reply, head_only: bool) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Test\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    writer.write_all(format!("{head}\r\n").as_bytes())?;
    if !head_only {
        let length = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        writer.write_all(&reply.body[..length])?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::layout::{Compression, Layout};
    use crate::harness::tar::Tar;
    use crate::harness::{scratch, tool};

    #[test]
    fn an_honest_host_is_a_registry_to_other_tools() {
        let place = scratch();
        let mut layout = Layout::create(&place.path().join("oci"));
        let mut tar = Tar::new();
        tar.file(b"file", b"content");
        layout.image("v1", &[tar.finish()], Compression::Gzip);
        let host = Host::serve(&layout.dir, |_, right| right);
        let copied = place.path().join("copied");
        let (from, to) = (format!("docker://{}", host.reference("v1")), copied.display());
        let options = ["--insecure-policy", "copy", "-q", "--src-tls-verify=false"];
        tool("skopeo", &[&options[..], &[&from, &format!("oci:{to}:v1")]].concat());
        assert_eq!(
            read_manifest_bytes(&copied, "v1").map(|(digest, ..)| digest),
            read_manifest_bytes(&layout.dir, "v1").map(|(digest, ..)| digest),
        );
        assert!(host.requests().len() >= 3);
    }
}
