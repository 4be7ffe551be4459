use proptest::prelude::*;

use super::*;

/// The obviously correct model: a list that is searched from end to end.
#[derive(Default)]
struct Model {
    list: Vec<(String, Record)>,
    last: u64,
}

impl Model {
    fn find(&self, name: &str) -> Option<&Record> {
        self.list.iter().find(|(found, _)| found == name).map(|(_, record)| record)
    }

    fn parent(&self, parent: &str) -> Result<(), &'static str> {
        match self.find(parent) {
            _ if parent.is_empty() => Ok(()),
            None => Err("not found"),
            Some(record) if record.kind != Kind::Committed => Err("invalid argument"),
            Some(_) => Ok(()),
        }
    }

    fn insert(&mut self, name: &str, parent: &str, kind: Kind, content: Content, labels: &Labels) {
        self.last += 1;
        let mut labels = labels.clone();
        labels.retain(|_, value| !value.is_empty());
        self.list.push((
            name.to_owned(),
            Record {
                id: self.last,
                parent: parent.to_owned(),
                kind,
                content,
                labels,
                created: NOW,
                updated: NOW,
                usage: Usage::default(),
                committed_from: String::new(),
            },
        ));
    }

    fn run(&mut self, op: &Op) -> Result<(), &'static str> {
        match op {
            Op::Create(kind, key, parent, labels) => {
                self.parent(parent)?;
                if self.find(key).is_some() {
                    return Err("already exists");
                }
                self.insert(key, parent, *kind, Content::Directory, labels);
            }
            Op::Adopt(name, parent, labels) => {
                let content = Content::Chain(Digest::of(name.as_bytes()));
                if let Some(found) = self.find(name) {
                    let same = found.content == content && found.parent == *parent;
                    return if same { Ok(()) } else { Err("conflict") };
                }
                self.parent(parent)?;
                self.insert(name, parent, Kind::Committed, content, labels);
            }
            Op::Commit(name, key, labels) => {
                let repeated = self.find(key).is_none()
                    && self.find(name).is_some_and(|record| record.committed_from == *key);
                if repeated {
                    return Ok(());
                }
                if self.find(name).is_some() {
                    return Err("already exists");
                }
                match self.find(key) {
                    None => return Err("not found"),
                    Some(record) if record.kind != Kind::Active => {
                        return Err("failed precondition");
                    }
                    Some(_) => {}
                }
                let entry = self.list.iter_mut().find(|(found, _)| found == key).unwrap();
                entry.0 = name.clone();
                entry.1.kind = Kind::Committed;
                entry.1.labels = labels.clone();
                entry.1.labels.retain(|_, value| !value.is_empty());
                entry.1.usage = USAGE;
                entry.1.committed_from = key.clone();
            }
            Op::Remove(key) => {
                if self.find(key).is_none() {
                    return Err("not found");
                }
                if self.list.iter().any(|(_, record)| record.parent == *key) {
                    return Err("failed precondition");
                }
                self.list.retain(|(name, _)| name != key);
            }
            Op::Update(name, labels, path) => {
                let entry =
                    self.list.iter_mut().find(|(found, _)| found == name).ok_or("not found")?;
                match path.as_str() {
                    "" | "labels" => entry.1.labels = labels.clone(),
                    "labels.a" => {
                        let value = labels.get("a").cloned().unwrap_or_default();
                        entry.1.labels.insert("a".to_owned(), value);
                    }
                    _ => return Err("invalid argument"),
                }
                entry.1.labels.retain(|_, value| !value.is_empty());
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Create(Kind, String, String, Labels),
    Adopt(String, String, Labels),
    Commit(String, String, Labels),
    Remove(String),
    Update(String, Labels, String),
}

const NOW: Timestamp = Timestamp { seconds: 1, nanos: 2 };
const USAGE: Usage = Usage { bytes: 4096, inodes: 1 };

fn run(state: &mut State, op: &Op) -> Result<(), &'static str> {
    let change = match op {
        Op::Create(kind, key, parent, labels) => {
            state.create(*kind, key, parent, labels, NOW).map(|(change, snapshot)| {
                assert_eq!(change.put[0].1.id, snapshot.id);
                change
            })
        }
        Op::Adopt(name, parent, labels) => {
            match state.adopt(name, parent, Digest::of(name.as_bytes()), labels, NOW) {
                Ok(Adoption::New(change)) => Ok(change),
                Ok(Adoption::Known) => return Ok(()),
                Ok(Adoption::Conflict) => return Err("conflict"),
                Err(error) => Err(error),
            }
        }
        Op::Commit(name, key, labels) => state.commit(name, key, labels, USAGE, NOW),
        Op::Remove(key) => state.remove(key).map(|(change, _)| change),
        Op::Update(name, labels, path) => {
            let paths = if path.is_empty() { vec![] } else { vec![path.clone()] };
            state.update(name, labels, &paths, NOW).map(|(change, _)| change)
        }
    };
    let change = change.map_err(|error| match error {
        MetaError::NotFound(_) => "not found",
        MetaError::AlreadyExists(_) => "already exists",
        MetaError::InvalidArgument(_) => "invalid argument",
        MetaError::FailedPrecondition(_) => "failed precondition",
        MetaError::Exhausted(_) => "exhausted",
    })?;
    state.apply(change);
    Ok(())
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "d", "line\nbreak/slash"]).prop_map(str::to_owned)
}

