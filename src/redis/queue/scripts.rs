//! What is done in Redis in one step each, as Lua, and what it answers.
//!
//! A queue is [`LANES`] streams with a consumer group each, beside them the number of tries of each entry, the leases of the lanes,
//! who works, and the stream of dead letters. All its keys have one hash tag, so that they are on one node of a cluster.
//!
//! Each lane is one worker's at a time, so all have one name in the group: what somebody read and did not finish is what its next
//! worker finds under that name, in order. Redis 7.0 or newer.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Script, ScriptInvocation};

use super::super::connection::{Redis, Unreachable};

/// Streams of a queue. Tenants are spread over them, and each is drained by one worker at a time.
pub(super) const LANES: usize = 32;
/// The consumer group of each stream.
const GROUP: &str = "workers";
/// Entries that are read at a time, of all lanes: Redis does nothing else meanwhile, and each may have a large body.
const READ_MAX: usize = 16;

/// What begins the scripts that empty a queue: a Redis that takes no more would otherwise never have room again.
macro_rules! even_when_full {
    ($script:literal) => {
        concat!("#!lua flags=allow-oom\n", $script)
    };
}

/// Adds an entry, unless there are so many already. KEYS: its stream, all streams. ARGV: how many, then the entry.
static ADD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local length = 0
for n = 2, #KEYS do length = length + redis.call('XLEN', KEYS[n]) end
if length >= tonumber(ARGV[1]) then return false end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
",
    )
});

/// Takes an entry back that nobody has begun to send. KEYS: stream, tries. ARGV: group, entry.
static WITHDRAW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(even_when_full!(
        r"
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 0 end
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
"
    ))
});

/// A worker's turn: says that it lives, keeps its lanes, takes free ones up to its part, reads what is new.
///
/// KEYS: workers, dead letters, then lease and stream of each lane. ARGV: worker, lease in ms, group, whether it takes and reads,
/// entries at most, a new token; then of each lane the token by which it is held, and how far it has been read: `>` after all that
/// was read before, `-` when no more is to be read.
static TURN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(even_when_full!(
        r"
local me, lease, group, works, most, fresh = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1', ARGV[5], ARGV[6]
local lanes = (#KEYS - 2) / 2
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + lease, me)
redis.call('PEXPIRE', KEYS[1], lease)
local part = math.ceil(lanes / redis.call('ZCARD', KEYS[1]))

local held, free, state = 0, {}, {}
for lane = 1, lanes do
  local key = KEYS[1 + 2 * lane]
  local holder = redis.call('GET', key)
  state[lane] = 0
  if not holder then
    free[#free + 1] = lane
  elseif holder == ARGV[6 + lane] then
    redis.call('PEXPIRE', key, lease)
    state[lane] = 1
    held = held + 1
  end
end
if works then
  for _, lane in ipairs(free) do
    if held >= part then break end
    redis.call('SET', KEYS[1 + 2 * lane], fresh, 'PX', lease)
    redis.pcall('XGROUP', 'CREATE', KEYS[2 + 2 * lane], group, '0', 'MKSTREAM')
    state[lane] = 2
    held = held + 1
  end
end

local function field(fields, name)
  for n = 1, #fields, 2 do
    if fields[n] == name then return fields[n + 1] end
  end
  return ''
end
local function read(stream, from, count, into)
  local got = redis.pcall('XREADGROUP', 'GROUP', group, 'worker', 'COUNT', count, 'STREAMS', stream, from)
  if not got then return {} end
  if got.err then
    redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
    return {}
  end
  local entries = got[1] and got[1][2] or {}
  for _, entry in ipairs(entries) do
    if entry[2] then
      into[#into + 1] = { entry[1], field(entry[2], 'tenant'), field(entry[2], 'cost') }
    else
      redis.call('XACK', stream, group, entry[1])
    end
  end
  return entries
end

-- Whichever lane comes first may take all that is read; the next time it is another one.
local length, answer, left = 0, {}, tonumber(most)
for step = 1, lanes do
  local lane = (now + step) % lanes + 1
  local stream, from, entries = KEYS[2 + 2 * lane], ARGV[6 + lanes + lane], {}
  if state[lane] == 2 then from = '0-0' end
  if state[lane] > 0 and works and from ~= '-' and left > 0 then
    if from ~= '>' then
      local before = read(stream, from, left, entries)
      from = #before < left and '>' or before[#before][1]
      left = left - #before
    end
    if from == '>' and #entries == 0 then left = left - #read(stream, '>', left, entries) end
  end
  length = length + redis.call('XLEN', stream)
  answer[lane] = { state[lane], from, entries }
end
return { now, length, redis.call('XLEN', KEYS[2]), part, left == 0 and 1 or 0, answer }
"
    ))
});

