//! Verdicts of the math verifier on files of recorded cases (`{gold, prediction, expected, config?}`): agreement, and
//! verdicts a second on one core.
//!
//! `cargo bench --bench grade -- CASES.jsonl... [--verbose] [--config]`; `--config` follows the options that a row records,
//! without it the default options are used.

use std::io::Write;
use std::time::Instant;

use distill::verify::math::{MathOptions, check};
use serde_json::Value;

/// Prints, or not where nobody reads any more.
macro_rules! say {
    ($($argument:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

struct Case {
    id: String,
    gold: String,
    prediction: String,
    expected: Option<bool>,
    options: MathOptions,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let mut all = Vec::new();
    for path in arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
    {
        let cases = read(path, has("--config"));
        report(path, &cases, has("--verbose"));
        all.extend(cases);
    }
    if all.is_empty() {
        say!("no files of cases given");
        return;
    }
    let (start, start_s) = (Instant::now(), processor_s());
    let mut num_verdicts = 0;
    let mut slowest = (0.0, String::new());
    while start.elapsed().as_secs_f64() < 2.0 {
        for case in &all {
            let begin = Instant::now();
            std::hint::black_box(check(&case.prediction, &case.gold, &case.options));
            let took = begin.elapsed().as_secs_f64();
            if took > slowest.0 {
                slowest = (took, case.id.clone());
            }
        }
        num_verdicts += all.len();
    }
    let per_second = num_verdicts as f64 / (processor_s() - start_s);
    say!(
        "{per_second:.0} verdicts a second of one core's time; slowest {:.2} ms ({})",
        slowest.0 * 1e3,
        slowest.1
    );
}

/// Seconds of processor time of this process: other programs on the machine do not count.
fn processor_s() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one `timespec`, which lives here
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn report(path: &str, cases: &[Case], verbose: bool) {
    let (mut agree, mut total, mut false_correct) = (0, 0, 0);
    for case in cases {
        let Some(expected) = case.expected else {
            continue;
        };
        let verdict = check(&case.prediction, &case.gold, &case.options);
        total += 1;
        if verdict.is_correct() == expected {
            agree += 1;
            continue;
        }
        false_correct += usize::from(verdict.is_correct());
        if verbose {
            let short = |text: &str| {
                text.chars()
                    .rev()
                    .take(300)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<String>()
            };
            say!(
                "{} expected {expected}: {} gold {:?} prediction {:?} extracted {:?}",
                case.id,
                verdict.reason,
                short(&case.gold),
                short(&case.prediction),
                verdict.extracted
            );
        }
    }
    say!("{path}: {agree} of {total} verdicts agree, {false_correct} only here correct");
}

fn read(path: &str, with_config: bool) -> Vec<Case> {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("reading `{path}`: {error}"));
    let field = |row: &Value, name: &str| match row.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(Value::Null) => Some("None".to_string()),
        _ => None,
    };
    let mut cases = Vec::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap_or(Value::Null);
        let gold = field(&row, "gold").or_else(|| field(&row, "solution"));
        let prediction = field(&row, "prediction").or_else(|| field(&row, "content"));
        let (Some(gold), Some(prediction)) = (gold, prediction) else {
            continue;
        };
        let mut options = MathOptions::default();
        if with_config && let Some(config) = row.get("config") {
            let kinds = config.get("extract").and_then(Value::as_array);
            if let Some(kinds) = kinds {
                options.latex = kinds.iter().any(|kind| kind == "latex");
                options.plain = kinds.iter().any(|kind| kind == "expr");
            }
            if let Some(places) = config.get("float_rounding").and_then(Value::as_u64) {
                options.float_rounding = places as u32;
            }
            options.strict = config.get("strict") != Some(&Value::Bool(false));
            options.relation_for_set =
                config.get("allow_set_relation_comp") == Some(&Value::Bool(true));
        }
        let expected = match row.get("expected") {
            Some(Value::Bool(expected)) => Some(*expected),
            Some(Value::Number(number))
                if row.get("reward").is_some_and(|r| r == "accuracy_reward") =>
            {
                number.as_f64().map(|n| n == 1.0)
            }
            _ => None,
        };
        cases.push(Case {
            id: field(&row, "id").unwrap_or_default(),
            gold,
            prediction,
            expected,
            options,
        });
    }
    cases
}
