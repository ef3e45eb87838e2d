//! The line of those who wait, against a twin that is slow and says no more than the rules.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidegate::clock::MonoTime;
use tidegate::limiter::{Ahead, BATCH_STEPS_BACK, Line, Priority, Ticket};
use tidegate::quota::Cost;

use Priority::{Batch, Interactive};

const COST: Cost = Cost::request(10, 5);

fn ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

fn ahead(waiters: usize) -> Ahead {
    let n = waiters as u64;
    let cost = Cost { requests: waiters as u32, input_tokens: 10 * n, output_tokens: 5 * n };
    Ahead { waiters, cost }
}

fn order<T: Copy>(line: &Line<T>) -> Vec<T> {
    line.all().copied().collect()
}

fn head<T: Copy>(line: &Line<T>) -> Option<T> {
    line.head().map(|(_, wake)| *wake)
}

#[test]
fn a_class_is_first_come_first_served_and_can_be_left_from_the_middle() {
    for priority in [Interactive, Batch] {
        let mut line = Line::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| line.join(COST, priority, ms(0), name));
        assert!(line.is_head(a) && !line.is_head(b));
        assert_eq!([a, b, c].map(|ticket| line.ahead_of(ticket)), [0, 1, 2].map(|n| Some(ahead(n))));
        assert_eq!(line.ahead_of_newcomer(priority, ms(0)), ahead(3));
        assert_eq!(line.leave(b), Some("b"));
        assert_eq!((line.leave(b), line.contains(b), line.ahead_of(b)), (None, false, None));
        assert_eq!((line.len(), line.ahead_of(c), line.head()), (2, Some(ahead(1)), Some((a, &"a"))));
        assert_eq!(line.leave(a), Some("a"));
        assert!(line.is_head(c) && line.contains(c));
        assert_eq!(line.leave(c), Some("c"));
        assert!(line.is_empty() && line.head().is_none() && line.all().next().is_none());
    }
}

#[test]
fn interactive_goes_before_batch_that_came_up_to_thirty_seconds_ahead_of_it() {
    let cases = [(0, "interactive"), (29_999, "interactive"), (30_000, "interactive"), (30_001, "batch")];
    for (later_ms, first) in cases {
        let mut line = Line::default();
        let now = ms(1_000 + later_ms);
        assert!(line.newcomer_is_head(Batch, ms(1_000)), "an empty line");
        let batch = line.join(COST, Batch, ms(1_000), "batch");
        assert_eq!(line.newcomer_is_head(Interactive, now), first == "interactive", "{later_ms} ms later");
        assert!(!line.newcomer_is_head(Batch, now));
        let expected = line.ahead_of_newcomer(Interactive, now);
        let interactive = line.join(COST, Interactive, now, "interactive");
        assert_eq!(head(&line), Some(first), "{later_ms} ms later");
        assert_eq!(line.ahead_of(interactive), Some(expected));
        assert_eq!(line.ahead_of(batch), Some(ahead(usize::from(first == "interactive"))));
    }
}

#[test]
fn a_flood_of_interactive_requests_holds_a_batch_request_up_for_thirty_seconds_at_most() {
    // Three come while one is served, every 100 ms, for as long as the batch request waits and beyond.
    let mut line = Line::default();
    let batch = line.join(COST, Batch, ms(0), u64::MAX);
    let mut served_at = None;
    for at in (0..120_000).step_by(100) {
        for _ in 0..3 {
            line.join(COST, Interactive, ms(at), at);
        }
        let (ticket, &came) = line.head().expect("three joined");
        line.leave(ticket);
        if ticket == batch {
            served_at = Some(at);
            break;
        }
        assert!(came <= 30_000, "came {came} ms after the batch request and went before it");
    }
    // 301 instants of three are served before it, one each 100 ms.
    assert_eq!(served_at, Some(301 * 3 * 100));
}

#[test]
fn a_clock_that_stands_or_goes_back_changes_no_order() {
    let mut line = Line::default();
    line.join(COST, Batch, ms(60_000), 0);
    line.join(COST, Batch, ms(0), 1);
    line.join(COST, Interactive, ms(0), 2);
    line.join(COST, Interactive, ms(60_000), 3);
    assert_eq!(order(&line), [2, 3, 0, 1], "all came at 60 s by the line's time");
    let ahead_at = |at| line.ahead_of_newcomer(Interactive, ms(at)).waiters;
    assert_eq!([0, 60_000, 90_000, 90_001].map(ahead_at), [2, 2, 2, 4]);

    let mut line = Line::default();
    for (n, priority) in [Batch, Interactive, Batch, Interactive].into_iter().enumerate() {
        line.join(COST, priority, MonoTime(u64::MAX), n);
    }
    assert_eq!(order(&line), [1, 3, 0, 2], "at the end of time too");
}

