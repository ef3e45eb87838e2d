//! What providers are known to send that is no row of `provider_rows` and no refusal of `provider_bodies`: values as they
//! were recorded, documented or reported.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::observation::{Ending, ThrottleKind};
use tidegate::provider::{Class, Dialect, Head, Observation, Reason, reflex, unread};
use tidegate::quota::{Cost, Meter, Unit, Window};

use crate::provider_rows::{Pairs, SENT, map, missing, read};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const ITPM: Meter = meter(Unit::InputTokens, Window::Minute);
const OTPM: Meter = meter(Unit::OutputTokens, Window::Minute);
const RPS: Meter = meter(Unit::Requests, Window::Second);

const fn meter(unit: Unit, window: Window) -> Meter {
    Meter { unit, window }
}

fn observe(dialect: Dialect, status: u16, pairs: Pairs<'_>, body: &str) -> Observation {
    dialect.observe(&Head { status, headers: &map(pairs) }, Some(body.as_bytes()), SENT)
}

/// Class, meters that refused, wait in seconds.
fn told(seen: &Observation) -> (Class, &[Meter], Option<f64>) {
    (seen.class, &seen.exhausted, seen.retry_after.map(|wait| wait.as_secs_f64()))
}

/// Nobody waits for such an answer, nothing is held or lowered.
fn says_nothing_of_limits(dialect: Dialect, seen: &Observation) {
    assert_eq!((seen.ending, seen.retry_after), (Ending::Ignored, None), "{seen:?}");
    let reaction = reflex(dialect, seen, &Cost::request(100, 0));
    assert!(reaction.holds.is_empty() && reaction.overload.is_none() && reaction.long.is_none(), "{reaction:?}");
}

/// Limit and remaining.
type Left = (Option<f64>, Option<f64>);

const fn left(limit: f64, remaining: f64) -> Left {
    (Some(limit), Some(remaining))
}

fn levels(seen: &Observation) -> Vec<(Meter, Left)> {
    seen.readings.iter().map(|reading| (reading.meter, (reading.limit, reading.remaining))).collect()
}

// === OpenAI ===

