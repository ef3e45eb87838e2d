//! Every key of the file, once: its name, what it means, its range, its default, an example.

use std::sync::LazyLock;

use super::names::Names;
use super::spec::{Absent, Key, Shape, Table, homes};
use crate::limiter::ENTRIES_MAX;
use crate::plan::{Algorithm, Mode};
use crate::provider::{Dialect, ResetForm};

/// No provider counts this high; the bound keeps sums exact.
const UNITS_MAX: f64 = 1e12;
/// Seconds of its rate that a meter stores when no burst is given: long enough that members' reports and retunes
/// do not starve a steady sender, short enough that a burst is no second helping of the window.
pub(super) const BURST_SECONDS: f64 = 3.0;
/// Longest name of a controller.
pub(super) const NAME_CHARS_MAX: usize = 128;
/// Largest rate of a meter that is counted by an exact log: an entry for each request.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(super) const LOG_RATE_MAX: f64 = ENTRIES_MAX as f64;
/// An absent table is read as an empty one.
const EMPTY: Absent = Absent::Reads("{}");

/// The names of all of a type's values.
macro_rules! names {
    ($type:ident) => {{
        let mut names = [""; $type::ALL.len()];
        let mut n = 0;
        while n < names.len() {
            names[n] = $type::ALL[n].as_str();
            n += 1;
        }
        names
    }};
}

mod signals;

pub(super) use signals::{
    AIM, EVERY_S, FRESH_FOR_S, METER, POOL, POOL_LABEL, PROMETHEUS, PROMETHEUS_CA_FILE, PROMETHEUS_CERT_FILE,
    PROMETHEUS_KEY_FILE, PROMETHEUS_PASSWORD_FILE, PROMETHEUS_URL, PROMETHEUS_USER, QUERIES, QUERY, QUEUE_OF, ROLE,
    SCRAPE_S, SIGNAL_COUNTS, TENANT_LABEL, TIMEOUT_S, TOKEN_FILE,
};

static DIALECTS: [&str; Dialect::ALL.len()] = names!(Dialect);
static ALGORITHMS: [&str; Algorithm::ALL.len()] = names!(Algorithm);
static MODES: [&str; Mode::ALL.len()] = names!(Mode);
static PRIORITIES: [&str; 2] = ["interactive", "batch"];
static ENFORCEMENTS: [&str; 2] = ["local", "shared"];

/// The whole file.
pub(super) static ROOT: Table = Table { keys: &[&CONTROLLER, &KEYS, &ETCD, &PROMETHEUS, &POOLS] };

/// Every key and the table that it belongs in.
pub(super) static HOMES: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| homes(&ROOT));

// === [controller] ===

pub(super) static CONTROLLER: Key = Key {
    name: "controller",
    doc: "The controller itself.",
    shape: Shape::Table(&Table { keys: &[&NAME, &LISTEN, &ADVERTISE_URL, &TLS, &REPORTERS] }),
    absent: EMPTY,
    example: "{ listen = \"127.0.0.1:7676\" }",
};

pub(super) static NAME: Key = Key {
    name: "name",
    doc: "Its name in the leader's key and in logs.",
    shape: Shape::Text {
        expected: "1–128 characters without control characters",
        pattern: "^[^\\u0000-\\u001f\\u007f-\\u009f]{1,128}$",
    },
    absent: Absent::Means("this machine's host name"),
    example: "\"controller-a\"",
};

pub(super) static LISTEN: Key = Key {
    name: "listen",
    doc: "Where members report and /metrics is served. Off loopback only with [controller.reporters.<name>], or with a \
          client_ca_file in [controller.tls]: whoever may report steers the limits. Port 0 takes a free one.",
    shape: Shape::Text {
        expected: "an address and port, such as \"127.0.0.1:7676\"",
        pattern: "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9a-fA-F:.]+\\]):[0-9]{1,5}$",
    },
    absent: Absent::Reads("\"127.0.0.1:7676\""),
    example: "\"127.0.0.1:7676\"",
};

