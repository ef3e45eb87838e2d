//! Who may report and read: tokens, globs, certificates; a member and an operator's command that have them, and those that have not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tidegate::client::{Client, ClientParams, PoolParams, ReportTls, ReportToken};
use tidegate::config::Config;
use tidegate::controller::access::{Access, Caller, Denied, Glob, ReporterParams, TokenDigest};
use tidegate::controller::{Controller, ListenError};
use tidegate::observation::{PoolReport, REPORT_SCHEMA, Report, TenantReport};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Meter};
use tidegate::sim::Etcd;
use tidegate::sim::process::Process;
use tidegate::store::{EtcdStore, MemoryStore, Store};
use tidegate::telemetry::{Metric, Telemetry};
use tokio::net::TcpStream;

use super::by_hand::{grantee, tenant};
use super::etcd_tls::Papers;
use super::world::{eventually, listening, tidegate};

// === pure ===

fn glob(text: &str) -> Glob {
    text.parse().expect("a glob")
}

#[test]
fn a_glob_has_stars_anywhere_and_nothing_else() {
    let table: &[(&str, &[&str], &[&str])] = &[
        ("*", &["a", "@default", "äö"], &[]),
        ("acme", &["acme"], &["acme2", "my-acme", "Acme", "acm"]),
        ("openai-*", &["openai-", "openai-gpt4o"], &["openai", "azure-openai-gpt4o"]),
        ("*-prod", &["eu-prod", "-prod"], &["eu-prod-2", "prod"]),
        ("a*b", &["ab", "a-b", "aab", "abb"], &["a", "b", "ba", "abc"]),
        // Begin and end do not share a letter; a part is not found twice in one place.
        ("aba*aba", &["abaaba", "aba-aba"], &["aba", "ababa"]),
        ("*ab*ab*", &["abab", "xab-abx"], &["ab", "aab"]),
        ("a*b*c", &["abc", "axbxc", "abbcc"], &["acb", "ab", "bc"]),
        ("a?[b].", &["a?[b]."], &["axb.", "axbx"]),
        ("**", &["a", "ab"], &[]),
    ];
    for (pattern, good, bad) in table {
        let glob = glob(pattern);
        assert_eq!(
            good.iter().filter(|name| !glob.matches(name)).collect::<Vec<_>>(),
            Vec::<&&str>::new(),
            "{pattern}"
        );
        assert_eq!(bad.iter().filter(|name| glob.matches(name)).collect::<Vec<_>>(), Vec::<&&str>::new(), "{pattern}");
    }
    for no_glob in ["", "a\nb", &"x".repeat(129)] {
        assert!(no_glob.parse::<Glob>().is_err(), "{no_glob:?}");
    }
}

/// SHA-256 of "test", as any other program computes it.
const TEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

#[test]
fn a_digest_is_the_sha_256_of_a_token_in_hex() {
    assert_eq!(TokenDigest::of(b"test").to_string(), TEST);
    assert_eq!(TEST.parse(), Ok(TokenDigest::of(b"test")));
    assert_eq!(TEST.to_uppercase().parse(), Ok(TokenDigest::of(b"test")));
    for no_digest in ["", &TEST[1..], &format!("{TEST}00"), &TEST.replace('9', "g"), &TEST.replace('9', "é")] {
        assert!(no_digest.parse::<TokenDigest>().is_err(), "{no_digest}");
    }
}

fn reporter(tokens: &[&str], pools: &[&str], tenants: &[&str], read: bool) -> ReporterParams {
    let globs = |globs: &[&str]| globs.iter().map(|text| glob(text)).collect();
    let tokens = tokens.iter().map(|token| TokenDigest::of(token.as_bytes())).collect();
    ReporterParams { tokens, pools: globs(pools), tenants: globs(tenants), read }
}

fn all(tokens: &[&str]) -> ReporterParams {
    reporter(tokens, &["*"], &["*"], false)
}

