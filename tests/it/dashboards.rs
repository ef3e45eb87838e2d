//! The dashboards, the alerts and the runbook: well formed, about metrics that there are, and each metric has its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};
use tidegate::sim::process::find_program;
use tidegate::telemetry::{Kind, Metric};

const DASHBOARDS: [&str; 3] = ["pool", "tenant", "loop"];
const COLUMNS: u64 = 24;
/// What Grafana itself puts into an expression, and what it is for a trial.
const BUILT_IN: [(&str, &str); 2] = [("__rate_interval", "1m"), ("__range", "5m")];
/// Labels that Prometheus adds, and the one of histograms.
const OTHER_LABELS: [&str; 3] = ["instance", "job", "le"];
const HOMELESS: &str = "## Metrics without a panel or alert, and why";

static NAME: LazyLock<Regex> = LazyLock::new(|| regex("tidegate_[a-z0-9_]+"));
static VARIABLE: LazyLock<Regex> = LazyLock::new(|| regex(r"\$\{?([a-z_]+)"));
static BY: LazyLock<Regex> = LazyLock::new(|| regex(r"(?:by|on) \(([a-z_, ]*)\)"));
static MATCHERS: LazyLock<Regex> = LazyLock::new(|| regex(r"(tidegate_[a-z0-9_]+)\{([^}]*)\}"));
static MATCHER: LazyLock<Regex> = LazyLock::new(|| regex(r#"([a-z_]+) *(=~|!~|!=|=) *"([^"]*)""#));
static LEGEND: LazyLock<Regex> = LazyLock::new(|| regex(r"\{\{ *([a-z_]+) *\}\}"));
static ANCHOR: LazyLock<Regex> = LazyLock::new(|| regex(r"^\$\{runbook\}#([a-z0-9-]+)$"));

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn read(file: &str) -> String {
    fs::read_to_string(folder().join(file)).expect("a file of dashboards/")
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(&format!("{name}.json"))).expect("a dashboard is JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn is_row(panel: &Value) -> bool {
    text(panel, "type") == "row"
}

fn variables(dashboard: &Value) -> Vec<&str> {
    list(&dashboard["templating"]["list"]).iter().map(|variable| text(variable, "name")).collect()
}

/// What each panel and annotation asks, as it stands in the file: who asks, and the expression.
fn queries(dashboard: &Value) -> Vec<(String, &str)> {
    let of_panel = |panel: &'_ Value| text(panel, "title").to_owned();
    let panels = list(&dashboard["panels"])
        .iter()
        .flat_map(|panel| list(&panel["targets"]).iter().map(move |target| (of_panel(panel), text(target, "expr"))));
    let annotations = list(&dashboard["annotations"]["list"])
        .iter()
        .map(|annotation| (format!("annotation {}", text(annotation, "name")), text(annotation, "expr")));
    panels.chain(annotations).collect()
}

/// Every expression of the dashboards, ready to be asked: `dashboard › panel`, and the expression with all variables replaced.
pub fn panel_expressions() -> Vec<(String, String)> {
    let mut expressions = Vec::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        for (panel, expr) in queries(&dashboard) {
            expressions.push((format!("{name} › {panel}"), filled(expr, &variables(&dashboard))));
        }
    }
    expressions
}

fn filled(expr: &str, variables: &[&str]) -> String {
    let all = variables.iter().map(|variable| (*variable, ".*"));
    BUILT_IN.into_iter().chain(all).fold(expr.to_owned(), |expr, (name, value)| {
        expr.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value)
    })
}

/// The metric of a series' name: a histogram's three series are one metric.
fn metric_of(series: &str) -> Option<Metric> {
    let is_it = |metric: &Metric| {
        series == metric.name()
            || metric.kind() == Kind::Histogram
                && ["_bucket", "_sum", "_count"].iter().any(|part| series.strip_suffix(part) == Some(metric.name()))
    };
    Metric::ALL.iter().copied().find(is_it)
}

