//! The gate without its tasks: whose turn it is, in a pool and in its parent.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate::client::MemberState;
use tidegate::client::gate::{Answer, Asker, Gate, Outcome};
use tidegate::client::swap::{PoolWide, Swap};
use tidegate::clock::MonoTime;
use tidegate::limiter::{Bound, Counting, Limiter, Limits, MeterLimit, Priority, Together, Wait};
use tidegate::plan::{Mode, Rate};
use tidegate::quota::{Cost, Meter};
use tokio::sync::Notify;

const ONE: Cost = Cost::request(0, 0);

fn s(seconds: u64) -> MonoTime {
    MonoTime::from_millis(seconds * 1_000)
}

fn gate(concurrency: Option<u32>) -> Gate<Arc<Notify>> {
    Gate::new(Limiter::new(&Limits { concurrency, ..Limits::default() }, s(0)), s(0))
}

/// One request a minute, after the first.
fn slow_gate() -> Gate<Arc<Notify>> {
    let rate = Rate { rate: 1.0, burst: 1.0 };
    let limit = MeterLimit { rate, largest_request: 1.0, counting: Counting::TokenBucket, together: None };
    let meters = BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, limit)]);
    let mut limiter = Limiter::new(&Limits { meters, ..Limits::default() }, s(0));
    limiter.top_up_to_one_request(s(0));
    Gate::new(limiter, s(0))
}

#[test]
fn who_stands_behind_the_head_is_told_of_the_parents_wait_too() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let (child, account) = (gate(None), slow_gate());
    let ask = |asker: &mut Asker<_>| child.ask(asker, &wide, Some((&account, &wide)), s(0));
    let Answer::Admitted(..) = ask(&mut Asker::new(ONE, Priority::Interactive, s(0))) else { panic!("there is room") };
    let mut head = Asker::new(ONE, Priority::Interactive, s(100));
    assert!(matches!(ask(&mut head), Answer::Wait(_)));
    let mut second = Asker::new(ONE, Priority::Interactive, s(200));
    assert!(matches!(ask(&mut second), Answer::Wait(_)));
    let standing = child.standing(&second, Some(&account), s(0)).expect("it waits");
    assert_eq!((standing.ahead, standing.expected.at), (1, Some(s(120))));
    // The third would have its turn after three minutes: it cannot wait so long, and need not begin to.
    let Answer::Late(late) = ask(&mut Asker::new(ONE, Priority::Interactive, s(150))) else {
        panic!("it cannot be in time")
    };
    assert_eq!(late.expected.at, Some(s(180)));
}

/// Found in a simulated world of small limits: the first request that came to a process was refused, for it would have been too
/// late at the little that a process without a share has, and the share came a second later.
#[test]
fn who_would_be_too_late_without_a_share_waits_for_it() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let gate = slow_gate();
    let ask = |by| gate.ask(&mut Asker::new(ONE, Priority::Interactive, s(by)), &wide, None, s(0));
    assert!(matches!(ask(30), Answer::Admitted(..)));
    assert!(matches!(ask(30), Answer::Late(_)), "a minute is too long");
    let rate = Rate { rate: 1.0, burst: 1.0 };
    let limit = MeterLimit { rate, largest_request: 1.0, counting: Counting::TokenBucket, together: None };
    let meters = BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, limit)]);
    let limits = Limits { meters, share_to_come: Some(3.0), ..Limits::default() };
    gate.retune(&limits, s(0));
    assert!(matches!(ask(19), Answer::Late(_)), "three times the rate would not do either");
    assert!(matches!(ask(20), Answer::Wait(_)));
    gate.retune(&Limits { share_to_come: None, ..limits.clone() }, s(0));
    assert!(matches!(ask(30), Answer::Late(_)), "nothing is to come");

    // A share makes no provider's hold shorter.
    gate.retune(&limits, s(0));
    wide.hold(&[(Meter::REQUESTS_PER_MINUTE, s(40))]);
    assert!(matches!(ask(39), Answer::Late(_)));
    assert!(matches!(ask(40), Answer::Wait(_)));
}

