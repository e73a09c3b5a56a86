//! How the command line is used: what it says without network, model or data, and what it says to mistakes.

mod cli_support;

use cli_support::{Place, finished};
use std::process::Stdio;

const RECIPES: [&str; 8] = [
    "quickstart",
    "own-traces",
    "qwen-1.5b",
    "qwen-7b",
    "qwen-14b",
    "qwen-32b",
    "llama-8b",
    "llama-70b",
];

const MINE: &str = "\
name = \"mine\"

[student]
model = \"qwen2.5-math-1.5b\"

[[traces]]
source = \"traces.jsonl\"

[sft]
epochs = 3
max_steps = 10
";

#[test]
fn every_shipped_recipe_can_be_looked_at_without_network() {
    let place = Place::new();
    for name in RECIPES {
        let file = format!("{name}.toml");
        let run = place.works(&["--recipe", &file, "--dry-run"]);
        let first = format!("run       {name} (recipe `{name}.toml`)\n");
        assert!(run.stdout.starts_with(&first), "{}", run.stdout);
        assert_eq!(run.stderr, "");
        let run = place.works(&["--recipe", &file, "--dry-run", "--json"]);
        let plan: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(plan["name"], name);
        assert_eq!(plan["stages"][0]["name"], "data");
    }
    assert!(
        !place.path().join("runs").exists(),
        "a dry run leaves nothing"
    );
}

#[test]
fn a_dry_run_shows_the_resolved_recipe() {
    let place = Place::new();
    place.file("mine.toml", MINE);
    let args = [
        "--recipe",
        "mine.toml",
        "--dry-run",
        "--device",
        "cpu",
        "--set",
        "sft.learning_rate=3e-5",
    ];
    assert_eq!(
        place.works(&args).stdout,
        "\
run       mine (recipe `mine.toml`)
student   Qwen/Qwen2.5-Math-1.5B@4a83ca6e4526a4f2da3aa259ec36c259f66b2ab2 (card `qwen2.5-math-1.5b`), full training in f32
traces    traces.jsonl
sft       3 epochs, batches of 64 sequences of at most 32,768 tokens, learning rate 3e-5 (cosine to 3e-6), at most 10 steps
seed      42
device    cpu
note      Qwen2.5-Math was trained on 4,096 positions with a RoPE base of 10,000: the base is raised to 300,000 and the \
positions to 32,768, as open-r1 did; `student.rope_theta` overrides it
stages
  1. data               traces to tokens, with what is trained on marked
  2. sft                supervised fine-tuning
"
    );
}

#[test]
fn usage_errors_have_code_2() {
    let place = Place::new();
    for (args, want) in [
        (&["--dry-run"][..], "--recipe <RECIPE>"),
        (&["--recipe"], "--recipe <RECIPE>"),
        (
            &["quickstart.toml"],
            "unrecognized subcommand 'quickstart.toml'",
        ),
        (
            &["--recipe", "quickstart", "--epochs", "3"],
            "unexpected argument '--epochs'",
        ),
        (&["pull"], "<REPO>"),
        (&["--dry-run", "report", "x"], "cannot be used with"),
    ] {
        let run = place.run(args);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(run.stderr.contains(want), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn no_arguments_show_the_help() {
    let place = Place::new();
    let run = place.run(&[]);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("distill --recipe quickstart.toml"),
        "{}",
        run.stderr
    );
    let help = place.works(&["--help"]).stdout;
    assert_eq!(help, run.stderr);
    let version = place.works(&["--version"]).stdout;
    assert_eq!(version, format!("distill {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn mistakes_in_a_recipe_say_what_was_meant() {
    let place = Place::new();
    let with = |name: &str, from: &str, to: &str| {
        place.file(name, MINE.replace(from, to));
    };
    with("key.toml", "epochs", "epoch");
    with("value.toml", "max_steps = 10", "schedule = \"cosin\"");
    with("type.toml", "= 10", "= \"ten\"");
    with("toml.toml", "= 10", "=");
    with("card.toml", "1.5b", "1.5");
    with("none.toml", "max_steps = 10", "batch_size = 0");
    with("folder.toml", "qwen2.5-math-1.5b", "./students/mine");
    place.file("utf8.toml", b"name = \"\xff\"\n");
    for (file, error, hint) in [
        (
            "qwen-7c.toml",
            "no recipe `qwen-7c.toml`: no such file, and no shipped recipe of that name",
            "did you mean `qwen-7b.toml`?",
        ),
        (
            "key.toml",
            "`key.toml` line 10: unknown key `epoch` in `sft`",
            "did you mean `epochs`?",
        ),
        (
            "value.toml",
            "`value.toml` line 11: unknown value `cosin` in `sft.schedule`",
            "did you mean `cosine`?",
        ),
        (
            "card.toml",
            "no student `qwen2.5-math-1.5`",
            "did you mean `qwen2.5-math-1.5b`?",
        ),
        ("none.toml", "`sft.batch_size = 0` must be at least 1", ""),
        (
            "folder.toml",
            "no folder `./students/mine`",
            "a local model is a folder with `config.json`, `tokenizer.json` and `*.safetensors`",
        ),
        ("utf8.toml", "`utf8.toml` is not valid UTF-8 at byte 8", ""),
    ] {
        let found = place.fails(&["--recipe", file, "--dry-run"]);
        assert_eq!(
            (found.0.as_str(), found.1.as_str()),
            (error, hint),
            "{file}"
        );
    }
    let (error, _) = place.fails(&["--recipe", "type.toml", "--dry-run"]);
    assert!(
        error.starts_with("`type.toml` line 11: invalid type"),
        "{error}"
    );
    let (error, _) = place.fails(&["--recipe", "toml.toml", "--dry-run"]);
    assert!(error.starts_with("`toml.toml` line 11:"), "{error}");
    let (error, hint) =
        place.fails(&["--recipe", "quickstart", "--dry-run", "--set", "sft.epochs"]);
    assert_eq!(error, "`--set sft.epochs` is not `key=value`");
    assert_eq!(hint, "for example `--set sft.epochs=3`");
}

#[test]
fn nobody_reading_is_no_error_and_a_full_disk_is_one() {
    let place = Place::new();
    let args = ["--recipe", "quickstart", "--dry-run", "--json"];
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = place.command(&args);
    command.stdout(Stdio::from(writer));
    let run = finished(command);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let mut command = place.command(&args);
    command.stdout(
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap(),
    );
    let run = finished(command);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr
            .starts_with("error: writing `stdout`: No space left on device"),
        "{}",
        run.stderr
    );
}

#[test]
fn colour_is_left_out_where_it_is_not_wanted() {
    let place = Place::new();
    let run = place.run(&["--recipe", "nothing"]);
    assert!(
        !run.stderr.contains('\x1b'),
        "stderr is no terminal: {:?}",
        run.stderr
    );
}

#[test]
fn what_is_not_there_is_named() {
    let place = Place::new();
    for (args, error, hint) in [
        (
            &["report", "runs/none"][..],
            "`runs/none` is no run folder: it holds no `plan.json`",
            "a run folder is what `distill --recipe R` leaves, `runs/<name>` by default",
        ),
        (
            &["pull", "nothing"],
            "there is no model `nothing`: no such path, and no Hub repository name",
            "give a local path, or a Hub repository as `org/name`",
        ),
    ] {
        let found = place.fails(args);
        assert_eq!((found.0.as_str(), found.1.as_str()), (error, hint));
    }
}
