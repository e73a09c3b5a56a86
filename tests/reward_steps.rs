//! Process supervision: which token a step is scored at, and the advantage of every token, with a model small enough to
//! work out by hand; what is refused.

mod cli_support;

use cli_support::model;
use distill::data::Prompt;
use distill::generate::LocalEngine;
use distill::model::{CausalLm, LoadOptions, RewardModel};
use distill::progress::Stop;
use distill::recipe::grpo::{Grpo, Kl, Scale, Supervision};
use distill::recipe::reward::RewardTable;
use distill::reward::{Group, Rewards, Sample, Scored, Tools};
use distill::tokenize::Chat;
use distill::train::grpo::HeldOut;
use distill::train::grpo_record::GrpoRecord;
use distill::train::rollout::Group as Rollouts;
use distill::train::{GrpoJob, GrpoObserver, GrpoPrompt, train_grpo};
use distill::{Error, Result};
use std::path::Path;

fn options() -> LoadOptions {
    LoadOptions {
        device: candle_core::Device::Cpu,
        dtype: candle_core::DType::F32,
    }
}

/// A folder with a reward model, and what its head gives after each token: it sees nothing of those before.
fn scorer(folder: &Path) -> Vec<f64> {
    model::save(folder);
    let lm = CausalLm::load(folder, &options()).unwrap();
    let scorer = RewardModel::from_lm(lm, None, 3).unwrap();
    scorer.save(folder, 1 << 30).unwrap();
    let head = scorer.weights().parameters();
    let head = head.iter().find(|p| p.name == "score.weight").unwrap();
    let head: Vec<f32> = head.value.flatten_all().unwrap().to_vec1().unwrap();
    // a one-hot vector of 16 is four times as long after the norm
    let norm = 1.0 / (1.0f64 / 16.0 + 1e-6).sqrt();
    head.iter().map(|&w| f64::from(w) * norm).collect()
}

/// Letters are tokens from 3 on.
fn token(letter: char) -> usize {
    letter as usize - 'a' as usize + 3
}

fn rewards(toml: &str, separator: Option<&str>) -> Result<Rewards> {
    #[derive(serde::Deserialize)]
    struct Recipe {
        reward: RewardTable,
    }
    let recipe: Recipe = toml::from_str(toml).unwrap();
    let tools = Tools {
        step_separator: separator.map(str::to_string),
        ..Tools::default()
    };
    Rewards::build(&recipe.reward, tools)
}

fn of_model(folder: &Path, more: &str) -> String {
    format!(
        "[[reward]]\nname = \"reward_model\"\nmodel = \"{}\"\nsigmoid = false\n{more}\n",
        folder.display()
    )
}

fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{found:?} for {expected:?}");
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-5, "{found:?} for {expected:?}");
    }
}

fn score(rewards: &Rewards, opening: &str, texts: &[&str]) -> Vec<Scored> {
    let samples = texts.iter().map(|text| Sample {
        text,
        num_tokens: None,
        truncated: false,
    });
    let group = Group {
        prompt: Some("ab"),
        opening,
        samples: samples.collect(),
        ..Group::default()
    };
    rewards.score_groups(&[group]).unwrap().remove(0)
}

#[test]
fn every_step_is_scored_at_its_last_token() {
    let dir = tempfile::tempdir().unwrap();
    let head = scorer(dir.path());
    let at = |letters: &str| letters.chars().map(|c| head[token(c)]).collect::<Vec<_>>();
    let of_steps = rewards(
        &of_model(dir.path(), "steps = true\nweight = 2.0"),
        Some("c"),
    )
    .unwrap();
    // steps end with `c`; what follows the last one is a step too
    let texts = ["abcdca", "ab", "", "cc", "defg hij"];
    for opening in ["", "k", "  kc"] {
        let scored = score(&of_steps, opening, &texts);
        near(&scored[0].parts[0].steps.clone().unwrap(), &at("cca"));
        assert_eq!(scored[0].step_ends, [3, 5, 6]);
        near(&scored[1].parts[0].steps.clone().unwrap(), &at("b"));
        near(&scored[3].parts[0].steps.clone().unwrap(), &at("cc"));
        let mean = at("cca").iter().sum::<f64>() / 3.0;
        near(&[scored[0].parts[0].value.unwrap()], &[mean]);
        near(&scored[0].steps(), &at("cca").map2());
        assert_eq!(scored[0].outcome(), None);
        // an empty completion has no step: it is counted, not punished
        assert_eq!(scored[2].parts[0].value, None);
        assert_eq!(
            scored[2].parts[0].missing.as_deref(),
            Some("there is no step")
        );
        assert!(scored[2].steps().is_empty());
    }
    // the whole is scored at the end of its turn
    let whole = rewards(&of_model(dir.path(), "scope = \"all\""), None).unwrap();
    near(
        &[score(&whole, "", &["abcdca"])[0].total],
        &[head[model::IM_END as usize]],
    );
    let sigmoid = of_model(dir.path(), "steps = true").replace("sigmoid = false", "sigmoid = true");
    let sigmoid = rewards(&sigmoid, Some("c")).unwrap();
    let squashed = at("cca")
        .iter()
        .map(|s| 1.0 / (1.0 + (-s).exp()))
        .collect::<Vec<_>>();
    near(&score(&sigmoid, "", &texts)[0].steps(), &squashed);
}