/// Gives lanes up. KEYS: workers, leases. ARGV: worker, whether it stays one, tokens.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(even_when_full!(
        r"
if ARGV[2] == '0' then redis.call('ZREM', KEYS[1], ARGV[1]) end
local released = 0
for n = 2, #KEYS do
  if redis.call('GET', KEYS[n]) == ARGV[n + 1] then released = released + redis.call('DEL', KEYS[n]) end
end
return released
"
    ))
});

/// Counts a try and hands the entry out, if the lane is held still. KEYS: lease, stream, tries. ARGV: token, group, entry.
static BEGIN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(even_when_full!(
        r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return { 'lost', 0, {} } end
local found = redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3])
if #found == 0 then
  redis.pcall('XACK', KEYS[2], ARGV[2], ARGV[3])
  redis.call('HDEL', KEYS[3], ARGV[3])
  return { 'gone', 0, {} }
end
return { 'begun', redis.call('HINCRBY', KEYS[3], ARGV[3], 1), found[1][2] }
"
    ))
});

/// Takes an entry out. KEYS: stream, tries. ARGV: group, entry.
static FINISH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(even_when_full!(
        r"
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
"
    ))
});

/// Puts an entry among the dead letters, unless there are so many already, or the lane is somebody else's, who sends it. KEYS: stream,
/// tries, dead letters, lease. ARGV: group, entry, how many, lane, reason, token.
static BURY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(even_when_full!(
        r"
if redis.call('GET', KEYS[4]) ~= ARGV[6] then return 'gone' end
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if #found == 0 then return 'gone' end
if redis.call('XLEN', KEYS[3]) >= tonumber(ARGV[3]) then return 'full' end
local fields = found[1][2]
local tries = redis.call('HGET', KEYS[2], ARGV[2]) or '0'
for _, more in ipairs({ 'lane', ARGV[4], 'entry', ARGV[2], 'reason', ARGV[5], 'tries', tries }) do fields[#fields + 1] = more end
redis.call('XADD', KEYS[3], '*', unpack(fields))
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return 'buried'
"
    ))
});

/// Puts a dead letter back, at its stream's end. KEYS: dead letters, all streams. ARGV: dead letter, how many there may be.
static REVIVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if #found == 0 then return 'gone' end
local length = 0
for n = 2, #KEYS do length = length + redis.call('XLEN', KEYS[n]) end
if length >= tonumber(ARGV[2]) then return 'full' end
local fields, lane = {}, 0
for n = 1, #found[1][2], 2 do
  local name, value = found[1][2][n], found[1][2][n + 1]
  if name == 'lane' then
    lane = tonumber(value)
  elseif name ~= 'entry' and name ~= 'reason' and name ~= 'tries' then
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
end
if not KEYS[2 + lane] then return 'gone' end
redis.call('XADD', KEYS[2 + lane], '*', unpack(fields))
redis.call('XDEL', KEYS[1], ARGV[1])
return 'revived'
",
    )
});

/// A queue's keys, and what is asked of them.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    redis: Redis,
    workers: String,
    dead: String,
    lanes: Vec<LaneKeys>,
}

#[derive(Debug, Clone)]
struct LaneKeys {
    lease: String,
    stream: String,
    tries: String,
}

/// An entry of a lane, as a worker has it in hand: without its head and body.
pub(super) type Entry = (String, Vec<u8>, String);
/// What a turn says of one lane: 0 somebody else's or nobody's, 1 held, 2 taken in this turn; how far it has been read; entries.
pub(super) type LaneTurn = (u8, String, Vec<Entry>);