/// Whoever observes makes nobody wait, be his limiter ever so far in debt.
#[test]
fn a_share_to_come_makes_nobody_late_where_nothing_is_enforced() {
    let enforcing = Swap::new(PoolWide::new(MemberState::Active));
    let observing = Swap::new(PoolWide { mode: Mode::Observe, ..PoolWide::new(MemberState::Active) });
    let rate = Rate { rate: 1.0, burst: 1.0 };
    let limit = MeterLimit { rate, largest_request: 1.0, counting: Counting::TokenBucket, together: None };
    let meters = BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, limit)]);
    let (child, account) = (slow_gate(), slow_gate());
    child.retune(&Limits { meters, share_to_come: Some(2.0), ..Limits::default() }, s(0));
    let ask = |asker: &mut Asker<_>, at| child.ask(asker, &observing, Some((&account, &enforcing)), s(at));
    let asker = |by| Asker::new(ONE, Priority::Interactive, s(by));
    assert!(matches!(ask(&mut asker(0), 0), Answer::Admitted(..)));
    assert!(matches!(ask(&mut asker(60), 60), Answer::Admitted(..)));
    assert!(matches!(ask(&mut asker(500), 119), Answer::Wait(_)));
    // Behind it the account has room after 61 s.
    assert!(matches!(ask(&mut asker(180), 119), Answer::Wait(_)));
    assert!(matches!(ask(&mut asker(179), 119), Answer::Late(_)));
}

/// Of a pool and its parent each may have a share to come, or not.
#[test]
fn whose_room_it_waits_for_is_whose_share_may_come() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let rate = Rate { rate: 1.0, burst: 1.0 };
    let limit = MeterLimit { rate, largest_request: 1.0, counting: Counting::TokenBucket, together: None };
    let to_come = Limits { share_to_come: Some(3.0), ..Limits::default() };
    let (child, account) = (gate(None), slow_gate());
    let ask = |by| child.ask(&mut Asker::new(ONE, Priority::Interactive, s(by)), &wide, Some((&account, &wide)), s(0));
    assert!(matches!(ask(30), Answer::Admitted(..)));
    child.retune(&to_come, s(0));
    assert!(matches!(ask(30), Answer::Late(_)), "the account's room takes a minute");
    account.retune(&Limits { meters: BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, limit)]), ..to_come }, s(0));
    assert!(matches!(ask(20), Answer::Wait(_)));
}

#[test]
fn a_batch_request_that_had_to_step_out_of_the_parents_line_comes_back_to_its_place() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let (large, small, account) = (gate(None), gate(None), gate(Some(1)));
    let parent = Some((&account, &wide));
    let ask = |gate: &Gate<_>, asker: &mut Asker<_>, now| gate.ask(asker, &wide, parent, now);
    let asker = |priority| Asker::new(ONE, priority, s(10_000));

    let Answer::Admitted(mine, Some(theirs)) = ask(&large, &mut asker(Priority::Interactive), s(0)) else {
        panic!("there is room")
    };
    let mut batch = asker(Priority::Batch);
    assert!(matches!(ask(&large, &mut batch, s(1)), Answer::Wait(_)));
    // Another of its own pool goes before it: it steps out of the account's line.
    let mut urgent = asker(Priority::Interactive);
    assert!(matches!(ask(&large, &mut urgent, s(2)), Answer::Wait(_)));
    assert!(matches!(ask(&large, &mut batch, s(2)), Answer::Wait(_)));
    assert_eq!(account.traffic().waiting, 1);
    large.leave(&mut urgent, Some(&account));
    // One that comes 31 s after it to the other pool goes after it, as it would have had it never stepped out.
    let mut later = asker(Priority::Interactive);
    assert!(matches!(ask(&small, &mut later, s(32)), Answer::Wait(_)));
    assert!(matches!(ask(&large, &mut batch, s(33)), Answer::Wait(_)));
    large.settle(mine, None, &ONE, s(34));
    account.settle(theirs, None, &ONE, s(34));
    assert!(matches!(ask(&small, &mut later, s(34)), Answer::Wait(_)));
    assert!(matches!(ask(&large, &mut batch, s(34)), Answer::Admitted(..)));
}