#[test]
fn a_token_names_its_reporter_and_others_nobody() {
    let reporters = BTreeMap::from([
        ("checkout".to_owned(), all(&["old", "new"])),
        ("batch".to_owned(), all(&["other"])),
        ("shut-out".to_owned(), all(&[])),
    ]);
    let access = Access::new(&reporters);
    let long = "x".repeat(600);
    let table: &[(Option<&str>, Result<&str, Denied>)] = &[
        (Some("Bearer old"), Ok("checkout")),
        (Some("Bearer new"), Ok("checkout")),
        (Some("bEARER other"), Ok("batch")),
        (Some("Bearer  other "), Ok("batch")),
        (None, Err(Denied::NoToken)),
        (Some(""), Err(Denied::NoToken)),
        (Some("Bearer"), Err(Denied::NoToken)),
        (Some("Bearer "), Err(Denied::NoToken)),
        (Some("Bearerold"), Err(Denied::NoToken)),
        (Some("Basic old"), Err(Denied::NoToken)),
        (Some("Bearer gone"), Err(Denied::UnknownToken)),
        (Some("Bearer Old"), Err(Denied::UnknownToken)),
        (Some("Bearer old new"), Err(Denied::UnknownToken)),
        // A digest is no token.
        (Some(&format!("Bearer {}", TokenDigest::of(b"old"))), Err(Denied::UnknownToken)),
        (Some(&format!("Bearer {long}")), Err(Denied::UnknownToken)),
    ];
    for (header, expected) in table {
        let caller = access.caller(header.map(str::as_bytes));
        let name = caller.as_ref().map(|caller| caller.name().expect("a reporter")).map_err(|denied| *denied);
        assert_eq!(name, *expected, "{header:?}");
    }
    // The bound holds for one that is known, too.
    let access = Access::new(&BTreeMap::from([("long".to_owned(), all(&[&long]))]));
    assert_eq!(access.caller(Some(format!("Bearer {long}").as_bytes())).unwrap_err(), Denied::UnknownToken);
    // Nobody is declared: everyone may do all.
    let caller = Access::new(&BTreeMap::new()).caller(None).expect("open");
    assert!(matches!(caller, Caller::Anyone) && caller.may_read().is_ok());
}

fn report(instance: &str, pools: &[(&str, &[&str])]) -> Report {
    let pool = |(id, tenants): &(&str, &[&str])| {
        let tenants = tenants.iter().map(|name| (grantee(name), TenantReport::default())).collect();
        (id.parse().expect("a pool"), PoolReport { sequence: 1, tenants, ..PoolReport::default() })
    };
    let pools = pools.iter().map(pool).collect();
    Report { schema: REPORT_SCHEMA, instance: instance.to_owned(), boot: "b".to_owned(), leaving: false, pools }
}

