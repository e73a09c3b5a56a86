//! Bad input to a run: one error that names the place, exit code 1, never a panic.

mod cli_support;

use cli_support::{Place, failure, finished, model};
use serde_json::json;
use std::os::unix::process::CommandExt;

const RECIPE: &str = "\
name = \"bad\"
device = \"cpu\"

[student]
model = \"m\"

[[traces]]
source = \"SOURCE\"

[sft]
learning_rate = 1e-3
max_length = 64
batch_size = 2
max_steps = 2
";

const ROW: &str = "{\"messages\":[{\"role\":\"user\",\"content\":\"k\"},{\"role\":\"assistant\",\"content\":\"ab\"}]}\n";

/// A model `m`, good traces `t.jsonl`, and the recipe `r.toml` on `source`.
fn place(source: &str) -> Place {
    let place = Place::new();
    model::save(&place.path().join("m"));
    place.file("t.jsonl", ROW.repeat(8));
    place.file("r.toml", RECIPE.replace("SOURCE", source));
    place
}

const RUN: [&str; 4] = ["--recipe", "r.toml", "--run-dir", "run"];

#[test]
fn the_recipe_these_tests_break_is_good() {
    let place = place("t.jsonl");
    place.works(&RUN);
    assert_eq!(place.read("run/sft/metrics.jsonl").lines().count(), 2);
}

#[test]
fn traces_that_cannot_be_read_are_named() {
    for (name, content, parts) in [
        ("gone.jsonl", None, &["gone.jsonl"][..]),
        (
            "column.jsonl",
            Some(&b"{\"foo\":1,\"bar\":\"x\"}\n"[..]),
            &["column.jsonl:1", "foo, bar"],
        ),
        (
            "json.jsonl",
            Some(&[ROW.as_bytes(), b"{\"messages\":[\n"].concat()),
            &["json.jsonl", "2"],
        ),
        (
            "utf8.jsonl",
            Some(&[ROW.as_bytes(), ROW.as_bytes(), b"{\"messages\":\"\xff\"}\n"].concat()),
            &["utf8.jsonl", "3"],
        ),
        ("empty.jsonl", Some(b""), &["`empty.jsonl` is empty"]),
        (
            "cut.parquet",
            Some(&b"PAR1\x15\x04\x15\x10"[..]),
            &["cut.parquet"],
        ),
        (
            "cut.jsonl.zst",
            Some(&b"\x28\xb5\x2f\xfd\x04"[..]),
            &["cut.jsonl.zst"],
        ),
        (
            "cut.jsonl.gz",
            Some(&b"\x1f\x8b\x08\x00"[..]),
            &["cut.jsonl.gz"],
        ),
    ] {
        let place = place(name);
        if let Some(content) = content {
            place.file(name, content);
        }
        let (error, _) = place.fails(&RUN);
        for part in parts {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}

/// A data set of 40 rows in three groups.
const PARQUET: &[u8] = include_bytes!("data/messages.parquet");

#[test]
fn a_parquet_file_cut_or_overwritten_in_its_middle_is_told() {
    let whole = place("t.parquet");
    whole.file("t.parquet", PARQUET);
    whole.works(&[&RUN[..], &["--set", "sft.over_length=truncate"]].concat());

    let half = PARQUET.len() / 2;
    // the footer is whole, half of the pages before it are zero: a copy with a hole
    let mut hole = PARQUET.to_vec();
    hole[half / 2..half].fill(0);
    for (what, bytes) in [
        ("half", &PARQUET[..half]),
        ("all but the last byte", &PARQUET[..PARQUET.len() - 1]),
        ("hole", &hole),
    ] {
        let place = place("t.parquet");
        place.file("t.parquet", bytes);
        let (error, hint) = place.fails(&RUN);
        assert!(error.contains("t.parquet"), "{what}: {error}");
        assert!(hint.contains("fetch it again"), "{what}: {error}; {hint}");
    }
}

#[test]
fn max_length_below_every_row_is_told() {
    let place = place("t.jsonl");
    let (error, hint) = place.fails(&[&RUN[..], &["--set", "sft.max_length=3"]].concat());
    assert!(error.contains("no row") && error.contains('8'), "{error}");
    assert!(hint.contains("max_length"), "{hint}");
}

#[test]
fn numbers_out_of_range_are_told() {
    let place = place("t.jsonl");
    for (set, expected) in [
        (
            "sft.learning_rate=-1",
            "`sft.learning_rate = -1.0` must be above 0 and at most 1000",
        ),
        (
            "sft.warmup_ratio=nan",
            "`sft.warmup_ratio = NaN` must be at least 0 and at most 1",
        ),
        (
            "sft.max_grad_norm=-1",
            "`sft.max_grad_norm = -1.0` must be at least 0 and finite",
        ),
    ] {
        let (error, _) = place.fails(&[&RUN[..], &["--set", set]].concat());
        assert_eq!(error, expected);
    }
}

#[test]
fn a_template_that_fails_is_told() {
    let place = place("t.jsonl");
    model::save_with(
        &place.path().join("m"),
        &model::weights(),
        model::config(),
        "{{ raise_exception('only one turn') }}",
    );
    let (error, _) = place.fails(&RUN);
    assert!(error.contains("only one turn"), "{error}");
}

#[test]
fn a_broken_student_is_told() {
    let place = place("t.jsonl");
    let mut weights = model::weights();
    weights.get_mut("lm_head.weight").unwrap().1[7] = f32::NAN;
    model::save_with(
        &place.path().join("m"),
        &weights,
        model::config(),
        model::TEMPLATE,
    );
    let (error, _) = place.fails(&RUN);
    assert!(error.contains("`lm_head.weight`"), "{error}");
    let mut config = model::config();
    config["model_type"] = json!("mamba");
    model::save_with(
        &place.path().join("m"),
        &model::weights(),
        config,
        model::TEMPLATE,
    );
    let (error, _) = place.fails(&RUN);
    assert!(error.contains("`mamba`"), "{error}");
}

#[test]
fn a_full_disk_is_told_and_the_run_goes_on_afterwards() {
    let place = place("t.jsonl");
    let mut command = place.command(&RUN);
    // no file may grow over 4 KiB: the weights have more
    // SAFETY: only calls that are safe between fork and exec
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit {
                rlim_cur: 4096,
                rlim_max: 4096,
            };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let (error, _) = failure(finished(command));
    assert!(
        error.contains("writing `run/") && error.contains("File too large"),
        "{error}"
    );
    place.works(&RUN);
}
