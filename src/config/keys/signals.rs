//! `[prometheus]` and its queries.

use super::FILE;
use crate::config::names::Names;
use crate::config::spec::{Absent, Key, Shape, Table};
use crate::controller::signal::{Counts, Role};

static ROLES: [&str; Role::ALL.len()] = names!(Role);
static COUNTS: [&str; Counts::ALL.len()] = names!(Counts);

pub(in crate::config) static PROMETHEUS: Key = Key {
    name: "prometheus",
    doc: "A Prometheus that tells of queues and capacity, beside what members report. Only the leader asks it, and nothing waits \
          for its answers: a signal that fails is missing, what it taught holds, and `tidegate status` says so.",
    shape: Shape::Table(&Table {
        keys: &[
            &PROMETHEUS_URL,
            &PROMETHEUS_USER,
            &PROMETHEUS_PASSWORD_FILE,
            &TOKEN_FILE,
            &PROMETHEUS_CA_FILE,
            &PROMETHEUS_CERT_FILE,
            &PROMETHEUS_KEY_FILE,
            &QUERIES,
        ],
    }),
    absent: Absent::Means("members' reports are all that is known"),
    example: "{ url = \"http://127.0.0.1:9090\", queries = { jobs = { query = \"sum by (tenant) (jobs_queued)\", \
              role = \"demand\", pool = \"openai\", tenant_label = \"tenant\" } } }",
};

pub(in crate::config) static PROMETHEUS_URL: Key = Key {
    name: "url",
    doc: "Its base URL, to which /api/v1/query is added.",
    shape: Shape::Text {
        expected: "a URL of host and port, such as \"http://127.0.0.1:9090\"; https:// with a ca_file, http:// without",
        pattern: "^[hH][tT][tT][pP][sS]?://[^@?# ]+$",
    },
    absent: Absent::Refused,
    example: "\"https://127.0.0.1:9090\"",
};

pub(in crate::config) static PROMETHEUS_USER: Key = Key {
    name: "user",
    doc: "Who the controller is to a Prometheus that asks for a user and a password; needs password_file.",
    shape: Shape::Text { expected: "a user's name", pattern: "^.+$" },
    absent: Absent::Means("nobody"),
    example: "\"tidegate\"",
};

pub(in crate::config) static PROMETHEUS_PASSWORD_FILE: Key = Key {
    name: "password_file",
    doc: "A file with that user's password, and perhaps a line's end behind it. Read at the start.",
    shape: FILE,
    absent: Absent::Means("no password; allowed without a user only"),
    example: "\"/run/secrets/prometheus-password\"",
};

pub(in crate::config) static TOKEN_FILE: Key = Key {
    name: "token_file",
    doc: "A file with a bearer token, and perhaps a line's end behind it; not beside a user. Read at the start.",
    shape: FILE,
    absent: Absent::Instead("no token"),
    example: "\"/run/secrets/prometheus-token\"",
};

pub(in crate::config) static PROMETHEUS_CA_FILE: Key = Key {
    name: "ca_file",
    doc: "A PEM file with the authorities that its certificate is to be signed by; for an https:// URL, which needs it. Read at \
          the start, as are the other two.",
    shape: FILE,
    absent: Absent::Means("no TLS"),
    example: "\"/etc/tidegate/prometheus-ca.pem\"",
};

pub(in crate::config) static PROMETHEUS_CERT_FILE: Key = Key {
    name: "cert_file",
    doc: "A PEM file with the certificate that the controller shows to a Prometheus that asks for one; needs key_file and ca_file.",
    shape: FILE,
    absent: Absent::Means("it shows none"),
    example: "\"/etc/tidegate/controller.pem\"",
};

pub(in crate::config) static PROMETHEUS_KEY_FILE: Key = Key {
    name: "key_file",
    doc: "A PEM file with that certificate's key.",
    shape: FILE,
    absent: Absent::Means("no key; allowed without a cert_file only"),
    example: "\"/run/secrets/controller-key.pem\"",
};

// === [prometheus.queries.<name>] ===

pub(in crate::config) static QUERIES: Key = Key {
    name: "queries",
    doc: "What it is asked. A query's name, for logs, metrics and explanations: 1-64 letters, digits, '.', '_', '-'.",
    shape: Shape::Entries {
        expected: "at least one table [prometheus.queries.<name>] with a query and a role",
        names: Names::Queries,
        entry: &Shape::Table(&Table {
            keys: &[
                &QUERY,
                &ROLE,
                &POOL,
                &POOL_LABEL,
                &QUEUE_OF,
                &TENANT_LABEL,
                &METER,
                &SIGNAL_COUNTS,
                &AIM,
                &EVERY_S,
                &TIMEOUT_S,
                &FRESH_FOR_S,
                &SCRAPE_S,
            ],
        }),
        least: 1,
    },
    absent: Absent::Refused,
    example: "{ waiting = { query = \"sum(vllm:num_requests_waiting)\", role = \"congestion\", pool = \"llama\" } }",
};

