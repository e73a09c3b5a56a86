//! Tests of `[stage.grpo]`: presets, mistakes, numbers of steps.

use super::*;

fn from(text: &str) -> Result<Grpo> {
    let table: toml::Table = text.parse().unwrap();
    Grpo::from_table(Some(&toml::Value::Table(table)))
}

#[test]
fn a_preset_stands_for_what_is_not_said() {
    assert_eq!(Grpo::from_table(None).unwrap(), Grpo::default());
    let r1 = from("preset = \"r1\"\ngroup_size = 4\nnum_steps = 3").unwrap();
    assert_eq!((r1.group_size, r1.num_steps), (4, Some(3)));
    assert_eq!(
        (r1.learning_rate, r1.kl_coef, r1.clip_high),
        (3e-6, 1e-3, 10.0)
    );
    // 8192 completions a rollout
    let r1 = from("preset = \"r1\"").unwrap();
    assert_eq!(r1.num_prompts_per_rollout() * r1.group_size, 8192);
    assert!(r1.needs_reference());
    let dapo = from("preset = \"dapo\"").unwrap();
    assert!(!dapo.needs_reference() && dapo.overlong_filter);
    for name in ["deepseekmath", "dr_grpo", "gspo", "cispo"] {
        from(&format!("preset = \"{name}\"")).unwrap();
    }
}

#[test]
fn mistakes_are_named() {
    let table = [
        ("group_sise = 4", "`grpo`: unknown key `group_sise`"),
        (
            "group_size = 0",
            "`grpo.group_size` must be at least 1, found 0",
        ),
        (
            "temperature = 0.0",
            "`grpo.temperature` is 0, and must be at least 0.001 and at most 1000",
        ),
        (
            "kl_coef = -1.0",
            "`grpo.kl_coef` is -1, and must be at least 0",
        ),
        (
            "preset = \"cispo\"\nratio = \"sequence\"",
            "`grpo.loss = \"cispo\"` weighs tokens: `ratio` must be `token`",
        ),
    ];
    for (text, message) in table {
        assert_eq!(from(text).unwrap_err().to_string(), message);
    }
    let error = from("group_sise = 4").unwrap_err();
    assert_eq!(error.hint().unwrap(), "did you mean `group_size`?");
    assert!(
        from("loss = \"ppo\"")
            .unwrap_err()
            .to_string()
            .contains("ppo")
    );
}

#[test]
fn steps_of_whole_rollouts() {
    let settings = Grpo {
        num_prompts_per_step: 4,
        num_minibatches: 2,
        inner_epochs: 3,
        epochs: 2,
        ..Grpo::default()
    };
    // 2 x 21 prompts make 5 rollouts of 8, of 6 updates each
    assert_eq!(settings.total_steps(21), 30);
    assert_eq!(
        Grpo {
            num_steps: Some(7),
            ..settings
        }
        .total_steps(21),
        7
    );
}

#[test]
fn a_remote_engine() {
    let from = |more: &str, remote: &str| {
        from(&format!(
            "{more}\n[remote]\nengine = \"vllm\"\nurl = \"http://localhost:8000\"\n{remote}"
        ))
    };
    let found = from("", "").unwrap();
    let remote = found.remote.clone().unwrap();
    assert_eq!((remote.sync_every_steps, remote.retries), (1, 5));
    // where it is and how long it is waited for changes nothing
    let elsewhere = from(
        "",
        "model = \"m\"\nconcurrency = 3\ntimeout_s = 5\nweights_dir = \"/shared\"",
    );
    assert_eq!(elsewhere.unwrap().learned(), found.learned());
    assert_ne!(Grpo::default().learned(), found.learned());
    let two = from("num_minibatches = 2", "sync_every_steps = 2").unwrap();
    assert_ne!(two.learned().remote, found.learned().remote);
    let stale = "correction = \"token_truncate\"";
    assert!(from(stale, "sync_every_steps = 3").is_ok());

    let table = [
        (
            "",
            "concurrency = 0",
            "`grpo.remote.concurrency` must be from 1 to 1024",
        ),
        (
            "",
            "sync_every_steps = 0",
            "`grpo.remote.sync_every_steps` must be at least 1",
        ),
        (
            "",
            "sync_every_steps = 2",
            "`grpo.remote.sync_every_steps` is 2, and a rollout has 1 updates: completions of older weights need a `grpo.correction`",
        ),
        (
            "",
            "timeout_s = 0",
            "`grpo.remote.timeout_s` must be a number of seconds in (0, 86400]",
        ),
        (
            "",
            "model = \"\"",
            "`grpo.remote.model` must be a name, or left out",
        ),
        (
            "temperature = 0.001",
            "",
            "`grpo.temperature` is 0.001, and vLLM samples at 0.01 at least",
        ),
    ];
    for (more, remote, message) in table {
        assert_eq!(from(more, remote).unwrap_err().to_string(), message);
    }
    let error = from("", "api_key = \"secret\"").unwrap_err().to_string();
    assert!(error.contains("unknown field `api_key`"), "{error}");
    let error = super::tests::from("remote = {engine = \"tgi\", url = \"http://x\"}").unwrap_err();
    assert!(
        error.to_string().contains("unknown variant `tgi`"),
        "{error}"
    );
}
