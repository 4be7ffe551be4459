//! containerd's filter language, as `List` requests use it.
//!
//! ```text
//! selectors := selector ("," selector)*
//! selector  := fieldpath (operator value)?
//! fieldpath := field ('.' field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | [^\s,]+
//! quoted    := <Go string syntax, in "", and for ~= also in // or ||>
//! ```
//!
//! All selectors of one filter must match; of several filters, one is enough; no
//! filter or an empty one matches everything. A selector without operator asks
//! whether the field is there. `!=` and `~=` see an absent field as empty.
//!
//! This follows containerd's scanner rune by rune, its stricter corners too (no
//! space after a value, a value can't start with `.`, `=`, `/`): what containerd
//! refuses is refused, what it accepts means the same. One difference: a bare
//! value may hold any character that is neither white space nor control, where
//! containerd also stops at private-use and format characters.

use std::fmt;

/// Longest filter in bytes: a parent's name of 32 KiB may stand in it, escaped.
const FILTER_MAX: usize = 512 << 10;
/// Most filters in one request.
const FILTERS_MAX: usize = 1024;
/// Most memory for one compiled regular expression, in bytes.
const REGEX_MAX: usize = 1 << 20;

/// What a filter looks at.
pub trait Subject {
    /// The value of the field at `path`, which has at least one part; `None`
    /// where there is no such field.
    fn field(&self, path: &[Box<[u8]>]) -> Option<&str>;
}

/// A parsed set of filters.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    any: Vec<Vec<Selector>>,
}

impl Filter {
    /// Parses the filters of one request.
    ///
    /// # Errors
    /// The first text that is not in the language, or too long.
    pub fn parse<T: AsRef<str>>(filters: &[T]) -> Result<Self, FilterError> {
        if filters.len() > FILTERS_MAX {
            return Err(FilterError::at("", 0, format!("more than {FILTERS_MAX} filters")));
        }
        let any = filters.iter().map(|text| parse_one(text.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { any })
    }

    /// Whether any of the filters matches; true where there is none.
    pub fn matches(&self, subject: &impl Subject) -> bool {
        self.any.is_empty()
            || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(subject)))
    }
}

/// Where and why a text is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filters: parse error: [{context}]: {reason}")]
pub struct FilterError {
    context: String,
    reason: String,
}

impl FilterError {
    /// Quotes the surroundings of `position` only: the text may be hostile.
    fn at(text: &str, position: usize, reason: impl fmt::Display) -> Self {
        let before: Vec<char> = text[..position].chars().rev().take(40).collect();
        let mut after = text[position..].chars();
        let context = match after.next() {
            Some(here) => format!(
                "{} >|{}|< {}",
                before.iter().rev().collect::<String>(),
                here,
                after.take(40).collect::<String>()
            ),
            None => before.iter().rev().collect(),
        };
        Self { context, reason: reason.to_string() }
    }
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<Box<[u8]>>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    /// `None`: not a regular expression, which matches nothing (as in containerd,
    /// where it is found out too late to be an error).
    Matches(Option<regex::Regex>),
}

impl Selector {
    fn matches(&self, subject: &impl Subject) -> bool {
        let value = subject.field(&self.path);
        let or_empty = value.unwrap_or_default();
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value.as_bytes() == wanted),
            Test::NotEqual(unwanted) => or_empty.as_bytes() != unwanted,
            Test::Matches(expression) => {
                expression.as_ref().is_some_and(|expression| expression.is_match(or_empty))
            }
        }
    }
}

fn parse_one(text: &str) -> Result<Vec<Selector>, FilterError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.len() > FILTER_MAX {
        return Err(FilterError::at("", 0, format!("longer than {FILTER_MAX} bytes")));
    }
    let mut parser = Parser { scanner: Scanner { text, at: 0, value: false } };
    let mut all = vec![parser.selector()?];
    loop {
        match parser.scanner.peek()? {
            None => return Ok(all),
            Some(',') => {
                parser.scanner.scan()?;
                all.push(parser.selector()?);
            }
            Some(other) => {
                return Err(parser.error_here(format!("unexpected input: {other:?}")));
            }
        }
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
}

