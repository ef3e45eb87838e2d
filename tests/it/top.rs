//! `tidegate top`: what it prints of a leader whose answers are written here, and how it behaves on a real terminal, which
//! `script` makes.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tidegate::clock::{Clock, SystemClock, UnixMillis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::operators::{Office, Said};
use crate::world::{PATIENCE, eventually, tidegate};

/// A leader that says what it is told to, one answer after the other, and the last one again and again.
struct Leader {
    url: String,
    serving: JoinHandle<()>,
    silent: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
}

impl Leader {
    async fn saying(answers: Vec<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let silent = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicBool::new(false));
        let (is_silent, has_answered) = (silent.clone(), answered.clone());
        let serving = tokio::spawn(async move {
            let mut answers = answers.into_iter().peekable();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let Some(answer) = answers.peek().cloned() else { return };
                if is_silent.load(Ordering::SeqCst) {
                    continue;
                }
                Self::answer(stream, &answer).await;
                has_answered.store(true, Ordering::SeqCst);
                if answers.len() > 1 {
                    answers.next();
                }
            }
        });
        Self { url, serving, silent, answered }
    }

    async fn answer(mut stream: TcpStream, answer: &Value) {
        let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => head.extend_from_slice(&buffer[..n]),
            }
        }
        assert!(head.starts_with(b"GET /v1/status HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
        let body = answer.to_string();
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }

    /// From now on it closes each connection without a word.
    fn falls_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    async fn answered(&self) {
        eventually("it is asked", async || self.answered.load(Ordering::SeqCst).then_some(())).await;
    }

    /// Says in the store that it leads.
    fn leads(&self, office: &Office, name: &str) {
        let record = json!({ "name": name, "report_url": self.url }).to_string();
        office.etcdctl(&["put", "/tidegate/v1/leader", &record]);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn office_of(answers: Vec<Value>) -> (Office, Leader) {
    let (office, leader) = (Office::empty().await, Leader::saying(answers).await);
    leader.leads(&office, "north");
    (office, leader)
}

fn tenant(threshold: f64, demand: f64, waiting: u64, counts: [u64; 3]) -> Value {
    let [admitted, refused, throttled] = counts;
    json!({
        "thresholds": { "requests/minute": threshold, "tokens/minute": 250.0 * threshold },
        "effective": { "requests/minute": threshold, "tokens/minute": 250.0 * threshold },
        "concurrency": null, "demand_per_s": demand, "waiting": waiting, "in_flight": 2,
        "admitted": admitted, "waited": 0, "refused": refused, "throttled": throttled,
    })
}

fn member(name: &str) -> Value {
    json!({ "member": name, "report_age_ms": 400, "shares": {} })
}

/// What the leader says when `done` seconds' worth of calls are counted.
fn account(led_for_ms: u64, done: u64, expires_at: &str) -> Value {
    let mut busiest = json!({
        "acme": tenant(360.0, 9.5, 14, [5_000 + 6 * done, 40 + done, 7 + 2 * done]),
        "globex": tenant(0.0, 1.0, 0, [900, 20 + 3 * done, 0]),
        "@default": tenant(54.0, 0.5, 0, [100, 0, 0]),
    });
    busiest["globex"]["effective"] = json!({ "requests/minute": 0.0, "tokens/minute": 0.0 });
    json!({
        "name": "north", "term": 1234, "led_for_ms": led_for_ms, "field_of_a_later_version": 1,
        "pools": {
            "anthropic-sonnet": {
                "dialect": "anthropic", "mode": "observe",
                "reason": { "code": "cold", "text": "nothing was told yet: the configured capacity" },
                "tenants": 1, "meters": {
                    "input_tokens/minute": { "capacity": 40000.0, "limit": null, "used": 0.0, "demand": 0.0, "others": null },
                },
                "members": [member("chat-1/b1")], "busiest": { "@default": tenant(50.0, 0.0, 0, [0, 0, 0]) },
            },
            "openai-gpt4o": {
                "dialect": "openai",
                "reason": { "code": "headers_capacity", "text": "headers: requests/minute level 43 of 60, others 12/min" },
                "tenants": 3, "meters": {
                    "requests/minute": {
                        "capacity": 540.0, "limit": 600.0, "used": 521.3, "demand": 702.0, "others": 12.0,
                        "level": 43.0, "overcommit": 1.2, "headers": "steer",
                    },
                    "tokens/minute": {
                        "capacity": 150_000.0, "limit": 150_000.0, "used": 61_200.0, "demand": 61_200.0, "others": 0.0,
                        "level": 9000.0, "headers": "coarse",
                    },
                },
                "members": [member("chat-1/b1"), member("batch/b2")],
                "in_flight": 15, "places": 16.4, "slowness": 1.5, "busiest": busiest,
                "overrides": {
                    "globex": {
                        "record": { "block": true, "by": "mori", "reason": "key leaked", "expires_at": expires_at },
                        "since_unix_ms": 1_700_000_000_000_u64,
                    },
                    "@capacity": { "record": { "scale": 0.9, "by": "ops" }, "since_unix_ms": 1_700_000_000_000_u64 },
                },
            },
        },
        "signals": {
            "queue": { "role": "demand", "state": "fresh", "age_ms": 2300, "series": 4, "error": null },
            "gpu": { "role": "congestion", "state": "missing", "age_ms": null, "series": 0, "error": "connection refused" },
        },
    })
}

/// In half an hour and half a minute.
fn soon() -> String {
    let end = UnixMillis(SystemClock::new().wall().0 + 1_830_000);
    end.timestamp().expect("before the year 9999").to_string()
}

/// Two answers, two seconds of the leader's own time apart.
fn two() -> Vec<Value> {
    vec![account(1_750_000, 0, &soon()), account(1_752_000, 2, &soon())]
}

const ONCE: [&str; 4] = ["top", "--once", "--every", "0.2"];

const GOLDEN: &str = "\
signal gpu is missing: connection refused  (+1 more)
leader north, term 1234, led for 29m 12s  data 0s old  2 pools, 2 members
  POOL             MODE METER   USED  CAP  OTH 429/M  WAIT    FLIGHT WHY
  anthropic-sonnet obs  in/min    0%    -    -     0     0         0 nothing wa…
> openai-gpt4o     on   req/min  97%  90%   2%    60    14     15/16 headers: r…

openai-gpt4o  requests/minute used 521 of 540, limit 600, others 12, asked 702,
  left 43, lent ×1.20, answers 1.5× as slow as usual
why  headers: requests/minute level 43 of 60, others 12/min
  TENANT             GRANTED LAST 60 s    ASKS  WAIT  ADM/S REF/S 429/S OVERRIDE
  acme                   360          █    9.5    14      3   0.5     1
  globex                   0          ▁      1     0      0   1.5     0 block
  @default                54          █    0.5     0      0     0     0







overrides  globex           block                  by mori       ends in 30m
           @capacity        scale 0.9              by ops        until cleared
signals    gpu              congestion missing       - connection refused
           queue            demand     fresh      2.3s 4 series
";

/// 24 lines of 80 columns at most, and no character that steers a terminal.
#[track_caller]
fn is_a_page(text: &str) {
    assert_eq!(text.lines().count(), 24, "{text}");
    let columns = |c: char| if ('\u{2e80}'..'\u{fb00}').contains(&c) { 2 } else { 1 };
    for line in text.lines() {
        assert!(line.chars().map(columns).sum::<usize>() <= 80, "{line:?} in\n{text}");
        let steers = |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}');
        assert!(!line.contains(steers), "{line:?}");
    }
}

/// The row that begins with this name.
#[track_caller]
fn row<'a>(page: &'a str, name: &str) -> &'a str {
    let mut rows = page.lines().filter(|line| line.split_whitespace().next() == Some(name));
    rows.next().unwrap_or_else(|| panic!("{name} in\n{page}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_page_as_plain_text_tells_what_is_asked_at_night() {
    // What is counted is divided by the leader's own time: four seconds.
    let (office, _leader) = office_of(vec![account(1_748_000, 0, &soon()), account(1_752_000, 2, &soon())]).await;
    let said = office.run(&ONCE);
    is_a_page(&said.out);
    said.ended(0, GOLDEN, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_that_is_named_is_shown_and_one_that_is_not_there_is_an_error() {
    let (office, _leader) = office_of(two()).await;
    let said = office.run(&[&ONCE[..], &["anthropic-sonnet"]].concat());
    assert_eq!(said.code, 0, "{said:?}");
    is_a_page(&said.out);
    assert!(said.out.contains("\n> anthropic-sonnet obs "), "{}", said.out);
    assert!(said.out.contains("\nanthropic-sonnet  input_tokens/minute used 0 of 40.0k, asked 0\n"), "{}", said.out);
    office.run(&["top", "--once", "nowhere"]).ended(1, "", "tidegate: the leader has no pool nowhere\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_gives_no_rates() {
    let rates = |page: &str| {
        let cells: Vec<&str> = row(page, "acme").split_whitespace().collect();
        (
            cells[cells.len() - 3..].join(" "),
            page.lines().nth(4).expect("a pool").split_whitespace().nth(7) == Some("-"),
        )
    };
    let changed = |change: fn(&mut Value)| {
        let mut later = account(1_752_000, 2, &soon());
        change(&mut later);
        vec![account(1_748_000, 0, &soon()), later]
    };
    const ACME: &str = "/pools/openai-gpt4o/busiest/acme";
    let dashes = "- - -";
    for (what, answers, expected) in [
        ("nothing changed", changed(|_| {}), "3 0.5 1"),
        ("another term", changed(|later| later["term"] = json!(1235)), dashes),
        ("another leader", changed(|later| later["name"] = json!("south")), dashes),
        ("the same account again", changed(|later| later["led_for_ms"] = json!(1_748_000)), dashes),
        ("a member is gone", changed(|later| later.pointer_mut(ACME).expect("acme")["admitted"] = json!(3)), dashes),
        (
            "a member came with all that it had counted",
            changed(|later| {
                let members = later.pointer_mut("/pools/openai-gpt4o/members").and_then(Value::as_array_mut);
                members.expect("members").push(member("chat-9/b9"));
            }),
            dashes,
        ),
    ] {
        let (office, _leader) = office_of(answers).await;
        let said = office.run(&ONCE);
        is_a_page(&said.out);
        assert_eq!(rates(&said.out).0, expected, "{what}: {}", said.out);
        if what == "a member is gone" {
            // The others' counts are whole.
            assert!(row(&said.out, "globex").contains(" 1.5 "), "{}", said.out);
        } else {
            assert_eq!(rates(&said.out).1, expected == dashes, "{what}: {}", said.out);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_from_outside_and_more_of_everything_than_fits_do_not_break_the_page() {
    let mut told = account(1_750_000, 0, &soon());
    let evil = "a\u{1b}[2J\u{9b}1m\r\n\u{202e}evil\u{200b}".to_owned();
    told["name"] = json!(format!("{evil}{}", "x".repeat(300)));
    told["signals"]["\u{1b}]0;x\u{7}"] =
        json!({ "role": "capacity", "state": evil, "age_ms": u64::MAX, "series": 1, "error": evil.repeat(9) });
    for n in 0..20 {
        told["signals"][format!("s{n}")] = told["signals"]["queue"].clone();
    }
    let pool = &mut told["pools"]["openai-gpt4o"];
    pool["reason"]["text"] = json!(format!("{evil}{}", "why ".repeat(99)));
    pool["tenants"] = json!(5_000);
    pool["in_flight"] = json!(123_456_789);
    pool["places"] = json!(1e300);
    pool["meters"]["requests/minute"] =
        json!({ "capacity": 0.0, "limit": 0.0, "used": 1e18, "demand": 1e-9, "others": -5.0 });
    for n in 0..40 {
        pool["overrides"][format!("t{n}")] =
            json!({ "record": { "set": { "requests/minute": 1e9 }, "by": evil }, "since_unix_ms": 1 });
        let name = format!("{}{n}", "%E9%95%BF".repeat(30));
        pool["busiest"][name] = tenant(1e12, f64::MAX, u64::MAX, [u64::MAX, 0, u64::MAX]);
    }
    pool["busiest"]["%E2%80%AEturned"] = tenant(1.0, 1.0, u64::MAX, [0, 0, 0]);
    let busy = told["pools"]["openai-gpt4o"].clone();
    for n in 0..12 {
        told["pools"][format!("{n:a>64}")] = busy.clone();
    }
    let (office, _leader) = office_of(vec![told]).await;
    let said = office.run(&[&ONCE[..], &["openai-gpt4o"]].concat());
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    is_a_page(&said.out);
    for part in [
        "leader a\u{fffd}[2J\u{fffd}1m\u{fffd}\u{fffd}",
        "more: ",
        "> openai-gpt4o",
        "tenants for whom",
        "… 40 more",
        "… 22 more",
    ] {
        assert!(said.out.contains(part), "{part:?} in\n{}", said.out);
    }
    assert!(said.out.contains("长长长长长长长长…  "), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_without_a_store_and_without_a_terminal_one_line_says_so() {
    let office = Office::empty().await;
    office.run(&ONCE).ended(1, "", "tidegate: nobody leads\n");
    office.etcdctl(&["put", "/tidegate/v1/leader", r#"{"name":"gone","report_url":"http://127.0.0.1:1"}"#]);
    office.run(&ONCE).ended(
        1,
        "",
        "tidegate: the leader gives no answer: Connection refused (os error 111) (http://127.0.0.1:1)\n",
    );
    office.run(&["top"]).ended(2, "", "tidegate: stdout is no terminal: --once prints one page as plain text\n");
    for every in ["0.1", "61", "NaN", "soon"] {
        let said = office.run(&["top", "--once", "--every", every]);
        assert!(said.code == 2 && said.err.contains("expected 0.2 to 60 seconds"), "{every}: {said:?}");
    }
    let mut command = tidegate(&ONCE);
    let said = Said::of(&command.args(["--etcd", "http://127.0.0.1:1"]).output().expect("it runs"));
    assert_eq!((said.code, said.out.as_str(), said.err.lines().count()), (1, "", 1), "{said:?}");
    assert!(said.err.starts_with("tidegate: store at http://127.0.0.1:1 is unavailable: "), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_falls_silent_between_two_looks_leaves_its_page_and_an_error() {
    let (office, leader) = office_of(vec![account(1_750_000, 0, &soon())]).await;
    let mut command = office.command(&["top", "--once", "--every", "2"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    leader.answered().await;
    leader.falls_silent();
    let said = tokio::task::spawn_blocking(|| child.wait_with_output()).await.expect("it is waited for");
    let said = Said::of(&said.expect("it ends"));
    is_a_page(&said.out);
    assert_eq!(said.code, 1, "{said:?}");
    let first = said.out.lines().next().expect("a line");
    assert!(first.starts_with("data 2s old: the leader gives no answer: c"), "{first}");
    assert!(said.err.starts_with("tidegate: the leader gives no answer: "), "{said:?}");
}

/// A command on a terminal of its own, and what stands on that.
struct OnTerminal {
    child: Child,
    keys: ChildStdin,
    output: ChildStdout,
    said: Vec<u8>,
    folder: tempfile::TempDir,
}

impl OnTerminal {
    /// `tidegate top` in a shell that tells how it ended, and how the terminal is set before and after.
    fn top(office: &Office, args: &str) -> Self {
        Self::with_hangup(office, "default", args)
    }

    /// The same with SIGHUP ignored, or not, whatever the test's own parent had.
    fn with_hangup(office: &Office, hangup: &str, args: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let line = format!(
            "stty rows 24 cols 80; stty -g >before; sh -c 'echo $$ >pid; exec env --{hangup}-signal=HUP \"$TIDEGATE\" top --etcd \"$ETCD\" {args}'; \
             echo \"ended $?\"; stty -g >after"
        );
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-c", &line, "/dev/null"]).current_dir(folder.path());
        command.env("SHELL", "/bin/sh").env("TERM", "xterm-256color").env("TIDEGATE", env!("CARGO_BIN_EXE_tidegate"));
        command.env("ETCD", office.etcd.endpoint()).env_remove("NO_COLOR").kill_on_drop(true);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script is there");
        let (keys, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self { child, keys, output, said: Vec::new(), folder }
    }

    async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.expect("it reads");
        self.keys.flush().await.expect("it reads");
    }

    /// Reads until the screen is so.
    async fn shows(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let read = async {
            let mut buffer = [0; 8192];
            while !is_so(&self.screen()) {
                match self.output.read(&mut buffer).await.expect("it is read") {
                    0 => break,
                    n => self.said.extend_from_slice(&buffer[..n]),
                }
            }
        };
        let late = timeout(PATIENCE, read).await.is_err();
        let screen = self.screen();
        assert!(!late && is_so(&screen), "{what}:\n{screen}");
        screen
    }

    /// What a terminal of 80 × 24 would show: it moves, clears and writes, as much as is needed here.
    fn screen(&self) -> String {
        let text = String::from_utf8_lossy(&self.said);
        let (mut cells, mut row, mut column) = (vec![[' '; 80]; 24], 0_usize, 0_usize);
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\u{1b}' if chars.next() == Some('[') => {
                    let rest = chars.as_str();
                    let Some(end) = rest.find(|c: char| c.is_ascii_alphabetic()) else { break };
                    let mut numbers = rest[..end].split(';').map(|n| n.parse().unwrap_or(1_usize).saturating_sub(1));
                    match &rest[end..=end] {
                        "H" => (row, column) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
                        "J" => cells = vec![[' '; 80]; 24],
                        _ => {}
                    }
                    chars = rest[end + 1..].chars();
                }
                '\n' => row += 1,
                '\r' => column = 0,
                c if c.is_control() => {}
                c => {
                    if let Some(cell) = cells.get_mut(row).and_then(|line| line.get_mut(column)) {
                        *cell = c;
                    }
                    column += 1;
                }
            }
        }
        cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned() + "\n").collect()
    }

    /// Waits for its end: the exit code is as expected, and the terminal as it was.
    async fn ended(mut self, code: i32) {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.output.read_to_end(&mut rest)).await;
        read.expect("it ends").expect("it is read");
        self.child.wait().await.expect("it is waited for");
        self.said.extend(rest);
        let text = String::from_utf8_lossy(&self.said).into_owned();
        assert!(text.ends_with(&format!("ended {code}\r\n")), "{text:?}");
        for (begins, ends) in [("\u{1b}[?1049h", "\u{1b}[?1049l"), ("\u{1b}[?25l", "\u{1b}[?25h")] {
            let (begun, ended) = (text.find(begins).expect("it begins"), text.rfind(ends).expect("it ends"));
            assert!(begun < ended, "{text:?}");
        }
        let settings = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).expect("written");
        assert_eq!(settings("before"), settings("after"));
    }

    fn pid(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("pid")).expect("written").trim().to_owned()
    }

    fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill").args([format!("-{name}"), self.pid()]).status();
        assert!(sent.expect("kill is there").success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_keys_choose_and_the_next_leader_is_found() {
    let (office, leader) = office_of(vec![account(1_750_000, 0, &soon())]).await;
    let mut top = OnTerminal::top(&office, "--every 0.2");
    let screen = top.shows("the page", |screen| screen.contains("requests/minute used 521")).await;
    is_a_page(&screen);
    assert!(screen.contains("> openai-gpt4o ") && screen.contains("requests/minute used 521"), "{screen}");
    top.press("m").await;
    top.shows("the other meter", |screen| screen.contains("tokens/minute used 61.2k of 150k")).await;
    top.press("\t").await;
    top.shows("the first again", |screen| screen.contains("requests/minute used 521")).await;
    top.press("k").await;
    top.shows("the pool above", |screen| screen.contains("> anthropic-sonnet")).await;
    top.press("\u{1b}[B").await;
    top.shows("the pool below", |screen| screen.contains("> openai-gpt4o")).await;
    top.press("p").await;
    top.shows("a pause", |screen| screen.contains("PAUSED  leader north")).await;
    top.press("p").await;
    top.shows("no pause", |screen| screen.contains("\nleader north")).await;

    // It is gone: what it said last stays, with its age and the reason, in red.
    leader.falls_silent();
    let before = top.said.len();
    let gone = |screen: &str| {
        screen.starts_with("data 1s old: the leader gives no answer: ") && screen.contains("> openai-gpt4o")
    };
    top.shows("what the last leader said", gone).await;
    let drawn = String::from_utf8_lossy(&top.said[before..]).into_owned();
    assert!(drawn.contains("\u{1b}[38;5;1;49m") || drawn.contains("\u{1b}[38;5;1m"), "{drawn:?}");
    office.etcdctl(&["del", "/tidegate/v1/leader"]);
    top.shows("that nobody leads", |screen| screen.contains("s old: nobody leads") && screen.contains("acme")).await;
    let mut later = account(500, 0, &soon());
    (later["name"], later["term"]) = (json!("south"), json!(1300));
    let next = Leader::saying(vec![later]).await;
    next.leads(&office, "south");
    top.shows("the next leader", |screen| screen.contains("leader south, term 1300") && screen.contains("0s old"))
        .await;
    top.press("q").await;
    top.ended(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_it_is_ended_the_terminal_is_as_it_was() {
    let (office, _leader) = office_of(vec![account(1_750_000, 0, &soon())]).await;
    for end in ["TERM", "INT", "HUP", "\u{3}", "\u{1b}"] {
        let mut top = OnTerminal::top(&office, "");
        top.shows("the page", |screen| screen.contains("requests/minute used 521")).await;
        match end {
            signal if signal.len() > 1 => top.signal(signal),
            key => top.press(key).await,
        }
        top.ended(0).await;
    }
    // The terminal goes away; of the second nothing else tells.
    for hangup in ["default", "ignore"] {
        let mut top = OnTerminal::with_hangup(&office, hangup, "");
        top.shows("the page", |screen| screen.contains("requests/minute used 521")).await;
        let process = format!("/proc/{}", top.pid());
        top.child.kill().await.expect("script ends");
        drop(top);
        eventually("it ends", async || (!std::path::Path::new(&process).exists()).then_some(())).await;
    }
    // Without a leader it waits for one.
    let empty = Office::empty().await;
    let mut top = OnTerminal::top(&empty, "--every 0.2");
    top.shows("that nobody leads", |screen| screen.starts_with("nobody leads\n")).await;
    top.press("q").await;
    top.ended(0).await;
}
