//! The metrics: one row each.

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only up; ends in `_total`.
    Counter,
    /// Up and down.
    Gauge,
}

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
    ReportsAccepted Counter "reports_accepted_total" [] "Reports of members that were taken.";
    LimitsDoubted Counter "limits_doubted_total" ["pool"] "Reports of a limit far from the accepted one, until enough members tell of it.";
    ReportsRefused Counter "reports_refused_total" ["why"] "Reports of members that were refused.";
    ReadsRefused Counter "reads_refused_total" ["why"] "Questions of operators, and for metrics, that were refused.";
    ConnectionsRefused Counter "connections_refused_total" ["why"] "Connections to the report port whose TLS handshake failed.";
    Ticks Counter "ticks_total" [] "Rounds of the control loop.";
    TickSeconds Gauge "tick_seconds" [] "How long the last round of the control loop took.";
    PoolCapacity Gauge "pool_capacity_units" ["pool", "meter"] "What the pool can take, as estimated.";
    PoolOthers Gauge "pool_others_units" ["pool", "meter"] "What traffic outside tidegate takes from the pool.";
    PoolLevel Gauge "pool_level_units" ["pool", "meter"] "What is left in the provider's bucket, as estimated.";
    Threshold Gauge "threshold_units" ["pool", "tenant", "meter"] "What the tenant is granted.";
    Publishes Counter "publishes_total" ["pool", "kind"] "Records written to the store.";
    PublishFailures Counter "publish_failures_total" ["why"] "Writes to the store that failed.";
    Leader Gauge "leader" [] "1 while this controller leads, else 0.";
    Term Gauge "term" [] "The term of the leader that this process follows.";
    Members Gauge "members" ["pool"] "Members that use the pool.";
    StoreBytes Gauge "store_bytes" [] "What the store holds.";
    PoliciesRejected Counter "policies_rejected_total" ["pool"] "Policies in the store that were not well formed.";
    OverridesRejected Counter "overrides_rejected_total" ["pool"] "Overrides that were not well formed.";
    // The client.
    RecordsRefused Counter "records_refused_total" ["kind"] "Records read from the store that were not taken.";
    WatchSilence Gauge "watch_silence_seconds" [] "How long ago the store last said anything: signs of life come every 3 s.";
    WatchReopened Counter "watch_reopened_total" ["why"] "Watches that had to be opened again.";
    Swaps Counter "swaps_total" ["pool"] "Changes of thresholds that were put into force.";
    Admitted Counter "admitted_total" ["pool", "tenant"] "Calls that were admitted.";
    Refused Counter "refused_total" ["pool", "tenant"] "Calls that were refused before they were sent.";
    WouldWait Counter "would_wait_total" ["pool", "tenant"] "Calls admitted at once, limits being observed only, that would have waited.";
    WouldRefuse Counter "would_refuse_total" ["pool", "tenant"] "Calls admitted, limits being observed only, that would have been refused.";
    Fallbacks Counter "fallbacks_total" ["pool", "kind", "outcome"] "Fallbacks that were tried when a call was refused.";
    Waiting Gauge "waiting" ["pool"] "Calls that wait to be admitted.";
    ReservationsExpired Counter "reservations_expired_total" ["pool"] "Calls that were never settled and whose places were given to others.";
    Throttled Counter "throttled_total" ["pool", "kind"] "Calls that the provider throttled.";
    HeaderFaults Counter "header_faults_total" ["pool", "reason"] "Limit headers of the provider that could not be read.";
    Mode Gauge "mode" ["pool"] "What becomes of limits: 0 enforced, 1 observed, 2 off.";
    MemberState Gauge "member_state" ["pool"] "0 bootstrap, 1 active, 2 braking, 3 lapsed.";
    RepliesDropped Counter "replies_dropped_total" ["why"] "Replies of the leader that were not taken.";
    ReportFailures Counter "report_failures_total" ["why"] "Reports that did not reach the leader.";
    // Telemetry itself.
    SeriesDropped Counter "series_dropped_total" [] "Changes dropped because there were too many series already.";
}
