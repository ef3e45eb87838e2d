//! The watch session: lists and changes in, views changed or not, notices out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tidegate::client::{MemberState, Notice, PoolView, Session, TENANTS_FOLLOWED_MAX};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use tidegate::plan::{Mode, Override, OverrideStatus, Pulse, Stamp, Target, Thresholds};
use tidegate::quota::{Grantee, PoolId};
use tidegate::store::{Change, Entry, Listing, Select};

use super::by_hand::{RPM, grant, grantee, pool, pulse, rates, stamp, target};

/// A pulse that tells of no capacity.
fn silent_pulse(stamp: Stamp) -> Pulse {
    Pulse { capacity: BTreeMap::new(), ..pulse(stamp) }
}

/// A session with its views, and the store's side of it as a map.
struct Story {
    session: Session,
    views: BTreeMap<PoolId, PoolView>,
    entries: BTreeMap<String, Entry>,
    revision: u64,
    cluster_id: u64,
    now: MonoTime,
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("serialises")
}

impl Story {
    fn new() -> Self {
        let now = MonoTime::from_millis(3_600_000);
        let bootstrap: Thresholds = rates(&[(RPM, 10.0, 1.0)]);
        Self {
            session: Session::new(Keyspace::default(), [pool()]),
            views: [(pool(), PoolView::new(bootstrap, now))].into(),
            entries: BTreeMap::new(),
            revision: 1,
            cluster_id: 5,
            now,
        }
    }

    /// A leader of term 7 with a pulse, and a grant of 120 to `acme`, listed.
    fn led() -> Self {
        let mut story = Self::new();
        story.lead();
        story.put(&Key::Pulse(pool()), &bytes(&silent_pulse(stamp(7, 10))));
        story.put(&Key::Limits(pool(), grantee("acme")), &bytes(&grant(stamp(7, 10), rates(&[(RPM, 120.0, 12.0)]))));
        assert_eq!(story.list(), []);
        story
    }

    fn lead(&mut self) {
        let leader = LeaderRecord { name: "a".to_owned(), report_url: "http://127.0.0.1:1".to_owned() };
        self.put(&Key::Leader, &bytes(&leader));
    }

    fn put(&mut self, key: &Key, value: &[u8]) -> Change {
        self.revision += 1;
        let key = Keyspace::default().key(key);
        let create_revision = self.entries.get(&key).map_or(self.revision, |entry| entry.create_revision);
        let entry = Entry { key: key.clone(), value: value.to_vec(), create_revision, mod_revision: self.revision };
        self.entries.insert(key, entry.clone());
        Change::Put(entry)
    }

    fn delete(&mut self, key: &Key) -> Change {
        self.revision += 1;
        let key = Keyspace::default().key(key);
        self.entries.remove(&key).expect("was there");
        Change::Delete { key, mod_revision: self.revision }
    }

    fn list(&mut self) -> Vec<Notice> {
        let selects = self.session.list_selects();
        let entries = self.entries.values().filter(|entry| selects.iter().any(|s| s.matches(&entry.key)));
        let entries = entries.cloned().collect();
        let listing = Listing { entries, revision: self.revision, cluster_id: self.cluster_id };
        self.session.on_list(&listing, &mut self.views, self.now)
    }

    fn changes(&mut self, changes: &[Change]) -> Vec<Notice> {
        self.session.on_changes(changes, self.revision, &mut self.views, self.now)
    }

    fn view(&self) -> &PoolView {
        &self.views[&pool()]
    }

    fn state(&self) -> MemberState {
        self.view().state(self.now)
    }

    /// Where no pulse tells of a capacity, the largest request is the tenant's whole burst: what it is granted,
    /// whatever the share.
    fn burst(&self, name: &str) -> Option<f64> {
        let limits = self.view().limits(self.now, UnixMillis(0));
        limits.get(&grantee(name)).map(|limits| limits.meters[&RPM].largest_request)
    }