#[test]
fn a_ticket_that_left_comes_back_to_its_place() {
    let mut line = Line::default();
    let [a, b, c] = [0, 1, 2].map(|n| line.join(COST, Interactive, ms(n), n));
    assert_eq!((line.leave(b), line.leave(a)), (Some(1), Some(0)));
    line.rejoin(b, COST, 11);
    line.rejoin(a, COST, 10);
    assert_eq!(order(&line), [10, 11, 2]);
    line.rejoin(a, Cost::request(30, 15), 20);
    assert_eq!(order(&line), [20, 11, 2], "who still stands keeps his place");
    let before_c = Cost { requests: 2, input_tokens: 40, output_tokens: 20 };
    assert_eq!(line.ahead_of(c), Some(Ahead { waiters: 2, cost: before_c }), "at the new cost");
}

#[test]
fn a_second_line_takes_the_first_ones_tickets_in_any_order() {
    let mut first = Line::default();
    let tickets = [0, 10, 20].map(|at| first.join(COST, Interactive, ms(at), ()));
    let batch = first.join(COST, Batch, ms(20), ());
    let mut second = Line::default();
    for (n, ticket) in [(3, batch), (2, tickets[2]), (0, tickets[0])] {
        second.rejoin(ticket, COST, n);
    }
    let late = second.join(COST, Interactive, ms(0), 9);
    assert_eq!(order(&second), [0, 2, 9, 3], "who joins after them stands behind them, even if the clock went back");
    second.rejoin(tickets[1], COST, 1);
    assert_eq!(order(&second), [0, 1, 2, 9, 3]);
    assert!(late > tickets[2] && late < batch);
}

#[test]
fn a_sum_too_large_for_its_number_is_exact_again_when_it_fits() {
    let mut line = Line::default();
    let huge = Cost { requests: u32::MAX, input_tokens: u64::MAX, output_tokens: u64::MAX };
    let heavy = [0, 1].map(|n| line.join(huge, Interactive, ms(0), n));
    line.join(COST, Interactive, ms(0), 2);
    let last = line.join(COST, Interactive, ms(0), 3);
    assert_eq!(line.ahead_of(last), Some(Ahead { waiters: 3, cost: huge }));
    assert_eq!(heavy.map(|ticket| line.leave(ticket)), [Some(0), Some(1)]);
    assert_eq!(line.ahead_of(last), Some(ahead(1)));
}

#[test]
fn ten_thousand_who_leave_leave_nothing_behind() {
    let waiter = Arc::new(());
    let mut line = Line::default();
    let mut tickets: Vec<Ticket> =
        (0..10_000).map(|n| line.join(COST, [Interactive, Batch][n % 2], ms(n as u64), waiter.clone())).collect();
    let stays = tickets.swap_remove(5_001);
    Rng::with_seed(1).shuffle(&mut tickets);
    for (left, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(line.len(), 10_000 - left);
        assert!(line.leave(ticket).is_some());
    }
    assert_eq!((line.len(), Arc::strong_count(&waiter)), (1, 2));
    assert!(line.is_head(stays));
    assert_eq!(line.ahead_of_newcomer(Batch, ms(0)), ahead(1));
    drop(line);
    assert_eq!(Arc::strong_count(&waiter), 1);
    assert!(size_of::<Line<Arc<()>>>() <= 64, "an idle tenant's line is small");
}

/// Weighs a tree, one more than its nodes, and sees that it is balanced all through. `words` are those of its debug
/// text: a node says how many waiters it holds, then come its two children; where none is, it says `None`.
fn weigh<'a>(words: &mut impl Iterator<Item = &'a str>) -> usize {
    match words.find(|word| ["None", "waiters:"].contains(word)) {
        Some("waiters:") => {
            let waiters: usize = words.next().and_then(|word| word.parse().ok()).expect("a number");
            let [before, after] = [weigh(words), weigh(words)];
            assert_eq!(before + after, waiters + 1);
            assert!(before <= 3 * after && after <= 3 * before, "{before} before, {after} after");
            before + after
        }
        Some(_) => 1,
        None => panic!("the debug text shows no tree"),
    }
}

