//! Recorded responses, and what is made of one: shared by `headers` and `replay`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Failure, say};
use crate::clock::MonoTime;
use crate::observation::{Ending, ThrottleKind};
use crate::provider::{Class, Dialect, Head, Observation, Unread, unread};
use crate::quota::{Cost, Unit};

/// Names standard input, as a file.
const STDIN: &str = "-";
/// Longest line or input that is read, in bytes.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// More than any limit: what a request costs when nobody says.
const COST_UNKNOWN: u64 = u64::MAX / 4;

/// One recorded response. Fields that are not named here are left.
#[derive(Debug, Deserialize)]
pub(super) struct Recorded {
    #[serde(default)]
    pub(super) host: Option<String>,
    #[serde(default)]
    pub(super) status: Option<u16>,
    pub(super) headers: Map<String, Value>,
    #[serde(default)]
    pub(super) error_body: Option<String>,
    #[serde(default)]
    pub(super) date: Option<String>,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(default)]
    pub(super) request: Option<Request>,
}

/// What is known of the request.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Request {
    #[serde(default)]
    pub(super) model: Option<String>,
    #[serde(default)]
    max_tokens: Option<Value>,
    #[serde(default)]
    body_bytes: Option<usize>,
}

/// A response, as it is read: names in lower case, one line after another.
#[derive(Debug, Default)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Option<Vec<u8>>,
    /// Bytes of the request and the output that it allowed.
    request: Option<(usize, u64)>,
    /// LLM tokens that it took.
    usage: Option<(u64, u64)>,
}

impl From<Recorded> for Response {
    fn from(row: Recorded) -> Self {
        let mut headers = Vec::new();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned).into_bytes();
        for (name, value) in &row.headers {
            let name = name.to_ascii_lowercase();
            match value {
                Value::Array(lines) => headers.extend(lines.iter().map(|line| (name.clone(), text(line)))),
                one => headers.push((name, text(one))),
            }
        }
        if let Some(date) = row.date.filter(|_| headers.iter().all(|(name, _)| name != "date")) {
            headers.push(("date".to_owned(), date.into_bytes()));
        }
        let request = row.request.unwrap_or_default();
        let max_tokens = request.max_tokens.as_ref().and_then(Value::as_u64).unwrap_or(0);
        let tokens = |names: [&str; 2]| names.iter().find_map(|name| row.usage.as_ref()?.get(*name)?.as_u64());
        let usage = tokens(["prompt_tokens", "input_tokens"])
            .map(|input| (input, tokens(["completion_tokens", "output_tokens"]).unwrap_or(0)));
        Self {
            // What was recorded without a status was an answer.
            status: row.status.unwrap_or(200),
            headers,
            body: row.error_body.map(String::into_bytes),
            request: request.body_bytes.map(|bytes| (bytes, max_tokens)),
            usage,
        }
    }
}

/// What is made of a response.
#[derive(Debug)]
pub(super) struct Finding {
    /// The dialect, if one was named or any was seen.
    pub(super) dialect: Option<Dialect>,
    pub(super) observation: Observation,
    pub(super) unread: Unread,
    pub(super) hold: Option<Duration>,
}

impl Response {
    /// Reads what `curl -i` prints. Of several heads the last counts: those before it were redirects, or "100 Continue".
    ///
    /// # Errors
    /// A line of the head that is neither a status nor a header.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut response = Self { status: 200, ..Self::default() };
        let mut rest = text;
        let mut begun = false;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (line, after) = end.map_or((rest, &rest[rest.len()..]), |end| (&rest[..end], &rest[end + 1..]));
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = line.strip_prefix(b"< ").unwrap_or(line);
            rest = after;
            if line.is_empty() {
                if !begun {
                    continue;
                }
                if !rest.starts_with(b"HTTP/") {
                    response.body = Some(rest.to_vec()).filter(|body| !body.is_empty());
                    break;
                }
            } else if line.starts_with(b"HTTP/") {
                let told = String::from_utf8_lossy(line);
                let status = told.split_whitespace().nth(1).and_then(|status| status.parse().ok());
                let status =
                    status.ok_or_else(|| format!("found {told:?}, expected a status line such as HTTP/2 200"))?;
                response = Self { status, ..Self::default() };
                begun = true;
            } else {
                let colon = line.iter().position(|byte| *byte == b':').filter(|at| *at > 0);
                let at = colon.ok_or_else(|| {
                    format!("found {:?}, expected a header such as retry-after: 2", String::from_utf8_lossy(line))
                })?;
                let name = String::from_utf8_lossy(&line[..at]).trim().to_ascii_lowercase();
                response.headers.push((name, line[at + 1..].trim_ascii().to_vec()));
                begun = true;
            }
        }
        if begun { Ok(response) } else { Err("found nothing, expected the head of a response".to_owned()) }
    }

    pub(super) fn head(&self) -> Head<'_> {
        Head { status: self.status, headers: &self.headers }
    }

    /// What a member would make of it.
    pub(super) fn read(&self, named: Option<Dialect>) -> Finding {
        let head = self.head();
        let body = self.body.as_deref();
        let dialect = named.or_else(|| Dialect::detect(&head, body));
        let reader = dialect.unwrap_or(Dialect::Auto);
        let observation = reader.observe(&head, body, MonoTime::from_millis(0));
        let (observation, cost) = match self.cost(reader) {
            Some(cost) => (observation.for_request_of(&cost), cost),
            None => (observation, Cost::request(COST_UNKNOWN, COST_UNKNOWN)),
        };
        let hold = reader.semantics().told_wait(&observation, &cost);
        let unread = unread(reader, &head);
        Finding { dialect: dialect.filter(|dialect| *dialect != Dialect::Auto), observation, unread, hold }
    }

    fn cost(&self, dialect: Dialect) -> Option<Cost> {
        let estimated = || self.request.map(|(bytes, max_tokens)| dialect.estimate(bytes, max_tokens));
        self.usage.map(|(input, output)| Cost::request(input, output)).or_else(estimated)
    }
}