    fn blocked(&self, name: &str) -> bool {
        self.view().limits(self.now, UnixMillis(0))[&grantee(name)].blocked
    }
}

fn kinds(notices: &[Notice]) -> Vec<&'static str> {
    let kind = |notice: &Notice| match notice {
        Notice::RecordRefused { kind, .. } => *kind,
        Notice::OrderRestarted => "restarted",
    };
    notices.iter().map(kind).collect()
}

#[test]
fn a_session_lists_what_it_watches_and_the_override_statuses() {
    let session = Session::new(Keyspace::default(), [pool()]);
    let watched = session.watch_selects();
    assert_eq!(watched.len(), 4);
    assert!(watched.contains(&Select::Key("/tidegate/v1/leader".to_owned())));
    assert!(watched.contains(&Select::Key("/tidegate/v1/pulse/pool".to_owned())));
    let listed = session.list_selects();
    assert!(watched.iter().all(|select| listed.contains(select)));
    assert!(listed.contains(&Select::Prefix("/tidegate/v1/overrides-status/pool/".to_owned())));
}

#[test]
fn watching_goes_on_after_the_newest_revision_seen() {
    let mut story = Story::led();
    assert_eq!(story.session.next_revision(), story.revision + 1);
    let change = story.put(&Key::Pulse(pool()), &bytes(&silent_pulse(stamp(7, 11))));
    story.changes(&[change]);
    assert_eq!(story.session.next_revision(), story.revision + 1);
}

#[test]
fn the_same_list_again_changes_nothing_and_renews_nothing() {
    let mut story = Story::led();
    assert_eq!((story.state(), story.burst("acme")), (MemberState::Active, Some(12.0)));
    story.now = MonoTime::from_millis(3_610_000);
    assert_eq!(story.list(), []);
    assert_eq!((story.state(), story.burst("acme")), (MemberState::Braking, Some(12.0)));
}

