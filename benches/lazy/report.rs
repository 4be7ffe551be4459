//! Tables, and what they were measured on.

use std::fs;
use std::time::Duration;

use crate::harness::tool;

/// A Markdown table.
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.columns.len());
        self.rows.push(cells.into());
    }

    pub(crate) fn print(&self) {
        println!("| {} |", self.columns.join(" | "));
        println!("|{}", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
    }
}

pub(crate) fn machine() {
    let line = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let found = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        found.split(':').nth(1).unwrap_or_default().trim().to_owned()
    };
    let mut table = Table::new(&["what", "which"]);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    table.row([
        "processor".into(),
        format!("{} ({cores} cores)", line("/proc/cpuinfo", "model name")),
    ]);
    table.row(["memory".into(), line("/proc/meminfo", "MemTotal")]);
    table.row(["kernel".into(), tool("uname", &["-r"]).trim().into()]);
    let place = env!("CARGO_TARGET_TMPDIR");
    let system = tool("stat", &["-f", "-c", "%T", place]);
    table.row(["file system".into(), system.trim().into()]);
    let binary = fs::metadata(env!("CARGO_BIN_EXE_peersync")).map_or(0, |meta| meta.len());
    table.row(["release binary, stripped".into(), mib(binary)]);
    table.print();
}

/// Says whether a figure is within its target.
pub(crate) fn at_most(what: &str, measured: f64, limit: f64, unit: &str) {
    verdict(measured <= limit, what, measured, &format!("at most {limit}"), unit);
}

/// Says whether a figure reaches its target.
pub(crate) fn at_least(what: &str, measured: f64, limit: f64, unit: &str) {
    verdict(measured >= limit, what, measured, &format!("at least {limit}"), unit);
}

fn verdict(met: bool, what: &str, measured: f64, target: &str, unit: &str) {
    let word = if met { "met" } else { "MISSED" };
    let text = format!("- {word}: {what}: {measured:.2} {unit} (target: {target} {unit})");
    println!("{}", text.replace(" )", ")").replace("  ", " "));
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_millis(100) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

pub(crate) fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// A field of a process's status, in bytes: `VmHWM`, `VmRSS`.
pub(crate) fn memory(process: nix::unistd::Pid, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let digits = found.unwrap_or_default().trim().trim_end_matches(" kB");
    digits.parse::<u64>().map_or(0, |kib| kib * 1024)
}

/// CPU time that a process has used, all threads together.
pub(crate) fn cpu(process: nix::unistd::Pid) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum::<u64>();
    Duration::from_millis(ticks * 10)
}
