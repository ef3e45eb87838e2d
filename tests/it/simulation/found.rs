//! What the simulation found, each as a test of its own: short, and without dice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate::client::{ClientParams, Core, PoolParams};
use tidegate::clock::{Clock, ManualClock, MonoTime};
use tidegate::controller::{Ended, Leading, Reign, Won};
use tidegate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use tidegate::plan::{Grant, Reply};
use tidegate::provider::{Dialect, Usage};
use tidegate::quota::{Cost, Grantee, PoolId};
use tidegate::sim::errand::{Counter, Errand};
use tidegate::sim::lossy::{Answer, Ask};
use tidegate::store::{Change, Entry, Kv, Op, Select, Txn};
use tidegate::telemetry::Telemetry;

use super::world::params;
use crate::by_hand::{RPM, grant, grantee, pool, pulse, rates, stamp, tenant};

/// One member, and a store to follow.
struct Stage {
    kv: Kv,
    clock: Arc<ManualClock>,
    core: Arc<Core>,
}

impl Stage {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(MonoTime::from_millis(3_600_000)));
        let params = ClientParams {
            idle_after: Duration::from_secs(3),
            ..ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)])
        };
        let core = Core::new(&params, "boot".to_owned(), 0.5, clock.clone(), Arc::new(Telemetry::new()));
        let mut stage = Self { kv: Kv::new(1), clock, core };
        let leader = LeaderRecord { name: "c".to_owned(), report_url: "http://c0".to_owned() };
        stage.put(&Key::Leader, &leader);
        stage
    }

    fn put(&mut self, key: &Key, value: &impl Serialize) -> Change {
        let key = Keyspace::default().key(key);
        let value = serde_json::to_vec(value).expect("serialises");
        let ops = vec![Op::Put { key: key.clone(), value, lease: None }];
        self.kv.commit(Txn { conditions: Vec::new(), ops }, Duration::ZERO).expect("a store that takes it");
        Change::Put(Entry::clone(self.kv.get(&key).expect("was put")))
    }

    /// Writes, and tells the member.
    fn tell(&mut self, key: &Key, value: &impl Serialize) {
        let change = self.put(key, value);
        self.core.on_changes(&[change], self.kv.revision());
    }

    fn tell_grant(&mut self, epoch: u64, rpm: f64, burst: f64) {
        let grant: Grant = grant(stamp(2, epoch), rates(&[(RPM, rpm, burst)]));
        self.tell(&Key::Limits(pool(), grantee("acme")), &grant);
        self.tell(&Key::Pulse(pool()), &pulse(stamp(2, epoch)));
    }

    fn list(&self) {
        let listing = self.kv.list(&[Select::Prefix("/".to_owned())]).expect("lists");
        self.core.on_list(&listing);
    }

    fn pass(&self, span: Duration) {
        let end = span.as_millis() / 250;
        for _ in 0..end {
            self.clock.advance(Duration::from_millis(250));
            self.core.keep_house();
        }
    }

    /// How many requests are admitted at once.
    fn admits(&self) -> usize {
        let pool = self.core.pool(&pool()).expect("its pool");
        let permits: Vec<_> =
            std::iter::from_fn(|| pool.try_admit(&tenant("acme"), Cost::request(1, 1)).ok()).take(1_000).collect();
        let admitted = permits.len();
        for permit in permits {
            permit.settle(Usage { input_tokens: 1, output_tokens: 1 });
        }
        admitted
    }
}

/// An idle gate is dropped; one in its place was as full as the limits of *now* allow, also when these had just been raised.
#[test]
fn a_tenant_that_comes_back_after_a_raise_gets_no_burst_for_it() {
    let mut stage = Stage::new();
    stage.list();
    stage.tell_grant(1, 60.0, 6.0);
    assert!(stage.admits() <= 1);
    stage.tell_grant(2, 0.0, 1.0);
    stage.pass(Duration::from_secs(5));
    stage.tell_grant(3, 6_000.0, 600.0);
    let admitted = stage.admits();
    // A part of a second's worth, and not 600 ÷ the members.
    assert!(admitted <= 20, "{admitted} at once");
}

