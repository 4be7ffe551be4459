//! How figures are given to Prometheus: OpenMetrics text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

/// What every name begins with.
const PREFIX: &str = "peersync";

/// The media type of what [`render`] gives.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a figure only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// What a figure is called and means.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Whether it only grows.
    pub kind: Kind,
    /// Without the prefix `peersync_` and a counter's `_total`. A last word
    /// `bytes` or `seconds` is the unit; everything else is a number of things.
    pub name: &'static str,
    /// What tells it from others of the same name.
    pub labels: &'static [(&'static str, &'static str)],
    /// One sentence.
    pub help: &'static str,
}

/// A figure and its value now.
pub type Sample = (Definition, u64);

/// All figures as a page for Prometheus. Those of one name stand together, under
/// the meaning of the first.
pub fn render(samples: Vec<Sample>, version: &'static str) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Page { samples, version }));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        // Only a writer that fails makes this fail, and a string does not.
        Err(fmt::Error) => String::new(),
    }
}

#[derive(Debug)]
struct Page {
    samples: Vec<Sample>,
    version: &'static str,
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "The version of the program.";
        let version = [("version", self.version)];
        encoder
            .encode_descriptor("build", help, None, MetricType::Info)?
            .encode_info(&version.as_slice())?;
        let mut left: Vec<&Sample> = self.samples.iter().collect();
        while let Some((first, _)) = left.first().copied() {
            let (family, others) = left.into_iter().partition(|(d, _)| d.name == first.name);
            left = others;
            encode_family(&mut encoder, first, family)?;
        }
        Ok(())
    }
}

fn encode_family(
    encoder: &mut DescriptorEncoder,
    first: &Definition,
    family: Vec<&Sample>,
) -> Result<(), fmt::Error> {
    let (name, unit) = unit_of(first.name);
    let kind = match first.kind {
        Kind::Counter => ConstCounter::<u64>::TYPE,
        Kind::Gauge => ConstGauge::<i64>::TYPE,
    };
    let mut metric = encoder.encode_descriptor(name, first.help, unit.as_ref(), kind)?;
    for (definition, value) in family {
        let labelled = metric.encode_family(&definition.labels)?;
        match first.kind {
            Kind::Counter => ConstCounter::new(*value).encode(labelled)?,
            Kind::Gauge => {
                ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(labelled)?;
            }
        }
    }
    Ok(())
}

fn unit_of(name: &'static str) -> (&'static str, Option<Unit>) {
    match name.rsplit_once('_') {
        Some((name, "bytes")) => (name, Some(Unit::Bytes)),
        Some((name, "seconds")) => (name, Some(Unit::Seconds)),
        _ => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_one_name_stand_together_with_unit_and_meaning() {
        let content = |source: &'static [(&'static str, &'static str)]| Definition {
            kind: Kind::Counter,
            name: "content_bytes",
            labels: source,
            help: "Content.",
        };
        let peers =
            Definition { kind: Kind::Gauge, name: "peers", labels: &[], help: "Who is there." };
        let text = render(
            vec![
                (content(&[("source", "lan")]), 3),
                (peers, 2),
                (content(&[("source", "registry")]), u64::MAX),
            ],
            "1.2.3",
        );
        let wanted = "\
# HELP peersync_build The version of the program.
# TYPE peersync_build info
peersync_build_info{version=\"1.2.3\"} 1
# HELP peersync_content_bytes Content.
# TYPE peersync_content_bytes counter
# UNIT peersync_content_bytes bytes
peersync_content_bytes_total{source=\"lan\"} 3
peersync_content_bytes_total{source=\"registry\"} 18446744073709551615
# HELP peersync_peers Who is there.
# TYPE peersync_peers gauge
peersync_peers 2
# EOF
";
        assert_eq!(text, wanted);
    }
}
