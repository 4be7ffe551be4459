//! What an election costs, as a picture.

use std::fmt::Write;
use std::fs;
use std::path::Path;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 50.0;
const EDGE: f64 = 20.0;

/// Powers of ten from `from` to `to` on a line of so many points.
struct Axis {
    from: f64,
    to: f64,
    length: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        (value.log10() - self.from) / (self.to - self.from) * self.length
    }

    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        (self.from as i32..=self.to as i32).map(|power| {
            let value = 10_f64.powi(power);
            (self.at(value), format!("{value}"))
        })
    }
}

/// Writes a plot of messages over nodes, both by powers of ten, with a line for
/// what grows as the nodes do and one for what grows as their square.
pub(crate) fn write(file: &Path, points: &[(usize, u64)]) {
    let x = Axis { from: 1.0, to: 3.0, length: WIDTH - LEFT - EDGE };
    let y = Axis { from: 1.0, to: 6.0, length: HEIGHT - BOTTOM - EDGE };
    let place = |nodes: f64, messages: f64| (LEFT + x.at(nodes), HEIGHT - BOTTOM - y.at(messages));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut add = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(svg, "{text}");
    };
    let base = HEIGHT - BOTTOM;
    for (at, text) in x.ticks() {
        let at = LEFT + at;
        add(format_args!(
            "<path d=\"M{at:.1} {EDGE}V{base}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{text}</text>",
            base + 18.0
        ));
    }
    for (at, text) in y.ticks() {
        let at = base - at;
        add(format_args!(
            "<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{text}</text>",
            WIDTH - EDGE,
            LEFT - 8.0,
            at + 4.0
        ));
    }
    add(format_args!(
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">nodes</text>",
        LEFT + x.length / 2.0,
        HEIGHT - 12.0
    ));
    add(format_args!(
        "<text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">messages of \
         an election</text>",
        EDGE + y.length / 2.0
    ));
    let (first, messages) = (points[0].0 as f64, points[0].1 as f64);
    let last = points[points.len() - 1].0 as f64;
    for (power, name) in [(1, "as the nodes"), (2, "as their square")] {
        let end = messages * (last / first).powi(power);
        let ((x1, y1), (x2, y2)) = (place(first, messages), place(last, end));
        add(format_args!(
            "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"#999\" \
             stroke-dasharray=\"4 4\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" \
             fill=\"#666\">{name}</text>",
            x2 - 6.0,
            y2 + if power == 1 { 22.0 } else { 4.0 }
        ));
    }
    let line: Vec<String> = points
        .iter()
        .map(|(nodes, messages)| {
            let (x, y) = place(*nodes as f64, *messages as f64);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    add(format_args!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/>",
        line.join(" ")
    ));
    for point in line {
        let (x, y) = point.split_once(',').expect("two numbers");
        add(format_args!("<circle cx=\"{x}\" cy=\"{y}\" r=\"3.5\" fill=\"#06c\"/>"));
    }
    svg.push_str("</svg>\n");
    fs::write(file, svg).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
