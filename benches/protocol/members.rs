//! 1,000 members with 10 of 10,000 tenants each: what etcd and the controller take for them while nothing changes, and how long
//! it takes until all have new thresholds when everything does.
//!
//! The members are whole clients, each with connections of its own, in one process of their own whose processor time does not
//! count; the controller is `tidegate run`. Each tenant makes a call a second.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tidegate::client::{Client, ClientParams, MemberState, Pool, PoolParams};
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::provider::{Dialect, Usage};
use tidegate::quota::{Cost, Meter, TenantId};
use tidegate::sim::process::Process;
use tidegate::store::{Op, Store, Txn};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::goal::Goals;
use super::{connect, file, pool_name, tenant, tenant_name, with_etcd};

/// The argument that makes this program the members.
pub(crate) const PROCESS: &str = "members-process";

const MEMBERS: usize = 1_000;
const TENANTS_EACH: usize = 10;
const POOLS: usize = 10;
const TENANTS_OF_POOL: usize = MEMBERS * TENANTS_EACH / POOLS;
const PER_MINUTE: f64 = 6e6;
/// Clients that start at a time.
const AT_A_TIME: usize = 25;
const PATIENCE: Duration = Duration::from_secs(120);
/// Until what the start has set going is over.
const SETTLING: Duration = Duration::from_secs(10);
const STEADY: Duration = Duration::from_secs(10);
const REGRANTS: usize = 3;
/// Of a second, a tick of Linux's accounting.
const TICKS_PER_S: f64 = 100.0;
/// What the members' process says.
const READY: &str = "ready";
const REGRANTED: &str = "regranted";

// ---- the members' process ----

struct Member {
    _client: Client,
    pool: Pool,
    tenants: Vec<TenantId>,
}

impl Member {
    async fn start(endpoint: String, n: usize) -> Self {
        let tenants: Vec<TenantId> = (0..TENANTS_EACH).map(|k| tenant(n * TENANTS_EACH + k)).collect();
        let name = pool_name(n * TENANTS_EACH / TENANTS_OF_POOL);
        let pool = PoolParams::new(name.parse().expect("valid"), Dialect::OpenAi);
        let pool = PoolParams { tenants: tenants.iter().cloned().collect::<BTreeSet<_>>(), ..pool };
        let client =
            Client::start(ClientParams::new(vec![pool]), Arc::new(connect(&endpoint).await), Arc::default()).await;
        let pool = client.pool(&name).expect("named");
        Self { _client: client, pool, tenants }
    }

    /// A tenant's requests per minute here, under a leader.
    fn rates(&self) -> Option<Vec<f64>> {
        let tuning = self.pool.tuning();
        if tuning.state != MemberState::Active {
            return None;
        }
        let of = |tenant| Some(tuning.limits_of(tenant)?.meters.get(&Meter::REQUESTS_PER_MINUTE)?.rate.rate);
        self.tenants.iter().map(of).collect()
    }
}

/// One call of each tenant a second, spread over it.
async fn traffic(members: Arc<Vec<Member>>) {
    let parts = 20;
    let mut every = interval(Duration::from_secs(1) / parts);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for part in (0..parts as usize).cycle() {
        every.tick().await;
        for member in members.iter().skip(part).step_by(parts as usize) {
            for tenant in &member.tenants {
                if let Ok(permit) = member.pool.try_admit(tenant, Cost::request(100, 0)) {
                    permit.settle(Usage { input_tokens: 80, output_tokens: 20 });
                }
            }
        }
    }
}

