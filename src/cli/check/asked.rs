//! What Prometheus answers to a configuration's queries: which pool and tenant each series would feed. And how many processes
//! use its pools, as etcd knows.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::sizing::Members;
use super::understood;
use crate::cli::reach::access_of;
use crate::cli::table::{NONE, number, table};
use crate::cli::{Failure, print, print_json};
use crate::config::{Config, EtcdParams, Mistake};
use crate::controller::PoolParams;
use crate::controller::signal::Role;
use crate::controller::source::{Fed, Misfit, Prometheus, QueryParams};
use crate::plan::keyspace::{Key, Keyspace, Presence};
use crate::quota::{Grantee, PoolId};
use crate::store::{EtcdAccess, EtcdStore, Select, Source, StoreError};

/// So many series of a query are shown to people.
const SERIES_SHOWN: usize = 20;

/// A query's answer.
#[derive(Debug, Serialize)]
struct Asked {
    query: String,
    role: Role,
    feeds: Vec<Feeds>,
    misfits: Vec<NotTaken>,
    error: Option<String>,
}

/// A series that feeds nothing.
#[derive(Debug, Serialize)]
struct NotTaken {
    series: String,
    /// As the metric's label has it.
    why: &'static str,
    words: String,
}

#[derive(Debug, Serialize)]
struct Feeds {
    pool: String,
    tenant: Option<String>,
    value: f64,
    /// What is odd about it.
    remark: Option<&'static str>,
    /// Whether it feeds nothing for that reason.
    #[serde(skip)]
    is_lost: bool,
}

/// How many processes use each pool; why nobody knows is noted.
pub(super) async fn members(config: &Config, file: &str, noted: &mut Vec<Mistake>) -> Members {
    let Some(etcd) = &config.etcd else { return Members::Unknown };
    // Files of its that are not good here are noted already.
    let Ok(access) = access_of(etcd) else { return Members::Unknown };
    match present(etcd, access, &config.controller.keyspace).await {
        Ok(of) => Members::Live(of),
        Err(error) => {
            let message = format!("{error}: how many processes use the pools is not known; --members says it");
            noted.push(Mistake::of_what_it_names(file, "etcd", message));
            Members::Unknown
        }
    }
}

/// The pools that living members have named, and how many.
async fn present(etcd: &EtcdParams, access: EtcdAccess, keys: &Keyspace) -> Result<BTreeMap<PoolId, u32>, StoreError> {
    let store = EtcdStore::connect_with(&etcd.endpoints, access).await?;
    let listing = store.list(&[Select::Prefix(keys.members())]).await?;
    let mut of = BTreeMap::new();
    for entry in listing.entries.iter().filter(|entry| matches!(keys.parse(&entry.key), Some(Key::Member(_)))) {
        let Ok(Presence { pools, .. }) = serde_json::from_slice(&entry.value) else { continue };
        for pool in pools {
            *of.entry(pool).or_insert(0) += 1;
        }
    }
    Ok(of)
}

/// Asks and shows, with what is to be looked at in the file; fails when a query is not answered, or feeds nothing.
pub(super) async fn ask(config: &Config, members: &Members, json: bool, file: &str) -> Result<(), Failure> {
    let queries = config.controller.prometheus.as_ref();
    if queries.is_none() && config.etcd.is_none() {
        return Err(Failure::Usage("nothing to ask: the configuration has no [prometheus] and no [etcd]".to_owned()));
    }
    let mut answers = Vec::new();
    if let Some(params) = queries {
        let prometheus = Prometheus::new(params).map_err(Failure::Usage)?;
        for (name, query) in &params.queries {
            answers.push(ask_one(&prometheus, &params.url, name, query, &config.controller.pools).await);
        }
    }
    if json {
        let live = if let Members::Live(of) = members { Some(of) } else { None };
        let mistakes = &config.warnings.list;
        print_json(&serde_json::json!({ "mistakes": mistakes, "queries": answers, "members": live }))?;
    } else {
        let looked_at = &config.warnings;
        let gap = if looked_at.list.is_empty() { "" } else { "\n" };
        let rest = match queries {
            Some(_) => text(&answers),
            None => format!("{file}: good: {}\n", understood(config)),
        };
        print(&format!("{looked_at}{gap}{rest}"))?;
    }
    let useless = answers.iter().filter(|asked| asked.feeds.iter().all(|feeds| feeds.is_lost)).count();
    if useless == 0 {
        return Ok(());
    }
    let queries = if useless == 1 { "1 query feeds".to_owned() } else { format!("{useless} queries feed") };
    Err(Failure::Run(format!("{queries} nothing: see above")))
}