pub(super) static ADVERTISE_URL: Key = Key {
    name: "advertise_url",
    doc: "The URL that members are told to report to, when it is not the address above: a forwarded port, say, or a name \
          that a certificate is for. Needed where it listens on all addresses.",
    shape: Shape::Text {
        expected: "an http:// or https:// URL, such as \"http://10.0.0.5:7676\"",
        pattern: "^[hH][tT][tT][pP][sS]?://[^@?# ]+$",
    },
    absent: Absent::Means("http://, or with TLS https://, and the address it listens on"),
    example: "\"https://127.0.0.1:7676\"",
};

// === [controller.tls] ===

pub(super) static TLS: Key = Key {
    name: "tls",
    doc: "TLS on the port of reports and /metrics. Its files are read at the start.",
    shape: Shape::Table(&Table { keys: &[&SERVER_CERT_FILE, &SERVER_KEY_FILE, &CLIENT_CA_FILE] }),
    absent: Absent::Means("no TLS: tokens go in the clear, unless a proxy before the port ends TLS"),
    example: "{ cert_file = \"/etc/tidegate/reports.pem\", key_file = \"/run/secrets/reports-key.pem\" }",
};

pub(super) static SERVER_CERT_FILE: Key = Key {
    name: "cert_file",
    doc: "A PEM file with the certificate that the controller shows to members, and those that lead to its authority.",
    shape: FILE,
    absent: Absent::Refused,
    example: "\"/etc/tidegate/reports.pem\"",
};

pub(super) static SERVER_KEY_FILE: Key = Key {
    name: "key_file",
    doc: "A PEM file with that certificate's key.",
    shape: FILE,
    absent: Absent::Refused,
    example: "\"/run/secrets/reports-key.pem\"",
};

pub(super) static CLIENT_CA_FILE: Key = Key {
    name: "client_ca_file",
    doc: "A PEM file with authorities: who connects has to show a certificate that one of them has signed. Where no reporters \
          are declared, such a certificate is enough to report all and read all; where they are, the token says what one may.",
    shape: FILE,
    absent: Absent::Means("no certificate is asked for"),
    example: "\"/etc/tidegate/members-ca.pem\"",
};

const FILE: Shape = Shape::Text { expected: "a file's path", pattern: "^.+$" };

// === [controller.reporters.<name>] ===

pub(super) static REPORTERS: Key = Key {
    name: "reporters",
    doc: "Who may report: services, each with a token of its own, which `tidegate token` makes. As soon as there is one, also \
          on loopback, all but /healthz is for them alone. Its name, for logs: 1-64 letters, digits, '.', '_', '-'.",
    shape: Shape::Entries {
        expected: "at least one table [controller.reporters.<name>]",
        names: Names::Reporters,
        entry: &Shape::Table(&Table { keys: &[&TOKEN_SHA256, &REPORTED_POOLS, &REPORTED_TENANTS, &READ] }),
        least: 1,
    },
    absent: Absent::Means("whoever reaches the port may report all and read all"),
    example: "{ checkout = { token_sha256 = [\"0000000000000000000000000000000000000000000000000000000000000000\"] } }",
};

/// Whether a reporter can be called so.
pub(super) fn is_reporter(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(good)
}

pub(super) static TOKEN_SHA256: Key = Key {
    name: "token_sha256",
    doc: "SHA-256 of its token, or of two: of the one in use and of the next, while members change over. The token itself \
          stands nowhere but with the reporter.",
    shape: Shape::List {
        expected: "a list of one or two digests",
        item: &Shape::Text { expected: "64 hex digits, the SHA-256 of a token", pattern: "^[0-9a-fA-F]{64}$" },
    },
    absent: Absent::Means("it is shut out"),
    example: "[\"0000000000000000000000000000000000000000000000000000000000000000\"]",
};

pub(super) static REPORTED_POOLS: Key = Key {
    name: "pools",
    doc: "The pools that it may report of: their ids, with * for any text. Others are cut from its reports.",
    shape: GLOBS,
    absent: Absent::Reads("[\"*\"]"),
    example: "[\"openai-*\"]",
};

