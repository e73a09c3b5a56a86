//! Rewards against what open-r1's `rewards.py` and TRL's `rewards` give for texts of the same forms: where the formulas
//! agree, and, one by one, where they do not and why.

use distill::recipe::reward::RewardTable;
use distill::reward::{Group, Rewards, Sample, Tools};

/// The values of one reward for the samples of one prompt.
fn values(reward: &str, gold: &str, texts: &[&str]) -> Vec<Option<f64>> {
    #[derive(serde::Deserialize)]
    struct Recipe {
        reward: RewardTable,
    }
    let (name, settings) = reward.split_once(' ').unwrap_or((reward, ""));
    let toml = format!(
        "[[reward]]\nname = \"{name}\"\n{}",
        settings.replace(", ", "\n")
    );
    let recipe: Recipe = toml::from_str(&toml).unwrap_or_else(|e| panic!("{reward}: {e}"));
    let rewards = Rewards::build(&recipe.reward, Tools::default()).unwrap();
    let golds = [gold.to_string()];
    let group = Group {
        golds: &golds,
        samples: texts
            .iter()
            .map(|text| Sample {
                text,
                num_tokens: None,
                truncated: false,
            })
            .collect(),
        ..Group::default()
    };
    let scored = rewards.score_groups(&[group]).unwrap().remove(0);
    scored.iter().map(|one| one.parts[0].value).collect()
}

fn assert_values(reward: &str, gold: &str, texts: &[&str], expected: &[Option<f64>]) {
    let found = values(reward, gold, texts);
    let same = |(a, b): (&Option<f64>, &Option<f64>)| match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() < 1e-9,
        (None, None) => true,
        _ => false,
    };
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(same),
        "{reward} {gold:?} {texts:?}: {found:?}, not {expected:?}"
    );
}

const RIGHT: &str = r"\boxed{\frac{7}{30}}";
const WRONG: &str = r"\boxed{\frac{8}{30}}";
const GOLD: &str = r"\frac{7}{30}";