/// One reading, as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) meter: String,
    pub(super) limit: Option<f64>,
    pub(super) remaining: Option<f64>,
    pub(super) level: Option<f64>,
    pub(super) reset_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct MissingShown {
    header: String,
    reason: &'static str,
}

/// A finding, as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct FindingShown {
    dialect: Option<&'static str>,
    class: &'static str,
    readings: Vec<Shown>,
    hold_s: Option<f64>,
    scope: Option<String>,
    missing: Vec<MissingShown>,
    unread: Vec<String>,
}

impl Finding {
    /// Everything that was read, our meters first.
    pub(super) fn readings(&self) -> Vec<Shown> {
        let seconds = |reset: Option<Duration>| reset.map(|reset| reset.as_secs_f64());
        let ours = self.observation.readings.iter().map(|reading| Shown {
            meter: reading.meter.to_string(),
            limit: reading.limit,
            remaining: reading.remaining,
            level: reading.level,
            reset_s: seconds(reading.reset),
        });
        let others = self.observation.others.iter().map(|other| Shown {
            meter: other.to_string(),
            limit: other.limit,
            remaining: other.remaining,
            level: other.remaining,
            reset_s: seconds(other.reset),
        });
        ours.chain(others).collect()
    }

    /// The meter that refused, where it is known.
    pub(super) fn scope(&self) -> Option<String> {
        if self.observation.class != Class::Throttled {
            return None;
        }
        if self.observation.ending == Ending::Throttled(ThrottleKind::Concurrency) {
            return Some("concurrency".to_owned());
        }
        // What lasts longest is what refuses; of the same window, requests are the plainer.
        let order = |unit: Unit| Unit::ALL.iter().rev().position(|known| *known == unit);
        let last =
            self.observation.exhausted.iter().max_by(|a, b| {
                a.window.seconds().total_cmp(&b.window.seconds()).then(order(a.unit).cmp(&order(b.unit)))
            });
        last.map(ToString::to_string)
    }

    pub(super) fn shown(&self) -> FindingShown {
        let missing = self.observation.missing.iter().chain(&self.unread.foreign);
        FindingShown {
            dialect: self.dialect.map(Dialect::as_str),
            class: self.observation.class.as_str(),
            readings: self.readings(),
            hold_s: self.hold.map(|hold| hold.as_secs_f64()),
            scope: self.scope(),
            missing: missing
                .map(|missing| MissingShown { header: missing.header.to_string(), reason: missing.reason.as_str() })
                .collect(),
            unread: self.unread.unknown.clone(),
        }
    }
}

/// The whole of a file or of standard input.
pub(super) fn read_all(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    if u64::try_from(read).is_ok_and(|read| read > BYTES_MAX) {
        return Err(Failure::Usage(format!("{}: found more than {BYTES_MAX} bytes", path.display())));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path == Path::new(STDIN) {
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(File::open(path).map_err(|error| unreadable(path, &error))?))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!("{}: cannot be read: {error}", path.display()))
}

/// Each row of a recording, in order, until `each` has enough. What is no row is told with the number of its line, and
/// left.
///
/// # Errors
/// The file cannot be read, or `each` fails.
pub(super) fn for_each_row(
    path: &Path,
    mut each: impl FnMut(Recorded) -> Result<ControlFlow<()>, Failure>,
) -> Result<Rows, Failure> {
    let mut reader = BufReader::new(open(path)?);
    let mut line = Vec::new();
    let mut rows = Rows::default();
    for n in 1_u64.. {
        line.clear();
        let read = reader.by_ref().take(BYTES_MAX).read_until(b'\n', &mut line);
        if read.map_err(|error| unreadable(path, &error))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(row) => {
                if each(row)?.is_break() {
                    return Ok(Rows::default());
                }
            }
            Err(error) => {
                rows.unreadable += 1;
                say(&format!("{}:{n}: no row of a recording: {error}", path.display()));
            }
        }
    }
    Ok(rows)
}

/// How a recording was read.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Lines that are no rows.
    unreadable: u64,
}

impl Rows {
    /// # Errors
    /// There were lines that are no rows.
    pub(super) fn all_read(&self, path: &Path) -> Result<(), Failure> {
        match self.unreadable {
            0 => Ok(()),
            1 => Err(Failure::Usage(format!("{}: 1 line was left out", path.display()))),
            n => Err(Failure::Usage(format!("{}: {n} lines were left out", path.display()))),
        }
    }
}

/// Text of others for a terminal: what would steer it is written as an escape.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}