pub(super) static REPORTED_TENANTS: Key = Key {
    name: "tenants",
    doc: "The tenants that it may report of, in the same way; @default is all that are not declared. Others are cut from its \
          reports: their traffic counts nowhere and gets no share.",
    shape: GLOBS,
    absent: Absent::Reads("[\"*\"]"),
    example: "[\"acme\", \"@default\"]",
};

const GLOBS: Shape = Shape::List {
    expected: "a list of at least one name, with * for any text",
    item: &Shape::Text {
        expected: "1–128 bytes without control characters",
        pattern: "^[^\\u0000-\\u001f\\u007f-\\u009f]{1,128}$",
    },
};

pub(super) static READ: Key = Key {
    name: "read",
    doc: "Whether it may read too: what `tidegate status`, `limits` and `explain` ask the leader, and /metrics.",
    shape: Shape::Truth,
    absent: Absent::Reads("false"),
    example: "true",
};

// === [keys] ===

pub(super) static KEYS: Key = Key {
    name: "keys",
    doc: "The keys in the store.",
    shape: Shape::Table(&Table { keys: &[&PREFIX] }),
    absent: EMPTY,
    example: "{ prefix = \"/tidegate/v1\" }",
};

pub(super) static PREFIX: Key = Key {
    name: "prefix",
    doc: "Under which every key lives. Two installations on one etcd need two prefixes, and the services the same one \
          as their controller.",
    shape: Shape::Text {
        expected: "an absolute path of 2–128 printable ASCII characters without a trailing slash, such as \
                   \"/tidegate/v1\"",
        pattern: "^/[\\x21-\\x7e]{0,126}[\\x21-\\x2e\\x30-\\x7e]$",
    },
    absent: Absent::Reads("\"/tidegate/v1\""),
    example: "\"/tidegate/v1\"",
};

// === [etcd] ===

pub(super) static ETCD: Key = Key {
    name: "etcd",
    doc: "Where grants, overrides and the leader's key live.",
    shape: Shape::Table(&Table {
        keys: &[&ENDPOINTS, &USER, &PASSWORD_FILE, &CA_FILE, &CERT_FILE, &KEY_FILE, &QUOTA_BYTES],
    }),
    absent: Absent::Means(
        "all is kept in the memory of one process: enough to try it out, not for members in other processes",
    ),
    example: "{ endpoints = [\"http://127.0.0.1:2379\"] }",
};

pub(super) static ENDPOINTS: Key = Key {
    name: "endpoints",
    doc: "Client URLs of one etcd cluster.",
    shape: Shape::List {
        expected: "a list of at least one URL",
        item: &Shape::Text {
            expected: "a URL of host and port, such as \"http://127.0.0.1:2379\"; https:// with a ca_file, http:// without",
            pattern: "^[hH][tT][tT][pP][sS]?://[^@?# ]+$",
        },
    },
    absent: Absent::Refused,
    example: "[\"https://127.0.0.1:2379\"]",
};

pub(super) static USER: Key = Key {
    name: "user",
    doc: "Who the controller is to an etcd with authentication on; needs password_file.",
    shape: Shape::Text { expected: "a user's name", pattern: "^.+$" },
    absent: Absent::Means("nobody: etcd asks for no user"),
    example: "\"tidegate-controller\"",
};

pub(super) static PASSWORD_FILE: Key = Key {
    name: "password_file",
    doc: "A file with that user's password, and perhaps a line's end behind it. Read at the start.",
    shape: Shape::Text { expected: "a file's path", pattern: "^.+$" },
    absent: Absent::Means("no password; allowed without a user only"),
    example: "\"/run/secrets/tidegate-etcd\"",
};

pub(super) static CA_FILE: Key = Key {
    name: "ca_file",
    doc: "A PEM file with the authorities that etcd's certificate is to be signed by; for https:// endpoints, which need it. \
          Read at the start, as are the other two.",
    shape: Shape::Text { expected: "a file's path", pattern: "^.+$" },
    absent: Absent::Means("no TLS"),
    example: "\"/etc/tidegate/etcd-ca.pem\"",
};

