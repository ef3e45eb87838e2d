//! Asking Prometheus: a little server that answers as it is told stands in for it, for what a real one does not do on request.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use parking_lot::Mutex;
use tidegate::config::Config;
use tidegate::controller::signal::{Counts, Role};
use tidegate::controller::source::{
    AskError, Fed, Misfit, Named, Prometheus, PrometheusParams, PrometheusTls, QueryParams, SignIn, Told,
};
use tidegate::quota::Grantee;

use super::planner::tenant;
use super::world::tidegate;

/// What was asked, and what is answered.
#[derive(Default)]
struct Script {
    answer: Mutex<(u16, String)>,
    date: Mutex<Option<String>>,
    dates: Mutex<String>,
    delay: Mutex<Duration>,
    asked: Mutex<Vec<(String, String)>>,
}

/// What the series' samples say of themselves: nothing, unless a test says so.
async fn answer(State(script): State<Arc<Script>>, headers: HeaderMap, body: String) -> Response {
    let authorization = headers.get("authorization").map_or("", |value| value.to_str().expect("ASCII")).to_owned();
    let is_dated = body.starts_with("query=timestamp%28");
    script.asked.lock().push((authorization, body));
    let delay = *script.delay.lock();
    tokio::time::sleep(delay).await;
    let (status, text) = if is_dated { (200, script.dates.lock().clone()) } else { script.answer.lock().clone() };
    let status = axum::http::StatusCode::from_u16(status).expect("a status");
    match script.date.lock().clone() {
        Some(date) => (status, [("date", date)], text).into_response(),
        None => (status, text).into_response(),
    }
}

struct Stand {
    script: Arc<Script>,
    url: String,
}

impl Stand {
    async fn new() -> Self {
        let script = Arc::new(Script::default());
        *script.date.lock() = Some("Tue, 14 Nov 2023 22:13:20 GMT".into());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new().route("/api/v1/query", post(answer)).with_state(script.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { script, url }
    }

    fn says(&self, status: u16, text: &str) {
        *self.script.answer.lock() = (status, text.to_owned());
    }

    /// A vector of labels and values as of one moment.
    fn vector(&self, stamp: f64, series: &[(&str, &str)]) {
        let series: Vec<String> = series
            .iter()
            .map(|(labels, value)| format!(r#"{{"metric":{labels},"value":[{stamp},"{value}"]}}"#))
            .collect();
        let list = series.join(",");
        self.says(200, &format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{list}]}}}}"#));
    }

    fn params(&self, sign_in: Option<SignIn>) -> PrometheusParams {
        PrometheusParams { url: self.url.clone(), sign_in, tls: None, queries: BTreeMap::new() }
    }

    async fn ask(&self, query: &QueryParams) -> Result<(Told, Duration), AskError> {
        Prometheus::new(&self.params(None)).expect("nothing to read").ask(query).await
    }
}

fn demand() -> QueryParams {
    QueryParams {
        query: "sum by (pool, tenant) (jobs_queued{env=\"live\"})".into(),
        role: Role::Demand,
        pool: Named::Label("pool".into()),
        tenant: Named::Label("tenant".into()),
        meter: None,
        counts: Counts::Requests,
        aim: 2.0,
        every: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        fresh_for: Duration::from_secs(30),
        scrape: Duration::from_secs(15),
    }
}