/// An operation takes a step for each level of the tree: O(log n) of them while no side outweighs the other by far.
#[test]
fn the_tree_is_balanced_whoever_comes_and_goes() {
    let check = |line: &Line<usize>| {
        let text = format!("{line:?}");
        assert_eq!(weigh(&mut text.split([' ', ',', '(', ')', '[', ']'])), line.len() + 1);
    };
    let mut line = Line::default();
    let tickets: Vec<Ticket> = (0..200).map(|n| line.join(COST, Interactive, ms(0), n)).collect();
    check(&line);
    for ticket in &tickets[..150] {
        line.leave(*ticket);
        check(&line);
    }
    for (n, ticket) in tickets[..150].iter().enumerate().rev() {
        line.rejoin(*ticket, COST, n);
        check(&line);
    }
    for ticket in tickets.iter().rev() {
        line.leave(*ticket);
        check(&line);
    }
    for n in 0..200 {
        // From both ends towards the middle: each comes between the two before it.
        let n = if n % 2 == 0 { n / 2 } else { 199 - n / 2 };
        line.rejoin(tickets[n], COST, n);
        check(&line);
    }
    let mut rng = Rng::with_seed(2);
    for _ in 0..5_000 {
        let n = rng.usize(..tickets.len());
        if line.leave(tickets[n]).is_none() {
            line.rejoin(tickets[n], COST, n);
        }
        check(&line);
    }
}

// === The twin ===

#[derive(Debug, Clone, Copy)]
struct Waiter {
    /// By the line's time.
    came: MonoTime,
    priority: Priority,
    /// How many joined before it.
    nth: usize,
    cost: Cost,
    ticket: Ticket,
    wake: u32,
}

/// Who of two is served first, as the rules say it.
fn first_of(a: &Waiter, b: &Waiter) -> Ordering {
    let interactive_first =
        |interactive: &Waiter, batch: &Waiter| interactive.came.since(batch.came) <= Duration::from_secs(30);
    let a_first = match (a.priority, b.priority) {
        (Interactive, Batch) => interactive_first(a, b),
        (Batch, Interactive) => !interactive_first(b, a),
        _ => return a.nth.cmp(&b.nth),
    };
    if a_first { Ordering::Less } else { Ordering::Greater }
}

fn sum_of(waiters: &[Waiter]) -> Ahead {
    let of = |part: fn(&Cost) -> u64| waiters.iter().map(|waiter| u128::from(part(&waiter.cost))).sum::<u128>();
    let cost = Cost {
        requests: of(|cost| u64::from(cost.requests)).min(u128::from(u32::MAX)) as u32,
        input_tokens: of(|cost| cost.input_tokens).min(u128::from(u64::MAX)) as u64,
        output_tokens: of(|cost| cost.output_tokens).min(u128::from(u64::MAX)) as u64,
    };
    Ahead { waiters: waiters.len(), cost }
}

#[derive(Default)]
struct Twins {
    line: Line<u32>,
    /// Those in line, in the order of service.
    standing: Vec<Waiter>,
    gone: Vec<Waiter>,
    joined: usize,
    /// The latest arrival.
    latest: MonoTime,
    wakes: u32,
}

impl Twins {
    fn step(&mut self, rng: &mut Rng, now: MonoTime) {
        match rng.u8(..20) {
            0..10 => self.join(rng, now),
            10..13 => self.leave(0),
            13..17 => self.leave(rng.usize(..=self.standing.len())),
            17 => {
                // One who is gone, or was never here.
                if let Some(gone) = rng.choice(&self.gone) {
                    assert_eq!(self.line.leave(gone.ticket), None);
                    assert!(!self.line.contains(gone.ticket) && self.line.ahead_of(gone.ticket).is_none());
                }
            }
            _ => self.rejoin(rng),
        }
    }

    fn join(&mut self, rng: &mut Rng, now: MonoTime) {
        let priority = *rng.choice(&[Interactive, Batch]).expect("two");
        let would_be_head = self.line.newcomer_is_head(priority, now);
        let ahead = self.line.ahead_of_newcomer(priority, now);
        let cost = some_cost(rng);
        let wake = self.wake();
        let ticket = self.line.join(cost, priority, now, wake);
        assert_eq!(self.line.is_head(ticket), would_be_head);
        assert_eq!(self.line.ahead_of(ticket), Some(ahead));
        self.latest = self.latest.max(now);
        self.standing.push(Waiter { came: self.latest, priority, nth: self.joined, cost, ticket, wake });
        self.joined += 1;
    }

