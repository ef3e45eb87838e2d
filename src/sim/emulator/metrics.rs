//! What `GET /metrics` shows: the emulator's own, and what a vLLM shows, as a controller of such a server would read it.

use std::fmt::Write as _;

use axum::http::StatusCode;

use super::account::{Account, units};
use super::emulated::Emulated;
use super::slots::Slots;
use crate::exposition;
use crate::quota::{Cost, Unit};
use crate::telemetry::{Metric, Sample, Telemetry};

pub(super) struct Metrics {
    emulated: Emulated,
    telemetry: Telemetry,
}

impl Metrics {
    pub(super) fn new(emulated: Emulated) -> Self {
        Self { emulated, telemetry: Telemetry::new() }
    }

    pub(super) fn answered(&self, status: StatusCode) {
        self.telemetry.add(Metric::EmulatorRequests, &[status.as_str()], 1.0);
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
            self.telemetry.add(Metric::EmulatorAdmitted, &[unit.as_str()], units(charged));
        }
    }

    /// An answer ended whose output is charged apart.
    pub(super) fn settled(&self, output_tokens: u64) {
        self.telemetry.add(Metric::EmulatorAdmitted, &[Unit::OutputTokens.as_str()], units(output_tokens));
    }

    pub(super) fn text<W>(&self, account: &Account, slots: &Slots<W>) -> Result<String, prometheus::Error> {
        let levels = account.levels().into_iter();
        let levels = levels.map(|(meter, level)| Sample::number(Metric::EmulatorLevel, &[&meter.to_string()], level));
        let shown = account.shown().into_iter();
        let limits = shown.map(|shown| Sample::number(Metric::EmulatorLimit, &[&shown.meter.to_string()], shown.limit));
        let mut measured: Vec<Sample> = levels.chain(limits).collect();
        let Some(usage) = slots.usage() else {
            return exposition::text(&self.telemetry, measured);
        };
        let (running, queued) = (f64::from(slots.running()), f64::from(slots.queued()));
        measured.push(Sample::number(Metric::EmulatorRunning, &[], running));
        measured.push(Sample::number(Metric::EmulatorQueued, &[], queued));
        let mut text = exposition::text(&self.telemetry, measured)?;
        for (name, help, value) in [
            ("num_requests_running", "Number of requests in model execution batches.", running),
            ("num_requests_waiting", "Number of requests waiting to be processed.", queued),
            ("gpu_cache_usage_perc", "GPU KV-cache usage. 1 means 100 percent usage.", usage),
        ] {
            // Another's names, so they stand in no list of ours. A String takes all that is written to it.
            let _ = writeln!(text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} gauge");
            let _ = writeln!(text, "vllm:{name}{{model_name=\"emulated\"}} {value}");
        }
        Ok(text)
    }
}
