use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Vec<HostEntry>, HostsError> {
    parse_hosts(Path::new("/certs"), text)
}

fn urls(entries: &[HostEntry]) -> Vec<Option<&str>> {
    entries.iter().map(|e| e.url.as_ref().map(Url::as_str)).collect()
}

#[test]
fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
    let entries = parse(
        r#"
        server = "https://registry-1.docker.io"
        [host."https://zz.example"]
          capabilities = ["pull", "resolve"]
        [host."http://10.0.0.1:5005"]
          capabilities = ["PULL"]
          dial_timeout = "1m30s"
        [host."aa.example/mirror"]
          override_path = true
          skip_verify = true
        [host."https://bb.example/some/path"]
        [host."https://cc.example/v2/"]
        "#,
    )
    .expect("valid");
    assert_eq!(
        urls(&entries),
        [
            Some("https://zz.example/v2"),
            Some("http://10.0.0.1:5005/v2"),
            Some("https://aa.example/mirror"),
            Some("https://bb.example/some/path/v2"),
            Some("https://cc.example/v2"),
            Some("https://registry-1.docker.io/v2"),
        ]
    );
    let pull = Capabilities { pull: true, resolve: false, push: false };
    assert_eq!(entries[0].capabilities, Capabilities { resolve: true, ..pull });
    assert_eq!(entries[1].capabilities, pull);
    assert_eq!(entries[1].dial_timeout, Some(Duration::from_secs(90)));
    assert_eq!(entries[2].tls.skip_verify, Some(true));
    assert_eq!(entries[5].capabilities, Capabilities::ALL);
}

#[test]
fn certificates_and_headers_are_read_in_all_their_forms() {
    let entries = parse(
        r#"
        ca = "root.pem"
        [host."https://a"]
          ca = ["a.pem", "/abs/b.pem"]
          client = "both.pem"
          header = {x-token = "geheim", x-list = ["1", "2"]}
        [host."https://b"]
          client = [["b.cert", "b.key"]]
        [host."https://c"]
          client = ["c.pem"]
        "#,
    )
    .expect("valid");
    let path = PathBuf::from;
    assert_eq!(entries[0].tls.ca, [path("/certs/a.pem"), path("/abs/b.pem")]);
    assert_eq!(entries[0].tls.client, Some((path("/certs/both.pem"), None)));
    assert_eq!(entries[0].headers.get_all("x-list").iter().count(), 2);
    assert!(!format!("{:?}", entries[0]).contains("geheim"));
    let pair = (path("/certs/b.cert"), Some(path("/certs/b.key")));
    assert_eq!(entries[1].tls.client, Some(pair));
    assert_eq!(entries[2].tls.client, Some((path("/certs/c.pem"), None)));
    assert_eq!(entries[3].url, None);
    assert_eq!(entries[3].tls.ca, [path("/certs/root.pem")]);
}

#[test]
fn what_is_wrong_is_said() {
    for bad in [
        "server = 3",
        "= ",
        "[host.\"ftp://x\"]\n[host.\"http://\"]",
        "server = \"https://user:pw@host\"",
        "capabilities = [\"fly\"]",
        "ca = 7",
        "client = [[\"a\", \"b\", \"c\"]]",
        "dial_timeout = \"soon\"",
        "dial_timeout = \"5\"",
        "[host.\"https://a\".header]\n\"x y\" = \"z\"",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn without_configuration_a_registry_is_reached_at_its_name() {
    let reached = |domain: &str, plain: &[&str]| {
        let plain: Vec<_> = plain.iter().map(|p| (*p).to_owned()).collect();
        let endpoints = endpoints(domain, None, &plain).expect("no files");
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].namespace, None);
        endpoints[0].base.clone()
    };
    assert_eq!(reached("docker.io", &[]), "https://registry-1.docker.io/v2");
    assert_eq!(reached("ghcr.io", &[]), "https://ghcr.io/v2");
    assert_eq!(reached("GHCR", &[]), "https://ghcr/v2");
    assert_eq!(reached("localhost:5000", &[]), "http://localhost:5000/v2");
    assert_eq!(reached("127.0.0.2:5000", &[]), "http://127.0.0.2:5000/v2");
    assert_eq!(reached("[::1]:5000", &[]), "http://[::1]:5000/v2");
    assert_eq!(reached("127.0.0.1:443", &[]), "https://127.0.0.1/v2");
    assert_eq!(reached("127.0.0.1.evil.io", &[]), "https://127.0.0.1.evil.io/v2");
    assert_eq!(reached("10.0.0.1:5000", &["10.0.0.1:5000"]), "http://10.0.0.1:5000/v2");
    assert_eq!(reached("10.0.0.1:5000", &["10.0.0.1"]), "http://10.0.0.1:5000/v2");
    assert_eq!(reached("10.0.0.1:5000", &["10.0.0.1:5001"]), "https://10.0.0.1:5000/v2");
}

#[test]
fn directories_are_found_as_containerd_finds_them() {
    let root = tempfile::tempdir().expect("a directory");
    let write = |dir: &str, file: &str, text: &str| {
        let dir = root.path().join(dir);
        std::fs::create_dir_all(&dir).expect("made");
        std::fs::write(dir.join(file), text).expect("written");
    };
    let bases = |domain: &str| -> Vec<_> {
        let endpoints = endpoints(domain, Some(root.path()), &[]).expect("valid");
        endpoints.into_iter().map(|e| (e.base, e.namespace)).collect()
    };
    let mirror = |base: &str, domain: &str| (base.to_owned(), Some(domain.to_owned()));
    let itself = |base: &str| (base.to_owned(), None);
    assert_eq!(bases("a.io"), [itself("https://a.io/v2")]);
    write("_default", "hosts.toml", "[host.\"http://127.0.0.1:5005\"]");
    assert_eq!(
        bases("docker.io"),
        [
            mirror("http://127.0.0.1:5005/v2", "docker.io"),
            itself("https://registry-1.docker.io/v2")
        ]
    );
    write("a.io:5000", "hosts.toml", "server = \"https://b.io\"");
    assert_eq!(bases("a.io:5000"), [mirror("https://b.io/v2", "a.io:5000")]);
    write("a.io_5000_", "ca.crt", "");
    assert_eq!(bases("a.io:5000"), [itself("https://a.io:5000/v2")]);
    // TLS files for a loopback host say that it speaks TLS.
    write("127.0.0.1_5001_", "ca.crt", "");
    assert_eq!(bases("127.0.0.1:5001"), [itself("https://127.0.0.1:5001/v2")]);
    // Malformed: passed over.
    write("c.io", "hosts.toml", "server = ");
    assert_eq!(bases("c.io"), [itself("https://c.io/v2")]);
}

proptest! {
    #[test]
    fn any_text_gives_an_answer(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_host_gives_an_answer(host in "[ -~]{0,60}", text in "[a-z=\\[\\]\" \n]{0,100}") {
        let _ = parse(&format!("server = {:?}\n{text}", host));
        let _ = is_loopback(&host);
    }
}
