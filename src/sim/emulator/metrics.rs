//! What `GET /metrics` shows.

use axum::http::StatusCode;
use prometheus::{Encoder, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

use super::account::Account;
use super::emulated::Emulated;
use crate::quota::{Cost, Unit};

pub(super) struct Metrics {
    emulated: Emulated,
    registry: Registry,
    requests: IntCounterVec,
    admitted: IntCounterVec,
    level: GaugeVec,
    limit: GaugeVec,
}

impl Metrics {
    pub(super) fn new(emulated: Emulated) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(format!("tidegate_emulator_{name}"), help);
        let charged = "Units charged; output that is charged apart is counted when the answer ends.";
        let requests = IntCounterVec::new(opts("requests_total", "Completion requests answered."), &["status"])?;
        let admitted = IntCounterVec::new(opts("admitted_units_total", charged), &["unit"])?;
        let level = GaugeVec::new(opts("level_units", "Units in the bucket; below zero: overdrawn."), &["meter"])?;
        let limit = GaugeVec::new(opts("limit_units", "Limit, in units per window."), &["meter"])?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(admitted.clone()))?;
        registry.register(Box::new(level.clone()))?;
        registry.register(Box::new(limit.clone()))?;
        Ok(Self { emulated, registry, requests, admitted, level, limit })
    }

    pub(super) fn answered(&self, status: StatusCode) {
        self.requests.with_label_values(&[status.as_str()]).inc();
    }

    pub(super) fn admitted(&self, cost: &Cost) {
        let counted = |unit: &Unit| self.emulated.meters().iter().any(|meter| meter.unit == *unit);
        for unit in Unit::ALL.into_iter().filter(counted) {
            let charged = match unit {
                Unit::Requests => u64::from(cost.requests),
                Unit::Tokens => cost.input_tokens.saturating_add(cost.output_tokens),
                Unit::InputTokens => cost.input_tokens,
                Unit::OutputTokens => 0,
            };
            self.admitted.with_label_values(&[unit.as_str()]).inc_by(charged);
        }
    }

    /// An answer ended whose output is charged apart.
    pub(super) fn settled(&self, output_tokens: u64) {
        self.admitted.with_label_values(&[Unit::OutputTokens.as_str()]).inc_by(output_tokens);
    }

    pub(super) fn text(&self, account: &Account) -> Result<Vec<u8>, prometheus::Error> {
        for (meter, level) in account.levels() {
            self.level.with_label_values(&[meter.to_string()]).set(level);
        }
        for shown in account.shown() {
            self.limit.with_label_values(&[shown.meter.to_string()]).set(shown.limit);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
