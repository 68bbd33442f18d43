//! Prometheus families, made from a snapshot at each scrape.
//!
//! The hot path keeps plain counters on each worker's own cache lines; nothing here is touched by
//! it. Names are promises: they can be added to, not renamed.

use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

/// Families in the making.
#[derive(Debug, Default)]
pub struct Families {
    families: Vec<MetricFamily>,
}

/// Label names and values of one sample.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Families {
    /// Opens a family of gauges; samples follow.
    pub fn gauge(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.open(name, help, MetricType::GAUGE)
    }

    /// Opens a family of counters; samples follow.
    pub fn counter(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.open(name, help, MetricType::COUNTER)
    }

    /// Opens a family of histograms; samples follow.
    pub fn histogram(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.open(name, help, MetricType::HISTOGRAM)
    }

    fn open(&mut self, name: &str, help: &str, kind: MetricType) -> Samples<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.families.push(family);
        let index = self.families.len() - 1;
        Samples {
            family: &mut self.families[index],
        }
    }

    /// The text exposition format, 0.0.4.
    ///
    /// # Errors
    /// If a family has no sample.
    pub fn encode(mut self) -> prometheus::Result<String> {
        self.families
            .retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_to_string(&self.families)
    }
}

/// The samples of one family.
#[derive(Debug)]
pub struct Samples<'a> {
    family: &'a mut MetricFamily,
}

impl Samples<'_> {
    /// Adds a gauge or counter sample.
    pub fn add(&mut self, labels: Labels<'_>, value: f64) -> &mut Self {
        let mut metric = labelled(labels);
        if self.family.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.push(metric)
    }

    /// Adds a histogram sample from counts per bucket (not cumulative, the last one unbounded),
    /// the upper bounds in seconds and the sum in seconds.
    pub fn add_buckets(
        &mut self,
        labels: Labels<'_>,
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) -> &mut Self {
        let mut metric = labelled(labels);
        let mut histogram = Histogram::default();
        let mut cumulative = 0;
        let buckets = bounds.iter().zip(counts).map(|(&bound, &count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum);
        metric.set_histogram(histogram);
        self.push(metric)
    }

    fn push(&mut self, metric: Metric) -> &mut Self {
        self.family.mut_metric().push(metric);
        self
    }
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pairs = labels.iter().map(|&(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_in_the_text_format() {
        let mut families = Families::default();
        families.gauge("zone", "The zone.").add(&[], 2.0);
        families.counter("empty_total", "Nothing.");
        families.histogram("ack_seconds", "Acks.").add_buckets(
            &[("route", "vault")],
            &[0.1, 1.0],
            &[3, 1, 1],
            4.5,
        );
        let text = families.encode().expect("encodes");
        assert!(text.contains("# TYPE zone gauge\nzone 2\n"), "{text}");
        assert!(
            text.contains("ack_seconds_bucket{route=\"vault\",le=\"1\"} 4\n"),
            "{text}"
        );
        assert!(
            text.contains("ack_seconds_bucket{route=\"vault\",le=\"+Inf\"} 5\n"),
            "{text}"
        );
        assert!(!text.contains("empty_total"), "{text}");
    }
}
