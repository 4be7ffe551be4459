//! `WWW-Authenticate`: how a registry wants us to log in. Pure.

/// One challenge: a scheme and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `bearer` or `basic`, lower-case; or another scheme.
    pub scheme: String,
    /// Name (lower-case) and value, in the order in which they came.
    pub params: Vec<(String, String)>,
}

/// Longest header that is looked at, in bytes.
const HEADER_MAX: usize = 16 << 10;
/// Most challenges in one header, and parameters in one challenge.
const COUNT_MAX: usize = 16;

impl Challenge {
    /// Parses one header (RFC 9110, section 11.6.1). What is malformed is
    /// passed over: registries differ in their quoting, and what can't be
    /// understood is the same as no challenge.
    pub fn parse_all(header: &str) -> Vec<Self> {
        let mut cursor = Cursor(header.get(..HEADER_MAX).unwrap_or(header));
        if header.len() > HEADER_MAX {
            return Vec::new();
        }
        let mut challenges: Vec<Self> = Vec::new();
        while challenges.len() < COUNT_MAX {
            cursor.skip(|c| c == ',' || c.is_ascii_whitespace());
            let scheme = cursor.take(is_token);
            if scheme.is_empty() {
                break;
            }
            let mut params = Vec::new();
            loop {
                cursor.skip(|c| c == ',' || c.is_ascii_whitespace());
                let before = cursor;
                let name = cursor.take(is_token);
                cursor.skip(|c| c.is_ascii_whitespace());
                if name.is_empty() || !cursor.eat('=') || params.len() == COUNT_MAX {
                    cursor = before;
                    break;
                }
                cursor.skip(|c| c.is_ascii_whitespace());
                let value = if cursor.eat('"') {
                    cursor.quoted()
                } else {
                    cursor.take(|c| c != ',' && !c.is_ascii_whitespace()).to_owned()
                };
                params.push((name.to_ascii_lowercase(), value));
            }
            challenges.push(Self { scheme: scheme.to_ascii_lowercase(), params });
        }
        challenges
    }

    /// The first parameter of that (lower-case) name.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Clone, Copy)]
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !wanted(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn skip(&mut self, unwanted: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(unwanted);
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.0.strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// The rest of a quoted string; one that is never closed ends with the header.
    fn quoted(&mut self) -> String {
        let mut value = String::new();
        let mut chars = self.0.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => value.extend(chars.next()),
                c => value.push(c),
            }
        }
        self.0 = chars.as_str();
        value
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn challenge(scheme: &str, params: &[(&str, &str)]) -> Challenge {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        Challenge { scheme: scheme.to_owned(), params: params.iter().map(own).collect() }
    }

    #[test]
    fn the_forms_that_registries_send_are_understood() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                   scope=\"repository:library/a:pull,push\"";
        assert_eq!(
            Challenge::parse_all(hub),
            [challenge(
                "bearer",
                &[
                    ("realm", "https://auth.docker.io/token"),
                    ("service", "registry.docker.io"),
                    ("scope", "repository:library/a:pull,push"),
                ]
            )]
        );
        for (header, expected) in [
            ("Basic realm=\"x\"", vec![challenge("basic", &[("realm", "x")])]),
            ("BASIC REALM = x", vec![challenge("basic", &[("realm", "x")])]),
            ("Basic", vec![challenge("basic", &[])]),
            (
                "Basic realm=\"a, b\", Bearer realm=https://h/t ,service=s",
                vec![
                    challenge("basic", &[("realm", "a, b")]),
                    challenge("bearer", &[("realm", "https://h/t"), ("service", "s")]),
                ],
            ),
            (r#"Bearer realm="a\"b\\c""#, vec![challenge("bearer", &[("realm", r#"a"b\c"#)])]),
            ("Bearer realm=\"open", vec![challenge("bearer", &[("realm", "open")])]),
            ("", vec![]),
            (" , ,", vec![]),
            ("\"", vec![]),
        ] {
            assert_eq!(Challenge::parse_all(header), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_gives_an_answer(header in "\\PC{0,200}") {
            let challenges = Challenge::parse_all(&header);
            prop_assert!(challenges.len() <= COUNT_MAX);
        }

        #[test]
        fn quoted_values_come_back(value in "[ -~]{0,40}") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let parsed = Challenge::parse_all(&format!("Bearer a=\"{escaped}\",b=c"));
            prop_assert_eq!(parsed, [challenge("bearer", &[("a", &value), ("b", "c")])]);
        }
    }
}
