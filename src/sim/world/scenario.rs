//! A scenario: a world in a file. `config/scenarios/` has those that the law is judged by; users add their own.
//!
//! Nothing is assumed of a file but what [`Scenario`] says: unknown keys are mistakes, and every number has a range.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::quota::Cost;
use crate::sim::emulator::Emulated;

/// A world, and what is expected of laws in it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// Why the curve looks as it does, in two sentences.
    pub about: String,
    /// What all that is random follows from, unless another is asked for.
    #[serde(default)]
    pub seed: u64,
    /// How long it lasts, in seconds, 10–86,400.
    #[serde(default = "seconds")]
    pub seconds: f64,
    /// Who answers.
    #[serde(default)]
    pub provider: Provider,
    /// What the operator believes that it takes, in requests a minute; what it really takes when absent.
    #[serde(default)]
    pub configured_requests_per_minute: Option<f64>,
    /// Whose traffic it is.
    pub tenants: BTreeMap<String, Tenant>,
    /// Through how many processes it goes.
    #[serde(default)]
    pub members: Members,
    /// What requests are like.
    #[serde(default)]
    pub requests: Requests,
    /// How long messages take.
    #[serde(default)]
    pub network: Network,
    /// What happens, and when.
    #[serde(default, rename = "event")]
    pub events: Vec<Event>,
    /// By law, what its outcome is to lie within.
    #[serde(default)]
    pub accept: BTreeMap<String, Bands>,
}

fn seconds() -> f64 {
    300.0
}

/// The provider's account, which others may use too.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools, reason = "each a key of the file")]
pub struct Provider {
    /// Whose headers it writes.
    pub dialect: Emulated,
    /// Its limit, 1–1,000,000,000.
    pub requests_per_minute: f64,
    /// Its limit of LLM tokens, input and output together, 1–1,000,000,000; so many that it never matters when absent.
    pub tokens_per_minute: Option<f64>,
    /// What its bucket holds, in seconds of refill, 0.1–86,400.
    pub burst_seconds: f64,
    /// Whether what was used in the last minute counts, and not as the dialect's own provider does it.
    pub sliding_log: bool,
    /// Whether a refused request costs one too.
    pub charges_refused: bool,
    /// How true its headers are.
    pub headers: Headers,
    /// Whether they come with the whole answer, and not before its first byte.
    pub heads_at_end: bool,
    /// Whether a refusal says when to come again.
    pub retry_after: bool,
    /// Median time to the first byte, in ms, 0–600,000.
    pub ttft_ms: f64,
    /// The standard deviation of its logarithm, 0–3.
    pub ttft_sigma: f64,
    /// Time for each output token, in ms, 0–10,000.
    pub ms_per_token: f64,
    /// How many requests it works on at full speed; more slow each other down. Any number when absent.
    pub slots: Option<u32>,
    /// Others who use the account, in requests a second,
    pub others_per_second: f64,
    /// and whether theirs come at even distances, and not at random.
    pub others_even: bool,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            dialect: Emulated::OpenAi,
            requests_per_minute: 1_200.0,
            tokens_per_minute: None,
            burst_seconds: 60.0,
            sliding_log: false,
            charges_refused: false,
            headers: Headers::Exact,
            heads_at_end: false,
            retry_after: true,
            ttft_ms: 500.0,
            ttft_sigma: 0.4,
            ms_per_token: 15.0,
            slots: None,
            others_per_second: 0.0,
            others_even: false,
        }
    }
}

/// How true headers are.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Headers {
    /// As the dialect writes them.
    Exact,
    /// There are none.
    None,
    /// Remaining is rounded down to multiples of this part of the limit, 0.001–0.5; no times until a bucket is full.
    Rounded(f64),
    /// They are so many seconds old, at the most, 0.1–60.
    Cached(f64),
    /// Limit and remaining are so many times what they are, 0.1–10; no times until a bucket is full.
    Lying(f64),
}

/// A tenant and its traffic: requests come one by one, at random.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Its part in the division, above 0.
    #[serde(default = "weight")]
    pub weight: f64,
    /// Its requests, 0–100,000 a second.
    pub per_second: f64,
    /// For how long a request is worth waiting, in seconds; without end when absent.
    #[serde(default)]
    pub patience_s: Option<f64>,
    /// Requests a minute that it gets before others get more.
    #[serde(default)]
    pub floor: Option<f64>,
    /// Requests a minute that it never gets more than.
    #[serde(default)]
    pub ceiling: Option<f64>,
    /// Whether it stands behind the others.
    #[serde(default)]
    pub batch: bool,
}