fn metrics_in(text: &str) -> BTreeSet<Metric> {
    NAME.find_iter(text).filter_map(|name| metric_of(name.as_str())).collect()
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

fn headings(markdown: &str) -> BTreeSet<String> {
    let headings = markdown.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// `TidegateNoLeader` to `no-leader`.
fn kebab(alert: &str) -> String {
    let mut kebab = String::new();
    for c in alert.strip_prefix("Tidegate").unwrap_or(alert).chars() {
        if c.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(c.to_lowercase());
    }
    kebab
}

/// The rules' text without comments.
fn rules() -> String {
    let rules = read("alerts.yml");
    rules.lines().filter(|line| !line.trim_start().starts_with('#')).fold(String::new(), |all, line| all + line + "\n")
}

/// The text of each alert, by its name.
fn alerts() -> BTreeMap<String, String> {
    let mut alerts = BTreeMap::new();
    let mut name = None;
    for line in rules().lines() {
        let item = line.trim_start();
        if ["- alert: ", "- record: ", "- name: "].iter().any(|begin| item.starts_with(begin)) {
            name = item.strip_prefix("- alert: ").map(str::to_owned);
        }
        if let Some(name) = &name {
            let alert: &mut String = alerts.entry(name.clone()).or_default();
            alert.push_str(line);
            alert.push('\n');
        }
    }
    alerts
}

/// The value of a key in an alert's text.
fn value_of<'a>(alert: &'a str, key: &str) -> &'a str {
    let mut lines = alert.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
    lines.next().unwrap_or_default().trim_matches('\'')
}

/// The runbook's rows of metrics without a home: name and reason.
fn homeless() -> Vec<(String, String)> {
    let runbook = read("RUNBOOK.md");
    let (_, table) = runbook.split_once(HOMELESS).expect("the runbook has the table");
    let row = |line: &str| {
        let (name, why) = line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | ")?;
        Some((name.to_owned(), why.to_owned()))
    };
    table.lines().filter_map(row).collect()
}

fn promtool(args: &[&str]) {
    let program = find_program("promtool", "prometheus").expect("promtool is installed");
    let output = Command::new(program).args(args).current_dir(folder()).output().expect("promtool runs");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success(), "promtool {args:?}:\n{said}");
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Says `what` of `whom`, if it is so.
fn fault(faults: &mut Vec<String>, is_so: bool, whom: &str, what: &str) {
    if is_so {
        faults.push(format!("{whom}: {what}"));
    }
}

fn faults_of_panel(whom: &str, panel: &Value, anchors: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for key in ["title", "description"] {
        fault(&mut faults, text(panel, key).is_empty(), whom, &format!("no {key}"));
    }
    fault(&mut faults, text(&panel["datasource"], "uid") != "${datasource}", whom, "another datasource");
    fault(&mut faults, text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), whom, "no unit");
    fault(&mut faults, list(&panel["targets"]).is_empty(), whom, "asks nothing");
    let mut refs = BTreeSet::new();
    for target in list(&panel["targets"]) {
        fault(&mut faults, text(target, "expr").is_empty(), whom, "an empty expression");
        let is_new = refs.insert(text(target, "refId"));
        fault(&mut faults, text(target, "refId").is_empty() || !is_new, whom, "a refId that is empty or there twice");
    }
    let linked: Vec<&str> = list(&panel["links"])
        .iter()
        .filter_map(|link| Some(ANCHOR.captures(text(link, "url"))?.get(1)?.as_str()))
        .collect();
    fault(&mut faults, linked.is_empty(), whom, "no link to the runbook");
    for name in linked {
        fault(&mut faults, !anchors.contains(name), whom, &format!("the runbook has no section {name}"));
    }
    faults
}

/// Column, row, width, height.
fn place(panel: &Value) -> Option<[u64; 4]> {
    let at = |key: &str| panel["gridPos"][key].as_u64();
    Some([at("x")?, at("y")?, at("w")?, at("h")?])
}