/// The other side of it: who only was away has what he had.
#[test]
fn a_tenant_that_comes_back_has_what_was_stored() {
    let mut stage = Stage::new();
    stage.list();
    stage.tell_grant(1, 600.0, 60.0);
    assert!(stage.admits() <= 2);
    for epoch in 2..100 {
        stage.tell(&Key::Pulse(pool()), &pulse(stamp(2, epoch)));
        stage.pass(Duration::from_secs(1));
    }
    // Without a share: a third of half of the burst.
    assert_eq!(stage.admits(), 10);
}

/// Who loses the limits of his own is served by those of all others meanwhile. His gate went on filling, and when he got limits again
/// he had that too.
#[test]
fn a_tenant_that_was_without_limits_of_his_own_has_stored_nothing_meanwhile() {
    let mut stage = Stage::new();
    stage.list();
    stage.tell_grant(1, 600.0, 60.0);
    stage.admits();
    assert_eq!(stage.admits(), 0, "he has sent all that he may");
    let granted = Keyspace::default().key(&Key::Limits(pool(), grantee("acme")));
    let gone = Change::Delete { key: granted, mod_revision: stage.kv.revision() + 1 };
    stage.core.on_changes(&[gone], stage.kv.revision() + 1);
    stage.pass(Duration::from_secs(2));
    stage.tell_grant(2, 600.0, 60.0);
    assert_eq!(stage.admits(), 0, "two seconds at a third of the safe half would be three");
}

/// A backup is restored under the same cluster id, and written to until its revision has passed the one that a member knows,
/// before that member lists again: no revision tells of it. It kept what it had, never took what the new leader wrote under a
/// lower term, and dropped its replies, for good.
#[test]
fn a_restored_backup_that_has_overtaken_a_member_is_noticed() {
    let mut stage = Stage::new();
    let backup = stage.kv.clone();
    stage.list();
    for epoch in 1..5 {
        stage.tell_grant(epoch, 60.0, 6.0);
    }
    let leader = LeaderRecord { name: "b".to_owned(), report_url: "http://c1".to_owned() };
    stage.kv.commit(Txn::delete(Keyspace::default().key(&Key::Leader)), Duration::ZERO).expect("deletes");
    stage.tell(&Key::Leader, &leader);
    let term = stage.kv.revision();
    stage.tell(&Key::Pulse(pool()), &pulse(stamp(term, 1)));

    stage.kv = backup;
    let known = term + 1;
    while stage.kv.revision() <= known {
        let epoch = stage.kv.revision();
        stage.put(&Key::Limits(pool(), grantee("acme")), &grant(stamp(2, epoch), rates(&[(RPM, 120.0, 12.0)])));
        stage.put(&Key::Pulse(pool()), &pulse(stamp(2, epoch)));
    }
    stage.list();
    let (term, granted) = stage.core.with_views(|views| {
        let view = &views[&pool()];
        let granted = view.stamps().map(|(_, stamp)| stamp).collect::<Vec<_>>();
        (view.pulse().map(|pulse| pulse.stamp.term), granted)
    });
    assert_eq!(term, Some(2), "the pulse of the restored store");
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].term, 2);
    let reply = Reply { term: 2, epoch: 1, share_valid_ms: 5_000, next_report_ms: 250, shares: BTreeMap::new() };
    assert!(stage.core.on_reply(&reply, MonoTime::from_millis(3_600_000)).is_ok());
}

/// Runs something that waits for a store, and answers from this one.
fn answered<T>(work: impl Future<Output = T> + Send + 'static, counter: &Counter, kv: &mut Kv) -> T {
    let mut errand = Errand::new(work);
    loop {
        if let Some(done) = errand.go_on() {
            return done;
        }
        for (ask, waits) in counter.take() {
            let answer = match ask {
                Ask::List(selects) => kv.list(&selects).map(Answer::Listed),
                Ask::Commit(txn) => kv.commit(txn, Duration::ZERO).map(Answer::Done),
                Ask::Lease(ttl) => Ok(Answer::Leased(kv.lease(ttl, Duration::ZERO))),
                Ask::KeepAlive(lease) => kv.keep_alive(lease, Duration::ZERO).map(|()| Answer::Well),
                Ask::Revoke(lease) => {
                    kv.revoke(lease);
                    Ok(Answer::Well)
                }
            };
            let _ = waits.send(answer);
        }
    }
}

/// Controllers over a store that answers at once.
struct Court {
    kv: Kv,
    clock: Arc<ManualClock>,
    counter: Counter,
    /// Which one members use.
    pool: PoolId,
}