pub(super) static CERT_FILE: Key = Key {
    name: "cert_file",
    doc: "A PEM file with the certificate that the controller shows to an etcd that asks for one; needs key_file and ca_file.",
    shape: Shape::Text { expected: "a file's path", pattern: "^.+$" },
    absent: Absent::Means("it shows none"),
    example: "\"/etc/tidegate/controller.pem\"",
};

pub(super) static KEY_FILE: Key = Key {
    name: "key_file",
    doc: "A PEM file with that certificate's key.",
    shape: Shape::Text { expected: "a file's path", pattern: "^.+$" },
    absent: Absent::Means("no key; allowed without a cert_file only"),
    example: "\"/run/secrets/controller-key.pem\"",
};

pub(super) static QUOTA_BYTES: Key = Key {
    name: "quota_bytes",
    doc: "How large etcd's database may become before it takes no more writes: what its --quota-backend-bytes says. The \
          leader warns at half of it. etcd from 3.6 on tells it by itself.",
    shape: Shape::Number { min: 1e6, max: 1e12, unit: "bytes" },
    absent: Absent::Reads("2147483648"),
    example: "8589934592",
};

// === [pools.<id>] ===

pub(super) static POOLS: Key = Key {
    name: "pools",
    doc: "A pool is what one limit of the provider applies to: an account and a model, or a model family. Its id: 1-64 \
          of a-z, 0-9, '.', '_', '-', beginning with a letter or digit; quoted if it has a dot.",
    shape: Shape::Entries {
        expected: "at least one table [pools.<id>] with a dialect and a capacity",
        names: Names::Pools,
        entry: &Shape::Table(&Table { keys: &[&DIALECT, &MODE, &CONCURRENCY, &CAPACITY, &TENANTS, &DEFAULT] }),
        least: 1,
    },
    absent: Absent::Refused,
    example: "{ openai = { dialect = \"openai\", capacity = { \"requests/minute\" = 600 } } }",
};

pub(super) static DIALECT: Key = Key {
    name: "dialect",
    doc: "How the provider writes its limits in response headers; \"auto\" reads each response as what it looks like, \
          \"self-hosted\" is of servers that send no limits. A provider that is not known is taught by a table: its \
          name, how its buckets fill, how its resets are written, and its headers for each meter.",
    shape: Shape::KeyOr(&KNOWN_DIALECT, &Table { keys: &[&DIALECT_NAME, &REFILL, &RESET_FORM, &HEADERS] }),
    absent: Absent::Refused,
    example: "\"openai\"",
};

static KNOWN_DIALECT: Key = Key {
    name: "dialect",
    doc: "A dialect by name.",
    shape: Shape::OneOf(&DIALECTS),
    absent: Absent::Refused,
    example: "\"openai\"",
};

pub(super) static DIALECT_NAME: Key = Key {
    name: "name",
    doc: "The dialect's name in what is printed.",
    shape: Shape::Text {
        expected: "1–64 of a–z, 0–9, '.', '_', '-', not the name of a known dialect",
        pattern: "^[a-z0-9][a-z0-9._-]{0,63}$",
    },
    absent: Absent::Refused,
    example: "\"acme\"",
};

pub(super) static REFILL: Key = Key {
    name: "refill",
    doc: "How buckets fill: all the time, so that a reset is the time until one is full; or at once, when the next window \
          begins, which is what a reset then tells.",
    shape: Shape::OneOf(&REFILLS),
    absent: Absent::Reads("\"fixed_window\""),
    example: "\"continuous\"",
};

static REFILLS: [&str; 2] = ["continuous", "fixed_window"];

pub(super) static RESET_FORM: Key = Key {
    name: "reset_form",
    doc: "How resets are written: 1m1.2s; 2025-10-09T21:49:43Z; seconds or milliseconds from now; seconds or milliseconds \
          since 1970; any number of these, told by its size; an HTTP date.",
    shape: Shape::OneOf(&RESET_FORMS),
    absent: Absent::Reads("\"delta_seconds\""),
    example: "\"go_duration\"",
};