fn faults_of_grid(name: &str, panels: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut placed: Vec<([u64; 4], &str)> = Vec::new();
    for panel in panels {
        let whom = format!("{name} › {}", text(panel, "title"));
        let Some([x, y, w, h]) = place(panel) else {
            faults.push(format!("{whom}: no place"));
            continue;
        };
        fault(&mut faults, w == 0 || h == 0 || x + w > COLUMNS, &whom, "outside the grid");
        for ([left, top, width, height], other) in &placed {
            let overlaps = x < left + width && *left < x + w && y < top + height && *top < y + h;
            fault(&mut faults, overlaps, &whom, &format!("lies over {other}"));
        }
        placed.push(([x, y, w, h], text(panel, "title")));
    }
    faults
}

#[test]
fn each_dashboard_is_well_formed() {
    let anchors = headings(&read("RUNBOOK.md"));
    let mut faults = Vec::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        fault(&mut faults, text(&dashboard, "uid") != format!("tidegate-{name}"), name, "another uid");
        fault(&mut faults, text(&dashboard, "title").is_empty(), name, "no title");
        fault(&mut faults, dashboard["schemaVersion"] != json!(39), name, "another schema version");
        let panels = list(&dashboard["panels"]);
        let ids: BTreeSet<_> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
        fault(&mut faults, ids.len() != panels.len(), name, "a panel's id is missing or there twice");
        faults.extend(faults_of_grid(name, panels));
        let shown: Vec<&Value> = panels.iter().filter(|panel| !is_row(panel)).collect();
        fault(&mut faults, !(8..=16).contains(&shown.len()), name, "too few or too many panels to be read");
        for panel in shown {
            faults.extend(faults_of_panel(&format!("{name} › {}", text(panel, "title")), panel, &anchors));
        }
    }
    assert_none(&faults);
}

#[test]
fn each_variable_is_declared_used_and_matched_as_a_pattern() {
    let mut faults = Vec::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        let declared: BTreeSet<&str> = variables(&dashboard).into_iter().collect();
        let json = dashboard.to_string();
        let used: BTreeSet<&str> =
            VARIABLE.captures_iter(&json).filter_map(|found| Some(found.get(1)?.as_str())).collect();
        for variable in &used {
            let built_in = ["__all"].into_iter().chain(BUILT_IN.into_iter().map(|(name, _)| name));
            let known = declared.contains(variable) || built_in.into_iter().any(|name| name == *variable);
            fault(&mut faults, !known, name, &format!("{variable} is not declared"));
        }
        for variable in declared.difference(&used) {
            fault(&mut faults, true, name, &format!("{variable} is not used"));
        }
        for (panel, expr) in queries(&dashboard) {
            let exact = MATCHER.captures_iter(expr).any(|found| found[3].contains('$') && &found[2] != "=~");
            fault(&mut faults, exact, &format!("{name} › {panel}"), "a variable without =~");
        }
    }
    assert_none(&faults);
}

#[test]
fn each_dashboard_marks_overrides_and_leaders_and_leads_to_the_others() {
    let mut faults = Vec::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        let marked: BTreeSet<Metric> =
            list(&dashboard["annotations"]["list"]).iter().flat_map(|mark| metrics_in(text(mark, "expr"))).collect();
        fault(&mut faults, !marked.contains(&Metric::OverrideInForce), name, "does not mark overrides");
        fault(&mut faults, !marked.contains(&Metric::Term), name, "does not mark changes of leader");
        for other in DASHBOARDS.into_iter().filter(|other| *other != name) {
            let leads = |link: &Value| {
                text(link, "url") == format!("/d/tidegate-{other}")
                    && link["includeVars"] == json!(true)
                    && link["keepTime"] == json!(true)
            };
            let led = list(&dashboard["links"]).iter().any(leads);
            fault(&mut faults, !led, name, &format!("no link to {other} that keeps time and variables"));
        }
    }
    assert_none(&faults);
}