trait Twice {
    fn map2(self) -> Vec<f64>;
}

impl Twice for Vec<f64> {
    /// Of weight 2.
    fn map2(self) -> Vec<f64> {
        self.into_iter().map(|v| 2.0 * v).collect()
    }
}

#[test]
fn a_rule_rewards_steps_too() {
    let toml = "[[reward]]\nname = \"language_consistency\"\ntarget = \"en\"\nsteps = true\n";
    let of_steps = rewards(toml, Some("\n")).unwrap();
    let text = "the sum of both is seven\n两个数的和是七\n";
    let scored = score(&of_steps, "", &[text]).remove(0);
    assert_eq!(scored.steps(), [1.0, 0.0]);
    assert_eq!((scored.total, scored.outcome()), (0.5, None));
}

#[test]
fn what_means_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    scorer(dir.path());
    let fails = |toml: &str, separator| rewards(toml, separator).err().unwrap();
    let error = fails(&of_model(dir.path(), "steps = true"), None);
    assert_eq!(
        error.to_string(),
        "reward `reward_model`: `steps = true` means nothing here"
    );
    assert!(error.hint().unwrap().contains("supervision"), "{error}");
    let error = fails(
        &of_model(dir.path(), "steps = true\nscope = \"summary\""),
        Some("c"),
    );
    assert!(
        error.to_string().contains("contradict each other"),
        "{error}"
    );

    let grpo = |text: &str| {
        let table: toml::Table = text.parse().unwrap();
        Grpo::from_table(Some(&toml::Value::Table(table)))
    };
    let process = grpo("supervision = \"process\"").unwrap();
    let outcome = grpo("").unwrap();
    let steps: RewardTable = serde_json::from_str(
        r#"[{"name": "language_consistency", "steps": true}, {"name": "accuracy"}]"#,
    )
    .unwrap();
    let whole: RewardTable = serde_json::from_str(r#"[{"name": "accuracy"}]"#).unwrap();
    process.check_rewards(&steps).unwrap();
    outcome.check_rewards(&whole).unwrap();
    for (grpo, rewards, message) in [
        (&process, &whole, "needs a reward of steps"),
        (
            &outcome,
            &steps,
            "means nothing under `grpo.supervision = \"outcome\"`",
        ),
    ] {
        let error = grpo.check_rewards(rewards).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().is_some());
    }
    for (text, message) in [
        ("step_separator = \"\"", "`grpo.step_separator` is empty"),
        (
            "supervision = \"process\"\npreset = \"gspo\"",
            "tells tokens apart, `ratio` of whole completions does not",
        ),
        ("supervision = \"both\"", "unknown variant `both`"),
    ] {
        let error = grpo(text).unwrap_err();
        assert!(error.to_string().contains(message), "{text}: {error}");
    }
}

/// Keeps the groups of a step, and its record.
#[derive(Default)]
struct Kept {
    groups: Vec<Rollouts>,
    records: Vec<GrpoRecord>,
}