async fn ask_one(prometheus: &Prometheus, url: &str, name: &str, query: &QueryParams, pools: &[PoolParams]) -> Asked {
    let mut asked =
        Asked { query: name.to_owned(), role: query.role, feeds: Vec::new(), misfits: Vec::new(), error: None };
    match prometheus.ask(query).await {
        Ok((told, _)) => {
            asked.feeds = told.fed.iter().map(|fed| feeds(fed, query, pools)).collect();
            if told.fed.is_empty() && told.misfits.is_empty() {
                asked.error = Some("the answer is empty: no series now".to_owned());
            }
            let not_taken =
                |misfit: Misfit| NotTaken { words: misfit.words(query), series: misfit.series, why: misfit.why };
            asked.misfits = told.misfits.into_iter().map(not_taken).collect();
        }
        Err(error) => asked.error = Some(format!("{url}: {error}")),
    }
    asked
}

fn feeds(fed: &Fed, query: &QueryParams, pools: &[PoolParams]) -> Feeds {
    let pool = pools.iter().find(|pool| pool.id == fed.pool);
    let is_declared = |tenant: &Grantee| match (tenant, pool) {
        (Grantee::Tenant(id), Some(pool)) => pool.tenants.contains_key(id),
        _ => true,
    };
    let lacks = |pool: &&PoolParams| query.meter.is_some_and(|meter| !pool.capacity.contains_key(&meter));
    let lost = match pool {
        None => Some("no such pool in this file"),
        Some(_) if pool.as_ref().is_some_and(lacks) => Some("the pool has no such meter"),
        Some(_) => None,
    };
    let is_default = fed.tenant.as_ref().is_some_and(|tenant| !is_declared(tenant));
    let remark = lost.or(is_default.then_some("not declared: one of @default"));
    let tenant = fed.tenant.as_ref().map(Grantee::to_string);
    Feeds { pool: fed.pool.to_string(), tenant, value: fed.value, remark, is_lost: lost.is_some() }
}

fn text(answers: &[Asked]) -> String {
    let row = |asked: &Asked, feeds: &Feeds| {
        vec![
            asked.query.clone(),
            asked.role.to_string(),
            feeds.pool.clone(),
            feeds.tenant.clone().unwrap_or_else(|| NONE.to_owned()),
            number(feeds.value),
            feeds.remark.unwrap_or_default().to_owned(),
        ]
    };
    let of =
        |asked: &'_ Asked| asked.feeds.iter().take(SERIES_SHOWN).map(|feeds| row(asked, feeds)).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = answers.iter().flat_map(of).collect();
    let head = ["QUERY", "ROLE", "POOL", "TENANT", "VALUE", ""];
    let shown = if rows.is_empty() { String::new() } else { table(&head, &rows) };
    let notes: Vec<String> = answers.iter().flat_map(notes).map(|note| note + "\n").collect();
    shown + &notes.concat()
}

/// What there is to say of an answer beside its series.
fn notes(asked: &Asked) -> Vec<String> {
    let query = &asked.query;
    let mut notes = Vec::new();
    let more = asked.feeds.len().saturating_sub(SERIES_SHOWN);
    if more > 0 {
        notes.push(format!("{query}: {more} more series"));
    }
    notes.extend(asked.error.iter().map(|error| format!("{query}: {error}")));
    let whys: BTreeSet<&str> = asked.misfits.iter().map(|misfit| misfit.why).collect();
    for why in whys {
        let of: Vec<&NotTaken> = asked.misfits.iter().filter(|misfit| misfit.why == why).collect();
        let series = if of.len() == 1 { "1 series is".to_owned() } else { format!("{} series are", of.len()) };
        let Some(first) = of.first() else { continue };
        notes.push(format!("{query}: {series} not taken, such as {}: {}", first.series, first.words));
    }
    notes
}
