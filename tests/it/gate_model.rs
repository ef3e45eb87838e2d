//! The gate in every order in which threads could run it: a model checker drives the production code over cells of its
//! own, with the swap as a plain locked pointer. A lost wake-up is a deadlock here, and found.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use loom::sync::Notify;
use loom::sync::atomic::Ordering;
use loom::thread;
use tidegate::client::MemberState;
use tidegate::client::cells::{Cells, Lock, Number, Pointer};
use tidegate::client::gate::{Answer, Asker, Gate, Wake};
use tidegate::client::swap::{PoolWide, Swap};
use tidegate::clock::MonoTime;
use tidegate::limiter::{Counting, Decision, Limiter, Limits, MeterLimit, Priority, Reservation};
use tidegate::plan::Rate;
use tidegate::quota::{Cost, Meter};

const NOW: MonoTime = MonoTime::from_millis(1_000);
const LATER: MonoTime = MonoTime::from_millis(1_000_000);
const ONE: Cost = Cost::request(0, 0);

#[derive(Debug)]
struct Modelled;

#[derive(Debug)]
struct ModelLock<T>(loom::sync::Mutex<T>);

#[derive(Debug)]
struct ModelPointer<T>(loom::sync::Mutex<Arc<T>>);

/// Locked, no atomic: of an atomic the checker knows the last access only, and where a writer reads before he writes, it tries
/// no order in which the write comes before what another has read.
#[derive(Debug)]
struct ModelNumber(loom::sync::Mutex<u64>);

impl Cells for Modelled {
    type Lock<T: Send + fmt::Debug> = ModelLock<T>;
    type Pointer<T: Send + Sync + fmt::Debug> = ModelPointer<T>;
    type Number = ModelNumber;
}

impl<T: fmt::Debug> Lock<T> for ModelLock<T> {
    type Guard<'a>
        = loom::sync::MutexGuard<'a, T>
    where
        Self: 'a;

    fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("nobody panicked")
    }
}

impl<T: fmt::Debug> Pointer<T> for ModelPointer<T> {
    fn new(value: Arc<T>) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    fn load(&self) -> Arc<T> {
        self.0.lock().expect("nobody panicked").clone()
    }

    fn store(&self, value: Arc<T>) {
        *self.0.lock().expect("nobody panicked") = value;
    }
}

impl Number for ModelNumber {
    fn new(value: u64) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    fn get(&self) -> u64 {
        *self.0.lock().expect("nobody panicked")
    }

    fn set(&self, value: u64) {
        *self.0.lock().expect("nobody panicked") = value;
    }
}

#[derive(Clone)]
struct Bell(Arc<Notify>);

impl Default for Bell {
    fn default() -> Self {
        Self(Arc::new(Notify::new()))
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify();
    }
}

type ModelGate = Gate<Bell, Modelled>;
type Wide = Swap<PoolWide, Modelled>;

fn limits(concurrency: Option<u32>, burst: f64) -> Limits {
    // Nothing flows: what is there is there.
    let rate = Rate { rate: 1e-9, burst };
    let limit = MeterLimit { rate, largest_request: 100.0, counting: Counting::TokenBucket, together: None };
    Limits { meters: BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, limit)]), concurrency, ..Limits::default() }
}

/// A gate with as many requests in hand.
fn gate(concurrency: Option<u32>, requests: u32) -> Arc<ModelGate> {
    let rate = Rate { rate: 60.0 * f64::from(requests), burst: f64::from(requests) };
    let limit = MeterLimit { rate, largest_request: 100.0, counting: Counting::TokenBucket, together: None };
    let meters = BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, limit)]);
    let mut limiter = Limiter::new(&Limits { meters, concurrency, ..Limits::default() }, NOW);
    limiter.retune(&limits(concurrency, 100.0), NOW);
    Arc::new(Gate::new(limiter, NOW))
}

fn wide() -> Arc<Wide> {
    Arc::new(Swap::new(PoolWide::new(MemberState::Active)))
}

/// Asks until it is admitted, and sleeps for ever if nobody wakes it.
fn admitted(gate: &ModelGate, wide: &Wide, parent: Option<(&ModelGate, &Wide)>) -> (Reservation, Option<Reservation>) {
    let mut asker = Asker::new(ONE, Priority::Interactive, LATER);
    loop {
        match gate.ask(&mut asker, wide, parent, NOW) {
            Answer::Admitted(mine, theirs) => return (mine, theirs),
            Answer::Wait(_) => asker.wake().expect("stands in line").0.wait(),
            other => panic!("{other:?}"),
        }
    }
}

/// Asks once.
fn decided(gate: &ModelGate, wide: &Wide) -> Decision {
    gate.decide(&ONE, Priority::Interactive, wide, NOW).expect("nobody waits")
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    loom::model::Builder::new().check(model);
}

