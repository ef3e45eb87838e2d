//! A member that counts together with others, against a store in memory that answers as it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate::client::{Breaker, Refusal, Stance, Tally, Uncounted, Usage, Why};
use tidegate::clock::MonoTime;
use tidegate::limiter::{
    Alignment, Count, Counting, Limiter, Limits, MeterLimit, Question, Settlement, Taken, Tallies, TallyRule, Together,
};
use tidegate::plan::{Algorithm, Rate};
use tidegate::quota::{Cost, Meter};
use tidegate::telemetry::Metric;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::by_hand::{RPM, TPM, grantee, pool, tenant};
use super::tally::{Plan, Side};
use super::world::eventually;

/// Tallies in memory.
#[derive(Debug)]
struct Memory {
    tallies: Mutex<Tallies>,
    began: Instant,
    asked: AtomicU64,
    settled: AtomicU64,
    away: AtomicBool,
    /// How many questions may be answered; closed, all may.
    turns: Semaphore,
    last: Mutex<Option<Question>>,
}

impl Memory {
    fn new() -> Arc<Self> {
        let memory = Self {
            tallies: Mutex::default(),
            began: Instant::now(),
            asked: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            away: AtomicBool::new(false),
            turns: Semaphore::new(0),
            last: Mutex::default(),
        };
        memory.turns.close();
        Arc::new(memory)
    }

    /// One that answers no question before it is let.
    fn in_turns() -> Arc<Self> {
        let mut memory = Self::new();
        Arc::get_mut(&mut memory).expect("nobody else has it").turns = Semaphore::new(0);
        memory
    }

    fn now_us(&self) -> u64 {
        1_000_000_000 + u64::try_from(self.began.elapsed().as_micros()).expect("soon")
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// What a tally would have room for now, looked at in a copy.
    fn has_room_for(&self, units: u64) -> bool {
        let Some(mut question) = self.last.lock().clone() else { return false };
        for count in &mut question.counts {
            (count.units, count.extra, count.owed) = (units, 0, 0);
        }
        matches!(self.tallies.lock().clone().take(&question, self.now_us()), Taken::All { .. })
    }
}

fn away() -> Uncounted {
    Uncounted { kind: "failed", what: "away".to_owned() }
}

#[async_trait]
impl Tally for Memory {
    async fn take(&self, question: &Question) -> Result<Taken, Uncounted> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Ok(turn) = self.turns.acquire().await {
            turn.forget();
        }
        if self.away.load(Ordering::Relaxed) {
            return Err(away());
        }
        *self.last.lock() = Some(question.clone());
        Ok(self.tallies.lock().take(question, self.now_us()))
    }

    async fn settle(&self, settlement: &Settlement) -> Result<(), Uncounted> {
        if self.away.load(Ordering::Relaxed) {
            return Err(away());
        }
        self.settled.fetch_add(1, Ordering::Relaxed);
        self.tallies.lock().settle(settlement, self.now_us());
        Ok(())
    }

    async fn hail(&self) -> Result<(), Uncounted> {
        if self.away.load(Ordering::Relaxed) { Err(away()) } else { Ok(()) }
    }

    fn start_over(&self) {}
}

fn of(memory: &Arc<Memory>) -> impl Fn() -> Option<Arc<dyn Tally>> {
    let memory = memory.clone();
    move || Some(memory.clone() as Arc<dyn Tally>)
}

