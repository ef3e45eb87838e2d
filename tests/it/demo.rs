//! The demo as a program sees it, and how it refuses what it cannot do.

use std::time::Duration;

use serde_json::Value;
use tidegate::sim::process::Process;

use crate::world::tidegate;

#[tokio::test(flavor = "multi_thread")]
async fn a_short_demo_tells_a_program_how_both_ways_did_and_draws_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let svg = folder.path().join("run.svg");
    let mut command = tidegate(&["demo", "--json", "--duration", "20s", "--svg"]);
    command.arg(&svg).env("TIDEGATE_LOG", "off");
    let mut demo = Process::spawn("demo", command, None).expect("the demo starts");
    let status = demo.wait(Duration::from_secs(120)).await.expect("it ends by itself");
    let said = demo.lines().join("\n");
    assert!(status.success(), "{said}");
    // Nothing else on stdout, or this would not be JSON.
    let verdict: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let phases = verdict["phases"].as_array().expect("phases");
    let names: Vec<&str> = phases.iter().filter_map(|phase| phase["phase"].as_str()).collect();
    assert_eq!(names, ["ramp-up", "steady", "halved", "raised", "override", "lifted", "killed"]);
    assert!((19.0..40.0).contains(&verdict["seconds"].as_f64().expect("seconds")), "{verdict:#}");
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("a number in {verdict:#}"));
    let halved = &phases[2];
    assert_eq!(halved["limit"], 600);
    // Static limits go on at the old limit: about half of what they send is refused.
    assert!(number(&halved["static"]["throttled"]) > 0.3, "{halved:#}");
    assert!(number(&halved["adaptive"]["throttled"]) < number(&halved["static"]["throttled"]) / 2.0, "{halved:#}");
    assert!(number(&halved["retuned"]["after_change_s"]) < 3.0, "{halved:#}");
    assert!(number(&phases[6]["led_again_s"]) < 6.0, "{:#}", phases[6]);
    for way in ["adaptive", "static"] {
        let whole = &verdict["whole"][way];
        assert!((0.1..1.2).contains(&number(&whole["used"])), "{whole:#}");
        assert!(number(&whole["admitted"]) > 100.0, "{whole:#}");
        assert_eq!(whole["tenants"].as_object().map(serde_json::Map::len), Some(3));
    }
    assert_eq!(verdict["svg"], svg.display().to_string());
    let picture = std::fs::read_to_string(&svg).expect("the picture is there");
    assert!(picture.trim_start().starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture:.200}");
    for words in ["halved", "raised", "noisy 120", "lifted", "killed", "adaptive", "static", "answered 429"] {
        assert!(picture.contains(words), "{words} is in the picture");
    }
}

#[test]
fn what_the_demo_cannot_do_is_refused_before_anything_starts() {
    for (args, code, part) in [
        (["--duration", "5s"], 2, "expected 20s to 10m"),
        (["--duration", "soon"], 2, "expected 20s to 10m"),
        (["--svg", "no/such/folder/run.svg"], 2, "--svg no/such/folder/run.svg: cannot write"),
    ] {
        let output = tidegate(&["demo"]).args(args).output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(part), "{part:?} in {error:?}");
        assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    }
}
