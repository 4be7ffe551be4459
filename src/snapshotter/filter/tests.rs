use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A flat subject: dotted path to value.
struct Map(BTreeMap<&'static str, String>);

impl Subject for Map {
    fn field(&self, path: &[Box<[u8]>]) -> Option<&str> {
        let path = path.join(&b'.');
        self.0.get(std::str::from_utf8(&path).ok()?).map(String::as_str)
    }
}

fn subject() -> Map {
    Map(BTreeMap::from([
        ("name", "k8s.io/7/sha256:abc".to_owned()),
        ("parent", String::new()),
        ("kind", "active".to_owned()),
        ("labels.foo", "true".to_owned()),
        ("labels.bar", "maybe".to_owned()),
        ("labels.very complex label w/ something", "complex".to_owned()),
        ("labels.containerd.io/snapshot.ref", "sha256:0".to_owned()),
    ]))
}

fn matches(filter: &str) -> bool {
    Filter::parse(&[filter]).unwrap_or_else(|error| panic!("{error}")).matches(&subject())
}

#[test]
fn selects_as_containerd_documents() {
    for yes in [
        "",
        "name",
        "name==k8s.io/7/sha256:abc",
        "labels.foo",
        "labels.foo==true,labels.bar==maybe",
        "labels.\"very complex label w/ something\"==complex",
        "labels.\"containerd.io/snapshot.ref\"==sha256:0,parent==\"\"",
        "parent==\"\"",
        "parent",
        "absent!=1",
        "absent~=^$",
        "name!=other",
        "name~=sha256",
        "name~=/^k8s.io\\/[0-9]+\\//",
        "name~=|^k8s|",
        "kind == active",
        " name==\"k8s.io/7/sha256:abc\"",
        "name==\"k8s.io\\x2f7\\057sha256\\u003aabc\"",
    ] {
        assert!(matches(yes), "{yes}");
    }
    for no in ["absent", "absent==\"\"", "parent!=\"\"", "labels.foo==tru", "name~=[", "kind==view"]
    {
        assert!(!matches(no), "{no}");
    }
}

#[test]
fn several_filters_are_alternatives_and_none_matches_all() {
    let parse = |filters: &[&str]| Filter::parse(filters).unwrap();
    assert!(parse(&[]).matches(&subject()));
    assert!(parse(&["kind==view", "kind==active"]).matches(&subject()));
    assert!(!parse(&["kind==view", "kind==committed"]).matches(&subject()));
}

/// The cases that containerd's own parser refuses.
#[test]
fn refuses_what_containerd_refuses() {
    for bad in [
        "name ",
        "name==",
        "name== ",
        "name==foo ",
        "name==foo bar",
        "name==foo,",
        "name==foo , kind",
        ",",
        ".",
        "name.",
        ".name",
        "==foo",
        "name=foo",
        "name===foo",
        "name==/foo/",
        "name==|foo|",
        "/name/==foo",
        "name==/foo",
        "name==\"foo",
        "name==\"fo\no\"",
        "name==\"\\d\"",
        "name~=/\\d/",
        "name==\"\\x1\"",
        "name==\"\\400\"",
        "name==\"\\U00110000\"",
        "name==.foo",
        "name==\"a\"b",
        "na-me",
        "name==f\0oo",
        "name==\u{fffd}",
        "labels.\"a",
    ] {
        let error = Filter::parse(&[bad]).expect_err(bad);
        assert!(error.to_string().contains("parse error"), "{error}");
    }
    assert!(Filter::parse(&["x".repeat(FILTER_MAX + 1)]).is_err());
    assert!(Filter::parse(&vec!["x"; FILTERS_MAX + 1]).is_err());
}

/// Quotes as Go's `%q` does, which is how containerd builds its filters.
fn go_quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            c if (c as u32) < 0x80 => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x10000 => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    quoted.push('"');
    quoted
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC*", noise in proptest::collection::vec(any::<char>(), 0..40)) {
        let _ = Filter::parse(&[text]);
        let _ = Filter::parse(&[noise.into_iter().collect::<String>()]);
    }

    #[test]
    fn never_panics_near_the_grammar(text in r#"(name|labels|kind|"[a\\x0-9"]{0,6}|[.,=!~/| "\\]){0,12}"#) {
        if let Ok(filter) = Filter::parse(&[text]) {
            filter.matches(&subject());
        }
    }

    #[test]
    fn a_quoted_value_is_that_value(value in proptest::collection::vec(any::<char>(), 0..20)) {
        let value: String = value.into_iter().collect();
        let filter = Filter::parse(&[format!("name=={}", go_quote(&value))]).unwrap();
        let mut map = subject();
        map.0.insert("name", value);
        prop_assert!(filter.matches(&map));
        map.0.insert("name", "other".to_owned());
        prop_assert!(!filter.matches(&map));
    }

    #[test]
    fn agrees_with_the_plain_meaning(
        selectors in proptest::collection::vec(
            (prop::sample::select(vec!["name", "kind", "labels.foo", "absent"]),
             prop::sample::select(vec!["", "==", "!="]),
             prop::sample::select(vec!["active", "true", "x"])),
            1..4),
    ) {
        let text = selectors
            .iter()
            .map(|(field, operator, value)| match *operator {
                "" => (*field).to_owned(),
                operator => format!("{field}{operator}{value}"),
            })
            .collect::<Vec<_>>()
            .join(",");
        let map = subject();
        let expected = selectors.iter().all(|(field, operator, value)| {
            let found = map.0.get(field).map(String::as_str);
            match *operator {
                "" => found.is_some(),
                "==" => found == Some(*value),
                _ => found.unwrap_or_default() != *value,
            }
        });
        prop_assert_eq!(matches(&text), expected, "{}", text);
    }
}