pub(in crate::config) static QUERY: Key = Key {
    name: "query",
    doc: "PromQL whose value now is an instant vector or a scalar. A series without a number, or below zero, is not taken.",
    shape: Shape::Text { expected: "PromQL, 1–4096 characters", pattern: "^[\\s\\S]{1,4096}$" },
    absent: Absent::Refused,
    example: "\"sum by (tenant) (jobs_queued)\"",
};

pub(in crate::config) static ROLE: Key = Key {
    name: "role",
    doc: "What its answers are for. demand: a tenant's queue, in requests, where it waits to be sent: who needs more. congestion: \
          the far side's queue or how full it is: fewer at a time before anything is refused. capacity: what the pool can take, \
          in units per the meter's window, replicas times a known rate for instance: followed at once where no headers tell, and never \
          estimated above. 0 is not taken: what was told last holds.",
    shape: Shape::OneOf(&ROLES),
    absent: Absent::Refused,
    example: "\"demand\"",
};

pub(in crate::config) static POOL: Key = Key {
    name: "pool",
    doc: "The pool that it is about; or pool_label. Several series are added up; of parts that are full the fullest counts. Of \
          several queries with one role the longest queue, the fewest places and the smallest capacity hold.",
    shape: Shape::Text { expected: "a pool's id", pattern: "^[a-z0-9][a-z0-9._-]{0,63}$" },
    absent: Absent::Means("a pool_label says it"),
    example: "\"openai-gpt4o\"",
};

pub(in crate::config) static POOL_LABEL: Key = Key {
    name: "pool_label",
    doc: "The label of its series that holds the pool's id.",
    shape: LABEL,
    absent: Absent::Instead("pool says it"),
    example: "\"pool\"",
};

pub(in crate::config) static QUEUE_OF: Key = Key {
    name: "tenant",
    doc: "demand: the tenant that it is about; or tenant_label. One that is not declared is one of @default.",
    shape: Shape::Text {
        expected: "a tenant's name of 1–128 bytes without control characters",
        pattern: "^[^\\u0000-\\u001f\\u007f-\\u009f]{1,128}$",
    },
    absent: Absent::Means("a tenant_label says it"),
    example: "\"acme\"",
};

pub(in crate::config) static TENANT_LABEL: Key = Key {
    name: "tenant_label",
    doc: "demand: the label of its series that holds the tenant's name.",
    shape: LABEL,
    absent: Absent::Instead("tenant says it"),
    example: "\"tenant\"",
};

const LABEL: Shape = Shape::Text { expected: "a label's name", pattern: "^[a-zA-Z_][a-zA-Z0-9_]*$" };

pub(in crate::config) static METER: Key = Key {
    name: "meter",
    doc: "capacity: the meter that it is the capacity of.",
    shape: Shape::Text { expected: "a meter, such as \"requests/minute\"", pattern: "^[a-z_]+/[a-z0-9]+$" },
    absent: Absent::Instead("allowed for demand and congestion only"),
    example: "\"requests/minute\"",
};

pub(in crate::config) static SIGNAL_COUNTS: Key = Key {
    name: "counts",
    doc: "congestion: what it counts: requests that wait on the far side, or the part of it that is full, 1 being all.",
    shape: Shape::OneOf(&COUNTS),
    absent: Absent::Instead("requests"),
    example: "\"part\"",
};

pub(in crate::config) static AIM: Key = Key {
    name: "aim",
    doc: "congestion: what it is to be. Requests: a few that wait keep the far side busy where answers are very short. A part: below 1, so \
          that the next request fits.",
    shape: Shape::Number { min: 0.01, max: 1e6, unit: "" },
    absent: Absent::Instead("half a request, so that mostly none waits, or a part of 0.9"),
    example: "4",
};

pub(in crate::config) static EVERY_S: Key = Key {
    name: "every_s",
    doc: "How often it is asked.",
    shape: Shape::Number { min: 0.2, max: 3_600.0, unit: "seconds" },
    absent: Absent::Reads("5"),
    example: "5",
};

pub(in crate::config) static TIMEOUT_S: Key = Key {
    name: "timeout_s",
    doc: "An answer that takes longer is none.",
    shape: Shape::Number { min: 0.05, max: 60.0, unit: "seconds" },
    absent: Absent::Reads("2"),
    example: "2",
};

pub(in crate::config) static FRESH_FOR_S: Key = Key {
    name: "fresh_for_s",
    doc: "For how long what it told is acted on. Prometheus is asked for no sample that is older.",
    shape: Shape::Number { min: 0.5, max: 3_600.0, unit: "seconds" },
    absent: Absent::Means(
        "30 seconds, or three times every_s, or every_s and scrape_s together, whichever is the longest",
    ),
    example: "45",
};

pub(in crate::config) static SCRAPE_S: Key = Key {
    name: "scrape_s",
    doc: "How often Prometheus scrapes what the query reads, as its configuration says: what it tells may have been so that long \
          before. Where it is set too short, one congestion may be cut for twice.",
    shape: Shape::Number { min: 0.1, max: 3_600.0, unit: "seconds" },
    absent: Absent::Reads("60"),
    example: "15",
};
