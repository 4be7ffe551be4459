//! Where logins come from: Docker's `config.json`, the `auth.json` of the
//! containers tools, and credential helpers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::reference::DEFAULT_DOMAIN;
use super::secret::Secret;

/// The name under which Docker keeps the login of its own registry.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Most bytes that a helper may answer with: tokens are a few KiB.
const HELPER_OUTPUT_MAX: u64 = 64 << 10;
/// How long a helper may take: some ask a cloud for a token.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// A login for one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// User and password, or what stands for them.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token that buys access tokens (`identitytoken`).
    Identity(Secret),
    /// A token to be shown to the registry as it is (`registrytoken`).
    Bearer(Secret),
}

/// Why stored logins can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file that is there and can't be read.
    #[error("can't read {}: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A helper that failed.
    #[error("the credential helper docker-credential-{helper} failed: {problem}")]
    Helper {
        /// The helper's name.
        helper: String,
        /// What is wrong.
        problem: String,
    },
}

/// Where to look for logins.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// Nowhere.
    Anonymous,
    /// In these files, the first that knows the registry. They are read anew
    /// each time a login is needed, so that a new login counts at once.
    Files {
        /// In the order in which they are asked; those missing are passed over.
        paths: Vec<PathBuf>,
        /// Where helpers are looked for; `None`: in the `PATH` of this process.
        helper_path: Option<OsString>,
    },
    /// This one, for one registry.
    Fixed {
        /// `host[:port]`, or `docker.io`.
        host: String,
        /// The login.
        login: Login,
    },
}

impl Default for Credentials {
    /// The files that Docker, Podman and skopeo use.
    fn default() -> Self {
        Self::from_environment(|name| {
            // Services of systemd have no HOME.
            let home = || {
                let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
                user.map(|user| user.dir.into_os_string())
            };
            std::env::var_os(name).or_else(|| if name == "HOME" { home() } else { None })
        })
    }
}

impl Credentials {
    /// The usual files: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or
    /// `~/.docker/config.json`, `$XDG_RUNTIME_DIR/containers/auth.json`,
    /// `~/.config/containers/auth.json`.
    pub fn from_environment(env: impl Fn(&str) -> Option<OsString>) -> Self {
        let dir = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = dir("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let docker = dir("DOCKER_CONFIG").or_else(|| in_home(".docker"));
        let config = dir("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let paths = [
            dir("REGISTRY_AUTH_FILE"),
            docker.map(|dir| dir.join("config.json")),
            dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            config.map(|dir| dir.join("containers/auth.json")),
        ];
        Self::Files { paths: paths.into_iter().flatten().collect(), helper_path: None }
    }

    /// The login for a repository at `host` (`host[:port]`, or `docker.io`).
    ///
    /// # Errors
    /// [`CredentialError`] where a file is malformed or a helper fails; `None`
    /// where nobody knows a login.
    pub async fn login(&self, host: &str, path: &str) -> Result<Option<Login>, CredentialError> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Fixed { host: known, login } => {
                Ok((canonical(known) == canonical(host)).then(|| login.clone()))
            }
            Self::Files { paths, helper_path } => {
                for file in paths {
                    let bad = |problem| CredentialError::File { path: file.clone(), problem };
                    let Some(bytes) = read_file(file).await.map_err(bad)? else {
                        continue;
                    };
                    let config = AuthFile::parse(&bytes).map_err(bad)?;
                    let login = match config.find(host, path) {
                        Some(Found::Login(login)) => Some(login),
                        Some(Found::Helper { helper, server }) => {
                            ask_helper(&helper, &server, helper_path.as_ref()).await?
                        }
                        None => None,
                    };
                    if login.is_some() {
                        return Ok(login);
                    }
                }
                Ok(None)
            }
        }
    }
}

/// A parsed `config.json` or `auth.json`.
#[derive(Debug, Default, Deserialize)]
pub struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: String,
}

#[derive(Debug, Default, Deserialize)]
struct AuthEntry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<Secret>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<Secret>,
}

/// What a file says about a registry.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The login itself.
    Login(Login),
    /// Who knows it.
    Helper {
        /// `docker-credential-` and this is the program.
        helper: String,
        /// What to ask it for.
        server: String,
    },
}

impl AuthFile {
    /// Parses the bytes of a file. An empty file is an empty configuration.
    ///
    /// # Errors
    /// A text that says where it is malformed, without quoting it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        // The text of serde's error may quote the input: say only where.
        serde_json::from_slice(bytes)
            .map_err(|e| format!("it is malformed at line {}, column {}", e.line(), e.column()))
    }

    /// Looks up a repository: the most specific entry wins, a helper for the
    /// host before stored logins, the general store last.
    pub fn find(&self, host: &str, path: &str) -> Option<Found> {
        let host = canonical(host);
        let server = |key: &str| {
            if host == DEFAULT_DOMAIN { DOCKER_HUB_KEY.to_owned() } else { key.to_owned() }
        };
        let helper = self.helpers.iter().find(|(key, _)| canonical(key) == host);
        if let Some((key, helper)) = helper {
            return Some(Found::Helper { helper: helper.clone(), server: server(key) });
        }
        // `host/a/b`, `host/a`, `host`, as containers-auth.json(5) has it.
        let mut name = format!("{host}/{path}");
        loop {
            let entries = self.auths.iter().filter(|(key, _)| canonical(key) == name);
            if let Some(login) = entries.filter_map(|(_, entry)| entry.login()).next() {
                return Some(Found::Login(login));
            }
            match name.rfind('/') {
                Some(end) => name.truncate(end),
                None => break,
            }
        }
        (!self.store.is_empty())
            .then(|| Found::Helper { helper: self.store.clone(), server: server(&host) })
    }
}