#[test]
fn openais_projects_have_buckets_of_their_own_that_refuse_too() {
    let pairs = [
        ("x-ratelimit-limit-requests", "500"),
        ("x-ratelimit-remaining-requests", "499"),
        ("x-ratelimit-reset-requests", "120ms"),
        ("x-ratelimit-limit-project-tokens", "30000"),
        ("x-ratelimit-remaining-project-tokens", "0"),
        ("x-ratelimit-reset-project-tokens", "1m0.067s"),
        ("retry-after-ms", "837"),
        ("retry-after", "1"),
    ];
    let seen = observe(Dialect::OpenAi, 429, &pairs, r#"{"error":{"type":"tokens","code":"rate_limit_exceeded"}}"#);
    assert_eq!(told(&seen), (Class::Throttled, &[TPM][..], Some(0.837)));
    let bucket = seen.others[0];
    assert_eq!((bucket.what, bucket.limit, bucket.remaining), ("project_tokens", Some(30_000.0), Some(0.0)));
    assert_eq!(levels(&seen), [(RPM, left(500.0, 499.0))], "the project's level is not the route's");
}

/// Recorded: five of such; none of them JSON.
#[test]
fn what_a_proxy_says_in_openais_place_is_read_by_its_status() {
    let body = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    for (status, class) in [(503, Class::Overloaded), (502, Class::Failed), (500, Class::Failed)] {
        assert_eq!(told(&observe(Dialect::OpenAi, status, &[], body)), (class, &[][..], None), "{status}");
    }
    // A caller's mistake shows levels all the same, and waits for nothing.
    let pairs = [
        ("x-ratelimit-limit-requests", "500"),
        ("x-ratelimit-remaining-requests", "499"),
        ("x-ratelimit-reset-requests", "120ms"),
        ("retry-after", "20"),
    ];
    let seen = read(Dialect::OpenAi, 400, &pairs);
    assert_eq!((seen.class, levels(&seen)), (Class::Ignored, vec![(RPM, left(500.0, 499.0))]));
    says_nothing_of_limits(Dialect::OpenAi, &seen);
}

// === Azure ===

/// The deployment's limit is lower for a while, as the head shows.
#[test]
fn azures_temporary_rate_limit_adjustment_shows_the_limit_in_force() {
    let pairs = [
        ("x-ratelimit-limit-tokens", "30000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "0"),
        ("x-ratelimit-renewalperiod-tokens", "60"),
        ("x-ratelimit-type", "Tokens"),
        ("x-ms-error-code", "RateLimitReached"),
        ("x-ms-fe-rate-limit-status", "429"),
        ("retry-after", "7"),
        ("retry-after-ms", "6500"),
    ];
    let body = json!({"error": {"code": "RateLimitReached", "message": "Your deployment is under a temporary rate limit adjustment."}});
    let seen = observe(Dialect::Azure, 429, &pairs, &body.to_string());
    assert_eq!(told(&seen), (Class::Throttled, &[TPM][..], Some(6.5)));
    assert_eq!(levels(&seen), [(TPM, left(30_000.0, 0.0))]);
    let left = unread(Dialect::Azure, &Head { status: 429, headers: &map(&pairs) });
    assert!(left.unknown.is_empty() && left.foreign.is_empty(), "{left:?}");
    // Without any header: what the text asks.
    let body = json!({"error": {"code": "429", "message": "A temporary rate limit adjustment applies. Please retry after 30 seconds."}});
    assert_eq!(told(&observe(Dialect::Azure, 429, &[], &body.to_string())), (Class::Throttled, &[][..], Some(30.0)));
}

/// Provisioned throughput is refused with a wait in ms and no bucket.
#[test]
fn azures_provisioned_deployments_ask_for_milliseconds() {
    let seen = read(Dialect::Azure, 429, &[("retry-after-ms", "2350"), ("retry-after", "3")]);
    assert_eq!(told(&seen), (Class::Throttled, &[][..], Some(2.35)));
}

/// A gateway's token policy: 429 for a rate, and 403 when a quota is spent.
#[test]
fn azures_gateway_refuses_a_spent_quota_with_403() {
    let body = r#"{"statusCode":403,"message":"Token quota is exceeded. Try again in 10 minutes."}"#;
    let seen = observe(Dialect::Azure, 403, &[("retry-after", "600")], body);
    assert_eq!(seen.class, Class::Account);
    says_nothing_of_limits(Dialect::Azure, &seen);
    let body = r#"{"statusCode":429,"message":"Token limit is exceeded. Try again in 20 seconds."}"#;
    assert_eq!(told(&observe(Dialect::Azure, 429, &[], body)).2, Some(20.0));
}

/// They count calls of the management API.
#[test]
fn azures_resource_manager_counts_are_no_models() {
    let pairs = [
        ("x-ms-ratelimit-remaining-subscription-reads", "11998"),
        ("x-ms-ratelimit-remaining-subscription-writes", "1199"),
    ];
    let head = map(&pairs);
    let head = Head { status: 200, headers: &head };
    let seen = Dialect::Azure.read(&head, SENT);
    assert!(seen.readings.is_empty() && seen.missing.is_empty(), "{seen:?}");
    assert_eq!(unread(Dialect::Azure, &head).taken, pairs.map(|(name, _)| name), "known, and left");
    assert_eq!(Dialect::detect(&head, None), None);
}

#[test]
fn azures_timeouts_and_large_bodies_show_levels_and_are_no_congestion() {
    let pairs = [
        ("x-ratelimit-limit-requests", "50"),
        ("x-ratelimit-remaining-requests", "49"),
        ("x-ratelimit-reset-requests", "1"),
        ("x-ratelimit-renewalperiod-requests", "60"),
        ("x-ratelimit-key", "gpt-4.1"),
    ];
    let table =
        [(408, "upstream request timeout", Class::Failed), (413, "Failed to buffer the request body", Class::TooLarge)];
    for (status, body, class) in table {
        let seen = observe(Dialect::Azure, status, &pairs, body);
        assert_eq!((seen.class, levels(&seen)), (class, vec![(RPM, left(50.0, 49.0))]), "{status}");
        says_nothing_of_limits(Dialect::Azure, &seen);
    }
}

// === Anthropic ===

/// Traffic rose too fast: the bucket is full, and the request would fit.
#[test]
fn anthropics_acceleration_limit_throttles_though_the_bucket_is_full() {
    let pairs = [
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "3999"),
        ("anthropic-ratelimit-input-tokens-limit", "2000000"),
        ("anthropic-ratelimit-input-tokens-remaining", "2000000"),
        ("x-should-retry", "true"),
        ("retry-after", "12"),
    ];
    let first = "This request would exceed your organization's (8d863577) maximum usage increase rate for input tokens per minute. \
                 Please scale up your input tokens usage more gradually to stay within the acceleration limit.";
    let later = "This request would exceed your organization's maximum usage increase rate for input tokens per minute \
                 (org: f1c66ceb, model: claude-3-haiku-20240307). Your current limit is 58,276 input tokens per minute, and \
                 will increase to 68,276 at the next minute boundary. Please scale up your input tokens usage more gradually.";
    for message in [first, later] {
        let body =
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": message}, "request_id": "req"});
        let seen = observe(Dialect::Anthropic, 429, &pairs, &body.to_string());
        assert_eq!(told(&seen), (Class::Throttled, &[ITPM][..], Some(12.0)), "{message}");
        assert_eq!(seen.ending, Ending::Throttled(ThrottleKind::InputTokens));
        let fits = seen.for_request_of(&Cost::request(1_000_000, 0));
        assert_eq!(fits.class, Class::Throttled, "{message}");
    }
}

/// 2024: windows by the clock, which end even when nothing was taken of them.
#[test]
fn anthropics_resets_of_2024_lie_ahead_of_a_full_bucket() {
    let pairs = [
        ("date", "Sun, 10 Mar 2024 07:53:36 GMT"),
        ("anthropic-ratelimit-tokens-limit", "25000"),
        ("anthropic-ratelimit-tokens-remaining", "25000"),
        ("anthropic-ratelimit-tokens-reset", "2024-03-10T07:55:00Z"),
    ];
    let seen = read(Dialect::Anthropic, 200, &pairs);
    assert_eq!(levels(&seen), [(TPM, left(25_000.0, 25_000.0))]);
    assert_eq!((seen.readings[0].level, seen.readings[0].reset), (Some(25_000.0), Some(Duration::from_secs(84))));
}

// === Google ===

fn google(code: &Value, status: &str, message: &str, details: &Value) -> String {
    json!({"error": {"code": code, "status": status, "message": message, "details": details}}).to_string()
}

#[test]
fn vertexs_provisioned_throughput_is_a_limit_that_names_no_meter() {
    let body = google(
        &json!(429),
        "RESOURCE_EXHAUSTED",
        "Too many requests. Exceeded the Provisioned Throughput.",
        &json!([]),
    );
    let seen = observe(Dialect::Gemini, 429, &[], &body);
    assert_eq!(told(&seen), (Class::Throttled, &[][..], None));
    assert_eq!(seen.ending, Ending::Throttled(ThrottleKind::Unknown));
}

#[test]
fn googles_error_info_names_the_quota_where_no_failure_does() {
    let info = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED",
        "domain": "cloudcode-pa.googleapis.com", "metadata": {"quota_limit": "GenerateContentRequestsPerDayPerProject"}}]);
    let seen = observe(Dialect::Gemini, 429, &[], &google(&json!(429), "RESOURCE_EXHAUSTED", "No.", &info));
    assert_eq!(told(&seen).1, [meter(Unit::Requests, Window::Day)]);
    assert!(seen.readings.is_empty(), "a limit that is not told is no reading");
}

