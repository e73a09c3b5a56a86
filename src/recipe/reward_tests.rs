//! What `[[reward]]` tables mean, and which are refused.

use super::*;

#[derive(Debug, Deserialize, Serialize, PartialEq)]
struct Recipe {
    reward: RewardTable,
}

fn read(text: &str) -> Result<RewardTable, String> {
    toml::from_str::<Recipe>(text)
        .map(|recipe| recipe.reward)
        .map_err(|e| e.message().to_string())
}

#[test]
fn presets_and_lists() {
    for (name, preset) in Preset::NAMES {
        assert_eq!(
            read(&format!("reward = \"{name}\"")),
            Ok(RewardTable::Preset(preset))
        );
        let weights: f64 = preset.rewards().iter().map(|r| r.weight).sum();
        assert!(weights > 1.0);
    }
    let list = read(
        "[[reward]]\nname = \"accuracy\"\n[[reward]]\nname = \"cosine\"\nweight = 0.5\nmax_length = 100",
    );
    let expected = vec![
        RewardSettings {
            weight: 1.0,
            domains: Vec::new(),
            kind: RewardKind::Accuracy(AccuracyReward::default()),
        },
        RewardSettings {
            weight: 0.5,
            domains: Vec::new(),
            kind: RewardKind::Cosine(CosineReward {
                max_length: 100,
                ..CosineReward::default()
            }),
        },
    ];
    assert_eq!(list, Ok(RewardTable::List(expected)));
}

#[test]
fn settings_survive_being_written() {
    let names = RewardKind::NAMES.iter().map(|name| match *name {
        "judge" => "[[reward]]\nname = \"judge\"\nurl = \"u\"\nmodel = \"m\"\n".to_string(),
        "reward_model" => "[[reward]]\nname = \"reward_model\"\nmodel = \"m\"\n".to_string(),
        name => format!("[[reward]]\nname = \"{name}\"\nweight = 2\n"),
    });
    let table = read(&names.collect::<String>()).unwrap();
    for (reward, name) in table.rewards().iter().zip(RewardKind::NAMES) {
        assert_eq!(reward.kind.name(), name);
    }
    let recipe = Recipe { reward: table };
    let text = toml::to_string(&recipe).unwrap();
    assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
    let json = serde_json::to_string(&recipe).unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
}

#[test]
fn mistakes_are_named() {
    let cases = [
        (
            "reward = \"r2\"",
            "unknown variant `r2`, expected one of `r1`, `classic`, `dapo`, `open-r1`",
        ),
        ("[[reward]]\nname = \"cosin\"", "unknown variant `cosin`"),
        (
            "[[reward]]\nname = \"cosine\"\nmax_lenght = 3",
            "unknown field `max_lenght`, expected one of",
        ),
        (
            "[[reward]]\nname = \"tag_count\"\nx = 3",
            "unknown field `x`",
        ),
        (
            "[[reward]]\nname = \"format\"\nweight = \"a\"",
            "`weight`: invalid type",
        ),
        ("[[reward]]\nweight = 1", "missing field `name`"),
        (
            "reward = 3",
            "invalid type: integer `3`, expected the name of a preset or a list of rewards",
        ),
    ];
    for (text, expected) in cases {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn what_a_judge_costs_is_not_learned() {
    let with = |more: &str| {
        let text = "[[reward]]\nname = \"judge\"\nurl = \"http://a/v1\"\nmodel = \"m\"\n";
        read(&format!("{text}{more}")).unwrap().learned()
    };
    for same in [
        "max_requests = 5",
        "max_total_tokens = 100",
        "timeout_s = 3.0",
        "concurrency = 1",
        "max_retries = 0",
        "backoff_s = 0.1",
        "cache = \"elsewhere\"",
        "key_variable = \"KEY\"",
    ] {
        assert_eq!(with(same), with(""), "{same}");
    }
    for other in ["temperature = 0.5", "max_tokens = 9", "weight = 2.0"] {
        assert_ne!(with(other), with(""), "{other}");
    }
}