#[test]
fn agreement() {
    let cosine = "cosine max_length = 100";
    let length = |text: &str| text.chars().count() as f64 / 100.0;
    let wave = |from: f64, to: f64, x: f64| {
        to + 0.5 * (from - to) * (1.0 + (std::f64::consts::PI * x).cos())
    };
    let padded = |text: &str| format!("{text}{}", " ".repeat(60));
    let (right_padded, wrong_padded) = (padded(RIGHT), padded(WRONG));
    let cases: Vec<(&str, &str, &str, f64)> = vec![
        // reward, gold, text, value
        ("accuracy", GOLD, RIGHT, 1.0),
        ("accuracy", GOLD, WRONG, 0.0),
        ("accuracy", "7/30", RIGHT, 1.0),
        ("accuracy", "12", r"\boxed{6}", 0.0),
        ("accuracy", r"\frac{1}{7}", r"\boxed{\frac{1}{7}}", 1.0),
        // the box in the thinking does not count, one after it does, thinking may be opened by the prompt
        (
            "accuracy",
            r"\boxed{9}",
            r"<think> it is \boxed{9} </think> some text",
            0.0,
        ),
        (
            "accuracy",
            r"\boxed{9}",
            r"<think> it is \boxed{9} </think> rather \boxed{8}",
            0.0,
        ),
        (
            "accuracy",
            GOLD,
            r"<think> we divide </think> \boxed{\frac{7}{30}}",
            1.0,
        ),
        (
            "accuracy",
            GOLD,
            r"we divide </think> \boxed{\frac{7}{30}}",
            1.0,
        ),
        (
            "accuracy",
            GOLD,
            r"<think> we divide </think> \boxed{\frac{8}{30}}",
            0.0,
        ),
        ("accuracy", GOLD, "<think> we never end", 0.0),
        (cosine, GOLD, RIGHT, wave(1.0, 0.5, length(RIGHT))),
        (
            cosine,
            GOLD,
            &right_padded,
            wave(1.0, 0.5, length(&right_padded)),
        ),
        (cosine, GOLD, WRONG, wave(-1.0, -0.5, length(WRONG))),
        (
            cosine,
            GOLD,
            &wrong_padded,
            wave(-1.0, -0.5, length(&wrong_padded)),
        ),
        (
            "format format = \"open-r1\"",
            "",
            "<think>\nWe add.\n</think>\n<answer>\n4\n</answer>",
            1.0,
        ),
        (
            "format format = \"open-r1\"",
            "",
            "<think>\n1. One\n2. Two\n\nSo 4.\n</think>\n<answer>\n4\n</answer>",
            1.0,
        ),
        (
            "format format = \"open-r1\"",
            "",
            "<think>We add</think>",
            0.0,
        ),
        ("format format = \"open-r1\"", "", "<answer>4</answer>", 0.0),
        ("format format = \"open-r1\"", "", "No tags", 0.0),
        (
            "format format = \"open-r1\"",
            "",
            "<think>We add</think><answer>4",
            0.0,
        ),
        (
            "format format = \"open-r1\"",
            "",
            "<think>We</answer><answer>add</think>",
            0.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "<think>\nWe add.\nIt is 4.",
            0.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "We add. It is 4.",
            0.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "We add.</think>\nIt is 4.",
            0.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "We<think>add.</think>\nIt is 4.",
            0.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "<think>We<think>add.</think></think>It is 4.",
            0.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "<think>We</think>\nadd\n<think>them.</think>\nIt is 4.",
            0.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "<think>We add.</think>It is 4.",
            1.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "<think>\nWe\nadd.\n</think>\nIt is 4.",
            1.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "<think>\nWe <other tag> add.</think>\nIt is 4.",
            1.0,
        ),
        (
            "format format = \"think-only\"",
            "",
            "<think></think>\nIt is 4.",
            1.0,
        ),
        (
            "tag_count",
            "",
            "<think>\nWe add\n</think>\n<answer>\n4\n</answer>",
            1.0,
        ),
        ("tag_count", "", "We add\n4", 0.0),
        (
            "tag_count",
            "",
            "<think>\nWe add\n</think>\n4\n</answer>",
            0.75,
        ),
        (
            "tag_count",
            "",
            "<think>\nWe add\n</think>\n<answer>\n4",
            0.75,
        ),
        (
            "tag_count",
            "",
            "We add\n</think>\n<answer>\n4\n</answer>",
            0.75,
        ),
        (
            "tag_count",
            "",
            "<think>\nWe add\n<answer>\n4\n</answer>",
            0.75,
        ),
        (
            "reasoning_steps",
            "",
            "Step 1: We add\nStep 2: We halve\nStep 3: We check",
            1.0,
        ),
        (
            "reasoning_steps",
            "",
            "First, we add.\nSecond, we halve.\nFinally, we check.",
            1.0,
        ),
        ("reasoning_steps", "", "Step 1: We add", 1.0 / 3.0),
        (
            "reasoning_steps",
            "",
            "First, we add.\nFinally, we check.",
            2.0 / 3.0,
        ),
        ("reasoning_steps", "", "Some text without any", 0.0),
        (
            "repetition_penalty max_penalty = -2.0",
            "",
            "so we have so we have a sum",
            -1.0 / 3.0,
        ),
        ("repetition_penalty ngram_size = 2", "", "", 0.0),
        (
            "repetition_penalty max_penalty = -0.5",
            "",
            "X Y Z X Y",
            0.0,
        ),
        ("repetition_penalty", "", "red blue red blue", 0.0),
        (
            "repetition_penalty ngram_size = 2",
            "",
            "so so so so so",
            -0.75,
        ),
        (
            "repetition_penalty",
            "",
            "X Y Z X Y Z U V W X Y Z X Y Z",
            -5.0 / 13.0,
        ),
        ("repetition_penalty", "", "X Y Z U V W", 0.0),
        ("repetition_penalty ngram_size = 2", "", "It IS a SUM", 0.0),
        (
            "repetition_penalty max_penalty = -0.5",
            "",
            "sum sum sum sum",
            -0.25,
        ),
        ("repetition_penalty", "", "sum", 0.0),
        ("repetition_penalty", "", "three other words", 0.0),
        ("repetition_penalty", "", "sum sum sum sum", -0.5),
        ("repetition_penalty", "", "X Y Z X Y Z", -0.25),
        (
            "code_format language = \"python\"",
            "",
            "<think>\nWe print.\n</think>\n<answer>\n```python\nprint(4)\n```\n</answer>",
            1.0,
        ),
        (
            "code_format language = \"rust\"",
            "",
            "<think>\nWe print.\n</think>\n<answer>\n```rust\nfn f() {}\n```\n</answer>",
            1.0,
        ),
        (
            "code_format",
            "",
            "<think>\nWe print.\n</think>\n<answer>\n```rust\nfn f() {}\n```\n</answer>",
            0.0,
        ),
        ("code_format", "", "```python\nprint(4)\n```", 0.0),
        (
            "code_format",
            "",
            "<think>We print</think><answer>some text</answer>",
            0.0,
        ),
        (
            "code_format",
            "",
            "<think>We print</think><answer>```\nprint(4)\n```</answer>",
            0.0,
        ),
        (
            "code_format",
            "",
            "<answer>```python\nprint(4)\n```</answer><think>We print</think>",
            0.0,
        ),
        (
            "code_format",
            "",
            "<think>\n```python\nx = 1\n```\nso\n</think>\n<answer>\n```python\nprint(4)\n```\n</answer>",
            1.0,
        ),
        (
            "soft_overlong max_length = 100, cache_length = 20",
            "",
            "short",
            0.0,
        ),
    ];
    for (reward, gold, text, expected) in &cases {
        assert_values(reward, gold, &[text], &[Some(*expected)]);
    }
    // within a prompt
    let longer = |text: &str| format!("{text}  and so on");
    assert_values(
        "length",
        GOLD,
        &[RIGHT, &longer(RIGHT)],
        &[Some(0.5), Some(-0.5)],
    );
    assert_values(
        "length",
        GOLD,
        &[WRONG, &longer(WRONG)],
        &[Some(0.0), Some(-0.5)],
    );
    assert_values("length", GOLD, &[RIGHT, WRONG], &[Some(0.0), Some(0.0)]);
    // a gold answer that nobody can read
    assert_values(
        "accuracy verifier = \"number\"",
        "so be it",
        &[r"\boxed{43}", "it"],
        &[None, None],
    );
}