#[tokio::test]
async fn series_feed_the_pool_and_tenant_that_their_labels_name_and_the_others_are_counted() {
    let stand = Stand::new().await;
    stand.vector(
        1_700_000_000.5,
        &[
            (r#"{"pool":"llama","tenant":"acme"}"#, "12"),
            (r#"{"pool":"llama","tenant":"@default"}"#, "1.5e1"),
            (r#"{"pool":"llama","tenant":"blue"}"#, "NaN"),
            (r#"{"pool":"llama","tenant":"cyan"}"#, "+Inf"),
            (r#"{"pool":"llama","tenant":"dune"}"#, "-1"),
            (r#"{"__name__":"jobs","pool":"llama"}"#, "3"),
            (r#"{"pool":"No such id!","tenant":"acme"}"#, "3"),
            (r#"{"pool":"llama","tenant":""}"#, "3"),
            (r#"{"pool":"llama","tenant":"echo"}"#, "many"),
        ],
    );
    let (told, age) = stand.ask(&demand()).await.expect("an answer");
    let fed = |tenant, value| Fed { pool: "llama".parse().unwrap(), tenant: Some(tenant), value };
    // A label is a name as it is: it cannot stand for all undeclared tenants.
    let named = Grantee::Tenant("@default".parse().unwrap());
    assert_eq!(told.fed, [fed(tenant("acme"), 12.0), fed(named, 15.0)]);
    assert_eq!((told.stamp_s, age), (1_700_000_000.5, Duration::ZERO));
    let whys: Vec<&str> = told.misfits.iter().map(|misfit| misfit.why).collect();
    assert_eq!(whys, ["not_finite", "not_finite", "negative", "no_label", "pool_name", "tenant_name", "not_finite"]);
    assert_eq!(told.misfits[3], Misfit { series: r#"jobs{pool="llama"}"#.into(), why: "no_label" });
    let asked = stand.script.asked.lock().clone();
    let (authorization, form) = asked.iter().find(|(_, form)| form.starts_with("query=sum")).expect("asked").clone();
    assert_eq!(authorization, "");
    assert!(
        form.starts_with("query=sum%20by%20%28pool%2C%20tenant%29%20%28jobs%5Fqueued%7Benv%3D%22live%22%7D%29&"),
        "{form}"
    );
    assert!(
        form.ends_with("timeout=2000ms&lookback%5Fdelta=30000ms")
            || form.ends_with("timeout=2000ms&lookback_delta=30000ms"),
        "{form}"
    );
}

#[tokio::test]
async fn a_scalar_is_one_series_and_a_histogram_none() {
    let stand = Stand::new().await;
    let query = QueryParams {
        role: Role::Capacity,
        pool: Named::Fixed("llama".parse().unwrap()),
        tenant: Named::Fixed(Grantee::Default),
        meter: Some("requests/minute".parse().unwrap()),
        ..demand()
    };
    stand.says(200, r#"{"status":"success","data":{"resultType":"scalar","result":[1700000000,"600"]}}"#);
    let (told, _) = stand.ask(&query).await.expect("an answer");
    assert_eq!(told.fed, [Fed { pool: "llama".parse().unwrap(), tenant: None, value: 600.0 }]);
    stand.says(
        200,
        r#"{"status":"success","warnings":["w"],"data":{"resultType":"vector","result":[{"metric":{},"histogram":[1700000000,{"count":"1"}]}]}}"#,
    );
    let (told, _) = stand.ask(&query).await.expect("an answer");
    assert_eq!((told.fed.len(), told.misfits[0].why), (0, "histogram"));
}

#[tokio::test]
async fn what_is_no_answer_is_said_in_a_line() {
    let stand = Stand::new().await;
    let said = async |status: u16, text: &str| {
        stand.says(status, text);
        let error = stand.ask(&demand()).await.expect_err("no answer");
        (error.why(), error.to_string())
    };
    let (why, text) = said(400, r#"{"status":"error","errorType":"bad_data","error":"1:4: parse error"}"#).await;
    assert_eq!((why, text.as_str()), ("refused", "bad_data: 1:4: parse error"));
    let (why, text) = said(200, r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#).await;
    assert_eq!(why, "shape");
    assert!(text.contains("range vector"), "{text}");
    assert_eq!(said(502, "<html>bad gateway</html>").await, ("status", "HTTP 502".to_owned()));
    assert_eq!(said(200, "<html>a login page</html>").await.0, "malformed");
    assert_eq!(said(200, &" ".repeat(5 << 20)).await.0, "too_long");
    // Slow is as good as gone.
    *stand.script.delay.lock() = Duration::from_secs(60);
    let error = stand.ask(&QueryParams { timeout: Duration::from_millis(50), ..demand() }).await.expect_err("too slow");
    assert_eq!((error.why(), error.to_string().as_str()), ("timeout", "no answer within 50ms"));
    let gone = PrometheusParams { url: "http://127.0.0.1:9".into(), ..stand.params(None) };
    let error = Prometheus::new(&gone).expect("nothing to read").ask(&demand()).await.expect_err("nobody is there");
    assert_eq!(error.why(), "unreachable");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn an_answer_from_a_cache_is_as_old_as_its_own_date_says() {
    let stand = Stand::new().await;
    *stand.script.date.lock() = Some("Tue, 14 Nov 2023 22:13:50 GMT".into());
    stand.vector(1_700_000_000.0, &[(r#"{"pool":"llama","tenant":"acme"}"#, "1")]);
    let (_, age) = stand.ask(&demand()).await.expect("an answer");
    assert_eq!(age, Duration::from_secs(29), "30 s, and a second for the date's grain");
    stand.vector(1_700_000_040.0, &[(r#"{"pool":"llama","tenant":"acme"}"#, "1")]);
    let (_, age) = stand.ask(&demand()).await.expect("an answer");
    assert_eq!(age, Duration::ZERO, "a sample of the future is of now");
}

#[tokio::test]
async fn a_series_whose_sample_is_old_is_not_taken_and_an_answer_is_as_old_as_its_newest_sample() {
    let stand = Stand::new().await;
    let series =
        [(r#"{"__name__":"q","pool":"llama","tenant":"acme"}"#, "1"), (r#"{"pool":"llama","tenant":"blue"}"#, "2")];
    stand.vector(1_700_000_000.0, &series);
    let sample = |tenant: &str, stamp: f64| {
        format!(r#"{{"metric":{{"pool":"llama","tenant":"{tenant}"}},"value":[1700000000,"{stamp}"]}}"#)
    };
    let list = [sample("acme", 1_699_999_992.0), sample("blue", 1_699_999_960.0)].join(",");
    *stand.script.dates.lock() =
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{list}]}}}}"#);
    let (told, age) = stand.ask(&demand()).await.expect("an answer");
    assert_eq!(told.fed.iter().map(|fed| fed.value).collect::<Vec<_>>(), [1.0]);
    assert_eq!(told.misfits, [Misfit { series: r#"{pool="llama",tenant="blue"}"#.into(), why: "old" }]);
    assert_eq!(age, Duration::from_secs(8));
    // Of a scalar there is no such time, and its own will do.
    *stand.script.dates.lock() = r#"{"status":"error","errorType":"bad_data","error":"expected a vector"}"#.into();
    let (told, age) = stand.ask(&demand()).await.expect("an answer");
    assert_eq!((told.fed.len(), age), (2, Duration::ZERO));
}

#[tokio::test]
async fn it_signs_in_with_a_password_or_a_token_from_a_file_and_shows_neither() {
    let stand = Stand::new().await;
    stand.vector(1_700_000_000.0, &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, "s3cret\n").expect("written");
    for (sign_in, sent) in [
        (SignIn::Basic("tide".into(), file.clone()), "Basic dGlkZTpzM2NyZXQ="),
        (SignIn::Bearer(file.clone()), "Bearer s3cret"),
    ] {
        let prometheus = Prometheus::new(&stand.params(Some(sign_in))).expect("the file is there");
        prometheus.ask(&demand()).await.expect("an answer");
        assert_eq!(stand.script.asked.lock().last().expect("asked").0, sent);
        assert!(!format!("{prometheus:?}").contains("s3cret"));
    }
    let missing = SignIn::Bearer(PathBuf::from("/nowhere/token"));
    let error = Prometheus::new(&stand.params(Some(missing))).expect_err("no such file");
    assert!(error.contains("/nowhere/token"), "{error}");
    std::fs::write(&file, "\n").expect("written");
    let error = Prometheus::new(&stand.params(Some(SignIn::Bearer(file)))).expect_err("an empty file");
    assert!(error.ends_with("it is empty"), "{error}");
    let tls = PrometheusTls { authorities: PathBuf::from("/nowhere/ca.pem"), identity: None };
    let error = Prometheus::new(&PrometheusParams { tls: Some(tls), ..stand.params(None) }).expect_err("no such file");
    assert!(error.contains("/nowhere/ca.pem"), "{error}");
}

/// A configuration with these queries.
fn config(queries: &str) -> Result<Config, String> {
    let text = format!(
        "[prometheus]\nurl = \"http://127.0.0.1:9090\"\n{queries}\n[pools.llama]\ndialect = \"self-hosted\"\n\
         [pools.llama.capacity]\n\"requests/minute\" = 600\n"
    );
    Config::parse("t.toml", &text).map_err(|mistakes| mistakes.to_string())
}

#[test]
fn queries_are_checked_to_the_key() {
    let good = config(
        "[prometheus.queries.jobs]\nquery = \"jobs\"\nrole = \"demand\"\npool = \"llama\"\ntenant_label = \"tenant\"\n\
         [prometheus.queries.full]\nquery = \"full\"\nrole = \"congestion\"\npool_label = \"pool\"\ncounts = \"part\"\n\
         every_s = 1\nscrape_s = 20\n\
         [prometheus.queries.room]\nquery = \"room\"\nrole = \"capacity\"\npool = \"llama\"\nmeter = \"requests/minute\"\n",
    );
    let params = good.expect("good").controller.prometheus.expect("it has one");
    assert_eq!(params.queries.len(), 3);
    let full = &params.queries["full"];
    assert_eq!((full.aim, full.fresh_for, full.every), (0.9, Duration::from_secs(30), Duration::from_secs(1)));
    assert_eq!(params.queries["jobs"].fresh_for, Duration::from_secs(65));
    let demand = "[prometheus.queries.q]\nquery = \"jobs\"\nrole = \"demand\"\n";
    for (queries, said) in [
        ("", "queries"),
        ("[prometheus.queries.q]\nquery = \"x\"\nrole = \"demnd\"\npool = \"llama\"\n", "demand"),
        (&format!("{demand}tenant = \"acme\"\n"), "a pool or a pool_label is missing"),
        (&format!("{demand}pool = \"llama\"\npool_label = \"pool\"\ntenant = \"acme\"\n"), "one or the other"),
        (&format!("{demand}pool = \"llama\"\n"), "a tenant or a tenant_label is missing"),
        (&format!("{demand}pool = \"llama\"\ntenant = \"a\"\naim = 3\n"), "role congestion alone"),
        (&format!("{demand}pool = \"llama\"\ntenant = \"a\"\nmeter = \"requests/minute\"\n"), "role capacity alone"),
        ("[prometheus.queries.q]\nquery = \"x\"\nrole = \"capacity\"\npool = \"llama\"\n", "a meter is missing"),
        (
            "[prometheus.queries.q]\nquery = \"x\"\nrole = \"congestion\"\npool = \"llama\"\ncounts = \"part\"\naim = 2\n",
            "at most 1",
        ),
        (
            "[prometheus.queries.q]\nquery = \"x\"\nrole = \"congestion\"\npool = \"llama\"\ntenant = \"a\"\n",
            "role demand alone",
        ),
        ("[prometheus.queries.q]\nquery = \"\"\nrole = \"congestion\"\npool = \"llama\"\n", "PromQL"),
        (&format!("{demand}pool = \"llama\"\ntenant = \"a\"\nfresh_for_s = 20\n"), "at least 60"),
        ("[prometheus.queries.\"a b\"]\nquery = \"x\"\nrole = \"congestion\"\npool = \"llama\"\n", "a b"),
    ] {
        let error = config(queries).expect_err(queries);
        assert!(error.contains(said), "{queries}\n{error}");
    }
    let unknown = config("[prometheus.queries.q]\nquery = \"x\"\nrole = \"congestion\"\npool = \"lama\"\n");
    let warnings = unknown.expect("it may come with a policy").warnings.to_string();
    assert!(warnings.contains("a pool of this file (llama)"), "{warnings}");
    let other =
        "[prometheus.queries.q]\nquery = \"x\"\nrole = \"capacity\"\npool = \"llama\"\nmeter = \"tokens/minute\"\n";
    let warnings = config(other).expect("it is allowed").warnings.to_string();
    assert!(warnings.contains("a meter of that pool (requests/minute)"), "{warnings}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_once_and_shows_what_each_series_feeds_and_fails_where_a_query_feeds_nothing() {
    let stand = Stand::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tidegate.toml");
    let ask = |query: &str, more: &[&str]| {
        let text = format!(
            "[prometheus]\nurl = \"{}\"\n[prometheus.queries.q]\nquery = \"jobs\"\n{query}[pools.llama]\n\
             dialect = \"self-hosted\"\n[pools.llama.capacity]\n\"requests/minute\" = 600\n[pools.llama.tenants.acme]\n",
            stand.url
        );
        std::fs::write(&file, text).expect("written");
        let mut command = tidegate(&["check", "--ask"]);
        let output = command.args(more).arg(&file).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    };
    let demand = "role = \"demand\"\npool = \"llama\"\ntenant_label = \"tenant\"\n";
    stand.vector(
        1_700_000_000.0,
        &[(r#"{"tenant":"acme"}"#, "12"), (r#"{"tenant":"blue"}"#, "3"), (r#"{"team":"cyan"}"#, "1")],
    );
    let (code, out, _) = ask(demand, &[]);
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    assert_eq!(
        (code, &lines[1..]),
        (
            0,
            &[
                "q      demand  llama  acme    12",
                "q      demand  llama  blue    3      not declared: one of @default",
                r#"q: 1 series is not taken, such as {team="cyan"}: it lacks a label, expected tenant"#,
            ][..]
        ),
        "{out}"
    );
    let (code, out, _) = ask(demand, &["--json"]);
    let told: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &told["queries"][0]["feeds"][0]["value"]), (0, &serde_json::json!(12.0)));
    assert_eq!(told["queries"][0]["misfits"][0]["why"], "no_label");

    // What feeds nothing is no success: another pool, another meter, nothing at all, an error.
    let (code, out, error) = ask("role = \"congestion\"\npool = \"lama\"\n", &[]);
    assert!(
        code == 1 && out.contains("no such pool in this file") && error.contains("1 query feeds nothing"),
        "{out}{error}"
    );
    let (code, out, _) = ask("role = \"capacity\"\npool = \"llama\"\nmeter = \"tokens/minute\"\n", &[]);
    assert!(code == 1 && out.contains("the pool has no such meter"), "{out}");
    let capacity = "role = \"capacity\"\npool = \"llama\"\nmeter = \"requests/minute\"\n";
    stand.vector(1_700_000_000.0, &[("{}", "0")]);
    let (code, out, _) = ask(capacity, &[]);
    assert!(code == 1 && out.contains("0 is no capacity, what was told last holds"), "{out}");
    stand.vector(1_700_000_000.0, &[]);
    let (code, out, _) = ask(capacity, &[]);
    assert!(code == 1 && out.contains("q: the answer is empty: no series now"), "{out}");
    stand.says(400, r#"{"status":"error","errorType":"bad_data","error":"1:4: parse\u001b[31m error"}"#);
    let (code, out, _) = ask(capacity, &[]);
    assert!(code == 1 && out.contains(&format!("q: {}: bad_data: 1:4: parse [31m error", stand.url)), "{out}");
}