impl GrpoObserver for Kept {
    fn step(&mut self, record: &GrpoRecord) -> Result<()> {
        self.records.push(record.clone());
        Ok(())
    }
    fn samples(&mut self, _: usize, groups: &[Rollouts], _: &[GrpoPrompt]) -> Result<()> {
        self.groups.extend(groups.iter().cloned());
        Ok(())
    }
    fn evaluate(&mut self, _: usize) -> Result<Option<HeldOut>> {
        Ok(None)
    }
    fn checkpoint(&mut self, _: usize, _: &Path) -> Result<()> {
        Ok(())
    }
    fn resumed(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// One update of the hand-made model, by rewards of steps and of the whole or of steps alone.
fn learn(toml: &str) -> Kept {
    let dir = tempfile::tempdir().unwrap();
    let rewards = rewards(toml, Some("c")).unwrap();
    model::save(&dir.path().join("policy"));
    let policy = CausalLm::load(&dir.path().join("policy"), &options()).unwrap();
    let chat = Chat::load(&dir.path().join("policy"), None).unwrap();
    let prompts: Vec<GrpoPrompt> = (0..2)
        .map(|i| GrpoPrompt {
            prompt: Prompt {
                id: i.to_string(),
                question: "ab".into(),
                messages: Vec::new(),
                golds: Vec::new(),
                options: Vec::new(),
                domain: None,
                row: serde_json::Map::new(),
            },
            tokens: vec![model::IM_START, 3 + i, model::IM_END, model::IM_START],
            opening: String::new(),
        })
        .collect();
    let settings = Grpo {
        num_steps: Some(1),
        num_prompts_per_step: 2,
        group_size: 8,
        max_new_tokens: 12,
        learning_rate: 0.0,
        kl: Kl::None,
        kl_coef: 0.0,
        supervision: Supervision::Process,
        step_separator: "c".into(),
        advantage: Scale::Group,
        samples_every_steps: 1,
        num_sample_groups: 2,
        ..Grpo::default()
    };
    let mut engine = LocalEngine::new(&policy, &chat.tokenizer, 4);
    let job = GrpoJob {
        engine: &mut engine,
        prompts: &prompts,
        rewards: &rewards,
        tokenizer: &chat.tokenizer,
        settings: &settings,
        stop_ids: &[model::IM_END],
        seed: 11,
        inputs_key: "steps",
    };
    let mut kept = Kept::default();
    train_grpo(
        &policy,
        job,
        &dir.path().join("run"),
        &mut kept,
        &Stop::default(),
    )
    .unwrap_or_else(|e: Error| panic!("{e}"));
    kept
}

/// Mean and standard deviation of a sample.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// The last token of each step of a completion, from its tokens alone: here a letter is a token.
fn ends(tokens: &[u32]) -> Vec<usize> {
    let c = token('c') as u32;
    let spoken = tokens.iter().filter(|t| **t > model::IM_END).count();
    // special tokens leave no text: what comes after the last letter belongs to the last step
    let letters: Vec<usize> = (0..tokens.len())
        .filter(|&i| tokens[i] > model::IM_END)
        .collect();
    let mut ends: Vec<usize> = letters
        .iter()
        .copied()
        .filter(|&i| tokens[i] == c)
        .collect();
    if spoken > 0 && letters.last() != ends.last() {
        ends.push(tokens.len() - 1);
    }
    if let Some(last) = ends.last_mut() {
        *last = tokens.len() - 1;
    }
    ends
}

#[test]
fn a_token_has_the_advantages_of_the_steps_that_end_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let head = scorer(dir.path());
    let steps_alone = of_model(dir.path(), "steps = true");
    let both = format!("{steps_alone}[[reward]]\nname = \"repetition_penalty\"\nngram_size = 1\n");
    for (toml, has_whole) in [(steps_alone, false), (both, true)] {
        let kept = learn(&toml);
        assert_eq!(kept.groups.len(), 2);
        for group in &kept.groups {
            let of_last = |answer: &[u32], end: usize| {
                let letter = answer[..=end].iter().rposition(|t| *t > model::IM_END);
                head[answer[letter.unwrap()] as usize]
            };
            let rewards: Vec<Vec<f64>> = group
                .answers
                .iter()
                .map(|a| {
                    ends(&a.tokens)
                        .iter()
                        .map(|&e| of_last(&a.tokens, e))
                        .collect()
                })
                .collect();
            let (mean, std) = moments(&rewards.concat());
            let wholes: Vec<f64> = group.scored.iter().filter_map(Scored::outcome).collect();
            assert_eq!(wholes.is_empty(), !has_whole);
            for (a, answer) in group.answers.iter().enumerate() {
                let mut expected = vec![0.0; answer.tokens.len()];
                for (end, reward) in ends(&answer.tokens).into_iter().zip(&rewards[a]) {
                    let z = (reward - mean) / std;
                    expected[..=end].iter_mut().for_each(|e| *e += z);
                }
                if has_whole {
                    let (mean, std) = moments(&wholes);
                    let own = group.scored[a].outcome().unwrap();
                    let z = if std > 0.0 { (own - mean) / std } else { 0.0 };
                    expected.iter_mut().for_each(|e| *e += z);
                }
                near(&group.advantages_of(a), &expected);
                let n = expected.len() as f64;
                near(&[group.advantages[a]], &[expected.iter().sum::<f64>() / n]);
            }
        }
        let num: usize = kept
            .groups
            .iter()
            .flat_map(|g| &g.answers)
            .map(|a| ends(&a.tokens).len())
            .sum();
        assert!(num > 8, "{num} steps are few");
        near(
            &[kept.records[0].num_reward_steps.unwrap()],
            &[num as f64 / 16.0],
        );
        assert!(kept.records[0].grad_norm > 0.0);
    }
}

#[test]
fn several_models_have_names_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let head = scorer(dir.path());
    let one = |more: &str| of_model(dir.path(), more);
    let error = rewards(&(one("") + &one("")), None).err().unwrap();
    assert_eq!(error.to_string(), "reward `reward_model` is listed twice");
    assert!(error.hint().unwrap().contains("`label`"));
    let error = rewards(&one("label = \"judge\""), None).err().unwrap();
    assert!(error.to_string().contains("no name of a reward"), "{error}");
    let both = one("label = \"helpful\"\nscope = \"all\"")
        + &one("label = \"careful\"\nsteps = true\nweight = 0.5");
    let rewards = rewards(&both, Some("c")).unwrap();
    let names: Vec<String> = rewards.names().map(|name| name.to_string()).collect();
    assert_eq!(names, ["helpful", "careful"]);
    let scored = score(&rewards, "", &["abcd"]).remove(0);
    let whole = head[model::IM_END as usize];
    near(&[scored.outcome().unwrap()], &[whole]);
    near(
        &scored.steps(),
        &[0.5 * head[token('c')], 0.5 * head[token('d')]],
    );
}