#[test]
fn googles_other_codes_are_read_by_their_status() {
    for code in ["rate_limit_exceeded", "quota_exceeded", "too_many_requests"] {
        let body = json!({"error": {"code": code, "message": "No."}}).to_string();
        assert_eq!(told(&observe(Dialect::Gemini, 429, &[], &body)), (Class::Throttled, &[][..], None), "{code}");
    }
    let internal = google(&json!(500), "INTERNAL", "An internal error has occurred.", &json!([]));
    assert_eq!(observe(Dialect::Gemini, 500, &[], &internal).class, Class::Failed);
    assert_eq!(observe(Dialect::Gemini, 402, &[], "{}").class, Class::Account);
}

// === those who copy OpenAI's names ===

/// A prompt larger than the minute's bucket: no wait helps, whatever stands beside it.
#[test]
fn groqs_413_asks_for_a_wait_in_vain() {
    let body = r#"{"error":{"message":"Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 12903","type":"tokens","code":"rate_limit_exceeded"}}"#;
    let seen = observe(Dialect::Groq, 413, &[("retry-after", "9")], body);
    assert_eq!(seen.class, Class::TooLarge);
    says_nothing_of_limits(Dialect::Groq, &seen);
    assert_eq!(told(&read(Dialect::Groq, 429, &[("retry-after", "7.66")])).2, Some(7.66));
}

