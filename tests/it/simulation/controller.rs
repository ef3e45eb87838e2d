//! A controller of the world: the real steps of a campaign and of a term, run by hand.

use std::sync::Arc;
use std::time::Duration;

use tidegate::controller::{
    EARLY_TICK_GAP, Ended, KEEP_ALIVE_EVERY, Leading, NotLeading, Params, Reign, TICK_EVERY, Won,
};
use tidegate::observation::Report;
use tidegate::plan::Reply;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::sim::errand::{Counter, Errand, Waits};
use tidegate::sim::events::{Dice, DriftingClock, Timeline};
use tidegate::sim::lossy::{Answer, Call, LossyStore, WatchId};
use tidegate::store::{Change, LeaseId, Select, Store, StoreError, WatchEvent};
use tidegate::telemetry::Telemetry;

use super::event::{Duty, Event, Of};

const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What a controller is doing.
enum Doing {
    Nothing,
    Campaigning(Errand<Result<Option<Won>, StoreError>>),
    StandingBy(WatchId),
    Beginning(Won, Errand<Result<Reign, Ended>>),
    Leading(Won, Box<Reign>),
    Ticking(Won, Errand<(Box<Reign>, Result<(), Ended>)>, bool),
}

/// One controller.
pub struct Controller {
    pub of: Of,
    leading: Arc<Leading>,
    counter: Counter,
    doing: Doing,
    keeping: Option<Errand<bool>>,
    revoking: Option<Errand<()>>,
    calls: Vec<(Call, Waits)>,
    /// A tick was due while one was under way.
    tick_due: bool,
    early_due: bool,
}

impl Controller {
    pub fn new(of: Of, params: Params, clock: DriftingClock) -> Self {
        let counter = Counter::default();
        let url = format!("http://c{}", of.who);
        let leading = Leading::new(params, url, Arc::new(counter.clone()), Arc::new(clock), Arc::new(Telemetry::new()));
        Self {
            of,
            leading: Arc::new(leading),
            counter,
            doing: Doing::Nothing,
            keeping: None,
            revoking: None,
            calls: Vec::new(),
            tick_due: false,
            early_due: false,
        }
    }

    /// Whether it thinks that it leads.
    pub fn leads(&self) -> bool {
        self.leading.leads()
    }

    pub fn lease(&self) -> Option<LeaseId> {
        match &self.doing {
            Doing::Beginning(won, _) | Doing::Leading(won, _) | Doing::Ticking(won, ..) => Some(won.lease),
            _ => None,
        }
    }

    pub fn on_duty(
        &mut self,
        duty: Duty,
        store: &mut LossyStore,
        timeline: &mut Timeline<Event>,
        dice: &mut Dice,
    ) -> Option<String> {
        match duty {
            Duty::Campaign => {
                if matches!(self.doing, Doing::Nothing) {
                    let leading = self.leading.clone();
                    self.doing = Doing::Campaigning(Errand::new(async move { leading.campaign().await }));
                }
            }
            Duty::Keep(lease) => {
                let won = match &self.doing {
                    Doing::Beginning(won, _) | Doing::Leading(won, _) | Doing::Ticking(won, ..) => *won,
                    _ => return None,
                };
                if won.lease == lease && self.keeping.is_none() {
                    let leading = self.leading.clone();
                    self.keeping = Some(Errand::new(async move { leading.keep(&won).await }));
                }
            }
            Duty::Tick(lease) => {
                if self.lease() == Some(lease) {
                    self.tick_due = true;
                }
            }
            Duty::EarlyTick(lease) => {
                if self.lease() == Some(lease) {
                    self.early_due = true;
                }
            }
        }
        self.go_on(store, timeline, dice)
    }

    /// Resigns, as on SIGTERM.
    pub fn resign(
        &mut self,
        store: &mut LossyStore,
        timeline: &mut Timeline<Event>,
        dice: &mut Dice,
    ) -> Option<String> {
        let lease = self.lease()?;
        self.end(lease, timeline);
        self.go_on(store, timeline, dice);
        Some("resigns".to_owned())
    }

    fn end(&mut self, lease: LeaseId, timeline: &mut Timeline<Event>) {
        self.leading.leave();
        self.doing = Doing::Nothing;
        self.keeping = None;
        (self.tick_due, self.early_due) = (false, false);
        let counter = self.counter.clone();
        self.revoking = Some(Errand::new(async move { drop(counter.revoke(lease).await) }));
        timeline.after(RETRY_AFTER, Event::Controller(self.of, Duty::Campaign));
    }

    pub fn on_answer(
        &mut self,
        call: Call,
        answer: Result<Answer, StoreError>,
        store: &mut LossyStore,
        timeline: &mut Timeline<Event>,
        dice: &mut Dice,
    ) -> Option<String> {
        let place = self.calls.iter().position(|(waiting, _)| *waiting == call)?;
        let (_, waits) = self.calls.swap_remove(place);
        let _ = waits.send(answer);
        self.go_on(store, timeline, dice)
    }

    pub fn on_told(
        &mut self,
        watch: WatchId,
        event: &Result<WatchEvent, StoreError>,
        store: &mut LossyStore,
        timeline: &mut Timeline<Event>,
    ) -> Option<String> {
        if !matches!(self.doing, Doing::StandingBy(own) if own == watch) {
            return None;
        }
        let gone = match event {
            Ok(WatchEvent::Changes { changes, .. }) => changes.iter().any(|c| matches!(c, Change::Delete { .. })),
            Ok(WatchEvent::Alive) => false,
            // As its loop does: a store that refuses to be watched is not asked without end.
            Err(error) => {
                store.close(watch);
                self.doing = Doing::Nothing;
                timeline.after(RETRY_AFTER, Event::Controller(self.of, Duty::Campaign));
                return Some(format!("cannot stand by: {error}"));
            }
        };
        gone.then(|| {
            store.close(watch);
            self.doing = Doing::Nothing;
            timeline.after(Duration::ZERO, Event::Controller(self.of, Duty::Campaign));
            "sees that nobody leads".to_owned()
        })
    }

