//! Answers from before, where other processes have them too: for the [`cached`](crate::client::Fallbacks::cached) fallback.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::connection::{Redis, Unreachable};
use crate::client::{AnswerStore, CacheKey, KeptAnswer};
use crate::quota::TenantId;
use crate::telemetry::{Metric, Telemetry};

/// How long an answer may be on its way into Redis.
const PUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct AnswersParams {
    /// How old an answer may be. Redis lets older ones go; at least 1 ms.
    pub ttl: Duration,
    /// Larger answers are not kept, in bytes.
    pub answer_bytes_max: usize,
    /// How long a refused caller waits for Redis before there is no answer from before.
    pub get_timeout: Duration,
    /// Most answers on their way into Redis at a time; more are let go. Each holds its bytes.
    pub puts_max: usize,
}

impl Default for AnswersParams {
    /// Five minutes, 1 MiB an answer, 50 ms, 64 at a time.
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(300),
            answer_bytes_max: 1 << 20,
            get_timeout: Duration::from_millis(50),
            puts_max: 64,
        }
    }
}

/// Answers in Redis, shared by all who use the same prefix. Cheap to clone; clones share what is on its way.
///
/// Redis holds your callers' answers as they are. The names of its keys are hashes of tenant and [`CacheKey`]. How much it holds is
/// bounded by [`ttl`](AnswersParams::ttl) and by its own `maxmemory`: with a `maxmemory-policy` of `volatile-lru` or `volatile-ttl`
/// answers make room for each other; tallies would too, so members that count together do so in another Redis. Without Redis there are
/// no answers from before, and nobody waits longer for that.
#[derive(Clone)]
pub struct AnswersInRedis(Arc<Inner>);

struct Inner {
    redis: Redis,
    params: AnswersParams,
    putting: Arc<Semaphore>,
    telemetry: Arc<Telemetry>,
}

impl fmt::Debug for AnswersInRedis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswersInRedis").field("params", &self.0.params).finish_non_exhaustive()
    }
}

/// What stands before an answer's bytes, in a line of its own.
#[derive(Serialize, Deserialize)]
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
    /// How long it was to be kept.
    ttl_ms: u64,
    /// How old it was by then.
    age_ms: u64,
}

impl AnswersInRedis {
    /// Answers kept there. Redis is not asked before there is something to ask.
    #[must_use]
    pub fn new(redis: Redis, params: AnswersParams, telemetry: Arc<Telemetry>) -> Self {
        let putting = Arc::new(Semaphore::new(params.puts_max));
        Self(Arc::new(Inner { redis, params, putting, telemetry }))
    }

    /// `<prefix>:1:{answer:<hash>}:kept`: answers are spread over a cluster.
    fn key(&self, tenant: &TenantId, key: &CacheKey) -> String {
        let mut hash = Context::new(&SHA256);
        // No tenant's name has a zero byte: so none ends where another's key begins.
        for part in [tenant.as_str(), "\0", &key.0] {
            hash.update(part.as_bytes());
        }
        let hex: Vec<String> = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.redis.key(&format!("answer:{}", hex.concat()), "kept")
    }

    fn failed(&self, op: &'static str, why: &str) {
        self.0.telemetry.add(Metric::AnswersFailed, &[op, why], 1.0);
    }

    async fn asked(&self, key: String) -> Result<Option<(Vec<u8>, i64)>, Unreachable> {
        let mut both = redis::pipe();
        both.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
        let asked = self.0.redis.ask(self.0.params.get_timeout, |mut connection| async move {
            both.query_async::<(Option<Vec<u8>>, i64)>(&mut connection).await
        });
        let (kept, left_ms) = asked.await?;
        Ok(kept.map(|kept| (kept, left_ms)))
    }
}

#[async_trait]
impl AnswerStore for AnswersInRedis {
    async fn get(&self, tenant: &TenantId, key: &CacheKey) -> Option<KeptAnswer> {
        match self.asked(self.key(tenant, key)).await {
            Ok(kept) => {
                let (kept, left_ms) = kept?;
                let answer = read(kept, left_ms);
                if answer.is_none() {
                    self.failed("get", "unreadable");
                }
                answer.filter(|answer| answer.age < self.0.params.ttl)
            }
            Err(error) => {
                self.failed("get", error.kind());
                None
            }
        }
    }

    fn put(&self, tenant: &TenantId, key: &CacheKey, answer: KeptAnswer) {
        let (Ok(runtime), Ok(place)) = (Handle::try_current(), self.0.putting.clone().try_acquire_owned()) else {
            self.failed("put", "busy");
            return;
        };
        let left = self.0.params.ttl.saturating_sub(answer.age);
        if left < Duration::from_millis(1) || answer.body.len() > self.0.params.answer_bytes_max {
            return;
        }
        let (key, store) = (self.key(tenant, key), self.clone());
        runtime.spawn(async move {
            let _place = place;
            let mut set = redis::cmd("SET");
            set.arg(key).arg(written(&answer, left)).arg("PX").arg(millis(left));
            let asked = store
                .0
                .redis
                .ask(PUT_TIMEOUT, |mut connection| async move { set.query_async::<()>(&mut connection).await });
            if let Err(error) = asked.await {
                store.failed("put", error.kind());
            }
        });
    }

    fn answer_bytes_max(&self) -> usize {
        self.0.params.answer_bytes_max
    }
}

fn written(answer: &KeptAnswer, left: Duration) -> Vec<u8> {
    let text =
        |(name, value): (&HeaderName, &HeaderValue)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()));
    let head = Head {
        status: answer.status.as_u16(),
        headers: answer.headers.iter().filter_map(text).collect(),
        ttl_ms: millis(left),
        age_ms: millis(answer.age),
    };
    // Numbers and text: this cannot fail.
    let mut written = serde_json::to_vec(&head).unwrap_or_default();
    written.push(b'\n');
    written.extend_from_slice(&answer.body);
    written
}

/// An answer with so much time left to live; none when it is not one.
fn read(kept: Vec<u8>, left_ms: i64) -> Option<KeptAnswer> {
    let end = kept.iter().position(|byte| *byte == b'\n')?;
    let head: Head = serde_json::from_slice(&kept[..end]).ok()?;
    let mut headers = HeaderMap::new();
    for (name, value) in &head.headers {
        headers.insert(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
    }
    let kept_for = head.ttl_ms.saturating_sub(u64::try_from(left_ms).unwrap_or(0));
    Some(KeptAnswer {
        status: StatusCode::from_u16(head.status).ok()?,
        headers,
        body: Bytes::from(kept).slice(end + 1..),
        age: Duration::from_millis(head.age_ms.saturating_add(kept_for)),
    })
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