/// Recorded in 2024: one request a second, with nearly all tokens there.
#[test]
fn mistrals_limit_per_second_stands_in_no_header() {
    let pairs = [
        ("ratelimitbysize-limit", "500000"),
        ("ratelimitbysize-query-cost", "1000"),
        ("ratelimitbysize-remaining", "498000"),
        ("ratelimitbysize-reset", "41"),
        ("x-ratelimitbysize-limit-minute", "500000"),
        ("x-ratelimitbysize-limit-month", "1000000000"),
        ("x-ratelimitbysize-remaining-minute", "498000"),
        ("x-ratelimitbysize-remaining-month", "999935188"),
    ];
    let seen = observe(Dialect::Mistral, 429, &pairs, r#"{"message":"Requests rate limit exceeded"}"#);
    assert_eq!(told(&seen), (Class::Throttled, &[RPS][..], None), "the tokens' reset is nothing to wait for");
    let month = meter(Unit::Tokens, Window::Month);
    assert_eq!(levels(&seen), [(TPM, left(500_000.0, 498_000.0)), (month, left(1e9, 999_935_188.0))]);
}

#[test]
fn mistrals_speech_and_audio_are_other_buckets() {
    let pairs = [
        ("x-ratelimit-limit-audio-seconds-minute", "3600"),
        ("x-ratelimit-remaining-audio-seconds-minute", "3590"),
        ("x-ratelimit-audio-seconds-query-cost", "10"),
        ("x-ratelimit-limit-input-characters-minute", "10000"),
        ("x-ratelimit-remaining-input-characters-minute", "9990"),
        ("x-max-retry-attempts-reached", "false"),
    ];
    let head = map(&pairs);
    let head = Head { status: 200, headers: &head };
    assert_eq!(Dialect::detect(&head, None), Some(Dialect::Mistral));
    let seen = Dialect::Mistral.read(&head, SENT);
    let others: Vec<_> = seen.others.iter().map(|other| (other.what, other.limit, other.remaining)).collect();
    assert_eq!(
        others,
        [("audio_seconds", Some(3_600.0), Some(3_590.0)), ("input_characters", Some(10_000.0), Some(9_990.0))]
    );
    let left = unread(Dialect::Mistral, &head);
    assert!(seen.readings.is_empty() && left.unknown.is_empty() && left.foreign.is_empty(), "{left:?}");
}

/// Recorded: of an account, and of one model.
#[test]
fn togethers_refusals_are_of_requests_per_second() {
    let pairs = |limit, wait| {
        [
            ("retry-after", wait),
            ("x-ratelimit", "true"),
            ("x-ratelimit-limit", limit),
            ("x-ratelimit-limit-tokens", "1000"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-remaining-tokens", "1000"),
            ("x-ratelimit-reset", wait),
        ]
    };
    let account = "Request was rejected due to request rate limiting. Your rate limits are 60 RPM (1 QPS) and 60000 TPM (1000 TPS).";
    let model = "You have reached the rate limit specific to this model meta-llama/Llama-Vision-Free. The maximum rate limit for \
                 this model is 10.0 queries and 60000 tokens per minute.";
    for (limit, wait, kind, message) in
        [("1", "2", "rate_limit", account), ("0.1666666667", "6", "model_rate_limit", model)]
    {
        let body = json!({"id": "", "error": {"message": message, "type": kind, "param": null, "code": null}});
        let pairs = pairs(limit, wait);
        assert_eq!(Dialect::detect(&Head { status: 429, headers: &map(&pairs) }, None), Some(Dialect::Together));
        let seen = observe(Dialect::Together, 429, &pairs, &body.to_string());
        assert_eq!(told(&seen), (Class::Throttled, &[RPS][..], wait.parse().ok()), "{kind}");
    }
    let dynamic = r#"{"error":{"message":"You exceeded it.","type":"dynamic_request_limited"}}"#;
    assert_eq!(told(&observe(Dialect::Together, 429, &[], dynamic)).1, [RPS]);
    let at_or_below = r#"{"id":"","error":{"message":"Service unavailable","type":"service_unavailable"}}"#;
    assert_eq!(observe(Dialect::Together, 503, &[], at_or_below).class, Class::Overloaded);
}

#[test]
fn cerebras_refuses_for_a_quota_or_for_its_queue() {
    let quota = r#"{"message":"Requests per minute limit exceeded","type":"too_many_requests_error","param":"quota","code":"request_quota_exceeded"}"#;
    let seen = observe(Dialect::Cerebras, 429, &[("retry-after", "57")], quota);
    assert_eq!(told(&seen), (Class::Throttled, &[RPM][..], Some(57.0)));
    let queue = r#"{"message":"We're experiencing high traffic right now!","type":"too_many_requests_error","param":"queue","code":"queue_exceeded"}"#;
    let seen = observe(Dialect::Cerebras, 429, &[("x-should-retry", "false")], queue);
    assert_eq!(told(&seen), (Class::Overloaded, &[][..], None));
    // All windows, without a reset; one of the limits looks like a time.
    let pairs = [
        ("x-ratelimit-limit-tokens-day", "1500000000"),
        ("x-ratelimit-remaining-tokens-day", "1499990000"),
        ("x-ratelimit-limit-requests-hour", "900"),
        ("x-ratelimit-remaining-requests-hour", "899"),
    ];
    let seen = read(Dialect::Cerebras, 200, &pairs);
    let (day, hour) = (meter(Unit::Tokens, Window::Day), meter(Unit::Requests, Window::Hour));
    assert_eq!(levels(&seen), [(day, left(1.5e9, 1_499_990_000.0)), (hour, left(900.0, 899.0))]);
}

#[test]
fn openrouter_names_a_models_limit_and_a_route_that_is_not_there_for_now() {
    let model = r#"{"error":{"message":"Rate limit exceeded: limit_rpm/google/gemini-2.5-pro/abc. High demand for it.","code":429}}"#;
    assert_eq!(told(&observe(Dialect::Auto, 429, &[], model)), (Class::Throttled, &[RPM][..], None));
    let away = r#"{"error":{"code":"temporarily_unavailable","message":"No.","availability":{"retry_after":3,"retryable":true}}}"#;
    assert_eq!(told(&observe(Dialect::Auto, 503, &[], away)), (Class::Overloaded, &[][..], Some(3.0)));
}

#[test]
fn both_largest_integers_mean_no_limit() {
    for (limit, remaining) in
        [("9223372036854775807", "9223372036854773045"), ("18446744073709551615", "18446744073709548853")]
    {
        let pairs = [("x-ratelimit-limit-tokens", limit), ("x-ratelimit-remaining-tokens", remaining)];
        let seen = read(Dialect::Xai, 200, &pairs);
        assert!(seen.readings.is_empty(), "{limit}");
        assert_eq!(missing(&seen), pairs.map(|(name, _)| (name, Reason::Unlimited)));
    }
}

/// 2023, recorded twice.
#[test]
fn coheres_bare_names_of_2023() {
    let pairs = [
        ("date", "Thu, 25 Dec 2025 09:13:46 GMT"),
        ("x-ratelimit-limit", "100"),
        ("x-ratelimit-remaining", "99"),
        ("x-ratelimit-reset", "1766654040"),
        ("num_tokens", "73"),
        ("num_chars", "411"),
    ];
    let seen = read(Dialect::Cohere, 200, &pairs);
    assert_eq!(levels(&seen), [(RPM, left(100.0, 99.0))]);
    assert_eq!(seen.readings[0].reset, Some(Duration::from_secs(14)));
}

/// The header alone, and a body that is no JSON.
#[test]
fn github_models_says_which_limit_it_was_in_a_header() {
    let body = "Too many requests. For more on scraping GitHub and how it may affect your rights, please review our Terms of \
                Service.";
    let day = meter(Unit::Requests, Window::Day);
    for (kind, refused) in [("UserByMinute", RPM), ("UserByModelByMinute", RPM), ("UserByModelByDay", day)] {
        let seen = observe(Dialect::Auto, 429, &[("x-ratelimit-type", kind)], body);
        assert_eq!(
            (seen.dialect, told(&seen)),
            (Dialect::GitHubModels, (Class::Throttled, &[refused][..], None)),
            "{kind}"
        );
    }
}

#[test]
fn hugging_faces_spent_credits_are_the_accounts() {
    let bodies = [
        "You have depleted your monthly included credits. Purchase pre-paid credits to continue using Inference Providers.",
        "You have exceeded your monthly included credits for Inference Providers. Subscribe to PRO to get 20x more.",
    ];
    for body in bodies {
        // The router passes on what the upstream's successes have.
        let pairs = [("x-error-message", body), ("retry-after", "12")];
        for dialect in [Dialect::HuggingFace, Dialect::Auto] {
            let seen = observe(dialect, 402, &pairs, &json!({"error": body}).to_string());
            assert_eq!(seen.class, Class::Account, "{body}");
            says_nothing_of_limits(dialect, &seen);
        }
    }
}

#[test]
fn nebius_over_its_limit_says_when_to_come_back() {
    let pairs = [
        ("x-ratelimit-limit-requests", "600"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-dynamic-scale-requests", "1.00"),
        ("x-ratelimit-dynamic-period-remaining", "477s"),
        ("x-ratelimit-dynamic-period-usage-requests", "100%"),
        ("x-ratelimit-over-limit", "yes"),
        ("retry-after", "5"),
    ];
    let seen = observe(Dialect::Auto, 429, &pairs, "");
    assert_eq!((seen.dialect, told(&seen)), (Dialect::Nebius, (Class::Throttled, &[RPM][..], Some(5.0))));
}

/// The message names the one of three limits that refused.
#[test]
fn databricks_names_the_limit_that_applied() {
    let qph = meter(Unit::Requests, Window::Hour);
    let table: [(&str, &[Meter]); 6] = [
        (
            "Exceeded workspace input tokens per minute rate limit for databricks-claude-opus-4-8. Work with your account team.",
            &[ITPM],
        ),
        ("Exceeded workspace output tokens per minute rate limit for databricks-claude-3-7-sonnet.", &[OTPM]),
        ("Exceeded workspace QPS rate limit", &[RPS]),
        ("Exceeded workspace QPH rate limit for databricks-gte-large-en.", &[qph]),
        ("Exceeded workspace rate limit for databricks-dbrx-instruct.", &[]),
        ("GetUserPermissionsRequest RPC token bucket limit has been exceeded.", &[]),
    ];
    for (message, refused) in table {
        let message = format!("REQUEST_LIMIT_EXCEEDED: {message}");
        let body = json!({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": message}).to_string();
        for dialect in [Dialect::Databricks, Dialect::Auto] {
            let seen = observe(dialect, 429, &[], &body);
            assert_eq!(
                (seen.dialect, told(&seen)),
                (Dialect::Databricks, (Class::Throttled, refused, None)),
                "{message}"
            );
        }
    }
}

/// Secondary limits: a 403 that asks to wait, with the primary limit's bucket far from spent.
#[test]
fn githubs_secondary_limits_ask_to_wait() {
    let pairs = [
        ("x-ratelimit-limit", "5000"),
        ("x-ratelimit-remaining", "4990"),
        ("x-ratelimit-used", "10"),
        ("retry-after", "60"),
    ];
    for status in [403, 429] {
        let seen = read(Dialect::GitHub, status, &pairs);
        assert_eq!(told(&seen), (Class::Throttled, &[][..], Some(60.0)), "{status}");
    }
}

// === servers of one's own, and gateways ===

#[test]
fn ones_own_servers_have_too_much_to_do() {
    let table = [
        // vLLM rejects early, by either status.
        (503, r#"{"error":{"message":"Too many queued requests"}}"#, Class::Overloaded),
        (429, r#"{"error":{"message":"Too many queued requests"}}"#, Class::Throttled),
        (503, r#"{"object":"error","message":"The request queue is full.","type":"abort"}"#, Class::Overloaded),
        (503, r#"{"error":"[request m] Exceeds maximum queue size"}"#, Class::Overloaded),
        (503, r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#, Class::Overloaded),
    ];
    for (status, body, class) in table {
        assert_eq!(told(&observe(Dialect::SelfHosted, status, &[], body)), (class, &[][..], None), "{body}");
    }
}

/// The drafts' kinds of problem come with the fields that say more.
#[test]
fn the_drafts_problems_are_read_by_status_and_fields() {
    let problem = |kind: &str| {
        json!({"type": format!("https://iana.org/assignments/http-problem-types#{kind}"), "title": "No.", "violated-policies": ["hourly"]})
            .to_string()
    };
    let pairs = [("ratelimit-policy", "\"hourly\";q=10;w=3600"), ("ratelimit", "\"hourly\";r=0;t=5")];
    let seen = observe(Dialect::Ietf, 429, &pairs, &problem("quota-exceeded"));
    let hour = meter(Unit::Requests, Window::Hour);
    assert_eq!((seen.class, seen.exhausted.as_slice()), (Class::Throttled, &[hour][..]));
    assert_eq!(reflex(Dialect::Ietf, &seen, &Cost::request(1, 0)).holds[0].for_at_least, Duration::from_secs(5));
    let reduced = observe(Dialect::Ietf, 503, &[("retry-after", "2")], &problem("temporary-reduced-capacity"));
    assert_eq!(told(&reduced), (Class::Overloaded, &[][..], Some(2.0)));
    let abnormal = observe(Dialect::Ietf, 429, &[("retry-after", "20")], &problem("abnormal-usage-detected"));
    assert_eq!(told(&abnormal), (Class::Throttled, &[][..], Some(20.0)));
}

/// Sourcegraph's, 5 recorded with UTC for GMT, and 487 on successes.
#[test]
fn a_gateways_dates_are_read_and_its_waits_on_successes_are_not() {
    let pairs = [("date", "Fri, 26 Apr 2024 23:33:54 GMT"), ("retry-after", "Fri, 26 Apr 2024 23:43:54 UTC")];
    assert_eq!(told(&read(Dialect::Bare, 429, &pairs)).2, Some(600.0));
    let seen = read(Dialect::Bare, 200, &[("retry-after", "599")]);
    assert_eq!((seen.class, seen.retry_after, seen.missing.len()), (Class::Ok, None, 0));
}