#[test]
fn a_settled_request_wakes_the_one_who_waits_for_its_place() {
    check(|| {
        let (gate, wide) = (gate(Some(1), 10), wide());
        let (held, _) = admitted(&gate, &wide, None);
        let waiter = thread::spawn({
            let (gate, wide) = (gate.clone(), wide.clone());
            move || drop(admitted(&gate, &wide, None))
        });
        gate.settle(held, None, &ONE, NOW);
        waiter.join().expect("admitted");
    });
}

#[test]
fn a_retune_wakes_the_one_who_waits_for_it() {
    check(|| {
        let (gate, wide) = (gate(Some(0), 10), wide());
        let waiter = thread::spawn({
            let (gate, wide) = (gate.clone(), wide.clone());
            move || drop(admitted(&gate, &wide, None))
        });
        gate.retune(&limits(Some(1), 100.0), NOW);
        waiter.join().expect("admitted");
    });
}

#[test]
fn a_hold_that_is_lifted_wakes_the_one_who_waits_for_it() {
    check(|| {
        let (gate, wide) = (gate(None, 10), wide());
        // What was stored is lost with a hold, what flows is not.
        let mut flowing = limits(None, 100.0);
        flowing.meters.values_mut().for_each(|limit| limit.rate.rate = 60_000.0);
        gate.retune(&flowing, NOW);
        wide.hold(&[(Meter::REQUESTS_PER_MINUTE, LATER)]);
        let waiter = thread::spawn({
            let (gate, wide) = (gate.clone(), wide.clone());
            move || drop(admitted(&gate, &wide, None))
        });
        wide.update(|known| Some(PoolWide { holds: BTreeMap::new(), ..known.clone() }));
        gate.wake_head();
        waiter.join().expect("admitted");
    });
}

#[test]
fn one_who_leaves_as_he_is_woken_hands_the_turn_on() {
    check(|| {
        let (gate, wide) = (gate(Some(1), 10), wide());
        let (held, _) = admitted(&gate, &wide, None);
        let mut leaver = Asker::new(ONE, Priority::Interactive, LATER);
        assert!(matches!(gate.ask(&mut leaver, &wide, None, NOW), Answer::Wait(_)));
        let waiter = thread::spawn({
            let (gate, wide) = (gate.clone(), wide.clone());
            move || drop(admitted(&gate, &wide, None))
        });
        let settler = thread::spawn({
            let gate = gate.clone();
            move || gate.settle(held, None, &ONE, NOW)
        });
        gate.leave(&mut leaver, None);
        settler.join().expect("settled");
        waiter.join().expect("admitted");
    });
}

/// Netflix's concurrency-limits #234: looked at and taken in two steps, a limit of 10 let 12 go.
#[test]
fn two_who_ask_at_once_for_the_last_unit_get_it_once() {
    check(|| {
        let (gate, wide) = (gate(None, 1), wide());
        let other = thread::spawn({
            let (gate, wide) = (gate.clone(), wide.clone());
            move || u32::from(decided(&gate, &wide).is_ok())
        });
        // A retune meanwhile keeps the level.
        gate.retune(&limits(None, 50.0), NOW);
        let mine = u32::from(decided(&gate, &wide).is_ok());
        assert_eq!(mine + other.join().expect("decided"), 1);
        assert_eq!(gate.traffic().in_flight, 1);
    });
}

#[test]
fn a_hold_that_was_set_before_holds_whoever_asks_after() {
    check(|| {
        let (gate, wide) = (gate(None, 10), wide());
        let said = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let holder = thread::spawn({
            let (wide, said) = (wide.clone(), said.clone());
            move || {
                wide.hold(&[(Meter::REQUESTS_PER_MINUTE, LATER)]);
                said.store(true, Ordering::Release);
            }
        });
        // Whoever asks as it is set may go, or not; it is heard of all the same.
        let is_said = said.load(Ordering::Acquire);
        let decision = decided(&gate, &wide);
        assert!(!is_said || decision.is_err());
        holder.join().expect("held");
        assert!(decided(&gate, &wide).is_err());
    });
}

#[test]
fn both_gates_admit_or_neither_and_the_parents_place_wakes_the_child() {
    check(|| {
        let (child, parent, wide) = (gate(None, 10), gate(Some(1), 10), wide());
        let (mine, theirs) = admitted(&child, &wide, Some((&parent, &wide)));
        assert_eq!((child.traffic().in_flight, parent.traffic().in_flight), (1, 1));
        let waiter = thread::spawn({
            let (child, parent, wide) = (child.clone(), parent.clone(), wide.clone());
            move || drop(admitted(&child, &wide, Some((&parent, &wide))))
        });
        child.settle(mine, None, &ONE, NOW);
        parent.settle(theirs.expect("the parent's too"), None, &ONE, NOW);
        waiter.join().expect("admitted");
        assert_eq!((child.traffic().in_flight, parent.traffic().in_flight), (1, 1));
        assert_eq!((child.traffic().waiting, parent.traffic().waiting), (0, 0), "nobody stands there who has gone");
    });
}