fn at(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

#[test]
fn two_failures_in_a_row_and_it_is_left_alone_until_it_was_hailed_and_told() {
    let mut breaker = Breaker::default();
    assert!(!breaker.failed(at(0)));
    breaker.succeeded();
    assert!(!breaker.failed(at(1)), "not in a row");
    assert_eq!(breaker.stance(), Stance::Decides);
    assert!(breaker.failed(at(2)), "said once");
    assert_eq!(breaker.stance(), Stance::Away);
    assert!(!breaker.failed(at(3)));
    assert!(!breaker.is_to_be_hailed(at(251)));
    assert!(breaker.is_to_be_hailed(at(252)));
    breaker.not_hailed(at(260));
    assert!(!breaker.is_to_be_hailed(at(500)));
    breaker.hailed(at(520));
    assert_eq!(breaker.stance(), Stance::Told);
    breaker.move_on(at(1_519));
    assert_eq!(breaker.stance(), Stance::Told);
    assert!(!breaker.failed(at(1_519)), "it was away all along");
    assert_eq!(breaker.stance(), Stance::Away, "one failure is enough while it is told");
    breaker.hailed(at(1_600));
    breaker.move_on(at(2_600));
    assert_eq!(breaker.stance(), Stance::Decides);
}

/// 40 a window, known to the store and to nobody's share.
fn forty(members: u32) -> Plan {
    Plan { meters: vec![(RPM, 40.0, 40.0)], algorithm: Algorithm::FixedWindow, members }
}

#[tokio::test]
async fn one_decision_is_one_question_and_one_settlement_at_most() {
    let memory = Memory::new();
    let meters = vec![(RPM, 40.0, 40.0), (TPM, 4_000.0, 4_000.0)];
    let side = Side::open(&Plan { meters, algorithm: Algorithm::FixedWindow, members: 2 }, 1, of(&memory)).await;
    for nth in 1..=5 {
        let permit = side.pools[0].admit(&tenant("acme"), Cost::request(100, 100)).await.expect("there is room");
        assert_eq!(memory.asked(), nth);
        permit.settle(Usage { input_tokens: 100, output_tokens: 20 });
        eventually("it is settled", async || (memory.settled.load(Ordering::Relaxed) == nth).then_some(())).await;
    }
    // Nothing is told of a request that used what it reserved.
    drop(side.pools[0].admit(&tenant("acme"), Cost::request(100, 100)).await.expect("there is room"));
    assert_eq!((memory.asked(), memory.settled.load(Ordering::Relaxed)), (6, 5));
    assert!(memory.has_room_for(34) && !memory.has_room_for(35), "six of forty");
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_is_asked_leaves_nothing_taken() {
    let memory = Memory::in_turns();
    let side = Side::open(&forty(2), 1, of(&memory)).await;
    let pool = side.pools[0].clone();
    let asking = tokio::spawn(async move { pool.admit(&tenant("acme"), Cost::request(0, 0)).await });
    eventually("it is asked", async || (memory.asked() == 1).then_some(())).await;
    asking.abort();
    let _ = asking.await;
    memory.turns.add_permits(1);
    eventually("it is given back", async || (memory.settled.load(Ordering::Relaxed) == 1).then_some(())).await;
    assert!(memory.has_room_for(40));
    let traffic = &side.pools[0].traffic()[&"acme".parse().expect("a tenant")];
    assert_eq!((traffic.counters.admitted, traffic.in_flight, traffic.waiting), (0, 0, 0));
}

#[tokio::test]
async fn what_was_answered_too_late_is_given_back_and_what_went_meanwhile_is_told() {
    let memory = Memory::in_turns();
    // A share of a third: 13 of its own.
    let side = Side::open(&forty(2), 1, of(&memory)).await;
    let began = Instant::now();
    let permit = side.pools[0].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await;
    let permit = permit.expect("its share has room");
    assert!(began.elapsed() >= Duration::from_millis(50), "it was asked");
    assert_eq!(side.counted(Metric::TallyDecisions, "away"), 1.0);
    // The first answer comes late and is of no use; then one is told that went by the share.
    memory.turns.add_permits(100);
    eventually("one request is counted, once", async || {
        let is_told = memory.asked() >= 2 && memory.settled.load(Ordering::Relaxed) >= 1;
        (is_told && memory.has_room_for(39) && !memory.has_room_for(40)).then_some(())
    })
    .await;
    drop(permit);
}

#[tokio::test]
async fn without_the_store_a_member_goes_by_its_share_and_what_went_is_owed() {
    let memory = Memory::new();
    let side = Side::open(&forty(2), 2, of(&memory)).await;
    let ask =
        async |nth: usize| side.pools[nth].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await;
    let mut admitted = Vec::new();
    for _ in 0..10 {
        admitted.push(ask(0).await.expect("there is room"));
    }
    memory.away.store(true, Ordering::Relaxed);
    // Half of it is safe, and a third of that each one's: six, of which the first has used all.
    let (mut first, mut second) = (0, 0);
    for _ in 0..20 {
        first += usize::from(ask(0).await.map(|permit| admitted.push(permit)).is_ok());
        second += usize::from(ask(1).await.map(|permit| admitted.push(permit)).is_ok());
    }
    assert_eq!((first, second), (0, 6), "at their true levels");
    assert!(side.counted(Metric::TallyAway, "") == 0.0);
    memory.away.store(false, Ordering::Relaxed);
    eventually("all sixteen are counted", async || (memory.has_room_for(24) && !memory.has_room_for(25)).then_some(()))
        .await;
    let refused = side.counted(Metric::TallyDecisions, "admitted");
    eventually("the store decides again", async || {
        let permit = ask(0).await.ok()?;
        admitted.push(permit);
        (side.counted(Metric::TallyDecisions, "admitted") > refused).then_some(())
    })
    .await;
}

/// Who waits asks no more often than it was told to, whatever else wakes it.
#[tokio::test]
async fn one_who_waits_asks_when_it_was_told_to() {
    let memory = Memory::new();
    let plan = Plan { meters: vec![(RPM, 60.0, 4.0)], algorithm: Algorithm::TokenBucket, members: 1 };
    let side = Side::open(&plan, 1, of(&memory)).await;
    let acme = tenant("acme");
    let first = side.pools[0].admit(&acme, Cost::request(0, 0)).await.expect("a second's worth");
    let asked = memory.asked();
    let pool = side.pools[0].clone();
    let waiting =
        tokio::spawn(
            async move { pool.admit_within(&tenant("acme"), Cost::request(0, 0), Duration::from_secs(5)).await },
        );
    eventually("it waits", async || (side.pools[0].traffic()[&"acme".parse().ok()?].waiting == 1).then_some(())).await;
    drop(first);
    let began = Instant::now();
    let second = waiting.await.expect("it ends").expect("a second later");
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(memory.asked() - asked <= 3, "{} questions", memory.asked() - asked);
    drop(second);
}

#[tokio::test]
async fn a_refusal_tells_when_and_why_and_a_request_that_never_fits_is_not_asked_about() {
    let memory = Memory::new();
    let meters = vec![(RPM, 40.0, 40.0), (TPM, 4_000.0, 4_000.0)];
    let side = Side::open(&Plan { meters, algorithm: Algorithm::FixedWindow, members: 2 }, 1, of(&memory)).await;
    let ask =
        async |tokens| side.pools[0].admit_within(&tenant("acme"), Cost::request(tokens, 0), Duration::ZERO).await;
    drop(ask(4_000).await.expect("all of it"));
    match ask(1).await {
        Err(Refusal::WaitUntil { after, why: Why::Rate(TPM) }) => {
            assert!((Duration::from_secs(50)..Duration::from_secs(73)).contains(&after), "{after:?}");
        }
        other => panic!("{other:?}"),
    }
    let asked = memory.asked();
    assert!(matches!(ask(4_001).await, Err(Refusal::Never(_))));
    assert_eq!(memory.asked(), asked);
}

/// A busy member asks once for many; what it has leased of a fixed window is part of what all may take, so nothing goes beyond.
#[tokio::test(flavor = "multi_thread")]
async fn leases_save_questions_and_never_go_beyond_what_is_counted() {
    let memory = Memory::new();
    let plan = Plan { meters: vec![(RPM, 100_000.0, 100_000.0)], algorithm: Algorithm::FixedWindow, members: 2 };
    let side = Side::open(&plan, 2, of(&memory)).await;
    let (mut admitted, mut turn) = (0_u64, 0);
    loop {
        turn += 1;
        match side.pools[turn % 2].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await {
            Ok(_) => admitted += 1,
            Err(_) => break,
        }
    }
    // The other one may still hold some.
    while side.pools[(turn + 1) % 2].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await.is_ok() {
        admitted += 1;
    }
    let asked = memory.asked();
    println!("{admitted} admitted with {asked} questions");
    assert!(admitted <= 100_000, "{admitted}");
    assert!(admitted >= 97_500, "{admitted}: a twentieth is leased at the most, half of it by each");
    assert!(asked * 20 <= admitted, "{asked} questions for {admitted}");
    // What is idle is given back.
    eventually("the rest is there again", async || memory.has_room_for(100_000 - admitted).then_some(())).await;
}

/// Small limits are exact: nothing is leased of them.
#[tokio::test]
async fn of_a_small_limit_nothing_is_leased() {
    let memory = Memory::new();
    let plan = Plan { meters: vec![(RPM, 150.0, 150.0)], algorithm: Algorithm::FixedWindow, members: 2 };
    let side = Side::open(&plan, 1, of(&memory)).await;
    for nth in 1..=150 {
        drop(
            side.pools[0]
                .admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO)
                .await
                .expect("there is room"),
        );
        assert_eq!(memory.asked(), nth);
    }
    assert!(side.pools[0].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await.is_err());
}

/// `admitted` may be dropped and asked for again: what was under way is not taken twice.
#[tokio::test]
async fn an_admission_that_is_dropped_while_it_is_asked_and_asked_again_takes_one_place() {
    let memory = Memory::in_turns();
    let side = Side::open(&forty(2), 1, of(&memory)).await;
    let ask = side.pools[0].asking(Cost::request(0, 0));
    let mut admission = side.pools[0].request(&tenant("acme"), &ask);
    tokio::select! {
        biased;
        answer = admission.admitted() => panic!("nobody may answer: {answer:?}"),
        () = async { eventually("it is asked", async || (memory.asked() == 1).then_some(())).await } => {}
    }
    memory.turns.add_permits(100);
    let permit = admission.admitted().await.expect("there is room");
    eventually("one request is counted", async || (memory.has_room_for(39) && !memory.has_room_for(40)).then_some(()))
        .await;
    let traffic = &side.pools[0].traffic()[&"acme".parse().expect("a tenant")];
    assert_eq!((traffic.counters.admitted, traffic.in_flight), (1, 1));
    drop(permit);
}

/// What others give back, nobody is woken for: who waits for long looks again long before it was told to.
#[tokio::test]
async fn who_waits_for_a_windows_end_asks_again_when_something_was_given_back() {
    let memory = Memory::new();
    let meter: Meter = "tokens/30s".parse().expect("a meter");
    let plan = Plan { meters: vec![(meter, 4_000.0, 4_000.0)], algorithm: Algorithm::FixedWindow, members: 2 };
    let side = Side::open(&plan, 2, of(&memory)).await;
    let first = side.pools[0].admit(&tenant("acme"), Cost::request(4_000, 0)).await.expect("all of it");
    let pool = side.pools[1].clone();
    let waiting = tokio::spawn(async move {
        pool.admit_within(&tenant("acme"), Cost::request(1_000, 0), Duration::from_secs(60)).await
    });
    eventually("it waits", async || (side.pools[1].traffic().get(&grantee("acme"))?.waiting == 1).then_some(())).await;
    let began = Instant::now();
    first.settle(Usage { input_tokens: 500, output_tokens: 0 });
    drop(waiting.await.expect("it ends").expect("there is room"));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// Members are told of a window's end a little apart; between the first one's end and the last one's there is no window of its own.
#[test]
fn a_window_that_would_end_at_once_is_the_next_one() {
    let now = MonoTime::from_millis(100_000);
    let rate = Rate { rate: 10.0, burst: 10.0 };
    let left = |end_ms: u64| match TallyRule::new(RPM, Counting::FixedWindow(Alignment::EndsAt(at(end_ms))), rate, now)
    {
        TallyRule::FixedWindow { left_ms: Some(left), window_ms: 60_000, .. } => left,
        other => panic!("{other:?}"),
    };
    assert_eq!(left(130_000), 30_000);
    assert_eq!(left(101_001), 1_001);
    assert_eq!(left(100_400), 60_400, "an end in 0.4 s is over");
    assert_eq!(left(99_700), 59_700, "one that has just been is over too");
    assert_eq!(left(40_300), 60_300, "a window later it is the same");

    // One member's end comes 300 ms before another's; both have requests that wait for it.
    let mut tallies = Tallies::default();
    let ask = |tallies: &mut Tallies, end_ms: u64, now_ms: u64| {
        let alignment = Alignment::EndsAt(at(end_ms));
        let rule = TallyRule::new(RPM, Counting::FixedWindow(alignment), rate, at(now_ms));
        let count = Count {
            pool: pool(),
            grantee: grantee("acme"),
            meter: RPM,
            tenant: rule,
            all: rule,
            units: 1,
            extra: 0,
            owed: 0,
            borrows: false,
        };
        let question = Question { account: pool(), counts: vec![count] };
        matches!(tallies.take(&question, now_ms * 1_000), Taken::All { .. })
    };
    let admitted = (90_000..105_000).step_by(10).filter(|now_ms| {
        let end = if now_ms / 10 % 2 == 0 { 101_000 } else { 101_300 };
        ask(&mut tallies, end, *now_ms)
    });
    assert_eq!(admitted.count(), 20, "ten of the window that ends, ten of the next");
}

/// A busy member takes more than its share of what all count together; it does not pay for that when it has to go by its share.
#[test]
fn a_members_own_part_owes_no_more_than_its_burst() {
    let rate = Rate { rate: 60.0, burst: 5.0 };
    let together = Together { tenant: rate.scaled(100.0), pool: rate.scaled(100.0), members: 100, borrows: true };
    let limit = MeterLimit { rate, largest_request: 500.0, counting: Counting::TokenBucket, together: Some(together) };
    let mut limiter = Limiter::new(&Limits { meters: [(RPM, limit)].into(), ..Limits::default() }, at(0));
    for ms in 0..1_000 {
        let mut reservation = limiter.take_for_now(&Cost::request(0, 0), at(ms));
        limiter.confirm(&mut reservation, at(ms));
        limiter.settle(reservation, None, at(ms));
    }
    assert_eq!((limiter.admitted(), limiter.level_at(RPM, at(999))), (1_000, Some(-5.0)));
    // What was not admitted after all leaves everything as it was.
    for ms in 1_000..1_100 {
        let reservation = limiter.take_for_now(&Cost::request(0, 0), at(ms));
        limiter.undo(reservation, at(ms));
    }
    let level = limiter.level_at(RPM, at(1_100)).expect("it has one");
    assert!((level + 5.0 - 0.101).abs() < 1e-6, "{level}");
    assert_eq!((limiter.admitted(), limiter.in_flight()), (1_000, 0));
}