/// Few tokens are counted in 32 bits beside the level, and carried over when they are many.
#[test]
fn no_token_is_lost_or_counted_twice_where_many_are_reserved() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let gate = gate(None);
    let costs = [3_000_000_000, 2_000_000_000, 5_000_000_000, 7].map(|tokens| Cost::request(tokens, 1));
    for cost in costs.iter().chain(&[Cost { requests: 3, ..ONE }]) {
        assert!(matches!(gate.decide(cost, Priority::Interactive, &wide, s(0)), Some(Ok(_))));
    }
    let reserved = gate.traffic().counters.reserved;
    assert_eq!((reserved.input_tokens, reserved.output_tokens, reserved.requests), (10_000_000_007, 4, 7));
}

#[test]
fn a_closed_gate_or_parent_sends_away_until_it_is_retuned() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let (child, account) = (gate(None), gate(None));
    let ask = || child.ask(&mut Asker::new(ONE, Priority::Interactive, s(9)), &wide, Some((&account, &wide)), s(1));
    for closed in [&child, &account] {
        closed.close(s(1));
        assert!(matches!(ask(), Answer::Moved));
        assert!(closed.decide(&ONE, Priority::Interactive, &wide, s(1)).is_none());
        closed.retune(&Limits::default(), s(1));
        assert!(matches!(ask(), Answer::Admitted(..)));
    }
}

#[test]
fn a_request_that_is_refused_at_once_was_an_attempt() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let gate = slow_gate();
    assert!(matches!(gate.decide(&ONE, Priority::Interactive, &wide, s(0)), Some(Ok(_))));
    assert!(matches!(gate.decide(&ONE, Priority::Interactive, &wide, s(0)), Some(Err(_))));
    let counters = gate.traffic().counters;
    assert_eq!((counters.attempts, counters.admitted, counters.refused), (2, 1, 1));
}

#[test]
fn a_place_that_is_free_again_is_first_for_one_who_waits() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let gate = gate(Some(1));
    let Some(Ok(first)) = gate.decide(&ONE, Priority::Interactive, &wide, s(0)) else { panic!("there is room") };
    let mut waiter = Asker::new(ONE, Priority::Interactive, s(9));
    assert!(matches!(gate.ask(&mut waiter, &wide, None, s(1)), Answer::Wait(_)));
    gate.settle(first, None, &ONE, s(2));
    assert!(gate.decide(&ONE, Priority::Interactive, &wide, s(2)).is_none());
    assert!(matches!(gate.ask(&mut waiter, &wide, None, s(2)), Answer::Admitted(..)));
}

/// A meter that members count together, so little of it being this one's own part that that would refuse.
fn counted_gate() -> Gate<Arc<Notify>> {
    let rate = Rate { rate: 1.0, burst: 1.0 };
    let together = Together { tenant: rate.scaled(100.0), pool: rate.scaled(100.0), members: 100, borrows: true };
    let limit = MeterLimit { rate, largest_request: 100.0, counting: Counting::TokenBucket, together: Some(together) };
    Gate::new(
        Limiter::new(&Limits { meters: [(Meter::REQUESTS_PER_MINUTE, limit)].into(), ..Limits::default() }, s(0)),
        s(0),
    )
}

fn asking(by_s: u64) -> Asker<Arc<Notify>> {
    let mut asker = Asker::new(ONE, Priority::Interactive, s(by_s));
    asker.count_together(true);
    asker
}

fn not_before(at_s: u64) -> Wait {
    Wait { at: Some(s(at_s)), by: Bound::Meter(Meter::REQUESTS_PER_MINUTE) }
}