impl Court {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(MonoTime::from_millis(3_600_000)));
        Self { kv: Kv::new(1), clock, counter: Counter::default(), pool: pool() }
    }

    fn controller(&self, who: usize) -> Arc<Leading> {
        let (params, url) = (params(who, &[pool()]), format!("http://c{who}"));
        let telemetry = Arc::new(Telemetry::new());
        Arc::new(Leading::new(params, url, Arc::new(self.counter.clone()), self.clock.clone(), telemetry))
    }

    /// Wins, and begins the term.
    fn win(&mut self, leading: &Arc<Leading>) -> (Won, Reign) {
        let campaigner = leading.clone();
        let won = answered(async move { campaigner.campaign().await }, &self.counter, &mut self.kv);
        let won = won.expect("a store").expect("nobody leads");
        leading.take_office(&won);
        let beginner = leading.clone();
        let begun = answered(async move { beginner.begin(&won).await }, &self.counter, &mut self.kv);
        (won, begun.expect("readable"))
    }

    fn turn(&mut self, leading: &Arc<Leading>, reign: &mut Option<Reign>) -> Result<(), Ended> {
        let (leading, mut ruling) = (leading.clone(), reign.take().expect("a term"));
        let turn = async move { (leading.turn(&mut ruling, false).await, ruling) };
        let (ended, ruling) = answered(turn, &self.counter, &mut self.kv);
        *reign = Some(ruling);
        ended
    }

    fn keep(&mut self, leading: &Arc<Leading>, won: Won) {
        let leading = leading.clone();
        assert!(answered(async move { leading.keep(&won).await }, &self.counter, &mut self.kv));
    }

    /// Somebody takes the leader key away.
    fn revoke_leader(&mut self) {
        self.kv.commit(Txn::delete(Keyspace::default().key(&Key::Leader)), Duration::ZERO).expect("deletes");
    }

    fn keys(&self) -> Vec<String> {
        let listing = self.kv.list(&[Select::Prefix("/".to_owned())]).expect("lists");
        listing.entries.into_iter().map(|entry| entry.key).collect()
    }

    /// A member that uses a tenant.
    fn member(&self, name: &str) -> Arc<Core> {
        let pools = vec![PoolParams::new(self.pool.clone(), Dialect::OpenAi)];
        let params = ClientParams { instance: name.to_owned(), ..ClientParams::new(pools) };
        let core = Core::new(&params, "boot".to_owned(), 0.5, self.clock.clone(), Arc::new(Telemetry::new()));
        core.on_list(&self.kv.list(&[Select::Prefix("/".to_owned())]).expect("lists"));
        drop(core.pool(&self.pool).expect("its pool").try_admit(&tenant("acme"), Cost::request(1, 1)));
        core
    }

    fn share(&self, core: &Core) -> f64 {
        let now = self.clock.now();
        core.with_views(|views| views[&self.pool].share_at(&grantee("acme"), now).map_or(0.0, |share| share.share))
    }
}

/// Reports, and takes the answer if there is one.
fn report(core: &Core, leading: &Leading) {
    let (report, asked_at) = core.tell();
    if let Ok(reply) = leading.answer(&report) {
        let _ = core.on_reply(&reply, asked_at);
    }
}

/// Leads for an hour and a second.
fn lead_for_an_hour(court: &mut Court, leading: &Arc<Leading>, won: Won, reign: &mut Option<Reign>) {
    for _ in 0..=3_600 {
        court.keep(leading, won);
        assert_eq!(court.turn(leading, reign), Ok(()));
        court.clock.advance(Duration::from_secs(1));
    }
}