/// What a turn found.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    /// Redis's time, in ms since 1970.
    pub now_ms: u64,
    /// Entries in all lanes.
    pub length: u64,
    /// Dead letters.
    pub dead: u64,
    /// How many lanes are one worker's part.
    pub part: usize,
    /// As many were read as may be at a time: there may be more.
    pub more: bool,
    /// Each lane.
    pub lanes: Vec<LaneTurn>,
}

/// What came of beginning with an entry.
#[derive(Debug, Clone)]
pub(super) enum Begun {
    /// The lane is somebody else's now.
    Lost,
    /// Somebody else has finished it.
    Gone,
    /// So many tries, this one included; and all of it.
    Try(u32, Vec<Vec<u8>>),
}

/// What came of putting an entry elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// It is there.
    Done,
    /// It was not where it was looked for.
    Gone,
    /// There is no room.
    Full,
}

impl Moved {
    fn read(word: &str) -> Self {
        match word {
            "full" => Self::Full,
            "gone" => Self::Gone,
            _ => Self::Done,
        }
    }
}

/// An entry of a stream: its id, names and values in turn.
pub(super) type StreamEntry = (String, Vec<Vec<u8>>);

impl Ledger {
    pub(super) fn new(redis: Redis, queue: &str) -> Self {
        let tag = format!("queue:{queue}");
        let lane = |n: usize| LaneKeys {
            lease: redis.key(&tag, &format!("lease:{n}")),
            stream: redis.key(&tag, &format!("lane:{n}")),
            tries: redis.key(&tag, &format!("tries:{n}")),
        };
        let lanes = (0..LANES).map(lane).collect();
        Self { workers: redis.key(&tag, "workers"), dead: redis.key(&tag, "dead"), lanes, redis }
    }

    pub(super) fn reconnect(&self) {
        self.redis.reconnect();
    }

    async fn run<T>(&self, within: Duration, script: ScriptInvocation<'static>) -> Result<T, Unreachable>
    where
        T: redis::FromRedisValue,
    {
        self.redis.ask(within, |mut connection| async move { script.invoke_async(&mut connection).await }).await
    }

    /// Adds an entry to a lane and gives its id; none when there are `most` in all of them.
    pub(super) async fn add(
        &self,
        lane: usize,
        most: usize,
        fields: &[(&str, Vec<u8>)],
        within: Duration,
    ) -> Result<Option<String>, Unreachable> {
        let mut script = ADD.prepare_invoke();
        script.key(&self.lanes[lane].stream);
        for lane in &self.lanes {
            script.key(&lane.stream);
        }
        script.arg(most);
        for (name, value) in fields {
            script.arg(*name).arg(value.as_slice());
        }
        self.run(within, script).await
    }

    /// Takes an entry back, unless somebody has begun with it.
    pub(super) async fn withdraw(&self, lane: usize, entry: &str, within: Duration) -> Result<bool, Unreachable> {
        let (mut script, keys) = (WITHDRAW.prepare_invoke(), &self.lanes[lane]);
        script.key(&keys.stream).key(&keys.tries).arg(GROUP).arg(entry);
        self.run(within, script).await
    }

    /// A worker's turn; of each lane the token by which it is held, or nothing, and how far it has been read.
    pub(super) async fn turn<'a>(
        &self,
        worker: &str,
        lease: Duration,
        works: bool,
        fresh: &str,
        lanes: impl Iterator<Item = (&'a str, &'a str)>,
        within: Duration,
    ) -> Result<Turn, Unreachable> {
        let mut script = TURN.prepare_invoke();
        script.key(&self.workers).key(&self.dead);
        for lane in &self.lanes {
            script.key(&lane.lease).key(&lane.stream);
        }
        script.arg(worker).arg(millis(lease)).arg(GROUP).arg(u8::from(works)).arg(READ_MAX).arg(fresh);
        let (tokens, cursors): (Vec<&str>, Vec<&str>) = lanes.unzip();
        for word in tokens.into_iter().chain(cursors) {
            script.arg(word);
        }
        let (now_ms, length, dead, part, more, lanes) = self.run(within, script).await?;
        Ok(Turn { now_ms, length, dead, part, more, lanes })
    }