#[test]
fn who_is_refused_by_his_own_tally_does_not_stand_in_the_parents_line() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let (child, sibling, account) = (counted_gate(), counted_gate(), counted_gate());
    let parent = Some((&account, &wide));
    let mut head = asking(100);
    let Answer::Ask(question) = child.ask(&mut head, &wide, parent, s(0)) else { panic!("it is asked elsewhere") };
    assert_eq!(question.counted.each_ref().map(Vec::len), [1, 1]);
    let told = child.told(&mut head, question, Outcome::Not(not_before(60), s(6), 0), Some(&account), s(0));
    assert!(matches!(told, Answer::Wait(until) if until == s(6)), "{told:?}");
    // Another of the account's pools is free to ask.
    let mut other = asking(100);
    let Answer::Ask(question) = sibling.ask(&mut other, &wide, parent, s(1)) else { panic!("nobody stands before it") };
    // This one is refused by what the account may take: it stands in that line, and others wait behind it.
    let told = sibling.told(&mut other, question, Outcome::Not(not_before(60), s(7), 1), Some(&account), s(1));
    assert!(matches!(told, Answer::Wait(_)), "{told:?}");
    assert!(matches!(child.ask(&mut asking(0), &wide, parent, s(2)), Answer::Late(_)));
    // Woken for whatever else, neither asks again before he was told to.
    assert!(matches!(child.ask(&mut head, &wide, parent, s(2)), Answer::Wait(until) if until == s(6)));
    assert!(matches!(child.ask(&mut head, &wide, parent, s(6)), Answer::Wait(_) | Answer::Ask(_)));
    assert_eq!(account.traffic().in_flight, child.traffic().in_flight, "places are given back");
}

#[test]
fn a_parent_that_observes_counts_what_its_children_decide_without_it() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let observed = Swap::new(PoolWide { mode: Mode::Observe, ..PoolWide::new(MemberState::Active) });
    let (child, account) = (counted_gate(), counted_gate());
    let parent = Some((&account, &observed));
    let mut asker = asking(100);
    let Answer::Ask(question) = child.ask(&mut asker, &wide, parent, s(60)) else { panic!("it is asked elsewhere") };
    assert!(question.counted[1].is_empty());
    let marks = [[0, 0]];
    let told = child.told(&mut asker, question, Outcome::Taken(&marks, false, None), Some(&account), s(60));
    let Answer::Admitted(mine, Some(theirs)) = told else { panic!("{told:?}") };
    let seen = |gate: &Gate<Arc<Notify>>| (gate.traffic().counters.admitted, gate.traffic().in_flight);
    assert_eq!((seen(&child), seen(&account)), ((1, 1), (1, 1)));
    child.settle(mine, None, &ONE, s(61));
    account.settle(theirs, None, &ONE, s(61));
    assert_eq!((seen(&child), seen(&account)), ((1, 0), (1, 0)));
}

#[test]
fn a_child_that_observes_waits_for_its_parent_and_asks_nobody_else() {
    let observed = Swap::new(PoolWide { mode: Mode::Observe, ..PoolWide::new(MemberState::Active) });
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let (child, account) = (counted_gate(), counted_gate());
    let parent = Some((&account, &wide));
    // A minute has filled the account's own part with one.
    assert!(matches!(child.ask(&mut asking(60), &observed, parent, s(60)), Answer::Admitted(_, Some(_))));
    assert!(matches!(child.ask(&mut asking(200), &observed, parent, s(60)), Answer::Wait(_)));
}

#[test]
fn who_stood_in_line_when_the_store_fell_silent_keeps_his_place() {
    let wide = Swap::new(PoolWide::new(MemberState::Active));
    let gate = counted_gate();
    let mut first = asking(1_000);
    let Answer::Ask(question) = gate.ask(&mut first, &wide, None, s(0)) else { panic!("it is asked elsewhere") };
    let told = gate.told(&mut first, question, Outcome::Not(not_before(5), s(5), 0), None, s(0));
    assert!(matches!(told, Answer::Wait(_)), "{told:?}");
    let mut second = asking(1_000);
    assert!(matches!(gate.ask(&mut second, &wide, None, s(1)), Answer::Wait(_)));
    let Answer::Ask(question) = gate.ask(&mut first, &wide, None, s(5)) else { panic!("his time has come") };
    assert!(matches!(gate.told(&mut first, question, Outcome::Silent, None, s(5)), Answer::Moved));
    // By this member's own part, one a minute: the first goes first.
    first.count_together(false);
    second.count_together(false);
    assert!(matches!(gate.ask(&mut second, &wide, None, s(70)), Answer::Wait(_)));
    assert!(matches!(gate.ask(&mut first, &wide, None, s(70)), Answer::Admitted(..)));
    // What went so is told.
    let untold = gate.take_untold(false, s(71)).expect("something is owed");
    assert_eq!(untold.owed.iter().map(|counted| counted.owed).collect::<Vec<_>>(), [1]);
    assert!(gate.take_untold(false, s(71)).is_none());
}