/// A pool was taken out of the file while nobody led: its records stayed for ever.
#[test]
fn records_of_a_pool_that_nobody_knows_go_after_an_hour_unless_a_member_uses_it() {
    let mut court = Court::new();
    let old: Vec<PoolId> = ["gone", "used"].iter().map(|name| name.parse().expect("valid")).collect();
    let keys = Keyspace::default();
    for pool in &old {
        let records = [Key::Pulse(pool.clone()), Key::State(pool.clone()), Key::Limits(pool.clone(), grantee("acme"))];
        for key in records.iter().map(|key| keys.key(key)) {
            court.kv.commit(Txn::put(key, b"{}".to_vec()), Duration::ZERO).expect("a store that takes it");
        }
    }
    let presence = br#"{"boot":"b","pools":["used"]}"#.to_vec();
    court.kv.commit(Txn::put(keys.key(&Key::Member("m".to_owned())), presence), Duration::ZERO).expect("it takes it");
    let left =
        |court: &Court, pool: &str| court.keys().iter().filter(|key| key.split('/').any(|part| part == pool)).count();

    let leading = court.controller(0);
    let (won, reign) = court.win(&leading);
    let mut reign = Some(reign);
    assert_eq!(court.turn(&leading, &mut reign), Ok(()));
    assert_eq!((left(&court, "gone"), left(&court, "used")), (3, 3), "somebody may come back for it");
    lead_for_an_hour(&mut court, &leading, won, &mut reign);
    assert_eq!((left(&court, "gone"), left(&court, "used")), (0, 3));
}

/// A backup is restored, and in it somebody wins the very revision under which another still leads, who has not noticed yet: the
/// revision alone fenced neither off, and two leaders wrote over each other's records.
#[test]
fn two_leaders_of_one_revision_do_not_both_write() {
    let mut court = Court::new();
    let backup = court.kv.clone();
    let (old, new) = (court.controller(0), court.controller(1));
    let (won, reign) = court.win(&old);
    let mut reign = Some(reign);
    assert_eq!(court.turn(&old, &mut reign), Ok(()));

    court.kv = backup;
    let (won_too, new_reign) = court.win(&new);
    assert_eq!(won_too.term, won.term, "the same revision");
    assert_eq!(court.turn(&new, &mut Some(new_reign)), Ok(()));
    let before = court.kv.revision();
    assert_eq!(court.turn(&old, &mut reign), Err(Ended::Deposed));
    assert_eq!(court.kv.revision(), before, "nothing was written");
}

/// A leader's lease is revoked by hand, and it answers on for the two seconds that it thinks it fresh. What it gave then was still
/// in force when the next leader gave it to somebody else.
#[test]
fn a_new_leader_waits_for_what_a_deposed_one_gave_before_it_noticed() {
    let mut court = Court::new();
    let (old, new) = (court.controller(0), court.controller(1));
    let (won, reign) = court.win(&old);
    let (mut reign, ms) = (Some(reign), Duration::from_millis);
    court.turn(&old, &mut reign).expect("leads");
    let (one, other) = (court.member("one"), court.member("other"));
    for _ in 0..8 {
        court.clock.advance(ms(250));
        court.keep(&old, won);
        report(&one, &old);
    }
    court.turn(&old, &mut reign).expect("leads");
    court.keep(&old, won);
    court.revoke_leader();
    let (won, reign) = court.win(&new);
    let mut reign = Some(reign);
    court.turn(&new, &mut reign).expect("leads");
    court.clock.advance(ms(1_900));
    report(&one, &old);
    assert!(court.share(&one) > 0.9, "{}", court.share(&one));
    for _ in 0..40 {
        court.keep(&new, won);
        court.turn(&new, &mut reign).expect("leads");
        report(&other, &new);
        let shares = [court.share(&one), court.share(&other)];
        assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-9, "{shares:?}");
        court.clock.advance(ms(250));
    }
    assert!(court.share(&other) > 0.9);
}