/// Waits until all members have rates that pass.
async fn until_all(members: &[Member], passes: impl Fn(usize, &[f64]) -> bool) {
    for (n, member) in members.iter().enumerate() {
        while !member.rates().is_some_and(|rates| passes(n, &rates)) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The members: says when all are led, and whenever all thresholds of all of them have doubled.
pub(crate) fn process(args: &[String]) {
    let [endpoint] = args else { panic!("expected an endpoint") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut members = Vec::with_capacity(MEMBERS);
        for from in (0..MEMBERS).step_by(AT_A_TIME) {
            let starting: JoinSet<Member> =
                (from..(from + AT_A_TIME).min(MEMBERS)).map(|n| Member::start(endpoint.clone(), n)).collect();
            members.extend(starting.join_all().await);
        }
        let members = Arc::new(members);
        tokio::spawn(traffic(members.clone()));
        until_all(&members, |_, rates| rates.iter().all(|rate| *rate > 12.0)).await;
        println!("{READY}");
        loop {
            let before: Vec<Vec<f64>> = members.iter().map(|member| member.rates().unwrap_or_default()).collect();
            let doubled = |n: usize, rates: &[f64]| rates.iter().zip(&before[n]).all(|(new, old)| *new > 1.5 * old);
            until_all(&members, doubled).await;
            println!("{REGRANTED}");
        }
    });
}

// ---- the measuring one ----

/// Processor time of a process until now, in seconds.
fn processor_s(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("Linux, and it runs");
    // Behind the name, which may have spaces: the state is field 3, the times in user and system 14 and 15.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let times = behind.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("a number"));
    times.sum::<f64>() / TICKS_PER_S
}

/// Every pool's policy again, with another capacity.
async fn regrant(store: &impl Store, per_minute: f64) {
    let put = |pool: usize| {
        let tenants: serde_json::Map<_, _> =
            (0..TENANTS_OF_POOL).map(|n| (tenant_name(pool * TENANTS_OF_POOL + n), serde_json::json!({}))).collect();
        let policy = serde_json::json!({
            "dialect": "openai", "tenants": tenants,
            "capacity": { "requests/minute": per_minute, "tokens/minute": per_minute * 1e3 },
        });
        let key = Keyspace::default().key(&Key::Policy(pool_name(pool).parse().expect("valid")));
        Op::Put { key, value: serde_json::to_vec(&policy).expect("serialises"), lease: None }
    };
    let txn = Txn { conditions: Vec::new(), ops: (0..POOLS).map(put).collect() };
    store.commit(txn).await.expect("etcd is there");
}

pub(crate) fn members(goals: &mut Goals) {
    let (runtime, mut etcd) = with_etcd(1);
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("tidegate.toml");
    std::fs::write(&config, file(etcd.endpoint(), POOLS, TENANTS_OF_POOL, PER_MINUTE)).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("run").arg("--config").arg(&config);
    runtime.block_on(async {
        let mut controller = Process::spawn("controller", command, None).expect("it starts");
        let listens = controller.wait_for_line(|line| line.contains("listening"), PATIENCE).await;
        listens.expect("it listens");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([PROCESS, etcd.endpoint()]);
        let mut members = Process::spawn("members", command, None).expect("it starts");
        members.wait_for_line(|line| line == READY, PATIENCE).await.expect("all are led");
        sleep(SETTLING).await;

        let processes = [("etcd", etcd.process().pid()), ("controller", controller.pid()), ("members", members.pid())];
        let before = processes.map(|(_, process)| processor_s(process));
        let begun = Instant::now();
        sleep(STEADY).await;
        let span_s = begun.elapsed().as_secs_f64();
        let mut cores = [0.0; 3];
        for ((part, before), (name, process)) in cores.iter_mut().zip(before).zip(processes) {
            *part = (processor_s(process) - before) / span_s;
            println!("# members: {name} takes {part:.2} cores");
        }
        goals.at_most("protocol_members_steady", "%", 100.0 * (cores[0] + cores[1]), 100.0);

        let store = connect(etcd.endpoint()).await;
        let (mut slowest, mut per_minute) = (0.0_f64, PER_MINUTE);
        for _ in 0..REGRANTS {
            per_minute *= 2.0;
            let said = members.line_count();
            let begun = Instant::now();
            regrant(&store, per_minute).await;
            members.wait_for_line_after(said, |line| line == REGRANTED, PATIENCE).await.expect("all have theirs");
            slowest = slowest.max(begun.elapsed().as_secs_f64());
            sleep(Duration::from_secs(1)).await;
        }
        goals.at_most("protocol_members_regrant", "s", slowest, 5.0);
    });
}
