//! What the egress guard counts.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec};

use super::CALL_BUCKETS;
use super::declare::Declare;

/// The metrics of a connector's way to WeCom. They stay at 0 with `sdk.egress=direct`.
#[derive(Debug)]
pub struct EgressMetrics {
    pub first_byte_seconds: Histogram,
    pub clock_ahead_seconds: Gauge,
    pub connections: IntCounter,
    pub connections_reused: IntCounter,
    pub bytes_sent: IntCounter,
    pub bytes_received: IntCounter,
    requests: IntCounterVec,
    refusals: IntCounterVec,
}

impl EgressMetrics {
    pub(super) fn new(declare: &mut Declare<'_>) -> Self {
        Self {
            requests: declare.counters(
                "egress_requests_total",
                &["endpoint", "status"],
                "Requests that the egress guard sent on to WeCom, by endpoint and HTTP status; where there was none, by what went wrong: dns, connect, proxy, tls, untrusted (a certificate that is none of WeCom's), timeout, cut, answer (one that cannot be used), abandoned (by the SDK host).",
            ),
            first_byte_seconds: declare.histogram(
                "egress_first_byte_seconds",
                &CALL_BUCKETS,
                "From a request of the vendor's library to the head of WeCom's answer, making a connection included.",
            ),
            clock_ahead_seconds: declare.float_gauge(
                "egress_clock_ahead_seconds",
                "How far this machine's clock was ahead of WeCom's when that last told the time (Date); negative: behind. Within a second and the time an answer takes.",
            ),
            connections: declare.counter(
                "egress_connections_total",
                "Connections to WeCom that were made, each with a TLS handshake.",
            ),
            connections_reused: declare.counter(
                "egress_connections_reused_total",
                "Requests that went over a connection that was there already.",
            ),
            bytes_sent: declare.counter("egress_sent_bytes_total", "Bytes sent to WeCom or to the proxy before it, TLS included."),
            bytes_received: declare.counter(
                "egress_received_bytes_total",
                "Bytes received from WeCom or from the proxy before it, TLS included.",
            ),
            refusals: declare.counters(
                "egress_refusals_total",
                &["reason"],
                "What the egress guard did not let through: a client without an SDK host's password (password), another host (host), another endpoint (endpoint).",
            ),
        }
    }

    /// `status`: an HTTP status, or one word out of a fixed few.
    pub fn request(&self, endpoint: &str, status: &str) {
        self.requests.with_label_values(&[endpoint, status]).inc();
    }

    /// `reason`: `password`, `host` or `endpoint`.
    pub fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }
}