/// A leader that was deposed, and does not know it, reads of a new pool and gives shares of it until its first write is refused;
/// the next leader, for whom the pool is as new, gave the same shares at the same time.
#[test]
fn of_a_pool_that_comes_while_leaders_change_nobody_is_given_what_a_deposed_one_gave() {
    let mut court = Court::new();
    court.pool = "guest".parse().expect("valid");
    let (old, new) = (court.controller(0), court.controller(1));
    let (won, reign) = court.win(&old);
    let (mut reign, ms) = (Some(reign), Duration::from_millis);
    for _ in 0..32 {
        court.keep(&old, won);
        court.turn(&old, &mut reign).expect("leads");
        court.clock.advance(ms(250));
    }
    // Who hears nothing of what comes; nobody has a grant of the pool yet, and so all of it is `@default`.
    let one = court.member("one");
    court.revoke_leader();
    let (new_won, new_reign) = court.win(&new);
    let mut new_reign = Some(new_reign);
    court.turn(&new, &mut new_reign).expect("leads");
    let policy = br#"{"dialect":"openai","capacity":{"requests/minute":60},"tenants":{"acme":{}}}"#;
    let key = Keyspace::default().key(&Key::Policy(court.pool.clone()));
    court.kv.commit(Txn::put(key, policy.to_vec()), Duration::ZERO).expect("puts");

    // It reads, and its writes are on their way.
    let (leading, mut ruling) = (old.clone(), reign.take().expect("a term"));
    let mut turn = Errand::new(async move { leading.turn(&mut ruling, false).await });
    while turn.go_on().is_none() {
        let asked = court.counter.take();
        if asked.iter().any(|(ask, _)| !matches!(ask, Ask::List(_))) {
            break;
        }
        for (ask, waits) in asked {
            if let Ask::List(selects) = ask {
                let _ = waits.send(court.kv.list(&selects).map(Answer::Listed));
            }
        }
    }
    let other = court.member("other");
    let (clock, pool) = (court.clock.clone(), court.pool.clone());
    let share = |core: &Core| {
        let held = core.with_views(|views| views[&pool].share_at(&Grantee::Default, clock.now()));
        held.map_or(0.0, |share| share.share)
    };
    report(&one, &old);
    assert_eq!(share(&one), 1.0, "of the one that is deposed");
    for _ in 0..40 {
        court.keep(&new, new_won);
        court.turn(&new, &mut new_reign).expect("leads");
        report(&other, &new);
        let shares = [share(&one), share(&other)];
        assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-9, "{shares:?}");
        court.clock.advance(ms(250));
    }
    assert!(share(&other) > 0.9);
}

/// A leader dies between hearing that a pool's policy is gone and taking the pool's records away: no other one ever did.
#[test]
fn what_is_left_of_a_pool_that_is_gone_is_taken_away_by_the_next_leader() {
    let mut court = Court::new();
    let guest: PoolId = "guest".parse().expect("valid");
    let policy = Keyspace::default().key(&Key::Policy(guest));
    let record = br#"{"dialect":"openai","capacity":{"requests/minute":60}}"#;
    court.kv.commit(Txn::put(policy.clone(), record.to_vec()), Duration::ZERO).expect("puts");
    let (old, new) = (court.controller(0), court.controller(1));
    let (_, reign) = court.win(&old);
    court.turn(&old, &mut Some(reign)).expect("leads");
    let left = |court: &Court| court.keys().iter().filter(|key| key.contains("/guest")).count();
    // Policy and what is said of it, pulse, grant, and what the next leader is told.
    assert_eq!(left(&court), 5, "{:?}", court.keys());

    court.kv.commit(Txn::delete(policy), Duration::ZERO).expect("deletes");
    court.revoke_leader();
    let (_, reign) = court.win(&new);
    court.turn(&new, &mut Some(reign)).expect("leads");
    assert_eq!(left(&court), 0, "{:?}", court.keys());
}

/// A pool's policy is taken away and put again, and a member still has the whole of a tenant: it was given to another at once.
#[test]
fn a_pool_that_comes_back_gives_nobody_what_another_still_has() {
    let mut court = Court { pool: "guest".parse().expect("valid"), ..Court::new() };
    let policy = Keyspace::default().key(&Key::Policy(court.pool.clone()));
    let record = br#"{"dialect":"openai","capacity":{"requests/minute":600},"tenants":{"acme":{}}}"#;
    let put = || Txn::put(policy.clone(), record.to_vec());
    court.kv.commit(put(), Duration::ZERO).expect("puts");
    let leading = court.controller(0);
    let (won, reign) = court.win(&leading);
    let mut reign = Some(reign);
    court.turn(&leading, &mut reign).expect("leads");
    let (one, other) = (court.member("one"), court.member("other"));
    report(&one, &leading);
    assert!(court.share(&one) > 0.9, "{}", court.share(&one));
    court.kv.commit(Txn::delete(policy.clone()), Duration::ZERO).expect("deletes");
    court.turn(&leading, &mut reign).expect("leads");
    court.kv.commit(put(), Duration::ZERO).expect("puts");
    for _ in 0..32 {
        court.keep(&leading, won);
        court.turn(&leading, &mut reign).expect("leads");
        report(&other, &leading);
        let shares = [court.share(&one), court.share(&other)];
        assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-9, "{shares:?}");
        court.clock.advance(Duration::from_millis(250));
    }
    assert!(court.share(&other) > 0.9, "{}", court.share(&other));
}
