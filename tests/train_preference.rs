//! Preference and reward-model training on a tiny model: resume, stops, packing, and that they learn.

mod train_common;

use distill::data::{Judged, JudgedRow};
use distill::model::{CausalLm, LoadOptions, Recompute, RewardModel};
use distill::progress::Stop;
use distill::recipe::preference::{Preference, PreferenceLoss, PreferenceObjective};
use distill::tokenize::Tokenized;
use distill::train::judged_loop::{JudgedJob, split};
use distill::train::reward_model::RewardObjective;
use distill::train::{
    JudgedOutcome, JudgedRecord, Observer, SftSettings, train_preference, train_reward_model,
};
use distill::{Error, Result};
use std::path::Path;
use train_common::{VOCAB, bits, settings, tiny};

/// Remembers the records, and can ask to stop.
#[derive(Default)]
struct Log {
    steps: Vec<JudgedRecord>,
    stop: Option<(usize, Stop)>,
}

impl Observer<JudgedRecord> for Log {
    fn step(&mut self, record: &JudgedRecord) -> Result<()> {
        self.steps.push(record.clone());
        if let Some((step, stop)) = &self.stop
            && *step == record.base.step
        {
            stop.request();
        }
        Ok(())
    }
    fn checkpoint(&mut self, _: usize, _: &Path) -> Result<()> {
        Ok(())
    }
    fn resumed(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

fn sequence(prompt: usize, answer: &[u32]) -> Tokenized {
    let prompt: Vec<u32> = (0..3).map(|t| ((prompt + t) % 6) as u32).collect();
    Tokenized {
        trained: (0..3 + answer.len()).map(|t| t >= 3).collect(),
        tokens: [&prompt, answer].concat(),
        joint_differs: false,
    }
}

/// Answers that end with token 9 are better than those that end with 8; lengths differ.
fn pairs(n: usize) -> Vec<JudgedRow> {
    let filler = |i: usize, n: usize| -> Vec<u32> {
        (0..n)
            .map(|t| (10 + (i * 5 + t * 3) % (VOCAB - 10)) as u32)
            .collect()
    };
    (0..n)
        .map(|i| JudgedRow {
            name: format!("row {i}"),
            judged: Judged::Pair {
                chosen: sequence(i, &[filler(i, 1 + i % 3), vec![9]].concat()),
                rejected: sequence(i, &[filler(i + 1, 1 + i % 4), vec![8]].concat()),
                margin: 0.0,
            },
        })
        .collect()
}

fn objective(loss: PreferenceLoss) -> PreferenceObjective {
    Preference {
        loss,
        ..Preference::default()
    }
    .objective()
}

fn job<'a>(
    rows: &'a [JudgedRow],
    held_out: &'a [JudgedRow],
    settings: &'a SftSettings,
    dir: &'a Path,
    stop: &'a Stop,
) -> JudgedJob<'a> {
    JudgedJob {
        rows,
        held_out,
        settings,
        eval_every_steps: 2,
        dir,
        stop,
    }
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn settings_of(change: impl Fn(&mut SftSettings)) -> SftSettings {
    let mut settings = settings();
    settings.batch_size = 4;
    settings.pack_length = 40;
    change(&mut settings);
    settings
}

fn prefer(
    loss: PreferenceLoss,
    rows: &[JudgedRow],
    s: &SftSettings,
) -> (Vec<JudgedRecord>, JudgedOutcome) {
    let (dir, mut log) = (temp(), Log::default());
    let (trained, measured) = split(rows.to_vec(), 0.2, 3);
    let outcome = train_preference(
        &tiny(7),
        objective(loss),
        &job(&trained, &measured, s, dir.path(), &Stop::default()),
        &mut log,
    )
    .unwrap();
    (log.steps, outcome)
}

#[test]
fn no_prompt_is_both_trained_on_and_measured() {
    let rows = [pairs(30), pairs(30)].concat();
    let prompts = |rows: &[JudgedRow]| -> std::collections::HashSet<Vec<u32>> {
        rows.iter().map(|row| row.prompt().to_vec()).collect()
    };
    let num_prompts = prompts(&rows).len();
    for seed in 0..5 {
        let (trained, measured) = split(rows.clone(), 0.2, seed);
        assert_eq!(trained.len() + measured.len(), rows.len());
        assert!(prompts(&trained).is_disjoint(&prompts(&measured)));
        let wanted = (0.2 * num_prompts as f64).round() as usize;
        assert_eq!(prompts(&measured).len(), wanted);
    }
    // of one prompt nothing can be spared
    let (trained, measured) = split([pairs(1), pairs(1)].concat(), 0.5, 0);
    assert_eq!((trained.len(), measured.len()), (2, 0));
}

#[test]
fn every_loss_learns_what_is_preferred() {
    let rows = pairs(30);
    for loss in [
        PreferenceLoss::Dpo,
        PreferenceLoss::Rpo,
        PreferenceLoss::Simpo,
    ] {
        let s = settings_of(|s| s.epochs = 8);
        let (steps, outcome) = prefer(loss, &rows, &s);
        let accuracy = |at: usize| steps[at].means["accuracy"];
        assert_eq!(accuracy(steps.len() - 1), 1.0, "{loss:?}");
        assert_eq!(outcome.held_out["held_out_accuracy"], 1.0, "{loss:?}");
        assert_eq!((outcome.num_rows, outcome.num_held_out), (25, 5));
        if loss == PreferenceLoss::Dpo {
            // the policy is its reference
            assert!((steps[0].base.loss - 2f64.ln()).abs() < 1e-6);
        }
        assert_eq!(
            steps[0].means.contains_key("nll"),
            loss == PreferenceLoss::Rpo
        );
        assert!(!steps[0].means.contains_key("held_out_loss"));
        assert!(steps[1].means.contains_key("held_out_loss"));
    }
}

#[test]
fn packing_accumulation_and_recomputation_do_not_change_the_loss() {
    let rows = pairs(9);
    for loss in [PreferenceLoss::Rpo, PreferenceLoss::Simpo] {
        let losses = |change: &dyn Fn(&mut SftSettings)| -> Vec<f64> {
            let (steps, _) = prefer(loss, &rows, &settings_of(change));
            steps.iter().map(|r| r.base.loss).collect()
        };
        let whole = losses(&|s| s.pack_length = 400);
        for other in [
            losses(&|s| s.packing = false),
            losses(&|s| s.pack_length = 20),
            losses(&|s| s.recompute = distill::recipe::Recompute::Block),
        ] {
            assert_eq!(whole.len(), other.len());
            for (a, b) in whole.iter().zip(&other) {
                assert!((a - b).abs() < 2e-5, "{whole:?} and {other:?}");
            }
        }
    }
}

/// Trains and returns the weights.
type Train<'a> = dyn Fn(&Path, &Stop, &mut Log) -> Result<Vec<Vec<u32>>> + 'a;

/// Runs to the end, or stops after a step and goes on with other processes' eyes: weights and records.
fn in_parts(train: &Train<'_>, stops: &[usize]) -> (Vec<JudgedRecord>, Vec<Vec<u32>>) {
    let dir = temp();
    let mut steps: Vec<JudgedRecord> = Vec::new();
    for &after in stops {
        let stop = Stop::default();
        let mut log = Log {
            stop: Some((after, stop.clone())),
            ..Log::default()
        };
        let error = train(dir.path(), &stop, &mut log).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
        steps.extend(log.steps);
    }
    let mut log = Log::default();
    let bits = train(dir.path(), &Stop::default(), &mut log).unwrap();
    steps.extend(log.steps);
    (steps, bits)
}

fn same_records(a: &[JudgedRecord], b: &[JudgedRecord]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.base.loss.to_bits(), b.base.loss.to_bits());
        assert_eq!(a.base.num_tokens, b.base.num_tokens);
        assert_eq!(a.means, b.means);
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_bit() {
    let rows = pairs(11);
    let (trained, measured) = split(rows, 0.2, 3);
    let s = settings_of(|s| s.epochs = 3);
    let preference = |dir: &Path, stop: &Stop, log: &mut Log| {
        let model = tiny(7);
        let job = job(&trained, &measured, &s, dir, stop);
        train_preference(&model, objective(PreferenceLoss::Rpo), &job, log)?;
        Ok(bits(&model))
    };
    let scores = |dir: &Path, stop: &Stop, log: &mut Log| {
        let model = RewardModel::from_lm(tiny(7), None, 5)?;
        let job = job(&trained, &measured, &s, dir, stop);
        train_reward_model(&model, RewardObjective::default(), &job, log)?;
        Ok(bits(model.weights()))
    };
    for train in [&preference as &Train<'_>, &scores] {
        let (whole, weights) = in_parts(train, &[]);
        let (parts, after) = in_parts(train, &[1, 4]);
        same_records(&whole, &parts);
        assert_eq!(weights, after);
    }
}

#[test]
fn another_reference_is_not_mistaken_for_this_one() {
    let (rows, dir) = (pairs(4), temp());
    let losses = |seed: u64, key: &str| {
        let s = settings_of(|s| {
            s.max_steps = Some(1);
            s.inputs_key = key.to_string();
        });
        let mut log = Log::default();
        // checkpoints of the other run would be refused
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        let stop = Stop::default();
        let job = job(&rows, &[], &s, dir.path(), &stop);
        train_preference(&tiny(seed), objective(PreferenceLoss::Dpo), &job, &mut log).unwrap();
        log.steps[0].base.loss
    };
    for (seed, key) in [(1, "a"), (2, "b"), (1, "a")] {
        assert!((losses(seed, key) - 2f64.ln()).abs() < 1e-6);
    }
}

#[test]
fn a_reward_model_learns_pairs_and_labels_and_is_saved() {
    let rows = pairs(30);
    let labelled: Vec<JudgedRow> = rows
        .iter()
        .flat_map(|row| {
            let labels = [true, false];
            row.sequences()
                .zip(labels)
                .map(|(answer, label)| JudgedRow {
                    name: row.name.clone(),
                    judged: Judged::Labelled {
                        answer: answer.clone(),
                        label,
                    },
                })
        })
        .collect();
    for (rows, center_coefficient) in [(&rows, 0.0), (&rows, 0.1), (&labelled, 0.0)] {
        let (dir, mut log) = (temp(), Log::default());
        let model = RewardModel::from_lm(tiny(7), Some(0), 5).unwrap();
        let (trained, measured) = split(rows.clone(), 0.2, 3);
        let s = settings_of(|s| s.epochs = 12);
        let outcome = train_reward_model(
            &model,
            RewardObjective { center_coefficient },
            &job(&trained, &measured, &s, dir.path(), &Stop::default()),
            &mut log,
        )
        .unwrap();
        assert_eq!(outcome.held_out["held_out_accuracy"], 1.0);
        assert!(outcome.held_out["held_out_margin"] > 0.5);

        let saved = dir.path().join("model");
        model.save(&saved, 1 << 30).unwrap();
        let options = LoadOptions {
            device: candle_core::Device::Cpu,
            dtype: candle_core::DType::F32,
        };
        let again = RewardModel::load(&saved, &options).unwrap();
        // padding behind a sequence changes nothing
        let tokens = [5, 6, 7, 0, 0];
        let [whole] = model.scores(&tokens[..3], &[3]).unwrap()[..] else {
            panic!("one score");
        };
        let [padded] = again.scores(&tokens, &[5]).unwrap()[..] else {
            panic!("one score");
        };
        assert!((whole - padded).abs() < 1e-6);
        let error = CausalLm::load(&saved, &options).err().unwrap();
        assert!(
            error.to_string().contains("holds a reward model"),
            "{error}"
        );
    }
    let folder = temp();
    tiny(7).save(folder.path(), 1 << 30).unwrap();
    let options = LoadOptions {
        device: candle_core::Device::Cpu,
        dtype: candle_core::DType::F32,
    };
    let error = RewardModel::load(folder.path(), &options).err().unwrap();
    assert!(
        error.to_string().contains("holds no reward model"),
        "{error}"
    );
}

#[test]
fn gradients_of_scores_are_differences() {
    let model = RewardModel::from_lm(tiny(7), None, 5).unwrap();
    let (tokens, lens) = ([1u32, 2, 3, 9, 4, 5, 8, 12, 13], [4usize, 5]);
    // L = 0.7 r_1 - 0.3 r_2
    let slopes = [0.7f32, -0.3];
    let loss = |model: &RewardModel| -> f64 {
        let scores = model.scores(&tokens, &lens).unwrap();
        scores
            .iter()
            .zip(slopes)
            .map(|(r, g)| f64::from(r * g))
            .sum()
    };
    for recompute in [Recompute::None, Recompute::KeepAttention, Recompute::Block] {
        let mut grads = model.weights().new_gradients();
        let scores = model
            .forward_backward(
                &tokens,
                &lens,
                recompute,
                &mut |_| Ok(slopes.to_vec()),
                &mut grads,
            )
            .unwrap();
        assert_eq!(scores, model.scores(&tokens, &lens).unwrap());
        for (i, parameter) in model.weights().parameters().iter().enumerate() {
            let gradient = grads.get(distill::ops::ParamId(i)).unwrap();
            let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            let norm = gradient
                .iter()
                .map(|g| f64::from(g * g))
                .sum::<f64>()
                .sqrt();
            assert!(norm > 0.0, "`{}` gets no gradient", parameter.name);
            // along the gradient the loss changes by its norm
            let before: Vec<f32> = parameter.value.flatten_all().unwrap().to_vec1().unwrap();
            let h = 2e-3;
            let at = |sign: f64| {
                let moved: Vec<f32> = before
                    .iter()
                    .zip(&gradient)
                    .map(|(w, g)| (f64::from(*w) + sign * h * f64::from(*g) / norm) as f32)
                    .collect();
                let shape = parameter.value.shape();
                let moved = candle_core::Tensor::from_vec(moved, shape, &candle_core::Device::Cpu);
                parameter.value.slice_set(&moved.unwrap(), 0, 0).unwrap();
                loss(&model)
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * h);
            at(0.0);
            assert!(
                (slope / norm - 1.0).abs() < 0.02,
                "`{}`: {slope} and {norm}",
                parameter.name
            );
        }
    }
}

#[test]
fn rows_that_cannot_be_used_are_named() {
    let s = settings_of(|s| s.pack_length = 6);
    let dir = temp();
    let rows = pairs(3);
    let stop = Stop::default();
    let train = |rows: &[JudgedRow], s: &SftSettings| {
        train_preference(
            &tiny(7),
            objective(PreferenceLoss::Simpo),
            &job(rows, &[], s, dir.path(), &stop),
            &mut Log::default(),
        )
        .unwrap_err()
        .to_string()
    };
    assert_eq!(train(&rows, &s), "`row 0` has 10 tokens; a pack holds 6");
    let s = settings_of(|_| ());
    assert_eq!(train(&[], &s), "there is no row to train on");
    let far = JudgedRow {
        name: "far".into(),
        judged: Judged::Pair {
            chosen: sequence(1, &[99]),
            rejected: sequence(1, &[9]),
            margin: 0.0,
        },
    };
    assert_eq!(
        train(&[far], &s),
        "`far`: token 99 is outside the model's vocabulary of 24"
    );
}
