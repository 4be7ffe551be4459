//! `pull`, `index build` and `index push`.

use super::Exit;
use super::list::{layer_table, print_json};
use super::owner::Owner;
use super::progress::Bars;
use crate::admin::{Event, Request};
use crate::config::ByteSize;

pub(super) fn pull(owner: &Owner, image: &str, plain_http: bool) -> Result<(), Exit> {
    let image = super::mount::absolute_image(image)?;
    let mut bars = Bars::new(owner.json);
    let answer = owner.ask(&Request::Pull { image, plain_http }, |event| bars.show(event))?;
    if owner.json {
        return print_json(&answer);
    }
    if let Event::Pulled(report) = answer {
        println!("{}", report.image);
        println!("manifest  {}", report.manifest);
        println!("content   {}", ByteSize(report.content_bytes));
        for (source, bytes) in report.bytes {
            println!("{source:<9} {}", ByteSize(bytes));
        }
        let fetched = report.sources.iter().filter(|(_, bytes)| **bytes > 0);
        let fetched: Vec<String> =
            fetched.map(|(source, bytes)| format!("{} {source}", ByteSize(*bytes))).collect();
        if !fetched.is_empty() {
            println!("fetched   {}", fetched.join(", "));
        }
    }
    Ok(())
}

pub(super) fn index_build(owner: &Owner, image: &str, plain_http: bool) -> Result<(), Exit> {
    let image = super::mount::absolute_image(image)?;
    let mut bars = Bars::new(owner.json);
    let answer = owner.ask(&Request::IndexBuild { image, plain_http }, |event| bars.show(event))?;
    match answer {
        Event::Layers { layers } if !owner.json => {
            print!("{}", layer_table(&layers));
            Ok(())
        }
        answer => print_json(&answer),
    }
}

pub(super) fn index_push(owner: &Owner, image: &str, plain_http: bool) -> Result<(), Exit> {
    let image = super::mount::absolute_image(image)?;
    let mut bars = Bars::new(owner.json);
    let answer = owner.ask(&Request::IndexPush { image, plain_http }, |event| bars.show(event))?;
    match answer {
        Event::Pushed { digest, bytes } if !owner.json => {
            println!("pushed index {digest} ({})", ByteSize(bytes));
            Ok(())
        }
        answer => print_json(&answer),
    }
}