    pub fn answer(
        &mut self,
        report: &Report,
        store: &mut LossyStore,
        timeline: &mut Timeline<Event>,
        dice: &mut Dice,
    ) -> Result<Reply, Option<String>> {
        let answer = self.leading.answer(report).map_err(|error| match error {
            NotLeading::Other(url) => Some(url),
            NotLeading::Nobody => None,
        });
        let leading = self.leading.clone();
        if Errand::new(async move { leading.asked_early().await }).go_on().is_some() {
            self.early_due = true;
            self.go_on(store, timeline, dice);
        }
        answer
    }

    /// Goes on with all that is under way, as far as it goes.
    fn go_on(&mut self, store: &mut LossyStore, timeline: &mut Timeline<Event>, dice: &mut Dice) -> Option<String> {
        let mut said = None;
        loop {
            let news = self.step(store, timeline);
            for (ask, waits) in self.counter.take() {
                self.calls.push((store.ask(self.of.client(), ask, timeline, dice), waits));
            }
            match news {
                Some(news) => said = Some(said.map_or(news.clone(), |said: String| format!("{said}; {news}"))),
                None => return said,
            }
        }
    }

    /// One step; says what came of it, `None` when all wait.
    fn step(&mut self, store: &mut LossyStore, timeline: &mut Timeline<Event>) -> Option<String> {
        if self.revoking.as_mut().is_some_and(|errand| errand.go_on().is_some()) {
            self.revoking = None;
        }
        if let Some(kept) = self.keeping.as_mut().and_then(Errand::go_on) {
            self.keeping = None;
            if let Some(lease) = self.lease().filter(|_| kept) {
                timeline.after(KEEP_ALIVE_EVERY, Event::Controller(self.of, Duty::Keep(lease)));
            }
        }
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Campaigning(mut errand) => match errand.go_on() {
                None => {
                    self.doing = Doing::Campaigning(errand);
                    None
                }
                Some(Ok(Some(won))) => {
                    self.leading.take_office(&won);
                    timeline.after(Duration::ZERO, Event::Controller(self.of, Duty::Keep(won.lease)));
                    let leading = self.leading.clone();
                    self.doing = Doing::Beginning(won, Errand::new(async move { leading.begin(&won).await }));
                    Some(format!("wins term {}", won.term))
                }
                Some(Ok(None)) => {
                    let selects = vec![Select::Key(Keyspace::default().key(&Key::Leader))];
                    // From the beginning of what is kept: a delete in between is not to be missed.
                    let from = store.kv().revision() + 1;
                    if store.kv().get(&Keyspace::default().key(&Key::Leader)).is_none() {
                        timeline.after(RETRY_AFTER, Event::Controller(self.of, Duty::Campaign));
                        return Some("finds nobody leading".to_owned());
                    }
                    self.doing = Doing::StandingBy(store.watch(self.of.client(), selects, from, timeline));
                    Some("stands by".to_owned())
                }
                Some(Err(error)) => {
                    timeline.after(RETRY_AFTER, Event::Controller(self.of, Duty::Campaign));
                    Some(format!("cannot campaign: {error}"))
                }
            },
            Doing::Beginning(won, mut errand) => match errand.go_on() {
                None => {
                    self.doing = Doing::Beginning(won, errand);
                    None
                }
                Some(Ok(reign)) => {
                    self.doing = Doing::Leading(won, Box::new(reign));
                    self.tick_due = true;
                    Some(format!("begins term {}", won.term))
                }
                Some(Err(ended)) => {
                    self.end(won.lease, timeline);
                    Some(format!("gives term {} up: {ended:?}", won.term))
                }
            },
            Doing::Leading(won, mut reign) => {
                if !self.tick_due && !self.early_due {
                    self.doing = Doing::Leading(won, reign);
                    return None;
                }
                let early = !std::mem::take(&mut self.tick_due);
                self.early_due = false;
                if !early {
                    timeline.after(TICK_EVERY, Event::Controller(self.of, Duty::Tick(won.lease)));
                }
                let leading = self.leading.clone();
                let tick = async move {
                    let ended = leading.turn(&mut reign, early).await;
                    (reign, ended)
                };
                self.doing = Doing::Ticking(won, Errand::new(tick), early);
                Some(if early { "ticks early".to_owned() } else { "ticks".to_owned() })
            }
            Doing::Ticking(won, mut errand, early) => match errand.go_on() {
                None => {
                    self.doing = Doing::Ticking(won, errand, early);
                    None
                }
                Some((reign, Ok(()))) => {
                    self.doing = Doing::Leading(won, reign);
                    if early && std::mem::take(&mut self.early_due) {
                        timeline.after(EARLY_TICK_GAP, Event::Controller(self.of, Duty::EarlyTick(won.lease)));
                    }
                    Some("is done with its tick".to_owned())
                }
                Some((_, Err(ended))) => {
                    self.end(won.lease, timeline);
                    Some(format!("term {} has ended: {ended:?}", won.term))
                }
            },
            idle => {
                self.doing = idle;
                None
            }
        }
    }
}
