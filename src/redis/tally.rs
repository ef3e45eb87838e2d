//! The tallies in Redis: one script for a question, one for a settlement, each one round trip.
//!
//! *A fixed window* is a count with an expiry, `INCRBY` and `PEXPIRE`: the expiry is set with the first unit, in the same script, and
//! never again. It cannot be missing: a script is one command, whose effects Redis writes down and passes on together, so nobody
//! dies between the two; and a count that has none all the same (somebody's `PERSIST`) gets one with its next unit.
//! *Versions*: the scripts are asked for by their hashes, and keys carry the number of their format, so processes of two releases
//! count side by side.

use std::time::Duration;

use async_trait::async_trait;
use redis::{Script, Value, cmd};

use super::{Redis, Unreachable};
use crate::client::{Tally, Uncounted};
use crate::limiter::{Count, Question, Settlement, Taken, TallyRule};
use crate::quota::Grantee;

/// The longest that anything here is waited for: who asks waits less, and what comes later is given back.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(3);

/// Tallies in Redis: what [`ClientParams::tally`](crate::client::ClientParams) takes.
#[derive(Debug)]
pub struct RedisTally {
    redis: Redis,
    take: Script,
    settle: Script,
}

impl RedisTally {
    /// Tallies that are counted there.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        Self { redis, take: Script::new(include_str!("take.lua")), settle: Script::new(include_str!("settle.lua")) }
    }

    /// The hash under which Redis knows the script of a question: for measuring the server alone.
    #[must_use]
    pub fn script_hash(&self) -> &str {
        self.take.get_hash()
    }

    /// The keys and arguments of a question, as the script takes them: for measuring the server alone.
    #[must_use]
    pub fn words(&self, question: &Question) -> (Vec<String>, Vec<String>) {
        let (mut keys, mut words) = (Vec::new(), Vec::new());
        for count in &question.counts {
            for (key, rule) in self.tallies(question.account.as_str(), count) {
                keys.push(key);
                words.extend(rule_words(rule));
                words.extend([count.units, count.extra, count.owed, u64::from(count.borrows)].map(|n| n.to_string()));
            }
        }
        (keys, words)
    }

    /// A count's two tallies, the tenant's and the pool's.
    fn tallies<'c>(&self, account: &str, count: &'c Count) -> [(String, &'c TallyRule); 2] {
        let (pool, meter) = (count.pool.as_str(), count.meter);
        let of =
            |whose: &str, rule: &TallyRule| self.redis.key(account, &format!("{}:{pool}:{meter}{whose}", kind(rule)));
        let tenant = match &count.grantee {
            Grantee::Tenant(tenant) => of(&format!(":t:{tenant}"), &count.tenant),
            Grantee::Default => of(":d", &count.tenant),
        };
        [(tenant, &count.tenant), (of("", &count.all), &count.all)]
    }
}

/// Which script's words mean what: in the key too, so that a change of algorithm begins anew.
const fn kind(rule: &TallyRule) -> &'static str {
    match rule {
        TallyRule::TokenBucket { .. } => "b",
        TallyRule::FixedWindow { .. } => "f",
        TallyRule::SlidingWindow { .. } => "s",
    }
}

fn rule_words(rule: &TallyRule) -> [String; 4] {
    let [a, b, c] = match rule {
        TallyRule::TokenBucket { rate_per_s, burst } => [rate_per_s.to_string(), burst.to_string(), "0".to_owned()],
        TallyRule::FixedWindow { limit, window_ms, left_ms } => {
            let left = left_ms.map_or_else(|| "-1".to_owned(), |left| left.to_string());
            [limit.to_string(), window_ms.to_string(), left]
        }
        TallyRule::SlidingWindow { limit, window_ms } => [limit.to_string(), window_ms.to_string(), "0".to_owned()],
    };
    [kind(rule).to_owned(), a, b, c]
}

impl From<Unreachable> for Uncounted {
    fn from(error: Unreachable) -> Self {
        Self { kind: error.kind(), what: error.to_string() }
    }
}

#[async_trait]
impl Tally for RedisTally {
    async fn take(&self, question: &Question) -> Result<Taken, Uncounted> {
        let (keys, words) = self.words(question);
        let answer: Value = self
            .redis
            .ask(ANSWER_WAIT_MAX, async |mut connection| {
                let mut asked = self.take.prepare_invoke();
                for key in &keys {
                    asked.key(key);
                }
                for word in &words {
                    asked.arg(word);
                }
                asked.invoke_async(&mut connection).await
            })
            .await?;
        taken(&answer, question.counts.len()).ok_or_else(|| Uncounted {
            kind: "answer",
            what: "redis: the script answered what it never does".to_owned(),
        })
    }

    async fn settle(&self, settlement: &Settlement) -> Result<(), Uncounted> {
        let () = self
            .redis
            .ask(ANSWER_WAIT_MAX, async |mut connection| {
                let mut asked = self.settle.prepare_invoke();
                for (count, marks, back) in &settlement.counts {
                    let tallies = self.tallies(settlement.account.as_str(), count);
                    for ((key, rule), mark) in tallies.into_iter().zip(marks) {
                        asked.key(key);
                        asked.arg(&rule_words(rule)[..]);
                        asked.arg(mark).arg(back);
                    }
                }
                asked.invoke_async(&mut connection).await
            })
            .await?;
        Ok(())
    }

    async fn hail(&self) -> Result<(), Uncounted> {
        // By a write: one that leads no more answers all the same.
        let key = self.redis.key("hail", "by");
        let mut hail = cmd("SET");
        hail.arg(key).arg(1).arg("PX").arg(1_000);
        let hailed = self.redis.ask(ANSWER_WAIT_MAX, async |mut connection| hail.query_async(&mut connection).await);
        let () = hailed.await?;
        Ok(())
    }

    fn start_over(&self) {
        self.redis.reconnect();
    }
}

/// What the script answered; `None` if that is nothing it says.
fn taken(answer: &Value, counts: usize) -> Option<Taken> {
    let Value::Array(words) = answer else { return None };
    let number = |nth: usize| match words.get(nth) {
        Some(Value::Int(number)) => Some(*number),
        _ => None,
    };
    let ms = |nth: usize| number(nth).map(|ms| u64::try_from(ms).ok().map(Duration::from_millis));
    if number(0)? == 0 {
        let which = usize::try_from(number(2)?).ok()?.checked_sub(1)?;
        return (which / 2 < counts).then_some(Taken::None { after: ms(1)?, count: which / 2 });
    }
    let mark = |nth: usize| u64::try_from(number(nth)?).ok();
    let marks: Option<Vec<[u64; 2]>> = (0..counts).map(|nth| Some([mark(3 + 2 * nth)?, mark(4 + 2 * nth)?])).collect();
    Some(Taken::All { marks: marks?, extra: number(1)? == 1, window_left: ms(2)? })
}
