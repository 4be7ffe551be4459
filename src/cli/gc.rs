//! `gc`, `pin` and `unpin`.

use super::Exit;
use super::list::{print_json, table};
use super::owner::Owner;
use crate::admin::{Event, GcReport, Request};
use crate::config::ByteSize;

pub(super) fn gc(owner: &Owner, dry_run: bool) -> Result<(), Exit> {
    match owner.ask(&Request::Gc { dry_run }, |_| ())? {
        Event::Gc(report) if !owner.json => {
            print!("{}", text(&report));
            Ok(())
        }
        Event::Gc(report) => print_json(&*report),
        answer => print_json(&answer),
    }
}

pub(super) fn pin(owner: &Owner, name: &str) -> Result<(), Exit> {
    let name = super::mount::absolute_image(name)?;
    match owner.ask(&Request::Pin { name }, |_| ())? {
        Event::Pins { pins } if !owner.json => {
            for pin in pins {
                println!("{}", pin.name);
            }
            Ok(())
        }
        answer => print_json(&answer),
    }
}

pub(super) fn pins(owner: &Owner) -> Result<(), Exit> {
    match owner.ask(&Request::Pins, |_| ())? {
        Event::Pins { pins } if !owner.json => {
            for pin in pins {
                println!("{}", pin.name);
            }
            Ok(())
        }
        answer => print_json(&answer),
    }
}

pub(super) fn unpin(owner: &Owner, name: &str) -> Result<(), Exit> {
    let name = super::mount::absolute_image(name)?;
    match owner.ask(&Request::Unpin { name }, |_| ())? {
        Event::Pins { .. } if !owner.json => Ok(()),
        answer => print_json(&answer),
    }
}

fn text(report: &GcReport) -> String {
    let mut text = format!(
        "holds     {} of {}\n{} {}\n",
        ByteSize(report.used_bytes),
        ByteSize(report.budget_bytes),
        if report.dry_run { "would free" } else { "freed    " },
        ByteSize(report.freed_bytes),
    );
    if report.short_bytes > 0 {
        text.push_str(&format!("too much  {}, which can't go now\n", ByteSize(report.short_bytes)));
    }
    let goes = |goes: bool| if goes { "goes" } else { "stays" }.to_owned();
    let groups = report.groups.iter().map(|group| {
        let bytes = ByteSize(group.bytes).to_string();
        [goes(group.goes), group.objects.to_string(), bytes, group.why.clone()]
    });
    text.push('\n');
    text.push_str(&table(["", "OBJECTS", "BYTES", "WHY"], groups));
    if report.dry_run && !report.items.is_empty() {
        text.push('\n');
        let items = report.items.iter().map(|item| {
            let unused = item.unused_seconds.map_or_else(|| "-".to_owned(), |s| format!("{s} s"));
            let name = item.object.get(..16).unwrap_or(&item.object).to_owned();
            [name, goes(item.goes), ByteSize(item.bytes).to_string(), unused, item.why.clone()]
        });
        text.push_str(&table(["OBJECT", "", "BYTES", "UNUSED FOR", "WHY"], items));
    }
    text
}
