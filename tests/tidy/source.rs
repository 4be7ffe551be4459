//! A small reader of Rust text: enough to see names, paths and test modules.
//!
//! It has no grammar, only tokens: comments and literals are left out, `use`
//! groups are taken apart, inline test modules are cut away.

use std::path::Path;

/// A Rust file: its tokens without comments, literals and inline test modules.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// Lines of inline `#[cfg(test)]` modules.
    pub(crate) test_lines: usize,
    /// The whole file is a test module (`tests.rs`, `x_tests.rs`, or in `tests/` below `src`).
    pub(crate) is_test: bool,
}

#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// `a::b::c` as written, with groups taken apart.
pub(crate) struct NamePath<'a> {
    pub(crate) line: usize,
    pub(crate) names: Vec<&'a str>,
}

impl NamePath<'_> {
    pub(crate) fn names_in_a_row(&self, wanted: &[&str]) -> bool {
        self.names.windows(wanted.len()).any(|window| window == wanted)
    }
}

impl Source {
    pub(crate) fn new(path: String, text: String) -> Self {
        let (tokens, test_lines) = without_test_modules(&tokens(&text));
        let stem = Path::new(&path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let in_source = path.starts_with("src/") || path.starts_with("fsck/src/");
        let is_test =
            in_source && (stem == "tests" || stem.ends_with("_tests") || path.contains("/tests/"));
        Self { path, text, tokens, test_lines, is_test }
    }

    /// The module of `src/` that the file belongs to; none for the roots `lib.rs`,
    /// `main.rs` and `build.rs`.
    pub(crate) fn module(&self) -> Option<String> {
        let name = self.path.strip_prefix("src/")?.split('/').next()?;
        let name = name.trim_end_matches(".rs");
        (!["lib", "main", "build"].contains(&name)).then(|| name.to_owned())
    }

    /// How many `super` lead from this file to the crate's root.
    fn depth(&self) -> usize {
        let parts = self.path.matches('/').count();
        if self.path.ends_with("/mod.rs") { parts - 1 } else { parts }
    }

    /// The top module that a path means, where it says `crate::` or climbs to the root.
    pub(crate) fn crate_module<'a>(&self, path: &NamePath<'a>) -> Option<&'a str> {
        let supers = path.names.iter().take_while(|name| **name == "super").count();
        if path.names.first() == Some(&"crate") {
            path.names.get(1).copied()
        } else if supers > 0 && supers >= self.depth() {
            path.names.get(supers).copied()
        } else {
            None
        }
    }

    /// Every path in the code, `use` groups taken apart.
    pub(crate) fn paths(&self) -> Vec<NamePath<'_>> {
        let mut found = Vec::new();
        // Prefixes of the groups that are open; `None` is an ordinary brace.
        let mut groups: Vec<Option<Vec<&str>>> = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let token = &self.tokens[at];
            match token.text.as_str() {
                "{" => groups.push(None),
                "}" => {
                    groups.pop();
                }
                text if is_name(text) => {
                    let mut names = groups.last().cloned().flatten().unwrap_or_default();
                    names.push(text);
                    let mut opens_group = false;
                    while let [colons, next, ..] = &self.tokens[at + 1..]
                        && colons.text == "::"
                    {
                        at += 2;
                        if next.text == "{" {
                            opens_group = true;
                            break;
                        }
                        if !is_name(&next.text) {
                            break;
                        }
                        names.push(&next.text);
                    }
                    if opens_group {
                        groups.push(Some(names));
                    } else {
                        found.push(NamePath { line: token.line, names });
                    }
                }
                _ => {}
            }
            at += 1;
        }
        found
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Cuts out `#[cfg(test)] mod name { ... }`; also says how many lines they took.
fn without_test_modules(tokens: &[Token]) -> (Vec<Token>, usize) {
    const OPENING: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut lines, mut at) = (Vec::with_capacity(tokens.len()), 0, 0);
    while at < tokens.len() {
        let rest = &tokens[at..];
        let is_module = rest.len() > 10
            && rest.iter().zip(OPENING).all(|(token, wanted)| token.text == wanted)
            && rest[OPENING.len()].text == "mod"
            && rest[OPENING.len() + 2].text == "{";
        if !is_module {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let (mut depth, mut end) = (0_usize, OPENING.len() + 2);
        while end < rest.len() {
            match rest[end].text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            end += 1;
        }
        let last = rest.get(end).unwrap_or(&rest[rest.len() - 1]);
        lines += last.line - rest[0].line + 1;
        at += end + 1;
    }
    (kept, lines)
}

/// Names, `::` and single punctuation marks; comments, literals and lifetimes are left out.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut found, mut line, mut at) = (Vec::new(), 1, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let taken = match rest[0] {
            b'/' if rest.starts_with(b"//") => until(rest, b"\n"),
            b'/' if rest.starts_with(b"/*") => block_comment(rest),
            b'"' => quoted(rest, b'"'),
            b'r' | b'b' | b'c' if literal_prefix(rest) > 0 => {
                let prefix = literal_prefix(rest);
                let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
                if hashes > 0 || rest[..prefix].contains(&b'r') {
                    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
                    let opening = prefix + hashes + 1;
                    opening + until(&rest[opening..], &end)
                } else {
                    prefix + quoted(&rest[prefix..], rest[prefix])
                }
            }
            b'\'' if is_char(rest) => quoted(rest, b'\''),
            b if b.is_ascii_alphanumeric() || b == b'_' || !b.is_ascii() => rest
                .iter()
                .position(|b| b.is_ascii() && !b.is_ascii_alphanumeric() && *b != b'_')
                .unwrap_or(rest.len()),
            b':' if rest.starts_with(b"::") => 2,
            _ => 1,
        };
        let taken = taken.min(rest.len());
        let first = rest[0];
        let is_literal = taken > 2 && (first == b'"' || first == b'\'' || literal_prefix(rest) > 0);
        let is_comment = first == b'/' && taken > 1;
        if !(first.is_ascii_whitespace() || is_literal || is_comment) {
            let text = String::from_utf8_lossy(&rest[..taken]).into_owned();
            found.push(Token { line, text });
        }
        line += rest[..taken].iter().filter(|b| **b == b'\n').count();
        at += taken;
    }
    found
}

/// Length of `r`, `b`, `br`, `c`, `cr` where a string or byte literal follows, else 0.
fn literal_prefix(rest: &[u8]) -> usize {
    let letters = rest.iter().take(2).take_while(|b| b"rbc".contains(b)).count();
    let after = &rest[letters..];
    let hashes = after.iter().take_while(|b| **b == b'#').count();
    let raw = rest[..letters].contains(&b'r');
    match after.get(hashes) {
        Some(b'"') if hashes == 0 || raw => letters,
        Some(b'\'') if hashes == 0 && rest[..letters] == *b"b" => letters,
        _ => 0,
    }
}

/// A quote that opens a character, not a lifetime.
fn is_char(rest: &[u8]) -> bool {
    rest.get(1) == Some(&b'\\')
        || std::str::from_utf8(&rest[1..rest.len().min(6)])
            .or_else(|error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]))
            .is_ok_and(|text| text.chars().nth(1) == Some('\''))
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else {
            at += 1;
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn until(rest: &[u8], end: &[u8]) -> usize {
    let found = rest.windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |position| position + end.len())
}