impl AuthEntry {
    fn login(&self) -> Option<Login> {
        let token = |token: &Option<Secret>| token.clone().filter(|t| !t.is_empty());
        if let Some(bearer) = token(&self.registry_token) {
            return Some(Login::Bearer(bearer));
        }
        if let Some(identity) = token(&self.identity_token) {
            return Some(Login::Identity(identity));
        }
        let pair = match self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            Some(auth) => decode_pair(auth)?,
            None => (self.username.clone()?, self.password.clone()?),
        };
        Some(Login::Basic { username: pair.0, password: pair.1 }).filter(|_| !self.is_blank())
    }

    /// `{}` stands for a login that the helper keeps.
    fn is_blank(&self) -> bool {
        self.auth.as_ref().is_none_or(Secret::is_empty)
            && self.username.as_ref().is_none_or(String::is_empty)
    }
}

/// Undoes `base64(user:password)`.
fn decode_pair(auth: &Secret) -> Option<(String, Secret)> {
    let text = auth.reveal().trim();
    let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    // Docker pads with NUL.
    Some((user.to_owned(), Secret::new(password.trim_end_matches('\0'))))
}

/// One spelling for a host: no scheme, no API path, one name for Docker's registry.
fn canonical(key: &str) -> String {
    let name = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = match name.trim_end_matches('/').split_once('/') {
        // The API's own path is part of no repository's name.
        Some((host, "v1" | "v2")) => (host, None),
        Some((host, path)) => (host, Some(path)),
        None => (name.trim_end_matches('/'), None),
    };
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_DOMAIN,
        host => host,
    };
    path.map_or_else(|| host.to_owned(), |path| format!("{host}/{path}"))
}

async fn read_file(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // Another user's file is not ours to use.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), "no permission to read stored logins");
            return Ok(None);
        }
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).await.map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_MAX {
        return Err("it is too large".to_owned());
    }
    Ok(Some(bytes))
}

/// Runs `docker-credential-<helper> get`, with the server's name on its
/// standard input; `None` where it knows no login.
async fn ask_helper(
    helper: &str,
    server: &str,
    path: Option<&OsString>,
) -> Result<Option<Login>, CredentialError> {
    let failed = |problem: String| CredentialError::Helper { helper: printable(helper), problem };
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(inner) {
        return Err(failed("that is no name of a helper".to_owned()));
    }
    let mut command = tokio::process::Command::new(format!("docker-credential-{helper}"));
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| failed(e.to_string()))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let server = server.to_owned();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A helper that doesn't read its input still gives an answer.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(HELPER_OUTPUT_MAX).read_to_end(&mut answer).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, talk)
        .await
        .map_err(|_| failed(format!("it gave no answer within {HELPER_TIMEOUT:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    parse_helper_answer(status.success(), &answer).map_err(failed)
}

/// Reads what a helper printed. Never quotes it but where it reports a failure.
fn parse_helper_answer(success: bool, answer: &[u8]) -> Result<Option<Login>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        secret: Secret,
    }
    if !success {
        let text = printable(&String::from_utf8_lossy(answer));
        let unknown = text.contains("credentials not found") || text.contains("no credentials");
        return if unknown { Ok(None) } else { Err(text) };
    }
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "its answer is malformed".to_owned())?;
    Ok(match answer.username.as_str() {
        _ if answer.secret.is_empty() => None,
        "<token>" => Some(Login::Identity(answer.secret)),
        _ => Some(Login::Basic { username: answer.username, password: answer.secret }),
    })
}