#[test]
fn each_name_of_a_metric_is_one() {
    let mut faults = Vec::new();
    let files = ["pool.json", "tenant.json", "loop.json", "alerts.yml", "alerts.test.yml", "RUNBOOK.md", "README.md"];
    for file in files {
        for name in NAME.find_iter(&read(file)).map(|name| name.as_str().to_owned()).collect::<BTreeSet<_>>() {
            fault(&mut faults, metric_of(&name).is_none(), file, &format!("there is no {name}"));
        }
    }
    assert_none(&faults);
}

/// Faults of one expression, apart from its grammar.
fn faults_of_expression(whom: &str, expr: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut labels: BTreeSet<&str> = OTHER_LABELS.into_iter().collect();
    for name in NAME.find_iter(expr) {
        let metric = metric_of(name.as_str());
        labels.extend(metric.iter().flat_map(|metric| metric.labels()));
        let whole = metric.is_some_and(|metric| metric.kind() == Kind::Histogram && metric.name() == name.as_str());
        fault(&mut faults, whole, whom, &format!("{} is a histogram, not a series", name.as_str()));
    }
    for label in BY.captures_iter(expr).flat_map(|found| split(&found[1])) {
        fault(&mut faults, !labels.contains(&*label), whom, &format!("no metric has the label {label}"));
    }
    for found in MATCHERS.captures_iter(expr) {
        for matcher in MATCHER.captures_iter(&found[2]) {
            let label = &matcher[1];
            let known = OTHER_LABELS.contains(&label)
                || metric_of(&found[1]).is_some_and(|metric| metric.labels().contains(&label));
            fault(&mut faults, !known, whom, &format!("{} has no label {label}", &found[1]));
        }
    }
    faults
}

fn split(labels: &str) -> Vec<String> {
    labels.split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect()
}

#[test]
fn each_expression_names_labels_that_its_metrics_have() {
    let mut faults = Vec::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        for (panel, expr) in queries(&dashboard) {
            faults.extend(faults_of_expression(&format!("{name} › {panel}"), expr));
        }
        for target in list(&dashboard["panels"]).iter().flat_map(|panel| list(&panel["targets"])) {
            let kept: BTreeSet<String> =
                BY.captures_iter(text(target, "expr")).flat_map(|found| split(&found[1])).collect();
            for label in LEGEND.captures_iter(text(target, "legendFormat")) {
                let expr = text(target, "expr");
                fault(&mut faults, !kept.contains(&label[1]), expr, &format!("the legend's {} is not kept", &label[1]));
            }
        }
    }
    // Alerts may go by the labels of recorded series too: only their matchers are looked at.
    for (name, alert) in alerts() {
        let wrong = faults_of_expression(&name, &alert).into_iter();
        faults.extend(wrong.filter(|fault| !fault.contains("no metric has the label")));
    }
    assert_none(&faults);
}

#[test]
fn each_metric_has_a_panel_or_an_alert_or_a_reason() {
    let mut homes = metrics_in(&rules());
    for name in DASHBOARDS {
        homes.extend(queries(&dashboard(name)).iter().flat_map(|(_, expr)| metrics_in(expr)));
    }
    let mut faults = Vec::new();
    let mut excused = BTreeSet::new();
    for (name, why) in homeless() {
        let metric = Metric::ALL.iter().find(|metric| metric.name() == name);
        fault(&mut faults, metric.is_none(), &name, "is in the runbook's table and is no metric");
        fault(&mut faults, why.len() < 10, &name, "is in the runbook's table without a reason");
        fault(&mut faults, metric.is_some_and(|metric| homes.contains(metric)), &name, "has a home and an excuse");
        fault(&mut faults, !excused.insert(name.clone()), &name, "is in the runbook's table twice");
    }
    for metric in Metric::ALL {
        let lost = !homes.contains(metric) && !excused.contains(metric.name());
        fault(&mut faults, lost, metric.name(), "has neither panel nor alert nor reason");
    }
    assert_none(&faults);
}