#[test]
fn what_a_reporter_may_not_report_of_is_cut_and_the_rest_stays() {
    let reporters =
        BTreeMap::from([("a".to_owned(), reporter(&["t"], &["openai-*", "claude"], &["acme*", "@default"], false))]);
    let caller = Access::new(&reporters).caller(Some(b"Bearer t")).expect("known");
    type Pools<'a> = &'a [(&'a str, &'a [&'a str])];
    let table: &[(Pools, Result<bool, Denied>, Pools)] = &[
        (&[("openai-a", &["acme", "@default"])], Ok(false), &[("openai-a", &["acme", "@default"])]),
        (&[("openai-a", &["acme", "globex"])], Ok(true), &[("openai-a", &["acme"])]),
        (&[("openai-a", &["acme"]), ("azure", &["acme"])], Ok(true), &[("openai-a", &["acme"])]),
        // Idle so far, it is a member all the same.
        (&[("claude", &[])], Ok(false), &[("claude", &[])]),
        (&[("claude", &["globex"]), ("openai-a", &["acme"])], Ok(true), &[("claude", &[]), ("openai-a", &["acme"])]),
        (&[("azure", &["acme"])], Err(Denied::Report), &[]),
        (&[("claude", &["globex"])], Ok(true), &[("claude", &[])]),
        // A tenant that calls itself so is not @default.
        (&[("claude", &["%40default"])], Ok(true), &[("claude", &[])]),
        (&[], Ok(false), &[]),
    ];
    for (told, expected, left) in table {
        let mut cut = report("m", told);
        assert_eq!(caller.cut(&mut cut), *expected, "{told:?}");
        // Whose member it is goes with the boot.
        assert_eq!(cut, Report { boot: "b@a".to_owned(), ..report("m", left) }, "{told:?}");
    }
    let mut anything = report("m", &[("azure", &["globex"])]);
    assert_eq!(Caller::Anyone.cut(&mut anything), Ok(false));
    assert_eq!(anything, report("m", &[("azure", &["globex"])]));
}

#[test]
fn no_debug_shows_a_token_or_its_digest() {
    let reporters = BTreeMap::from([("a".to_owned(), all(&["test"]))]);
    let mut params = ClientParams::new(Vec::new());
    params.report_token = Some(ReportToken::new("test-token\n").expect("a token"));
    let papers = Papers::draw_up();
    let files = [papers.file("client.pem"), papers.file("client-key.pem")];
    params.report_tls =
        Some(ReportTls::from_files(&papers.file("ca.pem"), Some((&files[0], &files[1]))).expect("good"));
    let access = Access::new(&reporters);
    let mut shown = format!("{reporters:?} {access:?} {:?} {params:?}", access.caller(Some(b"Bearer test")));
    let _ = write!(shown, "{:?}", ReportToken::new("te st").unwrap_err());
    assert!(shown.contains("ReportToken(..)") && shown.contains("TokenDigest(..)"), "{shown}");
    // As bytes in decimal, a digest or a key shows too.
    for secret in ["test-token", "te st", TEST, "159, 134, 208", "PRIVATE", "private"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

#[test]
fn text_that_is_no_token_is_refused_before_anything_is_sent() {
    for text in ["", "\n", "a b", "a\nb", "tökén", &"x".repeat(513)] {
        let error = ReportToken::new(text).expect_err("refused").to_string();
        assert_eq!(error, "a reporter's token is 1–512 printable ASCII characters without spaces");
    }
    for text in ["a", "a\r\n", "x/+=", &"x".repeat(512)] {
        assert!(ReportToken::new(text).is_ok(), "{text}");
    }
}

// === a controller ===

/// A controller in this process, on a store that both it and clients have.
struct Stand {
    controller: Controller,
    store: Arc<dyn Store>,
    telemetry: Arc<Telemetry>,
}

fn config(controller: &str) -> Config {
    let text = format!(
        "[controller]\nlisten = \"127.0.0.1:0\"\n{controller}\n[pools.pool]\ndialect = \"openai\"\n\
         capacity = {{ \"requests/minute\" = 600 }}\n[pools.pool.tenants.acme]\n[pools.pool.tenants.globex]\n\
         [pools.other]\ndialect = \"openai\"\ncapacity = {{ \"requests/minute\" = 600 }}\n"
    );
    Config::parse("t.toml", &text).expect("good")
}

const POOL: &str = "[pools.pool]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n";

/// `[controller.reporters.<name>]` with these tokens.
fn table(name: &str, tokens: &[&str], more: &str) -> String {
    let digests: Vec<String> = tokens.iter().map(|token| TokenDigest::of(token.as_bytes()).to_string()).collect();
    format!("[controller.reporters.{name}]\ntoken_sha256 = {digests:?}\n{more}\n")
}

/// One that may read; every stand has it where it asks for tokens.
fn reader() -> String {
    table("reader", &["read-token"], "read = true\npools = [\"none\"]")
}

impl Stand {
    async fn start(controller: &str) -> Self {
        Self::on(Arc::new(MemoryStore::new()), controller).await
    }

    async fn on(store: Arc<dyn Store>, controller: &str) -> Self {
        let telemetry = Arc::new(Telemetry::new());
        let controller = Controller::start(config(controller).controller, store.clone(), telemetry.clone()).await;
        Self { controller: controller.expect("it starts"), store, telemetry }
    }

    /// A member of `pool`, with one call of `acme` behind it.
    async fn join(&self, name: &str, change: impl FnOnce(&mut ClientParams)) -> (Client, Arc<Telemetry>) {
        let mut params = ClientParams::new(vec![PoolParams::new("pool".parse().expect("valid"), Dialect::OpenAi)]);
        name.clone_into(&mut params.instance);
        change(&mut params);
        let telemetry = Arc::new(Telemetry::new());
        let client = Client::start(params, self.store.clone(), telemetry.clone()).await;
        let permit = client.pool("pool").expect("named").admit(&tenant("acme"), Cost::request(1, 1)).await;
        drop(permit.expect("bootstrap"));
        (client, telemetry)
    }

    fn counted(&self, metric: Metric, why: &str) -> f64 {
        counted(&self.telemetry, metric, why)
    }
}

fn counted(telemetry: &Telemetry, metric: Metric, why: &str) -> f64 {
    let is = |sample: &&tidegate::telemetry::Sample| sample.metric == metric && sample.labels == [why];
    telemetry.snapshot().iter().find(is).map_or(0.0, |sample| sample.value.number())
}

/// HTTP with a token, or without.
struct Asker {
    http: reqwest::Client,
    url: String,
}

struct Answer {
    status: u16,
    challenge: Option<String>,
    body: String,
}

impl Asker {
    fn new(url: String) -> Self {
        Self { http: reqwest::Client::builder().no_proxy().build().expect("an HTTP client"), url }
    }

    async fn send(&self, request: reqwest::RequestBuilder, token: Option<&str>) -> Answer {
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        let answer = request.send().await.expect("it answers");
        let status = answer.status().as_u16();
        let challenge = answer.headers().get("www-authenticate").map(|value| value.to_str().expect("text").to_owned());
        Answer { status, challenge, body: answer.text().await.expect("a text") }
    }

    async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.url)), token).await
    }

    async fn post(&self, report: &Report, token: Option<&str>) -> Answer {
        self.send(self.http.post(format!("{}/v1/observations", self.url)).json(report), token).await
    }

    /// Who reports for a pool, as the leader says.
    async fn members(&self, pool: &str) -> Vec<String> {
        let told = eventually("it leads", async || {
            let answer = self.get("/v1/status", Some("read-token")).await;
            (answer.status == 200).then_some(answer.body)
        })
        .await;
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let members = told["pools"][pool]["members"].as_array().expect("members").iter();
        members
            .map(|member| member["member"].as_str().expect("a name").split('/').next().unwrap_or_default().to_owned())
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_reporter_is_refused_and_its_report_changes_nothing() {
    let stand = Stand::start(&format!("{}{}", reader(), table("checkout", &["report-token"], ""))).await;
    let asker = Asker::new(stand.controller.url());
    assert_eq!(asker.members("pool").await, Vec::<String>::new());
    let told = report("stranger", &[("pool", &["acme"])]);
    for (token, why) in [(None, "no_token"), (Some("guessed"), "unknown_token")] {
        let answer = asker.post(&told, token).await;
        assert_eq!((answer.status, answer.challenge.as_deref()), (401, Some("Bearer")), "{token:?}: {}", answer.body);
        assert!(answer.body.lines().count() == 1 && answer.body.contains("token"), "{}", answer.body);
        for path in ["/v1/status", "/v1/pools/pool", "/v1/explain/pool/acme", "/metrics"] {
            let answer = asker.get(path, token).await;
            assert_eq!((answer.status, answer.challenge.as_deref()), (401, Some("Bearer")), "{path}");
        }
        assert_eq!((stand.counted(Metric::ReportsRefused, why), stand.counted(Metric::ReadsRefused, why)), (1.0, 4.0));
    }
    // Not even read: a body that is no report is refused for its token.
    let garbage = asker.http.post(format!("{}/v1/observations", asker.url)).body("garbage");
    assert_eq!(asker.send(garbage, None).await.status, 401);
    assert_eq!(stand.counted(Metric::ReportsRefused, "malformed"), 0.0);
    assert_eq!(asker.members("pool").await, Vec::<String>::new());
    assert_eq!(asker.get("/healthz", None).await.status, 200);

    // With its token the same report is taken; what it may not read it is told.
    assert_eq!(asker.post(&told, Some("report-token")).await.status, 200);
    assert_eq!(asker.members("pool").await, ["stranger"]);
    for path in ["/v1/status", "/v1/pools/pool", "/v1/explain/pool/acme", "/metrics"] {
        let answer = asker.get(path, Some("report-token")).await;
        assert_eq!((answer.status, answer.challenge), (403, None), "{path}");
        assert!(answer.body.contains("may not read"), "{}", answer.body);
        assert_eq!(asker.get(path, Some("read-token")).await.status, 200, "{path}");
    }
    assert_eq!(stand.counted(Metric::ReadsRefused, "not_allowed"), 4.0);
    let metrics = asker.get("/metrics", Some("read-token")).await.body;
    for secret in ["report-token", "read-token", "guessed", &TokenDigest::of(b"report-token").to_string()] {
        assert!(!metrics.contains(secret), "{secret} in {metrics}");
    }
    stand.controller.stop().await;
}

/// Each member tells of `@default`, also where it is for one tenant alone: that is no wrong of it. And who tells of nobody that it
/// may tell of says nothing of the pool.
#[test]
fn a_member_that_is_idle_is_heard_and_holds_nobody() {
    let reporters = BTreeMap::from([("a".to_owned(), reporter(&["t"], &["*"], &["acme"], false))]);
    let caller = Access::new(&reporters).caller(Some(b"Bearer t")).expect("known");
    let with_hold = |tenants: &[&str]| {
        let mut report = report("m", &[("pool", tenants)]);
        let pool = report.pools.values_mut().next().expect("one");
        pool.hold_ms = BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, 60_000)]);
        report
    };
    for (tenants, held) in [(&["@default"][..], 0), (&[], 0), (&["@default", "acme"], 1)] {
        let mut cut = with_hold(tenants);
        assert_eq!(caller.cut(&mut cut), Ok(false), "{tenants:?}");
        let pool = cut.pools.values().next().expect("it is heard");
        assert_eq!(pool.hold_ms.len(), held, "{tenants:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_and_tenants_outside_the_globs_are_cut_from_a_report() {
    let checkout = table("checkout", &["t"], "pools = [\"po*\"]\ntenants = [\"acme\"]");
    let stand = Stand::start(&format!("{}{checkout}", reader())).await;
    let asker = Asker::new(stand.controller.url());
    asker.members("pool").await;
    let answer = asker.post(&report("m", &[("pool", &["acme", "globex"]), ("other", &["acme"])]), Some("t")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let reply: Value = serde_json::from_str(&answer.body).expect("JSON");
    let shares = reply["shares"].as_object().expect("pools");
    assert_eq!(shares.keys().collect::<Vec<_>>(), ["pool"], "{reply}");
    assert_eq!(shares["pool"].as_object().expect("tenants").keys().collect::<Vec<_>>(), ["acme"], "{reply}");
    assert_eq!((asker.members("pool").await, asker.members("other").await), (vec!["m".to_owned()], Vec::new()));
    assert_eq!(stand.counted(Metric::ReportsRefused, "not_allowed"), 1.0);

    let answer = asker.post(&report("m", &[("other", &["acme"])]), Some("t")).await;
    assert_eq!((answer.status, answer.challenge), (403, None), "{}", answer.body);
    assert_eq!(stand.counted(Metric::ReportsRefused, "not_allowed"), 2.0);
    // Whole, nothing is counted.
    assert_eq!(asker.post(&report("m", &[("pool", &["acme"])]), Some("t")).await.status, 200);
    assert_eq!(stand.counted(Metric::ReportsRefused, "not_allowed"), 2.0);
    stand.controller.stop().await;
}

fn with_token(token: &str) -> impl FnOnce(&mut ClientParams) {
    let token = ReportToken::new(token).expect("a token");
    move |params| params.report_token = Some(token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_either_of_two_tokens_is_heard_and_others_are_told_why_not() {
    let stand = Stand::start(&format!("{}{}", reader(), table("checkout", &["old", "new"], ""))).await;
    let asker = Asker::new(stand.controller.url());
    let (old, _) = stand.join("old", with_token("old")).await;
    let (new, _) = stand.join("new", with_token("new\n")).await;
    let (none, none_counted) = stand.join("none", |_| {}).await;
    let (gone, gone_counted) = stand.join("gone", with_token("gone")).await;
    let (shut, shut_counted) = stand.join("shut", with_token("read-token")).await;
    for telemetry in [none_counted, gone_counted, shut_counted] {
        eventually("it is told", async || {
            (counted(&telemetry, Metric::ReportFailures, "unauthorized") > 0.0).then_some(())
        })
        .await;
    }
    eventually("both are heard", async || (asker.members("pool").await == ["new", "old"]).then_some(())).await;
    // The farewell has the token too: who leaves is gone at once.
    old.close().await;
    assert_eq!(asker.members("pool").await, ["new"]);
    for client in [new, none, gone, shut] {
        client.close().await;
    }
    stand.controller.stop().await;
}

#[tokio::test]
async fn off_loopback_without_tokens_or_certificates_it_does_not_start() {
    let start = async |controller: &str| {
        let mut params = config(controller).controller;
        // Of no machine (RFC 5737): what may listen there is told that it cannot, and listens nowhere.
        params.listen = "192.0.2.1:7676".parse().expect("an address");
        let store = Arc::new(MemoryStore::new());
        Controller::start(params, store, Arc::new(Telemetry::new())).await.map(drop).expect_err("refused")
    };
    let papers = Papers::draw_up();
    let error = start("").await;
    assert!(matches!(error, ListenError::OffLoopback(_)), "{error}");
    assert!(error.to_string().contains("[controller.reporters.<name>]"), "{error}");
    let error = start(&tls(&papers, "")).await;
    assert!(matches!(error, ListenError::OffLoopback(_)), "TLS says nothing of who reports: {error}");
    for guarded in [reader(), tls(&papers, &client_ca(&papers))] {
        let error = start(&guarded).await;
        assert!(matches!(error, ListenError::Bind(..)), "{guarded}: {error}");
    }
}

#[test]
fn off_loopback_with_tokens_in_the_clear_it_warns_once() {
    let papers = Papers::draw_up();
    let run = |controller: &str| {
        let file = papers.file("t.toml");
        let text = format!("[controller]\nlisten = \"192.0.2.1:7676\"\n{controller}{POOL}");
        std::fs::write(&file, text).expect("written");
        let output = tidegate(&["run", "--config"]).arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&reader());
    assert_eq!((code, said.matches("in the clear").count()), (Some(1), 1), "{said}");
    let (code, said) = run(&format!("{}{}", tls(&papers, ""), reader()));
    assert_eq!((code, said.matches("in the clear").count()), (Some(1), 0), "{said}");
    let (code, said) = run("");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("t.toml:2:10: controller.listen: found \"192.0.2.1:7676\""), "{said}");
    std::fs::write(papers.file("t.toml"), format!("{}{}{POOL}", tls(&papers, ""), reader())).expect("written");
    let (_, said, _) = ran(tidegate(&["check"]).arg(papers.file("t.toml")));
    assert!(said.contains("reports of 1 reporter at 127.0.0.1:7676 over TLS,"), "{said}");
    // A file that is no good is named.
    let (code, said) = run(&format!("{}{}", tls(&papers, "").replace("server.pem", "none.pem"), reader()));
    assert!(code == Some(2) && said.contains("none.pem"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_said_once_and_no_token_is_in_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let [file, log] = ["t.toml", "log"].map(|name| folder.path().join(name));
    let reporters = format!("{}{}", reader(), table("checkout", &["report-token"], "pools = [\"pool\"]"));
    let text = format!("[controller]\nlisten = \"127.0.0.1:0\"\n{reporters}{POOL}");
    std::fs::write(&file, text).expect("written");
    let mut command = tidegate(&["run", "--config"]);
    command.arg(&file).env("TIDEGATE_LOG", "trace");
    let mut controller = Process::spawn("controller", command, Some(&log)).expect("it starts");
    let asker = Asker::new(listening(&mut controller).await);
    asker.members("pool").await;
    for _ in 0..3 {
        assert_eq!(asker.post(&report("m", &[("pool", &[])]), Some("guessed")).await.status, 401);
        assert_eq!(asker.get("/v1/status", Some("guessed")).await.status, 401);
        assert_eq!(asker.get("/v1/status", Some("report-token")).await.status, 403);
        assert_eq!(asker.post(&report("m", &[("other", &[])]), Some("report-token")).await.status, 403);
        assert_eq!(asker.post(&report("m", &[("pool", &[]), ("other", &[])]), Some("report-token")).await.status, 200);
        assert_eq!(asker.post(&report("m", &[("pool", &[])]), Some("read-token")).await.status, 403);
    }
    controller.terminate().await.expect("it ends");
    let log = std::fs::read_to_string(&log).expect("a log");
    let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(lines("a report is refused: the token is no reporter's"), 1, "{log}");
    assert_eq!(lines("a question is refused: the token is no reporter's"), 1, "{log}");
    assert_eq!(lines("a question is refused: this reporter may not read"), 1, "{log}");
    assert_eq!(lines("may report of no pool in the report"), 2, "one for each reporter: {log}");
    assert!(log.contains("checkout") && log.contains("reader"), "{log}");
    for secret in ["report-token", "read-token", "guessed", &TokenDigest::of(b"report-token").to_string()] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

// === TLS ===

fn tls(papers: &Papers, more: &str) -> String {
    let [certificate, key] = ["server.pem", "server-key.pem"].map(|name| papers.file(name));
    let (certificate, key) = (certificate.display(), key.display());
    format!("[controller.tls]\ncert_file = \"{certificate}\"\nkey_file = \"{key}\"\n{more}\n")
}

fn client_ca(papers: &Papers) -> String {
    format!("client_ca_file = \"{}\"\n", papers.file("ca.pem").display())
}

/// Trusts the papers' authority, and shows the papers' client certificate if wanted.
fn trusts(papers: &Papers, shows: Option<&Papers>) -> impl FnOnce(&mut ClientParams) {
    let files = shows.map(|own| [own.file("client.pem"), own.file("client-key.pem")]);
    let identity = files.as_ref().map(|[certificate, key]| (certificate.as_path(), key.as_path()));
    let tls = ReportTls::from_files(&papers.file("ca.pem"), identity).expect("readable");
    move |params| params.report_tls = Some(tls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_reports_over_tls_with_its_token() {
    let papers = Papers::draw_up();
    let reporters = format!("{}{}", reader(), table("checkout", &["t"], ""));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let stand = Stand::on(store, &format!("{}{reporters}", tls(&papers, ""))).await;
    assert!(stand.controller.url().starts_with("https://127.0.0.1:"), "{}", stand.controller.url());
    let (good, good_counted) = stand
        .join("good", |params| {
            with_token("t")(params);
            trusts(&papers, None)(params);
        })
        .await;
    eventually("it is heard", async || (accepted(&stand) > 0.0).then_some(())).await;
    assert_eq!(counted(&good_counted, Metric::ReportFailures, "unreachable"), 0.0);

    // Of others' authority; without any; in the clear, which is not even tried.
    let others = Papers::draw_up();
    let fails = async |why: &str, change: Box<dyn FnOnce(&mut ClientParams) + Send>| {
        let (client, telemetry) = stand.join("bad", change).await;
        eventually(why, async || (counted(&telemetry, Metric::ReportFailures, why) > 0.0).then_some(())).await;
        client.close().await;
    };
    fails("unreachable", Box::new(trusts(&others, None))).await;
    fails("tls", Box::new(with_token("t"))).await;
    let plain = stand.controller.url().replace("https://", "http://");
    let trusting = trusts(&papers, None);
    fails(
        "tls",
        Box::new(move |params| {
            trusting(params);
            params.report_url = Some(plain);
        }),
    )
    .await;
    assert!(stand.counted(Metric::ConnectionsRefused, "handshake") > 0.0);
    good.close().await;
    stand.controller.stop().await;
}

fn accepted(stand: &Stand) -> f64 {
    let samples = stand.telemetry.snapshot();
    samples.iter().find(|sample| sample.metric == Metric::ReportsAccepted).map_or(0.0, |sample| sample.value.number())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_enough_where_no_reporters_are_declared() {
    let papers = Papers::draw_up();
    let stand = Stand::start(&tls(&papers, &client_ca(&papers))).await;
    // None, and one of another authority.
    let others = Papers::draw_up();
    for shows in [None, Some(&others)] {
        let (client, telemetry) = stand.join("stranger", trusts(&papers, shows)).await;
        eventually("it is refused", async || {
            (counted(&telemetry, Metric::ReportFailures, "unreachable") > 0.0).then_some(())
        })
        .await;
        client.close().await;
    }
    assert!(stand.counted(Metric::ConnectionsRefused, "handshake") >= 2.0);
    assert_eq!(accepted(&stand), 0.0);
    let (client, _) = stand.join("good", trusts(&papers, Some(&papers))).await;
    eventually("it is heard", async || (accepted(&stand) > 0.0).then_some(())).await;
    client.close().await;
    stand.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_reporters_are_declared_a_certificate_does_not_do_for_a_token() {
    let papers = Papers::draw_up();
    let stand = Stand::start(&format!("{}{}", tls(&papers, &client_ca(&papers)), table("checkout", &["t"], ""))).await;
    let (client, telemetry) = stand.join("certified", trusts(&papers, Some(&papers))).await;
    eventually("it is told", async || {
        (counted(&telemetry, Metric::ReportFailures, "unauthorized") > 0.0).then_some(())
    })
    .await;
    assert_eq!(accepted(&stand), 0.0);
    client.close().await;
    stand.controller.stop().await;
}

/// As many as may shake hands at a time connect and say nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_connects_and_says_nothing_is_let_go_and_nobody_waits_for_long() {
    let papers = Papers::draw_up();
    let stand = Stand::start(&format!("{}{}", tls(&papers, ""), table("checkout", &["t"], ""))).await;
    let addr: SocketAddr = stand.controller.local_addr();
    let silent = async |count: usize| {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(TcpStream::connect(addr).await.expect("it is taken"));
        }
        streams
    };
    let params = |params: &mut ClientParams| {
        with_token("t")(params);
        trusts(&papers, None)(params);
    };
    // A few keep nobody waiting.
    let few = silent(16).await;
    let (client, telemetry) = stand.join("first", params).await;
    eventually("it is heard", async || (accepted(&stand) > 0.0).then_some(())).await;
    assert_eq!(counted(&telemetry, Metric::ReportFailures, "unreachable"), 0.0);
    assert_eq!(stand.counted(Metric::ConnectionsRefused, "handshake_timeout"), 0.0);
    client.close().await;
    drop(few);
    // All places: until they are let go.
    let many = silent(128).await;
    let before = accepted(&stand);
    let (client, _) = stand.join("second", params).await;
    eventually("it is heard", async || (accepted(&stand) > before).then_some(())).await;
    assert!(stand.counted(Metric::ConnectionsRefused, "handshake_timeout") >= 1.0);
    drop(many);
    client.close().await;
    stand.controller.stop().await;
}

// === commands ===

fn ran(command: &mut std::process::Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn tidegate_token_makes_a_token_and_its_digest() {
    let made = || {
        let (code, out, _) = ran(&mut tidegate(&["token"]));
        assert_eq!(code, Some(0));
        let lines: Vec<&str> = out.lines().collect();
        let [token, digest] = lines[..] else { panic!("{out}") };
        assert_eq!((token.len(), token.bytes().all(|byte| byte.is_ascii_hexdigit())), (64, true), "{out}");
        assert_eq!(digest, format!("token_sha256 = [\"{}\"]", TokenDigest::of(token.as_bytes())));
        // The line does in a configuration.
        let text = format!("[controller.reporters.a]\n{digest}\n");
        assert_eq!(config(&text).controller.reporters["a"].tokens, [TokenDigest::of(token.as_bytes())]);
        token.to_owned()
    };
    assert_ne!(made(), made());
    let (_, out, _) = ran(&mut tidegate(&["token", "--json"]));
    let told: Value = serde_json::from_str(&out).expect("JSON");
    let token = told["token"].as_str().expect("a token");
    assert_eq!(told["token_sha256"], TokenDigest::of(token.as_bytes()).to_string());

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "test\n").expect("written");
    let (code, out, _) = ran(tidegate(&["token", "--of"]).arg(&file));
    assert_eq!((code, out), (Some(0), format!("token_sha256 = [\"{TEST}\"]\n")));
    std::fs::write(&file, "not one\n").expect("written");
    let (code, out, error) = ran(tidegate(&["token", "--of"]).arg(&file));
    assert!(code == Some(2) && out.is_empty() && !error.contains("not one") && error.contains("token:"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_ask_the_leader_bring_a_token_and_trust_an_authority() {
    let papers = Papers::draw_up();
    let etcd = Etcd::start().await.expect("etcd starts");
    let endpoints = [etcd.endpoint().to_owned()];
    let store: Arc<dyn Store> = Arc::new(EtcdStore::connect(&endpoints).await.expect("endpoints"));
    let reporters = format!("{}{}", reader(), table("checkout", &["t"], ""));
    let stand = Stand::on(store, &format!("{}{reporters}", tls(&papers, ""))).await;
    let (client, _) = stand
        .join("checkout-1", |params| {
            with_token("t")(params);
            trusts(&papers, None)(params);
        })
        .await;
    eventually("it is heard", async || (accepted(&stand) > 0.0).then_some(())).await;
    std::fs::write(papers.file("token"), "read-token\n").expect("written");
    let command = |args: &[&str]| {
        let mut command = tidegate(args);
        command.args(["--etcd", &endpoints[0]]);
        command
    };
    let with_files = |args: &[&str]| {
        let mut command = command(args);
        command.arg("--leader-token").arg(papers.file("token")).arg("--leader-ca").arg(papers.file("ca.pem"));
        command
    };
    let explain = ["explain", "pool", "acme"];
    for args in [&explain[..], &["limits", "get", "pool", "acme", "--effective", "--member", "checkout-1"]] {
        let (code, _, error) = ran(&mut with_files(args));
        assert_eq!(code, Some(0), "{args:?}: {error}");
    }
    let (code, out, error) = ran(&mut with_files(&["status", "--json"]));
    assert_eq!(code, Some(0), "{error}");
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told["warnings"], serde_json::json!([]), "{told}");
    assert!(told["members"][0]["report_age_ms"].is_u64(), "the leader alone tells: {told}");
    // From the environment.
    let mut by_environment = command(&explain);
    by_environment.env("TIDEGATE_LEADER_TOKEN", "read-token").env("TIDEGATE_LEADER_CA_FILE", papers.file("ca.pem"));
    assert_eq!(ran(&mut by_environment).0, Some(0));

    // Without, with another's, and with a file that has none.
    let (code, _, error) = ran(command(&explain).arg("--leader-ca").arg(papers.file("ca.pem")));
    assert!(code == Some(1) && error.contains("--leader-token"), "{error}");
    let (code, _, error) = ran(with_files(&explain).env("TIDEGATE_LEADER_TOKEN", "unused"));
    assert_eq!(code, Some(0), "the argument is stronger: {error}");
    std::fs::write(papers.file("token"), "t").expect("written");
    let (code, _, error) = ran(&mut with_files(&explain));
    assert!(code == Some(1) && error.contains("may not read"), "{error}");
    std::fs::write(papers.file("token"), "no token").expect("written");
    let (code, _, error) = ran(&mut with_files(&explain));
    assert!(code == Some(2) && error.contains("token: ") && !error.contains("no token"), "{error}");
    let (code, _, error) = ran(&mut command(&explain));
    assert!(code == Some(1) && error.contains("no authority is given"), "{error}");
    let (code, _, error) = ran(command(&explain).arg("--leader-cert").arg(papers.file("client.pem")));
    assert!(
        code == Some(2) && error.contains("--leader-cert and --leader-key belong together, and to --leader-ca"),
        "{error}"
    );
    client.close().await;
    stand.controller.stop().await;
}