impl Parser<'_> {
    fn selector(&mut self) -> Result<Selector, FilterError> {
        let path = self.path()?;
        if matches!(self.scanner.peek()?, None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let token = self.scanner.scan()?;
        let Token::Operator(operator) = token.kind else {
            return Err(self.error(token.at, "expected an operator (\"==\"|\"!=\"|\"~=\")"));
        };
        let test = match operator {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => Test::Matches(self.value(true).map(|value| expression(&value))?),
            other => {
                return Err(self.error(token.at, format!("unsupported operator {other:?}")));
            }
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<Box<[u8]>>, FilterError> {
        let mut path = vec![self.field()?];
        while self.scanner.peek()? == Some('.') {
            self.scanner.scan()?;
            path.push(self.field()?);
        }
        Ok(path)
    }

    fn field(&mut self) -> Result<Box<[u8]>, FilterError> {
        let token = self.scanner.scan()?;
        match token.kind {
            Token::Field(text) => Ok(text.as_bytes().into()),
            Token::Quoted(text) => self.unquote(token.at, text, false).map(Into::into),
            _ => Err(self.error(token.at, "expected field or quoted")),
        }
    }

    fn value(&mut self, other_quotes: bool) -> Result<Vec<u8>, FilterError> {
        let token = self.scanner.scan()?;
        match token.kind {
            Token::Value(text) | Token::Field(text) => Ok(text.as_bytes().to_vec()),
            Token::Quoted(text) => self.unquote(token.at, text, other_quotes),
            _ => Err(self.error(token.at, "expected value or quoted")),
        }
    }

    fn unquote(&self, at: usize, text: &str, other_quotes: bool) -> Result<Vec<u8>, FilterError> {
        if !other_quotes && !text.starts_with('"') {
            return Err(self.error(at, "invalid quote encountered"));
        }
        unquote(text).ok_or_else(|| self.error(at, "unquoting failed: quote syntax error"))
    }

    fn error(&self, at: usize, reason: impl fmt::Display) -> FilterError {
        FilterError::at(self.scanner.text, at, reason)
    }

    fn error_here(&self, reason: impl fmt::Display) -> FilterError {
        self.error(self.scanner.at, reason)
    }
}

fn expression(pattern: &[u8]) -> Option<regex::Regex> {
    let pattern = std::str::from_utf8(pattern).ok()?;
    regex::RegexBuilder::new(pattern).size_limit(REGEX_MAX).build().ok()
}

struct Spanned<'a> {
    at: usize,
    kind: Token<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    End,
    Quoted(&'a str),
    Value(&'a str),
    Field(&'a str),
    Separator,
    Operator(&'a str),
    Other,
}

/// Cuts the text into tokens. What a word is depends on what came before: after
/// an operator it is a value, else a field.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
    value: bool,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Result<Option<char>, FilterError> {
        match self.text[self.at..].chars().next() {
            Some('\0') => Err(FilterError::at(self.text, self.at, "unexpected null")),
            Some(char::REPLACEMENT_CHARACTER) => {
                Err(FilterError::at(self.text, self.at, "rune error"))
            }
            other => Ok(other),
        }
    }

    fn next(&mut self) -> Result<Option<char>, FilterError> {
        let next = self.peek()?;
        self.at += next.map_or(0, char::len_utf8);
        Ok(next)
    }

    fn skip_while(&mut self, accept: impl Fn(char) -> bool) -> Result<(), FilterError> {
        while self.peek()?.is_some_and(&accept) {
            self.next()?;
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<Spanned<'a>, FilterError> {
        self.skip_while(char::is_whitespace)?;
        let at = self.at;
        let Some(first) = self.next()? else { return Ok(Spanned { at, kind: Token::End }) };
        let kind = match first {
            '/' | '|' | '"' => {
                self.quoted(first)?;
                Token::Quoted(&self.text[at..self.at])
            }
            ',' | '.' => {
                self.value = false;
                Token::Separator
            }
            '=' | '!' | '~' => {
                self.skip_while(|next| matches!(next, '=' | '!' | '~'))?;
                self.value = true;
                Token::Operator(&self.text[at..self.at])
            }
            _ if self.value => {
                if is_value(first) {
                    self.skip_while(is_value)?;
                }
                self.value = false;
                Token::Value(&self.text[at..self.at])
            }
            _ if is_field(first) => {
                self.skip_while(is_field)?;
                Token::Field(&self.text[at..self.at])
            }
            _ => Token::Other,
        };
        Ok(Spanned { at, kind })
    }

    /// Skips to behind the closing quote; escapes are checked by [`unquote`].
    fn quoted(&mut self, quote: char) -> Result<(), FilterError> {
        let start = self.at;
        loop {
            match self.next()? {
                Some(found) if found == quote => return Ok(()),
                Some('\\') => {
                    self.next()?;
                }
                None | Some('\n') => {
                    return Err(FilterError::at(self.text, start, "quoted literal not terminated"));
                }
                Some(_) => {}
            }
        }
    }
}

fn is_field(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}

/// The bytes that a quoted text stands for, in Go's syntax with any of the three
/// quotes; `None` where an escape is none.
fn unquote(text: &str) -> Option<Vec<u8>> {
    let mut chars = text.chars();
    let quote = chars.next()?;
    if chars.next_back()? != quote {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len());
    while let Some(c) = chars.next() {
        if c != '\\' {
            if c == quote || c == '\n' {
                return None;
            }
            push(&mut bytes, c);
            continue;
        }
        match chars.next()? {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            '\\' => bytes.push(b'\\'),
            'x' => bytes.push(u8::try_from(number(&mut chars, 0, 2, 16)?).ok()?),
            'u' => push(&mut bytes, rune(number(&mut chars, 0, 4, 16)?)?),
            'U' => push(&mut bytes, rune(number(&mut chars, 0, 8, 16)?)?),
            digit @ '0'..='7' => {
                let value = number(&mut chars, digit.to_digit(8)?, 2, 8)?;
                bytes.push(u8::try_from(value).ok()?);
            }
            escaped if escaped == quote => push(&mut bytes, escaped),
            _ => return None,
        }
    }
    Some(bytes)
}

/// `digits` more digits of a number that begins with `start`.
fn number(chars: &mut std::str::Chars<'_>, start: u32, digits: u32, base: u32) -> Option<u32> {
    (0..digits).try_fold(start, |value, _| {
        value.checked_mul(base)?.checked_add(chars.next()?.to_digit(base)?)
    })
}

/// A surrogate stands for the replacement character, as in Go.
fn rune(value: u32) -> Option<char> {
    (value <= u32::from(char::MAX))
        .then(|| char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER))
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests;