fn weight() -> f64 {
    1.0
}

/// The processes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Members {
    /// Which part of each tenant's requests goes through each, one number for each process.
    pub split: Vec<f64>,
    /// How many requests of a tenant one has under way at most.
    pub workers: usize,
    /// How far their clocks run wrong, in parts per million, and their wall clocks, in ms.
    pub drift_ppm: i64,
    /// How far the wall clocks are off, in ms.
    pub skew_ms: i64,
}

impl Default for Members {
    fn default() -> Self {
        Self { split: vec![0.5, 0.3, 0.2], workers: 128, drift_ppm: 0, skew_ms: 0 }
    }
}

/// What requests are like: numbers of LLM tokens are log-normal.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requests {
    /// Median input, in LLM tokens.
    pub input_tokens: f64,
    /// The standard deviation of its logarithm.
    pub input_sigma: f64,
    /// Median output, in LLM tokens.
    pub output_tokens: f64,
    /// The standard deviation of its logarithm.
    pub output_sigma: f64,
    /// The most output that a request allows.
    pub max_output_tokens: u64,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            input_tokens: 835.0,
            input_sigma: 0.6,
            output_tokens: 218.0,
            output_sigma: 0.8,
            max_output_tokens: 1_024,
        }
    }
}

impl Requests {
    /// One like most.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 1 to 1e6")]
    pub fn typical(&self) -> Cost {
        Cost::request(self.input_tokens as u64, self.output_tokens as u64)
    }
}

/// How long messages take.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// A report, one way, and its reply, in ms.
    pub report_ms: f64,
    /// A grant, from the leader to a member, in ms.
    pub grant_ms: f64,
    /// Which part of reports and of replies is lost.
    pub loss: f64,
    /// A refusal by the provider, there and back, in ms.
    pub refusal_ms: f64,
}

impl Default for Network {
    fn default() -> Self {
        Self { report_ms: 20.0, grant_ms: 20.0, loss: 0.0, refusal_ms: 100.0 }
    }
}

