//! Declaring metrics: name, labels, help and buckets stand once, in the place where the metric is made.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

const PREFIX: &str = "wecom_connector";

/// Why the `expect`s of this file can't fire on anything from outside: names and labels are literals, each declared once.
const DECLARED_ONCE: &str = "a metric is declared once, with a valid name";

/// A metric as it was declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// With the prefix.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    pub labels: Vec<&'static str>,
    pub help: &'static str,
}

/// Makes and registers the metrics of one scope: of the worker, or of one connector, whose name then is on each as the label
/// `connector`, bound once, so that counting is one atomic addition.
#[derive(Debug)]
pub struct Declare<'a> {
    registry: &'a Registry,
    connector: Option<&'a str>,
    pub definitions: BTreeMap<String, Definition>,
}

impl<'a> Declare<'a> {
    pub fn new(registry: &'a Registry, connector: Option<&'a str>) -> Self {
        Self { registry, connector, definitions: BTreeMap::new() }
    }

    pub fn counter(&mut self, name: &'static str, help: &'static str) -> IntCounter {
        let opts = self.declare(name, "counter", &[], help);
        self.register(IntCounter::with_opts(opts))
    }

    /// A counter of something that comes in fractions, such as seconds.
    pub fn float_counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let opts = self.declare(name, "counter", &[], help);
        self.register(Counter::with_opts(opts))
    }

    pub fn counters(&mut self, name: &'static str, labels: &[&'static str], help: &'static str) -> IntCounterVec {
        let opts = self.declare(name, "counter", labels, help);
        self.register(IntCounterVec::new(opts, labels))
    }

    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> IntGauge {
        let opts = self.declare(name, "gauge", &[], help);
        self.register(IntGauge::with_opts(opts))
    }

    pub fn float_gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let opts = self.declare(name, "gauge", &[], help);
        self.register(Gauge::with_opts(opts))
    }

    pub fn gauges(&mut self, name: &'static str, labels: &[&'static str], help: &'static str) -> GaugeVec {
        let opts = self.declare(name, "gauge", labels, help);
        self.register(GaugeVec::new(opts, labels))
    }

    pub fn histogram(&mut self, name: &'static str, buckets: &[f64], help: &'static str) -> Histogram {
        let opts = self.declare(name, "histogram", &[], help);
        self.register(Histogram::with_opts(HistogramOpts { common_opts: opts, buckets: buckets.to_vec() }))
    }

    fn declare(&mut self, name: &str, kind: &'static str, labels: &[&'static str], help: &'static str) -> Opts {
        let scope = self.connector.map(|_| "connector");
        let definition = Definition {
            name: format!("{PREFIX}_{name}"),
            kind,
            labels: scope.into_iter().chain(labels.iter().copied()).collect(),
            help,
        };
        self.definitions.insert(definition.name.clone(), definition);
        let opts = Opts::new(name, help).namespace(PREFIX);
        match self.connector {
            Some(connector) => opts.const_label("connector", connector),
            None => opts,
        }
    }

    fn register<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect(DECLARED_ONCE);
        self.registry.register(Box::new(metric.clone())).expect(DECLARED_ONCE);
        metric
    }
}