/// What open-r1 or TRL give, what we give, and why.
#[test]
fn disagreement() {
    let right_and_garbage = "<think>\nWe add.\n</think>\n<answer>\n4\n</answer>\nand more\n";
    // reward, gold, text, theirs, ours, why
    type Case<'a> = (&'a str, &'a str, &'a str, f64, Option<f64>, &'a str);
    let cases: [Case<'_>; 17] = [
        (
            "format format = \"open-r1\"",
            "",
            right_and_garbage,
            1.0,
            Some(0.0),
            "`$` matches before any line end there: what follows the answer is not looked at",
        ),
        (
            "format",
            "",
            "<think> We add. </think> <answer> 4 </answer>",
            0.0,
            Some(1.0),
            "the paper's template has no newlines; `format = \"open-r1\"` asks for them",
        ),
        (
            "format format = \"open-r1\"",
            "",
            "<think>\n\n</think>\n<answer>\n4\n</answer>",
            1.0,
            Some(0.0),
            "tags without reasoning are no reasoning",
        ),
        (
            "format format = \"open-r1\"",
            "",
            "<think>\na\n</think>\n<answer>\nb\n</answer>\n<answer>\nc\n</answer>",
            1.0,
            Some(0.0),
            "two answers are none",
        ),
        (
            "tag_count",
            "",
            "<think>\n\n</think>\n\n<answer>\n\n</answer>",
            1.0,
            Some(0.5),
            "a tag that closes nothing is not counted: a heap of tags is worth half",
        ),
        (
            "tag_count",
            "",
            right_and_garbage,
            1.0,
            Some(0.75),
            "`</answer>` ends the text",
        ),
        (
            "tag_count",
            "",
            "<think>We add</think><answer>4</answer>",
            0.0,
            Some(1.0),
            "newlines are the business of the format",
        ),
        (
            "reasoning_steps",
            "",
            "We go:\n1. add\n2. halve\n3. check",
            0.0,
            Some(1.0),
            "its pattern for numbered lines only matches at the very beginning",
        ),
        (
            "reasoning_steps",
            "",
            "First, Second, Next, Finally,",
            1.0,
            Some(0.0),
            "markers without steps are no steps",
        ),
        (
            "reasoning_steps",
            "",
            "\n-3\n-4\n-5",
            1.0,
            Some(0.0),
            "negative numbers are no bullets",
        ),
        (
            "cosine max_length = 10",
            "4",
            r"so it is \boxed{4}",
            0.5 + 0.25 * (1.0 + (std::f64::consts::PI * 1.8).cos()),
            Some(0.5),
            "a cosine rises again behind its end: it is held there",
        ),
        (
            "cosine verifier = \"number\"",
            "four",
            r"\boxed{4}",
            1.0,
            None,
            "a gold answer that cannot be read rewards nobody",
        ),
        (
            "length verifier = \"number\"",
            "four",
            r"\boxed{4}",
            0.5,
            None,
            "the same; there it counts as right",
        ),
        (
            "code_format",
            "",
            "<think>\na\n</think>\n<answer>\n```python\n```\n</answer>",
            1.0,
            Some(0.0),
            "a fence without code is no code",
        ),
        (
            "code_format",
            "",
            "<think>\na\n</think>\n<answer>\n```python\nx\n```\n</answer>\nand more",
            1.0,
            Some(0.0),
            "as for the format",
        ),
        (
            "accuracy",
            "forty two",
            r"<think> We add. </think> \boxed{42}",
            f64::NAN,
            Some(0.0),
            "TRL skips gold answers that are no mathematics; here words are compared as words, and these are not 42",
        ),
        (
            "accuracy",
            GOLD,
            r"The answer is \boxed{\frac{7}{30}}, without any reasoning",
            0.0,
            Some(1.0),
            "TRL's reasoning accuracy asks for `</think>`; that is the business of the format",
        ),
    ];
    for (reward, gold, text, theirs, ours, why) in cases {
        assert!(!why.is_empty() && ours != Some(theirs), "{reward} {text:?}");
        assert_values(reward, gold, &[text], &[ours]);
    }
}