    /// Gives lanes up, by number and token; whoever does not stay is no worker any more.
    pub(super) async fn release(
        &self,
        worker: &str,
        stays: bool,
        lanes: &[(usize, String)],
        within: Duration,
    ) -> Result<u32, Unreachable> {
        let mut script = RELEASE.prepare_invoke();
        script.key(&self.workers).arg(worker).arg(u8::from(stays));
        for (lane, token) in lanes {
            script.key(&self.lanes[*lane].lease).arg(token);
        }
        self.run(within, script).await
    }

    /// Counts a try of an entry, if the lane is held by this token.
    pub(super) async fn begin(
        &self,
        lane: usize,
        token: &str,
        entry: &str,
        within: Duration,
    ) -> Result<Begun, Unreachable> {
        let (mut script, keys) = (BEGIN.prepare_invoke(), &self.lanes[lane]);
        script.key(&keys.lease).key(&keys.stream).key(&keys.tries).arg(token).arg(GROUP).arg(entry);
        let (outcome, tries, fields): (String, u32, Vec<Vec<u8>>) = self.run(within, script).await?;
        Ok(match outcome.as_str() {
            "lost" => Begun::Lost,
            "gone" => Begun::Gone,
            _ => Begun::Try(tries, fields),
        })
    }

    /// Takes an entry out for good; whether it was there.
    pub(super) async fn finish(&self, lane: usize, entry: &str, within: Duration) -> Result<bool, Unreachable> {
        let (mut script, keys) = (FINISH.prepare_invoke(), &self.lanes[lane]);
        script.key(&keys.stream).key(&keys.tries).arg(GROUP).arg(entry);
        self.run(within, script).await
    }

    /// Puts an entry among the dead letters, if there are fewer than `most`, and the lane is held by this token.
    pub(super) async fn bury(
        &self,
        lane: usize,
        token: &str,
        entry: &str,
        most: usize,
        reason: &str,
        within: Duration,
    ) -> Result<Moved, Unreachable> {
        let (mut script, keys) = (BURY.prepare_invoke(), &self.lanes[lane]);
        script.key(&keys.stream).key(&keys.tries).key(&self.dead).key(&keys.lease);
        script.arg(GROUP).arg(entry).arg(most).arg(lane).arg(reason).arg(token);
        Ok(Moved::read(&self.run::<String>(within, script).await?))
    }

    /// Puts a dead letter back into its lane, if there are fewer than `most` in all of them.
    pub(super) async fn revive(&self, dead: &str, most: usize, within: Duration) -> Result<Moved, Unreachable> {
        let mut script = REVIVE.prepare_invoke();
        script.key(&self.dead);
        for lane in &self.lanes {
            script.key(&lane.stream);
        }
        script.arg(dead).arg(most);
        Ok(Moved::read(&self.run::<String>(within, script).await?))
    }

    /// Removes a dead letter; whether it was there.
    pub(super) async fn discard(&self, dead: &str, within: Duration) -> Result<bool, Unreachable> {
        let mut command = redis::cmd("XDEL");
        command.arg(&self.dead).arg(dead);
        self.redis.ask(within, |mut connection| async move { command.query_async(&mut connection).await }).await
    }

    /// Dead letters in the order in which they died, after one of them.
    pub(super) async fn dead_after(
        &self,
        after: Option<&str>,
        count: usize,
        within: Duration,
    ) -> Result<Vec<StreamEntry>, Unreachable> {
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.dead).arg(from).arg("+").arg("COUNT").arg(count);
        self.redis.ask(within, |mut connection| async move { command.query_async(&mut connection).await }).await
    }

    /// How many entries are in all lanes, and how many dead letters there are.
    pub(super) async fn lengths(&self, within: Duration) -> Result<(u64, u64), Unreachable> {
        let mut pipeline = redis::pipe();
        for key in self.lanes.iter().map(|lane| &lane.stream).chain([&self.dead]) {
            pipeline.cmd("XLEN").arg(key);
        }
        let asked = self.redis.ask(within, |mut connection| async move { pipeline.query_async(&mut connection).await });
        let mut lengths: Vec<u64> = asked.await?;
        let dead = lengths.pop().unwrap_or(0);
        Ok((lengths.iter().sum(), dead))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