fn printable(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Login {
        Login::Basic { username: username.to_owned(), password: Secret::new(password) }
    }

    fn find(json: &str, host: &str, path: &str) -> Option<Found> {
        AuthFile::parse(json.as_bytes()).expect("valid").find(host, path)
    }

    #[test]
    fn stored_logins_are_found_under_all_their_names() {
        // user:pass
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNz"}}}"#;
        let login = Some(Found::Login(basic("user", "pass")));
        for host in ["docker.io", "registry-1.docker.io", "index.docker.io"] {
            assert_eq!(find(hub, host, "library/alpine"), login, "{host}");
        }
        assert_eq!(find(hub, "ghcr.io", "o/r"), None);
        for key in ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v2/", "http://ghcr.io/"] {
            let json = format!(r#"{{"auths": {{"{key}": {{"auth": "dXNlcjpwYXNz"}}}}}}"#);
            assert_eq!(find(&json, "ghcr.io", "o/r"), login, "{key}");
            assert_eq!(find(&json, "ghcr.io:443", "o/r"), None);
            assert_eq!(find(&json, "evil-ghcr.io", "o/r"), None);
        }
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let json = r#"{"auths": {
            "quay.io": {"username": "all", "password": "1"},
            "quay.io/team": {"username": "team", "password": "2"},
            "quay.io/team/app": {"username": "app", "password": "3"}
        }}"#;
        for (path, user) in
            [("other/x", "all"), ("team/x", "team"), ("team/app", "app"), ("teams/x", "all")]
        {
            let Some(Found::Login(Login::Basic { username, .. })) = find(json, "quay.io", path)
            else {
                panic!("no login for {path}");
            };
            assert_eq!(username, user);
        }
    }

    #[test]
    fn tokens_and_helpers_are_told_apart() {
        let json = r#"{
            "auths": {"a.io": {"identitytoken": "I", "auth": "dXNlcjpwYXNz"},
                      "b.io": {"registrytoken": "R"}, "c.io": {}, "e.io": {"auth": "!!"}},
            "credHelpers": {"d.io": "gcr"},
            "credsStore": "desktop"
        }"#;
        let helper = |helper: &str, server: &str| {
            Some(Found::Helper { helper: helper.to_owned(), server: server.to_owned() })
        };
        let token = |login| Some(Found::Login(login));
        assert_eq!(find(json, "a.io", "x"), token(Login::Identity(Secret::new("I"))));
        assert_eq!(find(json, "b.io", "x"), token(Login::Bearer(Secret::new("R"))));
        assert_eq!(find(json, "c.io", "x"), helper("desktop", "c.io"));
        assert_eq!(find(json, "d.io", "x"), helper("gcr", "d.io"));
        assert_eq!(find(json, "e.io", "x"), helper("desktop", "e.io"));
        assert_eq!(find(json, "docker.io", "x/y"), helper("desktop", DOCKER_HUB_KEY));
    }

    #[test]
    fn secrets_are_never_printed() {
        let json = r#"{"auths": {"a.io": {"auth": "dXNlcjpwYXNz", "identitytoken": "geheim"}}}"#;
        let file = AuthFile::parse(json.as_bytes()).expect("valid");
        let printed = format!("{file:?} {:?}", file.find("a.io", "x"));
        assert!(!printed.contains("geheim") && !printed.contains("dXNlcjpwYXNz"), "{printed}");
        let error = AuthFile::parse(br#"{"auths": {"a.io": "geheim"}}"#).expect_err("malformed");
        assert!(!error.contains("geheim"), "{error}");
    }

    #[test]
    fn files_are_looked_for_where_docker_and_podman_keep_them() {
        let env = |name: &str| match name {
            "HOME" => Some("/home/u".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/1".into()),
            _ => None,
        };
        let Credentials::Files { paths, .. } = Credentials::from_environment(env) else {
            panic!("no files");
        };
        let expected = [
            "/home/u/.docker/config.json",
            "/run/user/1/containers/auth.json",
            "/home/u/.config/containers/auth.json",
        ];
        assert_eq!(paths, expected.map(PathBuf::from));
    }

    #[test]
    fn helpers_answers_are_read() {
        let ok = br#"{"ServerURL":"x","Username":"u","Secret":"s"}"#;
        assert_eq!(parse_helper_answer(true, ok), Ok(Some(basic("u", "s"))));
        let token = br#"{"Username":"<token>","Secret":"s"}"#;
        assert_eq!(parse_helper_answer(true, token), Ok(Some(Login::Identity(Secret::new("s")))));
        let unknown = b"credentials not found in native keychain\n";
        assert_eq!(parse_helper_answer(false, unknown), Ok(None));
        assert_eq!(parse_helper_answer(false, b"boom\n"), Err("boom".to_owned()));
        assert!(parse_helper_answer(true, b"Secret").is_err());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_helper_is_asked_for_the_server() {
        let dir = tempfile::tempdir().expect("a directory");
        // Written by another process: a file that this one has open for
        // writing while another thread forks could not be executed.
        let write = r#"cat > docker-credential-test <<'END'
#!/bin/sh
read server
printf '{"Username":"%s","Secret":"p"}' "$server"
END
chmod +x docker-credential-test"#;
        let shell =
            std::process::Command::new("sh").args(["-c", write]).current_dir(dir.path()).status();
        assert!(shell.is_ok_and(|status| status.success()));
        let config = dir.path().join("config.json");
        std::fs::write(&config, r#"{"credHelpers": {"r.io": "test", "s.io": "../x"}}"#)
            .expect("written");
        let mut path = dir.path().as_os_str().to_owned();
        path.push(":/usr/bin:/bin");
        let files = Credentials::Files {
            paths: vec![dir.path().join("missing.json"), config],
            helper_path: Some(path),
        };
        let login = files.login("r.io", "a/b").await.expect("a helper that works");
        assert_eq!(login, Some(basic("r.io", "p")));
        assert!(matches!(files.login("s.io", "a").await, Err(CredentialError::Helper { .. })));
        assert!(matches!(files.login("t.io", "a").await, Ok(None)));
    }
}