#[test]
fn what_a_later_list_does_not_hold_is_gone() {
    let mut story = Story::led();
    story.put(&Key::Limits(pool(), Grantee::Default), &bytes(&grant(stamp(7, 10), rates(&[(RPM, 6.0, 3.0)]))));
    story.put(&Key::Override(pool(), Target::Every), br#"{"block":true}"#);
    story.list();
    assert!(story.blocked("acme") && story.blocked("@default"));
    // Removed while nobody watched.
    story.delete(&Key::Override(pool(), Target::Every));
    story.delete(&Key::Limits(pool(), grantee("acme")));
    assert_eq!(story.list(), []);
    assert_eq!((story.burst("acme"), story.burst("@default")), (None, Some(3.0)));
    assert!(!story.blocked("@default"));
}

#[test]
fn changes_are_taken_as_they_come() {
    let mut story = Story::led();
    let blocked = story.put(&Key::Override(pool(), target("acme")), br#"{"block":true}"#);
    story.changes(&[blocked]);
    assert!(story.blocked("acme"));
    let lifted = story.delete(&Key::Override(pool(), target("acme")));
    story.changes(&[lifted]);
    assert!(!story.blocked("acme"));
    let gone = story.delete(&Key::Leader);
    story.changes(&[gone]);
    assert_eq!(story.session.leader(), None);
    assert_eq!(story.state(), MemberState::Active, "the pulse decides, not the key");
    let removed = story.delete(&Key::Limits(pool(), grantee("acme")));
    story.changes(&[removed]);
    assert_eq!((story.burst("acme"), story.burst("@default")), (None, Some(1.0)));
}

#[test]
fn a_pulse_in_a_list_without_a_leader_does_not_count() {
    let mut story = Story::led();
    let mut late = Story::new();
    late.entries = story.entries.clone();
    late.revision = story.revision;
    late.entries.remove(&Keyspace::default().key(&Key::Leader));
    assert_eq!(late.list(), []);
    assert_eq!((late.state(), late.burst("acme")), (MemberState::Lapsed, Some(12.0)));
    // With the next pulse seen as it is written, the grant lives.
    let change = late.put(&Key::Pulse(pool()), &bytes(&silent_pulse(stamp(9, 1))));
    late.changes(&[change]);
    assert_eq!(late.state(), MemberState::Active);

    // A watch that broke between two leaders ends no life.
    story.delete(&Key::Leader);
    story.put(&Key::Pulse(pool()), &bytes(&silent_pulse(stamp(7, 11))));
    story.list();
    assert_eq!(story.state(), MemberState::Active);
}

#[test]
fn a_malformed_record_gives_one_notice_and_changes_nothing_else() {
    let keys: [(Key, &str); 4] = [
        (Key::Limits(pool(), grantee("acme")), "grant"),
        (Key::Pulse(pool()), "pulse"),
        (Key::Override(pool(), target("acme")), "override"),
        (Key::Leader, "leader"),
    ];
    let values = [
        b"".to_vec(),
        b"not json".to_vec(),
        vec![0xff, 0xfe],
        bytes(&json!({"schema": 99, "term": 99, "epoch": 1})),
        bytes(&json!([])),
    ];
    for (key, kind) in &keys {
        for value in &values {
            let mut story = Story::led();
            story.put(&Key::Override(pool(), target("acme")), br#"{"scale":0.5}"#);
            story.list();
            let before = (story.state(), story.burst("acme"), story.session.leader().cloned(), story.session.term());
            let change = story.put(key, value);
            assert_eq!(kinds(&story.changes(&[change])), [*kind], "{value:?} as a change");
            assert_eq!(kinds(&story.list()), [*kind], "{value:?} in a list");
            let after = (story.state(), story.burst("acme"), story.session.leader().cloned(), story.session.term());
            assert_eq!(before, after, "{kind} {value:?}");
        }
    }
    // A key that names no tenant.
    let mut story = Story::led();
    let key = "/tidegate/v1/limits/pool/a/b".to_owned();
    let entry = Entry { key, value: Vec::new(), create_revision: 9, mod_revision: 9 };
    assert_eq!(kinds(&story.changes(&[Change::Put(entry)])), ["key"]);
}

#[test]
fn a_record_of_a_pool_that_is_not_ours_is_left_alone() {
    let mut story = Story::led();
    let other: PoolId = "other".parse().expect("valid");
    let change = story.put(&Key::Limits(other, grantee("acme")), b"garbage");
    assert_eq!(story.changes(&[change]), []);
}

#[test]
fn the_last_good_override_is_restored_where_the_key_holds_a_malformed_one() {
    let good = Override::parse(br#"{"block":true}"#, &target("acme")).expect("good");
    let status = OverrideStatus {
        since_unix_ms: None,
        accepted: false,
        revision: 1,
        error: Some("broken".to_owned()),
        warning: None,
        applied: Some(good),
    };
    let mut story = Story::led();
    story.put(&Key::Override(pool(), target("acme")), b"broken");
    story.put(&Key::OverrideStatus(pool(), target("acme")), &bytes(&status));
    assert_eq!(kinds(&story.list()), ["override"]);
    assert!(story.blocked("acme"));

    // The key is gone: so is the override, whatever the status still says.
    story.delete(&Key::Override(pool(), target("acme")));
    story.list();
    assert!(!story.blocked("acme"));

    // A good record under the key is stronger than any status.
    story.put(&Key::Override(pool(), target("acme")), br#"{"scale":0.5}"#);
    assert_eq!(story.list(), []);
    assert_eq!((story.blocked("acme"), story.burst("acme")), (false, Some(6.0)));
}

#[test]
fn another_store_or_an_older_one_restarts_the_order() {
    for restored in [true, false] {
        let mut story = Story::led();
        if restored {
            story.revision = 2;
        } else {
            story.cluster_id = 6;
        }
        story.entries.clear();
        story.lead();
        story.put(&Key::Pulse(pool()), &bytes(&silent_pulse(stamp(2, 1))));
        story.put(&Key::Limits(pool(), grantee("acme")), &bytes(&grant(stamp(2, 1), rates(&[(RPM, 60.0, 6.0)]))));
        if restored {
            story.revision = 3;
        }
        story.now = MonoTime::from_millis(3_650_000);
        assert_eq!(story.state(), MemberState::Lapsed);
        assert_eq!(story.list(), [Notice::OrderRestarted]);
        assert_eq!((story.state(), story.burst("acme")), (MemberState::Active, Some(6.0)));
        assert!(story.session.term() < 7, "replies of the new store's leader are taken");
        assert_eq!(story.list(), [], "once is enough");
    }
}

#[test]
fn the_term_is_the_leader_keys_create_revision() {
    let mut story = Story::led();
    assert_eq!(story.session.term(), 2);
    story.lead();
    story.list();
    assert_eq!(story.session.term(), 2, "a rewritten key is the same term");
    let gone = story.delete(&Key::Leader);
    story.lead();
    let next = story.entries[&Keyspace::default().key(&Key::Leader)].clone();
    story.changes(&[gone, Change::Put(next.clone())]);
    assert_eq!(story.session.term(), next.create_revision);
}

fn names(n: usize) -> BTreeSet<tidegate::quota::TenantId> {
    (0..n).map(|n| format!("t{n:02}").parse().expect("valid")).collect()
}

#[test]
fn a_few_tenants_are_followed_one_by_one_with_those_undeclared_and_many_by_their_prefix() {
    let keys = Keyspace::default();
    let selects = |n| Session::new(keys.clone(), []).following(pool(), names(n)).watch_selects();
    let grant = |name: &str| Select::Key(keys.key(&Key::Limits(pool(), grantee(name))));
    let always = [
        Select::Key(keys.key(&Key::Leader)),
        Select::Key(keys.key(&Key::Pulse(pool()))),
        Select::Prefix(keys.overrides_of(&pool())),
    ];
    assert_eq!(selects(2), [&always[..], &[grant("t00"), grant("t01"), grant("@default")]].concat());
    assert_eq!(selects(TENANTS_FOLLOWED_MAX).len(), 3 + TENANTS_FOLLOWED_MAX + 1);
    for n in [0, TENANTS_FOLLOWED_MAX + 1] {
        assert_eq!(selects(n), [&always[..], &[Select::Prefix(keys.limits_of(&pool()))]].concat(), "{n}");
    }
    let policy = keys.key(&Key::Policy(pool()));
    assert!(!selects(0).iter().any(|select| select.matches(&policy)), "what members must know of it is in the pulse");
}

#[test]
fn a_pool_that_is_gone_is_not_open_whatever_its_policy_said() {
    for listed in [false, true] {
        let mut story = Story::led();
        let off = Pulse { mode: Mode::Off, ..silent_pulse(stamp(7, 11)) };
        let change = story.put(&Key::Pulse(pool()), &bytes(&off));
        story.changes(&[change]);
        assert_eq!(story.view().mode(), Mode::Off);
        story.list();
        assert_eq!(story.view().mode(), Mode::Off, "it is still there");
        let gone = story.delete(&Key::Pulse(pool()));
        if listed {
            story.list();
        } else {
            story.changes(&[gone]);
        }
        assert_eq!(story.view().mode(), Mode::Enforce, "listed: {listed}");
    }
}

#[test]
fn any_word_of_the_store_ends_its_silence() {
    let mut story = Story::new();
    assert_eq!(story.session.silence(story.now), None);
    story.list();
    let later = story.now + Duration::from_secs(7);
    assert_eq!(story.session.silence(later), Some(Duration::from_secs(7)));
    story.session.on_word(later);
    assert_eq!(story.session.silence(later), Some(Duration::ZERO));
}
