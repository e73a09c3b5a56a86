//! The quickstart at a smaller size: the student starts from nothing and learns.

mod cli_support;

use cli_support::Place;
use serde_json::Value;

#[test]
fn a_small_quickstart_learns() {
    let place = Place::new();
    let run = place.works(&[
        "--recipe",
        "quickstart",
        "--set",
        "traces.0.num_problems=600",
        "--set",
        "eval.limit=20",
        "--json",
    ]);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    let _ = summary;
}
