//! Tables of the database that go, or lose their name: never taken for empty ones.

use std::fs;
use std::path::Path;

use peersync::store::format::tables::Table;
use peersync::store::{OpenError, Store};
use peersync_fsck::{Kind, Options, Report};

use crate::populated::Populated;
use crate::util::{copy_dir, open, options, scratch};

fn fsck(path: &Path, repair: bool) -> Report {
    let options = Options { repair, jobs: 1 };
    peersync_fsck::check(path, &options, &peersync_fsck::Quiet).unwrap()
}

#[test]
fn a_missing_table_is_named() {
    let populated = Populated::new();
    let good = scratch();
    let store = open(good.path());
    populated.fill(&store);
    store.close().unwrap();
    for table in Table::ALL {
        let dir = scratch();
        copy_dir(good.path(), dir.path());
        let db = redb::Database::open(dir.path().join("meta")).unwrap();
        let txn = db.begin_write().unwrap();
        assert!(txn.delete_table(table.definition()).unwrap());
        txn.commit().unwrap();
        drop(db);
        let name = table.name();
        let error = Store::open(dir.path(), options()).unwrap_err();
        assert!(matches!(error, OpenError::DatabaseDamaged { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        let report = fsck(dir.path(), false);
        assert_eq!(report.findings[0].kind, Kind::Database, "{name}:\n{}", report.summary());
        assert!(report.findings[0].message.contains(name), "{}", report.findings[0].message);
        assert_eq!(fsck(dir.path(), true).exit_code(), 1, "{name}");
        let report = fsck(dir.path(), false);
        assert_eq!(report.exit_code(), 0, "{name}, repaired:\n{}", report.summary());
        let store = open(dir.path());
        populated.fill(&store);
        populated.read(&store, |id, index| panic!("{name}: {id} {index} is not there"));
        assert!(populated.is_known(&store), "{name}");
    }
}

/// A bit in a table's name makes the table one that is missing.
#[test]
fn a_flipped_bit_in_a_tables_name_is_found() {
    let populated = Populated::new();
    let good = scratch();
    let store = open(good.path());
    populated.fill(&store);
    store.close().unwrap();
    let meta = fs::read(good.path().join("meta")).unwrap();
    for table in Table::ALL {
        let name = table.name().as_bytes();
        let mut found = 0;
        for at in (0..meta.len() - name.len()).filter(|at| meta[*at..].starts_with(name)) {
            let dir = scratch();
            copy_dir(good.path(), dir.path());
            let mut bytes = meta.clone();
            bytes[at] ^= 1;
            fs::write(dir.path().join("meta"), bytes).unwrap();
            let damaged = fsck(dir.path(), false).counts.contains_key(&Kind::Database);
            match Store::open(dir.path(), options()) {
                Ok(store) => {
                    // In a page that nobody reads any more, or as part of a record.
                    populated.read(&store, |id, index| assert!(damaged, "{id} {index}"));
                    assert!(damaged || populated.is_known(&store), "{}", table.name());
                }
                Err(error) => {
                    assert!(matches!(error, OpenError::DatabaseDamaged { .. }), "{error}");
                    assert!(damaged, "{}: the checker found nothing, but {error}", table.name());
                    found += 1;
                }
            }
        }
        assert!(found > 0, "{} at {name:?}", table.name());
    }
}
