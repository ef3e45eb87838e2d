//! The metrics: one row each.

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only up; ends in `_total`.
    Counter,
    /// Up and down.
    Gauge,
    /// How many came up to each of [`SECONDS_BOUNDS`], and their sum: spans, in seconds.
    Histogram,
}

/// The upper bounds of every histogram's buckets, in seconds: from a fast tick to a long wait.
pub const SECONDS_BOUNDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

macro_rules! metrics {
    ($($metric:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        /// Every metric there is. Names carry the prefix `tidegate_`, the unit, and `_total` when they count.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric {
            $(#[doc = concat!("`tidegate_", $name, "`: ", $help)] $metric,)+
        }

        impl Metric {
            /// All of them, in the order they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$metric),+];

            /// The name that Prometheus sees.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$metric => concat!("tidegate_", $name),)+ }
            }

            /// One sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$metric => $help,)+ }
            }

            /// How it moves.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$metric => Kind::$kind,)+ }
            }

            /// The label names, in the order that values are given.
            #[must_use]
            pub const fn labels(self) -> &'static [&'static str] {
                match self { $(Self::$metric => &[$($label),*],)+ }
            }
        }
    };
}

metrics! {
    // The controller. "Units" are those of the label `meter`: requests or LLM tokens per window, or calls in flight.
    Leader Gauge "leader" [] "1 while this controller leads, else 0.";
    Term Gauge "term" [] "The term of the leader that this process follows.";
    Ticks Counter "ticks_total" [] "Rounds of the control loop.";
    TickSeconds Histogram "tick_seconds" [] "How long a round of the control loop took, its writes included.";
    StoreSeconds Histogram "store_seconds" ["op"] "How long the store took to answer.";
    StoreErrors Counter "store_errors_total" ["op"] "Questions to the store that failed.";
    StoreBytes Gauge "store_bytes" [] "What the store holds.";
    StoreQuota Gauge "store_quota_bytes" [] "How much the store may hold before it takes no more writes.";
    StoreFull Gauge "store_full" [] "1 while the store takes no writes for want of room, else 0.";
    Publishes Counter "publishes_total" ["pool", "kind"] "Records written to the store.";
    PublishFailures Counter "publish_failures_total" ["why"] "Writes to the store that failed.";
    ReportsAccepted Counter "reports_accepted_total" [] "Reports of members that were taken.";
    ReportsRefused Counter "reports_refused_total" ["why"] "Reports of members that were refused.";
    ReportAge Gauge "report_age_seconds" ["pool"] "How long ago the member that has been silent for longest reported.";
    ReadsRefused Counter "reads_refused_total" ["why"] "Questions of operators, and for metrics, that were refused.";
    ConnectionsRefused Counter "connections_refused_total" ["why"] "Connections to the report port whose TLS handshake failed.";
    LimitsDoubted Counter "limits_doubted_total" ["pool"] "Reports of a limit far from the accepted one, until enough members tell of it.";
    PoliciesRejected Counter "policies_rejected_total" ["pool"] "Policies in the store that were not well formed.";
    OverridesRejected Counter "overrides_rejected_total" ["pool"] "Overrides that were not well formed.";
    // What the leader knows of a pool; told by the leader alone.
    Members Gauge "members" ["pool"] "Members that use the pool.";
    PoolLimit Gauge "pool_limit_units" ["pool", "meter"] "What the provider says the limit is, where it says so.";
    PoolLevel Gauge "pool_level_units" ["pool", "meter"] "What is left at the provider, as last told and counted on from there.";
    PoolCapacity Gauge "pool_capacity_units" ["pool", "meter"] "What the pool can take, as estimated.";
    PoolOthers Gauge "pool_others_units" ["pool", "meter"] "What traffic outside tidegate takes from the pool.";
    PoolUsed Gauge "pool_used_units" ["pool", "meter"] "What members use of the pool.";
    PoolDemand Gauge "pool_demand_units" ["pool", "meter"] "What members ask for.";
    PoolFloors Gauge "pool_floors_units" ["pool", "meter"] "The sum of the tenants' floors: above the capacity all shrink in proportion.";
    PoolOvercommit Gauge "pool_overcommit_ratio" ["pool", "meter"] "By how much thresholds add up to more than the capacity, as part of each lies idle; 1.2 where members count together.";
    ReadingState Gauge "reading_state" ["pool", "meter"] "What the provider's headers are good for: 0 steering, 1 too coarse, 2 contradicted by 429s, 3 none of late.";
    PoolHold Gauge "pool_hold_seconds" ["pool", "meter"] "How long the provider still wants all to wait; absent when it does not.";
    PoolInFlight Gauge "pool_in_flight" ["pool"] "Calls in flight, all members together.";
    PoolPlaces Gauge "pool_places" ["pool"] "Calls in flight at a time, as latency or a congestion signal allows; absent when neither limits.";
    PoolSlowness Gauge "pool_slowness_ratio" ["pool"] "How many times slower than usual answers came of late.";
    Steps Counter "steps_total" ["pool", "reason"] "Decisions of the law, by their reason.";
    LimitChanges Counter "limit_changes_total" ["pool", "meter"] "Changes of what the provider says the limit is.";
    Threshold Gauge "threshold_units" ["pool", "tenant", "meter"] "What the tenant is granted, before overrides.";
    ThresholdEffective Gauge "threshold_effective_units" ["pool", "tenant", "meter"] "What overrides make of a threshold, where that is something else.";
    TenantDemand Gauge "tenant_demand_per_second" ["pool", "tenant"] "Requests that the tenant could use, per second.";
    TenantWaiting Gauge "tenant_waiting" ["pool", "tenant"] "The tenant's calls that wait to be admitted, all members together, or that a demand signal tells of.";
    TenantInFlight Gauge "tenant_in_flight" ["pool", "tenant"] "The tenant's calls in flight, all members together.";
    OverrideInForce Gauge "override_in_force" ["pool", "target", "action"] "1 for each override that holds.";
    OverrideSince Gauge "override_since_timestamp_seconds" ["pool", "target"] "When the override that holds was first seen.";
    OverrideExpires Gauge "override_expires_timestamp_seconds" ["pool", "target"] "When the override that holds ends; absent when it does not.";
    // Signals from Prometheus, one series a query.
    SignalState Gauge "signal_state" ["query"] "0 fresh, 1 stale, 2 missing.";
    SignalAge Gauge "signal_age_seconds" ["query"] "How long ago the newest answer was true; absent before any.";
    SignalSeries Gauge "signal_series" ["query"] "Series of the last answer that feed a pool or a tenant.";
    SignalSeconds Histogram "signal_seconds" ["query"] "How long Prometheus took to answer.";
    SignalFailures Counter "signal_failures_total" ["query", "why"] "Answers that were not had, and series of answers that were not taken.";
    // The client.
    RecordsRefused Counter "records_refused_total" ["kind"] "Records read from the store that were not taken.";
    WatchSilence Gauge "watch_silence_seconds" [] "How long ago the store last said anything: signs of life come every 3 s.";
    WatchReopened Counter "watch_reopened_total" ["why"] "Watches that had to be opened again.";
    Swaps Counter "swaps_total" ["pool"] "Changes of thresholds that were put into force.";
    Admitted Counter "admitted_total" ["pool", "tenant"] "Calls that were admitted.";
    Refused Counter "refused_total" ["pool", "tenant"] "Calls that were refused before they were sent.";
    RefusedFor Counter "refused_for_total" ["pool", "why"] "The same by what stood in the way.";
    Waited Counter "waited_total" ["pool", "tenant"] "Of the admitted calls, those that waited first.";
    WaitSeconds Histogram "wait_seconds" ["pool"] "How long admitted calls waited that did wait.";
    WouldWait Counter "would_wait_total" ["pool", "tenant"] "Calls admitted at once, limits being observed only, that would have waited.";
    WouldRefuse Counter "would_refuse_total" ["pool", "tenant"] "Calls admitted, limits being observed only, that would have been refused.";
    Fallbacks Counter "fallbacks_total" ["pool", "kind", "outcome"] "Fallbacks that were tried when a call was refused.";
    Waiting Gauge "waiting" ["pool"] "Calls that wait to be admitted.";
    InFlight Gauge "in_flight" ["pool"] "Calls in flight.";
    Share Gauge "share_ratio" ["pool", "tenant"] "The part of the tenant's threshold that this member enforces; 0 without a valid share.";
    ReservationsExpired Counter "reservations_expired_total" ["pool"] "Calls that were never settled and whose places were given to others.";
    Throttled Counter "throttled_total" ["pool", "tenant", "kind"] "Calls that the provider throttled.";
    HeaderFaults Counter "header_faults_total" ["pool", "reason"] "Limit headers of the provider that could not be read.";
    Mode Gauge "mode" ["pool"] "What becomes of limits: 0 enforced, 1 observed, 2 off.";
    MemberState Gauge "member_state" ["pool"] "0 bootstrap, 1 active, 2 braking, 3 lapsed.";
    PulseAge Gauge "pulse_age_seconds" ["pool"] "How long ago the pulse came by which grants live; absent before any.";
    ClockSkew Gauge "clock_skew_seconds" ["pool"] "How far the leader's clock is ahead of this process's, less the pulse's way; overrides end by one's own.";
    RepliesDropped Counter "replies_dropped_total" ["why"] "Replies of the leader that were not taken.";
    ReportFailures Counter "report_failures_total" ["why"] "Reports that did not reach the leader.";
    // Counting together.
    TallyDecisions Counter "tally_decisions_total" ["pool", "outcome"] "Requests asked of the store that members count in, by what it answered; away: admitted by shares, because it did not.";
    TallySeconds Histogram "tally_seconds" [] "How long the store that members count in took to answer.";
    TallyFailures Counter "tally_failures_total" ["why"] "Questions to the store that members count in that failed.";
    TallyAway Gauge "tally_away" [] "1 while the store that members count in does not decide, and requests go by shares; else 0.";
    // What members keep in Redis: requests for later, answers from before.
    QueueLength Gauge "queue_length" ["queue"] "Requests in the queue, those included that are being sent.";
    QueueOldest Gauge "queue_oldest_seconds" ["queue"] "How long ago the oldest request was added of those that this worker has in hand; 0 without any.";
    QueueDeadLetters Gauge "queue_dead_letters" ["queue"] "Requests that were given up and are kept.";
    QueueAdded Counter "queue_added_total" ["queue"] "Requests that were put into the queue.";
    QueueRefused Counter "queue_refused_total" ["queue", "why"] "Requests that the queue did not take.";
    QueueDelivered Counter "queue_delivered_total" ["queue"] "Requests whose answer was handed on, and that left the queue.";
    QueueRetried Counter "queue_retried_total" ["queue", "why"] "Tries that failed and are followed by another.";
    QueueDead Counter "queue_dead_total" ["queue", "why"] "Requests that were given up.";
    AnswersFailed Counter "answers_failed_total" ["op", "why"] "Kept answers that could not be got or put.";
    // The emulated provider.
    EmulatorRequests Counter "emulator_requests_total" ["status"] "Completion requests answered.";
    EmulatorAdmitted Counter "emulator_admitted_units_total" ["unit"] "Units charged; output that is charged apart is counted when the answer ends.";
    EmulatorLevel Gauge "emulator_level_units" ["meter"] "Units in the bucket; below zero when overdrawn.";
    EmulatorLimit Gauge "emulator_limit_units" ["meter"] "Limit, in units per window.";
    EmulatorRunning Gauge "emulator_running" [] "Requests being answered, where only so many are at a time.";
    EmulatorQueued Gauge "emulator_queued" [] "Requests that wait to be answered, where only so many are at a time.";
    // Telemetry itself.
    SeriesDropped Counter "series_dropped_total" [] "Changes dropped because there were too many series already.";
    TenantsUnnamed Gauge "tenants_unnamed" ["pool"] "Tenants whose series are summed up as tenant other, as there are too many to name.";
}
