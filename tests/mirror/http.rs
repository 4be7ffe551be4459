//! HTTP/1.1 as it goes over the wire: a client that says exactly what it is told
//! to, and hides nothing of the answer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// The head of an answer; names in lower case.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Head {
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    pub(crate) fn length(&self) -> usize {
        self.headers.get("content-length").map_or(0, |text| text.parse().expect("a length"))
    }
}

/// An answer with all of its body.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// The code of the specification's error document.
    #[track_caller]
    pub(crate) fn error(&self) -> String {
        let value: serde_json::Value =
            serde_json::from_slice(&self.body).expect("an error document");
        value["errors"][0]["code"].as_str().expect("a code").to_owned()
    }
}

/// One connection.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connection");
        stream.set_read_timeout(Some(LIMIT)).expect("limit");
        stream.set_write_timeout(Some(LIMIT)).expect("limit");
        Self(BufReader::new(stream))
    }

    /// Sends a request and reads the answer's head.
    pub(crate) fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Head {
        self.try_ask(method, target, headers).expect("an answer")
    }

    pub(crate) fn try_ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Head> {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: mirror\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        self.0.get_mut().write_all((text + "\r\n").as_bytes())?;
        self.head()
    }

    fn head(&mut self) -> io::Result<Head> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|text| text.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no answer: {line:?}")))?;
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Ok(Head { status, headers })
    }

    /// Reads so many bytes of a body, or fewer if the connection ends before.
    #[track_caller]
    pub(crate) fn read(&mut self, count: usize) -> Vec<u8> {
        let mut body = Vec::new();
        let read = (&mut self.0).take(count as u64).read_to_end(&mut body);
        let late = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        assert!(!read.is_err_and(|e| late.contains(&e.kind())), "nothing comes, and no end");
        body
    }

    pub(crate) fn get(&mut self, target: &str, headers: &[(&str, &str)]) -> Reply {
        let head = self.ask("GET", target, headers);
        let body = self.read(head.length());
        Reply { head, body }
    }
}

/// One request on a connection of its own.
pub(crate) fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Reply {
    Connection::open(address).get(target, headers)
}

pub(crate) fn head(address: SocketAddr, target: &str) -> Head {
    Connection::open(address).ask("HEAD", target, &[])
}