static RESET_FORMS: [&str; ResetForm::ALL.len()] = {
    let mut names = [""; ResetForm::ALL.len()];
    let mut n = 0;
    while n < names.len() {
        names[n] = ResetForm::ALL[n].as_str();
        n += 1;
    }
    names
};

pub(super) static HEADERS: Key = Key {
    name: "headers",
    doc: "The names of the headers of each meter: limit, remaining, reset; one of the first two at least.",
    shape: Shape::Entries {
        expected: "1–16 meters",
        names: Names::Meters,
        entry: &Shape::Table(&Table { keys: &[&LIMIT_HEADER, &REMAINING_HEADER, &RESET_HEADER] }),
        least: 1,
    },
    absent: Absent::Refused,
    example: "{ \"requests/minute\" = { limit = \"acme-limit\", remaining = \"acme-left\", reset = \"acme-reset\" } }",
};

pub(super) static LIMIT_HEADER: Key = header("limit", "The limit's header.", "\"acme-limit\"");
pub(super) static REMAINING_HEADER: Key = header("remaining", "The header of what is left.", "\"acme-left\"");
pub(super) static RESET_HEADER: Key = header("reset", "The reset's header.", "\"acme-reset\"");

const fn header(name: &'static str, doc: &'static str, example: &'static str) -> Key {
    let shape = Shape::Text {
        expected: "a header's name, at most 64 characters",
        pattern: "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$",
    };
    Key { name, doc, shape, absent: Absent::Means("not read"), example }
}

pub(super) static MODE: Key = Key {
    name: "mode",
    doc: "What members make of the limits: enforce them; observe, which counts what would have waited or been refused, and \
          admits all; or off, which admits all and counts nothing. The controller computes and publishes in each.",
    shape: Shape::OneOf(&MODES),
    absent: Absent::Reads("\"enforce\""),
    example: "\"enforce\"",
};

pub(super) static CONCURRENCY: Key = Key {
    name: "concurrency",
    doc: "Calls in flight at a time, over all tenants: one each (the default counts as one), the rest by weight. So \
          not below the number of tenants and one.",
    shape: Shape::Count { min: 1, max: 1_000_000, unit: "calls in flight" },
    absent: Absent::Means("no limit"),
    example: "64",
};

pub(super) static CAPACITY: Key = Key {
    name: "capacity",
    doc: "What the pool takes, as far as known before the provider has said anything; and the bound of what is granted \
          when the controller is gone. A meter is \"<unit>/<window>\": unit requests, tokens (input and output \
          together), input_tokens or output_tokens; window second, minute, hour, day, month (30 days), or <n>s for n \
          from 1 to 86400 seconds. The quotes are needed, for the slash.",
    shape: Shape::Entries {
        expected: "at least one meter",
        names: Names::Meters,
        entry: &Shape::KeyOr(&RATE, &Table { keys: &[&RATE, &BURST, &ALGORITHM, &ALIGNMENT, &ENFORCEMENT] }),
        least: 1,
    },
    absent: Absent::Refused,
    example: "{ \"requests/minute\" = 600, \"tokens/minute\" = { rate = 150000, burst = 30000 } }",
};

pub(super) static RATE: Key = Key {
    name: "rate",
    doc: "What the meter gives in a window.",
    shape: Shape::Number { min: 0.001, max: UNITS_MAX, unit: "units per window" },
    absent: Absent::Refused,
    example: "600",
};

pub(super) static BURST: Key = Key {
    name: "burst",
    doc: "What may be used at once after a quiet time. A request larger than its tenant's burst is admitted when the \
          bucket is full, one at a time, and the rate pays it off.",
    shape: Shape::Number { min: 1.0, max: UNITS_MAX, unit: "units" },
    absent: Absent::Means("what the rate gives in 3 seconds, at least 1"),
    example: "30",
};