/// Something that happens: in a file `at_s`, and one of `limit`, `others_per_second`, `slots`, `tenant` with `per_second`,
/// `rush`, `kill`, `start`, `controller` (`"down"`, `"up"`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "EventInFile")]
pub struct Event {
    /// When, in seconds.
    pub at_s: f64,
    /// What.
    pub what: Happening,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EventInFile {
    at_s: Option<f64>,
    limit: Option<f64>,
    others_per_second: Option<f64>,
    slots: Option<u32>,
    tenant: Option<String>,
    per_second: Option<f64>,
    rush: Option<f64>,
    kill: Option<usize>,
    start: Option<usize>,
    controller: Option<Controller>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Controller {
    Down,
    Up,
}

impl TryFrom<EventInFile> for Event {
    type Error = String;

    fn try_from(file: EventInFile) -> Result<Self, String> {
        let traffic = match (file.tenant, file.per_second) {
            (Some(tenant), Some(per_second)) => Some(Happening::Traffic { tenant, per_second }),
            (None, None) => None,
            _ => return Err(format!("the event{}: tenant and per_second belong together", at(file.at_s))),
        };
        let controller = file.controller.map(|controller| match controller {
            Controller::Down => Happening::ControllerDown,
            Controller::Up => Happening::ControllerUp,
        });
        let all = [
            file.limit.map(Happening::Limit),
            file.others_per_second.map(Happening::OthersPerSecond),
            file.slots.map(Happening::Slots),
            traffic,
            file.rush.map(Happening::Rush),
            file.kill.map(Happening::Kill),
            file.start.map(Happening::Start),
            controller,
        ];
        let mut all = all.into_iter().flatten();
        match (file.at_s, all.next(), all.next()) {
            (Some(at_s), Some(what), None) => Ok(Self { at_s, what }),
            (at_s, ..) => Err(format!("the event{}: expected at_s and one thing that happens", at(at_s))),
        }
    }
}

/// When, if it is said.
fn at(at_s: Option<f64>) -> String {
    at_s.map_or_else(String::new, |at_s| format!(" at {at_s} s"))
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// The limits are so many times what they were at the beginning.
    Limit(f64),
    /// Others use the account at this rate, in requests a second.
    OthersPerSecond(f64),
    /// The provider works on so many requests at full speed; 0 for any number.
    Slots(u32),
    /// A tenant's requests come at another rate.
    Traffic {
        /// Whose.
        tenant: String,
        /// Requests a second.
        per_second: f64,
    },
    /// Requests of all tenants come at once: as many as in so many seconds.
    Rush(f64),
    /// A process dies.
    Kill(usize),
    /// It is there again, as a new one.
    Start(usize),
    /// Nobody leads from now on.
    ControllerDown,
    /// A controller leads again, by what the last one left.
    ControllerUp,
}

/// Between which numbers an outcome is to lie; what is not named may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bands {
    /// [`Outcome::efficiency`](super::Outcome::efficiency) at least.
    pub efficiency: Option<f64>,
    /// [`Outcome::throttled_ratio`](super::Outcome::throttled_ratio) at most.
    pub throttled_ratio: Option<f64>,
    /// [`Outcome::throttled_after_event`](super::Outcome::throttled_after_event) at most.
    pub throttled_after_event: Option<f64>,
    /// [`Outcome::unfairness`](super::Outcome::unfairness) at most.
    pub unfairness: Option<f64>,
    /// [`Outcome::wait_p99_s`](super::Outcome::wait_p99_s) at most.
    pub wait_p99_s: Option<f64>,
    /// [`Outcome::urgent_wait_p99_s`](super::Outcome::urgent_wait_p99_s) at most.
    pub urgent_wait_p99_s: Option<f64>,
    /// [`Outcome::convergence_s`](super::Outcome::convergence_s) at most.
    pub convergence_s: Option<f64>,
    /// [`Outcome::others_kept`](super::Outcome::others_kept) at least.
    pub others_kept: Option<f64>,
    /// [`Outcome::answer_p95_s`](super::Outcome::answer_p95_s) at most.
    pub answer_p95_s: Option<f64>,
}

impl Bands {
    /// Those that are parts of something, 0–2.
    fn parts(&self) -> [(&'static str, Option<f64>); 5] {
        [
            ("efficiency", self.efficiency),
            ("throttled_ratio", self.throttled_ratio),
            ("throttled_after_event", self.throttled_after_event),
            ("unfairness", self.unfairness),
            ("others_kept", self.others_kept),
        ]
    }
}

/// Why a scenario is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct BadScenario {
    file: String,
    why: String,
}

/// The largest file.
const BYTES_MAX: u64 = 1 << 20;
const TENANTS_MAX: usize = 1_000;
const MEMBERS_MAX: usize = 1_000;
/// More would not fit in memory.
const REQUESTS_MAX: f64 = 2e7;

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// [`BadScenario`]: which file, where, and what was expected.
    pub fn load(path: &Path) -> Result<Self, BadScenario> {
        use std::io::Read as _;

        let file = path.display().to_string();
        let unread =
            |error: std::io::Error| BadScenario { file: file.clone(), why: format!("cannot be read: {error}") };
        let mut text = String::new();
        std::fs::File::open(path).map_err(unread)?.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(unread)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(BadScenario { file, why: format!("more than {BYTES_MAX} bytes") });
        }
        let name = path.file_stem().map_or_else(|| file.clone(), |stem| stem.to_string_lossy().into_owned());
        Self::parse(&name, &text).map_err(|why| BadScenario { file, why })
    }

    /// Reads a text.
    ///
    /// # Errors
    /// Where it is wrong, and what was expected.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let line = line.map_or_else(String::new, |line| format!("line {line}: "));
            format!("{line}{}", error.message().replace('\n', " "))
        })?;
        let scenario = Self { name: name.to_owned(), ..scenario };
        scenario.check()?;
        Ok(scenario)
    }

    /// Whether every number is within its range.
    ///
    /// # Errors
    /// The first that is not, and the range.
    pub fn check(&self) -> Result<(), String> {
        let within = |key: &str, x: f64, least: f64, most: f64| {
            if (least..=most).contains(&x) { Ok(()) } else { Err(format!("{key} is {x}: expected {least}–{most}")) }
        };
        within("seconds", self.seconds, 10.0, 86_400.0)?;
        let provider = &self.provider;
        within("provider.requests_per_minute", provider.requests_per_minute, 1.0, 1e9)?;
        within("provider.tokens_per_minute", provider.tokens_per_minute.unwrap_or(1.0), 1.0, 1e9)?;
        within("provider.burst_seconds", provider.burst_seconds, 0.1, 86_400.0)?;
        within("provider.ttft_ms", provider.ttft_ms, 0.0, 600_000.0)?;
        within("provider.ttft_sigma", provider.ttft_sigma, 0.0, 3.0)?;
        within("provider.ms_per_token", provider.ms_per_token, 0.0, 10_000.0)?;
        within("provider.others_per_second", provider.others_per_second, 0.0, 1e5)?;
        match provider.headers {
            Headers::Exact | Headers::None => {}
            Headers::Rounded(part) => within("provider.headers.rounded", part, 0.001, 0.5)?,
            Headers::Cached(seconds) => within("provider.headers.cached", seconds, 0.1, 60.0)?,
            Headers::Lying(factor) => within("provider.headers.lying", factor, 0.1, 10.0)?,
        }
        within("configured_requests_per_minute", self.configured(), 1.0, 1e9)?;
        within("how many tenants there are", count(self.tenants.len()), 1.0, count(TENANTS_MAX))?;
        for (name, tenant) in &self.tenants {
            within(&format!("tenants.{name}.weight"), tenant.weight, 1e-3, 1e6)?;
            within(&format!("tenants.{name}.per_second"), tenant.per_second, 0.0, 1e5)?;
            within(&format!("tenants.{name}.patience_s"), tenant.patience_s.unwrap_or(1.0), 0.001, 86_400.0)?;
        }
        let split = &self.members.split;
        within("how many parts members.split has", count(split.len()), 1.0, count(MEMBERS_MAX))?;
        within("the sum of members.split", split.iter().sum(), 1.0 - 1e-6, 1.0 + 1e-6)?;
        for part in split {
            within("a part of members.split", *part, 0.0, 1.0)?;
        }
        within("members.workers", count(self.members.workers), 1.0, 1e6)?;
        within("requests.input_tokens", self.requests.input_tokens, 1.0, 1e6)?;
        within("requests.output_tokens", self.requests.output_tokens, 1.0, 1e6)?;
        within("network.report_ms", self.network.report_ms, 0.0, 60_000.0)?;
        within("network.grant_ms", self.network.grant_ms, 0.0, 60_000.0)?;
        within("network.refusal_ms", self.network.refusal_ms, 1.0, 60_000.0)?;
        within("network.loss", self.network.loss, 0.0, 1.0)?;
        for (law, bands) in &self.accept {
            if !super::laws::NAMES.contains(&law.as_str()) {
                return Err(format!("accept.{law}: expected one of {}", super::laws::NAMES.join(", ")));
            }
            for (key, part) in bands.parts() {
                within(&format!("accept.{law}.{key}"), part.unwrap_or(0.0), 0.0, 2.0)?;
            }
        }
        let all: f64 = self.tenants.values().map(|tenant| tenant.per_second).sum::<f64>() * self.seconds;
        within("how many requests there are in all", all, 0.0, REQUESTS_MAX)?;
        self.events.iter().try_for_each(|event| self.check_event(event))?;
        self.check_lives()
    }

    /// Who is killed lives, and who starts does not.
    fn check_lives(&self) -> Result<(), String> {
        let mut events: Vec<&Event> = self.events.iter().collect();
        events.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        let mut lives = vec![true; self.members.split.len()];
        for event in events {
            let (member, kill) = match event.what {
                Happening::Kill(member) => (member, true),
                Happening::Start(member) => (member, false),
                _ => continue,
            };
            if std::mem::replace(&mut lives[member], !kill) != kill {
                let is = if kill { "is dead already" } else { "lives" };
                return Err(format!("event at {} s: process {member} {is}", event.at_s));
            }
        }
        Ok(())
    }

    fn check_event(&self, event: &Event) -> Result<(), String> {
        if !(0.0..=self.seconds).contains(&event.at_s) {
            return Err(format!("event.at_s is {}: expected 0–{}", event.at_s, self.seconds));
        }
        match &event.what {
            Happening::Traffic { tenant, .. } if !self.tenants.contains_key(tenant) => {
                Err(format!("event at {} s: no tenant {tenant}", event.at_s))
            }
            Happening::Kill(member) | Happening::Start(member) if *member >= self.members.split.len() => Err(format!(
                "event at {} s: no member {member}: expected 0–{}",
                event.at_s,
                self.members.split.len() - 1
            )),
            Happening::Limit(x)
            | Happening::OthersPerSecond(x)
            | Happening::Rush(x)
            | Happening::Traffic { per_second: x, .. }
                if !(0.0..=1e5).contains(x) =>
            {
                Err(format!("event at {} s: {x}: expected 0–100000", event.at_s))
            }
            _ => Ok(()),
        }
    }

    /// What the operator believes the limit to be, in requests a minute.
    #[must_use]
    pub fn configured(&self) -> f64 {
        self.configured_requests_per_minute.unwrap_or(self.provider.requests_per_minute)
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of what fits in memory")]
fn count(n: usize) -> f64 {
    n as f64
}