fn parent() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), name()]
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map(
        prop::sample::select(vec!["a", "b"]).prop_map(str::to_owned),
        prop::sample::select(vec!["", "1", "2"]).prop_map(str::to_owned),
        0..3,
    )
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop::sample::select(vec![Kind::Active, Kind::Active, Kind::View]);
    let path = prop::sample::select(vec!["", "labels", "labels.a", "parent"]);
    prop_oneof![
        4 => (kind, name(), parent(), labels()).prop_map(|(k, n, p, l)| Op::Create(k, n, p, l)),
        2 => (name(), parent(), labels()).prop_map(|(n, p, l)| Op::Adopt(n, p, l)),
        4 => (name(), name(), labels()).prop_map(|(n, k, l)| Op::Commit(n, k, l)),
        2 => name().prop_map(Op::Remove),
        1 => (name(), labels(), path).prop_map(|(n, l, p)| Op::Update(n, l, p.to_owned())),
    ]
}

/// The table's own invariants, from the records alone.
fn check(state: &State) {
    let mut children: HashMap<String, usize> = HashMap::new();
    let mut identifiers = std::collections::BTreeSet::new();
    for record in state.records.values() {
        assert!(identifiers.insert(record.id), "identifier {} is given twice", record.id);
        assert!(record.id < state.next);
        if !record.parent.is_empty() {
            assert_eq!(state.records[&record.parent].kind, Kind::Committed);
            *children.entry(record.parent.clone()).or_insert(0) += 1;
        }
    }
    assert_eq!(state.children, children);
    assert_eq!(*state, State::load(state.records.clone(), state.next));
}

proptest! {
    #[test]
    fn does_what_a_plain_list_does(ops in proptest::collection::vec(op(), 0..60)) {
        let mut model = Model::default();
        let mut state = State::default();
        for op in &ops {
            let expected = model.run(op);
            prop_assert_eq!(run(&mut state, op), expected, "{:?}", op);
            let mut list = model.list.clone();
            list.sort_by(|a, b| a.0.cmp(&b.0));
            let records: Vec<_> =
                state.records.iter().map(|(name, record)| (name.clone(), record.clone())).collect();
            prop_assert_eq!(records, list);
            check(&state);
            for (name, record) in &model.list {
                let mut parents = Vec::new();
                let mut at = record.parent.as_str();
                while let Some(below) = model.find(at) {
                    parents.push(Layer { id: below.id, content: below.content });
                    at = &below.parent;
                }
                match state.snapshot(name) {
                    Ok(snapshot) => prop_assert_eq!(snapshot.parents, parents),
                    Err(_) => prop_assert_eq!(record.kind, Kind::Committed),
                }
            }
        }
    }
}

#[test]
fn names_and_labels_are_bounded() {
    let state = State::default();
    let create = |key: &str, labels: &Labels| state.create(Kind::Active, key, "", labels, NOW);
    assert!(matches!(create("", &Labels::new()), Err(MetaError::InvalidArgument(_))));
    let long = "x".repeat(NAME_MAX + 1);
    assert!(matches!(create(&long, &Labels::new()), Err(MetaError::InvalidArgument(_))));
    assert!(create(&long[1..], &Labels::new()).is_ok());

    let label = |size: usize| Labels::from([("k".to_owned(), "v".repeat(size - 1))]);
    assert!(create("a", &label(LABEL_MAX)).is_ok());
    assert!(matches!(create("a", &label(LABEL_MAX + 1)), Err(MetaError::InvalidArgument(_))));
    let many = (0..300).map(|i| (format!("{i}"), "v".repeat(4000))).collect();
    assert!(matches!(create("a", &many), Err(MetaError::InvalidArgument(_))));
}

#[test]
fn a_commit_that_is_repeated_is_a_success_but_only_that_one() {
    let mut state = State::default();
    for op in [
        Op::Create(Kind::Active, "one".into(), String::new(), Labels::new()),
        Op::Create(Kind::Active, "two".into(), String::new(), Labels::new()),
        Op::Commit("name".into(), "one".into(), Labels::new()),
    ] {
        run(&mut state, &op).unwrap();
    }
    let before = state.clone();
    run(&mut state, &Op::Commit("name".into(), "one".into(), Labels::new())).unwrap();
    assert_eq!(state, before);
    let other = Op::Commit("name".into(), "two".into(), Labels::new());
    assert_eq!(run(&mut state, &other), Err("already exists"));
    run(&mut state, &Op::Create(Kind::Active, "one".into(), String::new(), Labels::new())).unwrap();
    let again = Op::Commit("name".into(), "one".into(), Labels::new());
    assert_eq!(run(&mut state, &again), Err("already exists"));
}

#[test]
fn a_cycle_in_a_damaged_table_is_an_error_and_not_a_loop() {
    let mut records = BTreeMap::new();
    for (id, (name, parent)) in [("a", "b"), ("b", "a"), ("top", "a")].into_iter().enumerate() {
        records.insert(
            name.to_owned(),
            Record {
                id: id as u64 + 1,
                parent: parent.to_owned(),
                kind: if name == "top" { Kind::Active } else { Kind::Committed },
                content: Content::Directory,
                labels: Labels::new(),
                created: NOW,
                updated: NOW,
                usage: USAGE,
                committed_from: String::new(),
            },
        );
    }
    let state = State::load(records, 0);
    assert!(matches!(state.snapshot("top"), Err(MetaError::FailedPrecondition(_))));
    assert!(state.create(Kind::Active, "new", "b", &Labels::new(), NOW).is_err());
}
