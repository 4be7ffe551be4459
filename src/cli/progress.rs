//! Progress of layers as bars on a terminal, as lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::admin::{Event, Progress, Stage};

/// Shows the progress of a request on standard error.
pub(super) struct Bars {
    multi: MultiProgress,
    bars: HashMap<String, (Stage, ProgressBar)>,
    mode: Mode,
}

#[derive(PartialEq, Eq)]
enum Mode {
    Terminal,
    Lines,
    Json,
}

impl Bars {
    /// Bars on a terminal; one line for each stage of a layer where standard
    /// error is none; the events themselves with `json`.
    pub(super) fn new(json: bool) -> Self {
        let mode = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Terminal,
            (false, false) => Mode::Lines,
        };
        Self { multi: MultiProgress::new(), bars: HashMap::new(), mode }
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: &Event) {
        match (event, &self.mode) {
            (event, Mode::Json) => {
                if let Ok(line) = serde_json::to_string(event) {
                    eprintln!("{line}");
                }
            }
            (Event::Note { message }, Mode::Terminal) => {
                let _ = self.multi.println(format!("note: {message}"));
            }
            (Event::Note { message }, Mode::Lines) => eprintln!("note: {message}"),
            (Event::Progress(progress), Mode::Terminal) => self.bar(progress),
            (Event::Progress(progress), Mode::Lines) => self.line(progress),
            _ => {}
        }
    }

    fn bar(&mut self, progress: &Progress) {
        let entry = self.bars.entry(progress.layer.clone()).or_insert_with(|| {
            let bar = self.multi.add(ProgressBar::new(progress.total));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar.set_prefix(short(&progress.layer).to_owned());
            bar.set_style(style());
            (progress.stage, bar)
        });
        entry.0 = progress.stage;
        entry.1.set_length(progress.total);
        entry.1.set_position(progress.done);
        entry.1.set_message(name(progress.stage));
        if progress.stage == Stage::Complete {
            entry.1.finish();
        }
    }

    fn line(&mut self, progress: &Progress) {
        let known = self.bars.get(&progress.layer).map(|(stage, _)| *stage);
        if known != Some(progress.stage) {
            let hidden = (progress.stage, ProgressBar::hidden());
            self.bars.insert(progress.layer.clone(), hidden);
            eprintln!(
                "{} {} ({} bytes)",
                short(&progress.layer),
                name(progress.stage),
                progress.total
            );
        }
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::FirstPass => "first pass",
        Stage::Fetch => "fetching",
        Stage::Push => "pushing index",
        Stage::Complete => "complete",
    }
}

fn short(digest: &str) -> &str {
    digest.split(':').next_back().and_then(|hex| hex.get(..12)).unwrap_or(digest)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix} {msg:13} [{bar:30}] {binary_bytes:>11}/{binary_total_bytes:<11} {binary_bytes_per_sec:>13} {eta:>4}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("=> ")
}