#[test]
fn each_alert_says_how_bad_it_is_what_it_is_and_what_to_do() {
    let runbook = headings(&read("RUNBOOK.md"));
    let mut faults = Vec::new();
    for (name, alert) in alerts() {
        let severity = value_of(&alert, "severity");
        fault(&mut faults, !["critical", "warning", "info"].contains(&severity), &name, "no severity");
        for key in ["summary", "description"] {
            fault(&mut faults, value_of(&alert, key).is_empty(), &name, &format!("no {key}"));
        }
        let section = kebab(&name);
        let url = format!("RUNBOOK.md#{section}");
        fault(&mut faults, value_of(&alert, "runbook_url") != url, &name, &format!("runbook_url is not {url}"));
        fault(&mut faults, !runbook.contains(&section), &name, "no section in the runbook");
    }
    assert_none(&faults);
}

#[test]
fn each_section_of_the_runbook_is_about_an_alert_and_names_panels_that_there_are() {
    let runbook = read("RUNBOOK.md");
    let sections: BTreeSet<String> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).map(anchor).collect();
    assert_eq!(sections, alerts().keys().map(|name| kebab(name)).collect());

    let dashboards = DASHBOARDS.map(dashboard);
    let panels = dashboards.iter().flat_map(|dashboard| list(&dashboard["panels"]));
    let titles: BTreeSet<&str> = panels.map(|panel| text(panel, "title").trim_end_matches(": $meter")).collect();
    let prose = runbook.split_whitespace().collect::<Vec<_>>().join(" ");
    let named: Vec<&str> = prose.split('"').skip(1).step_by(2).collect();
    assert!(named.len() > 20 && prose.matches('"').count() % 2 == 0, "quotes go in pairs, and are panels' names");
    let unknown: Vec<&&str> = named.iter().filter(|name| !titles.contains(**name)).collect();
    assert!(unknown.is_empty(), "no such panels: {unknown:?}");
}

#[test]
fn each_alert_is_tried_firing_and_not() {
    let mut tried: BTreeSet<(String, bool)> = BTreeSet::new();
    let mut name = String::new();
    for line in read("alerts.test.yml").lines().map(str::trim) {
        if let Some(alert) = line.strip_prefix("alertname: ") {
            alert.clone_into(&mut name);
        } else if let Some(expected) = line.strip_prefix("exp_alerts:") {
            tried.insert((name.clone(), expected.trim() != "[]"));
        }
    }
    let alerts = alerts();
    let wanted = alerts.keys().flat_map(|name| [(name.clone(), false), (name.clone(), true)]);
    assert_eq!(tried, wanted.collect());
}

#[test]
fn promtool_takes_the_rules_and_their_tests_pass() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "alerts.test.yml"]);
}

/// As rules of a file: promtool reads them without a server.
#[test]
fn promtool_takes_the_expressions_of_all_panels() {
    let rule = |(n, (_, expr)): (usize, (String, String))| json!({ "record": format!("panel:{n}"), "expr": expr });
    let rules: Vec<Value> = panel_expressions().into_iter().enumerate().map(rule).collect();
    assert!(rules.len() > 60, "{} expressions", rules.len());
    let left: Vec<&Value> = rules.iter().filter(|rule| text(rule, "expr").contains('$')).collect();
    assert!(left.is_empty(), "variables that were not replaced: {left:?}");
    let file = tempfile::NamedTempFile::with_suffix(".yml").expect("a file");
    // JSON is YAML.
    fs::write(file.path(), json!({ "groups": [{ "name": "panels", "rules": rules }] }).to_string()).expect("written");
    promtool(&["check", "rules", file.path().to_str().expect("a path of letters")]);
}