    fn leave(&mut self, place: usize) {
        if place < self.standing.len() {
            let waiter = self.standing.remove(place);
            assert_eq!(self.line.leave(waiter.ticket), Some(waiter.wake));
            self.gone.push(waiter);
        }
    }

    fn rejoin(&mut self, rng: &mut Rng) {
        let (cost, wake) = (some_cost(rng), self.wake());
        // One in four who come back never left.
        let stands = rng.u8(..4) == 0;
        let from = if stands { &mut self.standing } else { &mut self.gone };
        if !from.is_empty() {
            let waiter = Waiter { cost, wake, ..from.swap_remove(rng.usize(..from.len())) };
            self.line.rejoin(waiter.ticket, cost, wake);
            self.standing.push(waiter);
        }
    }

    fn wake(&mut self) -> u32 {
        self.wakes += 1;
        self.wakes
    }

    fn compare(&mut self, rng: &mut Rng, now: MonoTime) {
        self.standing.sort_by(first_of);
        let (line, standing) = (&self.line, &self.standing);
        assert_eq!((line.len(), line.is_empty()), (standing.len(), standing.is_empty()));
        assert_eq!(line.head(), standing.first().map(|first| (first.ticket, &first.wake)));
        assert!(line.all().eq(standing.iter().map(|waiter| &waiter.wake)), "in the order of service");
        assert!(standing.is_sorted_by_key(|waiter| waiter.ticket), "tickets order as they are served");
        if !standing.is_empty() {
            let place = rng.usize(..standing.len());
            let ticket = standing[place].ticket;
            assert_eq!(line.ahead_of(ticket), Some(sum_of(&standing[..place])));
            assert_eq!((line.contains(ticket), line.is_head(ticket)), (true, place == 0));
        }
        // A newcomer is behind all batch requests that have waited 30 s, and all of its class.
        let now = self.latest.max(now);
        let mut before = standing.clone();
        before.retain(|waiter| waiter.priority == Interactive || now.since(waiter.came) > BATCH_STEPS_BACK);
        assert_eq!(line.ahead_of_newcomer(Interactive, now), sum_of(&before));
        assert_eq!(line.newcomer_is_head(Interactive, now), before.is_empty());
        assert_eq!(line.ahead_of_newcomer(Batch, now), sum_of(standing));
        assert_eq!(line.newcomer_is_head(Batch, now), standing.is_empty());
    }
}

fn some_cost(rng: &mut Rng) -> Cost {
    if rng.u8(..200) == 0 {
        return Cost { requests: u32::MAX, input_tokens: u64::MAX - 3, output_tokens: rng.u64(..) };
    }
    Cost { requests: rng.u32(..3), input_tokens: rng.u64(..1_000), output_tokens: rng.u64(..1_000) }
}

/// Stands still, as it may within a burst; goes on, often to just where an order turns; jumps; goes back.
fn next_now(rng: &mut Rng, now: MonoTime) -> MonoTime {
    match rng.u8(..10) {
        0..4 => now,
        4..6 => now + Duration::from_nanos(rng.u64(..3)),
        6..8 => now + Duration::from_secs(rng.u64(..4) * 10),
        8 => now + Duration::from_millis(rng.u64(..100_000)),
        _ => now.before(Duration::from_secs(rng.u64(..40))),
    }
}

#[test]
fn the_line_is_its_slow_twin() {
    // Short sequences first: the first to fail is a short one. The last hundred are long, for a line of hundreds.
    for seed in 0..50_100 {
        let mut rng = Rng::with_seed(seed);
        let mut twins = Twins::default();
        let mut now = MonoTime::from_millis(rng.u64(..2) * 3_600_000);
        let steps = if seed < 50_000 { 1 + seed / 1_000 } else { 1_000 };
        for step in 0..steps {
            now = next_now(&mut rng, now);
            let both = std::panic::AssertUnwindSafe(|| {
                twins.step(&mut rng, now);
                twins.compare(&mut rng, now);
            });
            assert!(std::panic::catch_unwind(both).is_ok(), "seed {seed}, step {step}");
        }
    }
}