pub(super) static ALGORITHM: Key = Key {
    name: "algorithm",
    doc: "How the meter counts: refilled all the time; in windows of which each begins with the whole limit; in a window \
          that slides, estimated from two counts; or in one that slides, exactly, which is for rates up to 1000.",
    shape: Shape::OneOf(&ALGORITHMS),
    absent: Absent::Reads("\"token_bucket\""),
    example: "\"fixed_window\"",
};

pub(super) static ALIGNMENT: Key = Key {
    name: "alignment",
    doc: "When a fixed_window begins: first_use is with the first request after the last one ended; clock is with each \
          second, minute, hour, day or month of UTC; a time zone is with those of its clocks. Windows of <n>s begin at \
          multiples of n seconds since 1970.",
    shape: Shape::Text {
        expected: "\"first_use\", \"clock\" or a time zone of the IANA database, such as \"America/Los_Angeles\"",
        pattern: "^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$",
    },
    absent: Absent::Means("first_use"),
    example: "\"America/Los_Angeles\"",
};

pub(super) static ENFORCEMENT: Key = Key {
    name: "enforcement",
    doc: "Who counts: local is each process by itself, up to its share of each threshold; shared is all processes together, \
          in Redis, a round trip for each request: for thresholds that are too small to be shared out, of less than two \
          units a process or so. A process without Redis counts as with local.",
    shape: Shape::OneOf(&ENFORCEMENTS),
    absent: Absent::Reads("\"local\""),
    example: "\"shared\"",
};

pub(super) static TENANTS: Key = Key {
    name: "tenants",
    doc: "A tenant is whose traffic it is. Its name: 1-128 bytes without control characters, in quotes unless it is \
          letters, digits, '_' and '-'. No tenants at all is allowed: then all traffic is of the default.",
    shape: Shape::Entries {
        expected: "tables [pools.<id>.tenants.<name>]",
        names: Names::Tenants,
        entry: &Shape::Table(&TENANT),
        least: 0,
    },
    absent: EMPTY,
    example: "{ acme = { weight = 3 } }",
};

pub(super) static DEFAULT: Key = Key {
    name: "default",
    doc: "The tenants that are not declared, all together: one share for them all, so that made-up names gain \
          nothing. The same keys as a tenant's.",
    shape: Shape::Table(&TENANT),
    absent: EMPTY,
    example: "{ weight = 0.5 }",
};

static TENANT: Table = Table { keys: &[&WEIGHT, &PRIORITY, &FLOOR, &CEILING] };

pub(super) static WEIGHT: Key = Key {
    name: "weight",
    doc: "Its part in the division, against the other weights.",
    shape: Shape::Number { min: 0.001, max: 1_000.0, unit: "" },
    absent: Absent::Reads("1"),
    example: "3",
};

pub(super) static PRIORITY: Key = Key {
    name: "priority",
    doc: "interactive, somebody waits for its answers; or batch: beyond its floor it gets what is left when all that is \
          interactive has what it asks for.",
    shape: Shape::OneOf(&PRIORITIES),
    absent: Absent::Reads("\"interactive\""),
    example: "\"batch\"",
};

pub(super) static FLOOR: Key = Key {
    name: "floor",
    doc: "What it gets before others get more, on meters of the capacity. When the floors together exceed the \
          capacity, all shrink in proportion.",
    shape: Shape::Entries {
        expected: "meters of the capacity",
        names: Names::Meters,
        entry: &Shape::Number { min: 0.0, max: UNITS_MAX, unit: "units per window" },
        least: 0,
    },
    absent: EMPTY,
    example: "{ \"requests/minute\" = 60 }",
};

pub(super) static CEILING: Key = Key {
    name: "ceiling",
    doc: "What it never gets more than, on meters of the capacity; not below its floor.",
    shape: Shape::Entries { expected: "meters of the capacity", names: Names::Meters, entry: &RATE.shape, least: 0 },
    absent: EMPTY,
    example: "{ \"requests/minute\" = 400, \"tokens/minute\" = 120000 }",
};
