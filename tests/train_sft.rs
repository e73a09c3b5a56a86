//! The training loop on a tiny model: packing, resume, stops, and that it learns.

mod train_common;

use distill::model::CausalLm;
use distill::progress::Stop;
use distill::recipe::{Optimizer, Recompute, ScheduleKind};
use distill::train::{SftSettings, train_sft};
use distill::{Error, Result};
use std::path::Path;
use train_common::{Log, Rows, bits, rows, settings, tiny, tiny_of};

/// Trains a fresh tiny model; what it logged and its weights.
fn run(rows: &Rows, settings: &SftSettings, dir: &Path) -> Result<(Log, Vec<Vec<u32>>)> {
    let model = tiny(7);
    let mut log = Log::default();
    train_sft(&model, rows, settings, dir, &mut log, &Stop::default())?;
    Ok((log, bits(&model)))
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn packing_accumulation_and_recomputation_do_not_change_the_loss() {
    let rows = rows(7);
    let losses = |change: &dyn Fn(&mut SftSettings)| -> Vec<f64> {
        let mut s = settings();
        change(&mut s);
        let (log, _) = run(&rows, &s, temp().path()).unwrap();
        log.steps.iter().map(|r| r.loss).collect()
    };
    let whole = losses(&|_| ());
    assert_eq!(whole.len(), 6); // 3 + 3 + 1 rows, twice
    let others = [
        losses(&|s| s.packing = false),
        losses(&|s| s.pack_length = 12),
        losses(&|s| s.recompute = Recompute::Block),
    ];
    for other in &others {
        for (a, b) in whole.iter().zip(other) {
            assert!((a - b).abs() < 1e-5, "{whole:?} and {other:?}");
        }
    }
}

#[test]
fn records_count_what_went_through() {
    let rows = rows(7);
    let s = SftSettings {
        warmup_ratio: 0.3, // 2 of 6 steps
        shuffle: false,
        pack_length: 12,
        ..settings()
    };
    let (log, _) = run(&rows, &s, temp().path()).unwrap();
    let lens: Vec<u64> = rows.0.iter().map(|(t, _)| t.len() as u64).collect();
    let all: u64 = lens.iter().sum();
    let steps: Vec<usize> = log.steps.iter().map(|r| r.step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    let tokens: Vec<u64> = log.steps.iter().map(|r| r.num_tokens).collect();
    let first: u64 = lens[..3].iter().sum();
    let second: u64 = lens[..6].iter().sum();
    assert_eq!(
        tokens,
        [first, second, all, all + first, all + second, 2 * all]
    );
    let sequences: Vec<usize> = log.steps.iter().map(|r| r.num_sequences).collect();
    assert_eq!(sequences, [3, 3, 1, 3, 3, 1]);
    let epochs: Vec<f64> = log.steps.iter().map(|r| r.epoch).collect();
    assert_eq!(epochs[2], 1.0);
    assert_eq!(epochs[5], 2.0);
    let rates: Vec<f64> = log.steps.iter().map(|r| r.learning_rate).collect();
    assert_eq!(rates[..3], [0.0, 0.5e-2, 1e-2]);
    // the file order repeats: the second epoch sees the rows of the first
    assert_eq!(log.steps[5].num_sequences, log.steps[2].num_sequences);
    let trained: usize = rows
        .0
        .iter()
        .map(|(_, m)| m[1..].iter().filter(|&&t| t == 1).count())
        .sum();
    assert_eq!(log.steps[5].num_trained_tokens, 2 * trained as u64);
    // at most 12 tokens a pack, so three rows of 5 to 11 tokens need at least two
    assert!(log.steps[0].num_micro_batches >= 2);
}

#[test]
fn first_loss_is_the_mean_log_probability() {
    // one row, so its loss is that of the model before any update
    let rows = rows(1);
    let s = SftSettings {
        max_steps: Some(1),
        ..settings()
    };
    let (log, _) = run(&rows, &s, temp().path()).unwrap();
    let model = tiny(7);
    let (tokens, trained) = &rows.0[0];
    let logits = model
        .logits(tokens, &[tokens.len()])
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let (mut sum, mut n) = (0.0, 0);
    for t in 1..tokens.len() {
        if trained[t] == 1 {
            let row = &logits[t - 1];
            let z: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            sum += z.ln() - f64::from(row[tokens[t] as usize]);
            n += 1;
        }
    }
    assert!((log.steps[0].loss - sum / f64::from(n)).abs() < 1e-5);
}

#[test]
fn resume_after_every_step_ends_with_the_same_bits() {
    let rows = rows(7);
    let s = SftSettings {
        checkpoint_every_steps: 1,
        weight_decay: 0.1,
        ..settings()
    };
    let (straight, weights) = run(&rows, &s, temp().path()).unwrap();
    for stop_after in 1..6 {
        let dir = temp();
        let stop = Stop::default();
        let mut log = Log::stopping_after(stop_after, stop.clone());
        let error = train_sft(&tiny(7), &rows, &s, dir.path(), &mut log, &stop).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with(&format!("after step {stop_after} of 6"))
        );
        // another process: other weights until the checkpoint is read
        let model = tiny(99);
        let mut rest = Log::default();
        let outcome =
            train_sft(&model, &rows, &s, dir.path(), &mut rest, &Stop::default()).unwrap();
        assert_eq!(rest.resumed, [stop_after]);
        assert_eq!(
            (outcome.num_steps, outcome.num_resumed_steps),
            (6, stop_after)
        );
        assert_eq!(bits(&model), weights, "stopped after {stop_after}");
        let both: Vec<f64> = log
            .steps
            .iter()
            .chain(&rest.steps)
            .map(|r| r.loss)
            .collect();
        let once: Vec<f64> = straight.steps.iter().map(|r| r.loss).collect();
        assert_eq!(both, once);
        // a third one finds nothing to do
        let model = tiny(3);
        let mut nothing = Log::default();
        train_sft(
            &model,
            &rows,
            &s,
            dir.path(),
            &mut nothing,
            &Stop::default(),
        )
        .unwrap();
        assert!(nothing.steps.is_empty());
        assert_eq!(bits(&model), weights);
    }
}

#[test]
fn states_in_8_bits_learn_as_well_and_resume_with_the_same_bits() {
    let rows = rows(7);
    let train = |model: &CausalLm, s: &SftSettings, dir: &Path, stop_after: usize| {
        let stop = Stop::default();
        let mut log = Log::stopping_after(stop_after, stop.clone());
        let outcome = train_sft(model, &rows, s, dir, &mut log, &stop);
        (
            outcome,
            log.steps.iter().map(|r| r.loss).collect::<Vec<_>>(),
        )
    };
    // the feed-forward has matrices of 4,096 values
    let (full, eight) = (tiny_of(7, 256), tiny_of(7, 256));
    let s = SftSettings {
        epochs: 10,
        optimizer: Optimizer::AdamW8bit,
        ..settings()
    };
    let (_, losses) = train(&eight, &s, temp().path(), usize::MAX);
    let in_f32 = SftSettings {
        optimizer: Optimizer::AdamW,
        ..s.clone()
    };
    let (_, losses_full) = train(&full, &in_f32, temp().path(), usize::MAX);
    assert_ne!(bits(&eight), bits(&full));
    assert_eq!(losses[0], losses_full[0]);
    let last = losses.len() - 1;
    assert!(losses[last] < losses[0] / 3.0, "{losses:?}");
    assert!(
        (losses[last] - losses_full[last]).abs() < 0.05 * losses[0],
        "{losses:?} {losses_full:?}"
    );

    let dir = temp();
    let (outcome, _) = train(&tiny_of(7, 256), &s, dir.path(), 11);
    assert!(matches!(outcome, Err(Error::Interrupted { .. })));
    let resumed = tiny_of(99, 256);
    let (outcome, rest) = train(&resumed, &s, dir.path(), usize::MAX);
    assert_eq!(outcome.unwrap().num_resumed_steps, 11);
    assert_eq!(rest, losses[11..]);
    assert_eq!(bits(&resumed), bits(&eight));
    let (outcome, _) = train(&tiny_of(7, 256), &in_f32, dir.path(), usize::MAX);
    let error = outcome.unwrap_err().to_string();
    assert!(
        error.ends_with("is of a run with other settings, model or data"),
        "{error}"
    );
}

#[test]
fn gradients_applied_as_they_come_give_the_same_bits() {
    let rows = rows(7);
    for optimizer in [Optimizer::AdamW, Optimizer::AdamW8bit] {
        for recompute in [Recompute::None, Recompute::KeepAttention, Recompute::Block] {
            let run = |max_grad_norm: f64| {
                let s = SftSettings {
                    optimizer,
                    recompute,
                    max_grad_norm,
                    weight_decay: 0.1,
                    ..settings()
                };
                let (model, mut log) = (tiny_of(7, 256), Log::default());
                let stop = Stop::default();
                train_sft(&model, &rows, &s, temp().path(), &mut log, &stop).unwrap();
                let steps = log.steps.iter();
                let told: Vec<_> = steps
                    .map(|r| (r.loss, r.grad_norm, r.num_micro_batches))
                    .collect();
                (told, bits(&model))
            };
            // clipping at a norm that is never reached multiplies by 1
            let (whole, at_once) = (run(1e30), run(0.0));
            assert!(whole.0.iter().all(|(_, _, packs)| *packs == 1));
            assert_eq!(whole.0, at_once.0);
            assert_eq!(whole.1, at_once.1);
        }
    }
}

#[test]
fn stop_before_the_first_step_saves_nothing() {
    let dir = temp();
    let stop = Stop::default();
    stop.request();
    let mut log = Log::default();
    let error =
        train_sft(&tiny(7), &rows(3), &settings(), dir.path(), &mut log, &stop).unwrap_err();
    assert!(
        error.to_string().starts_with("after step 0 of 2"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn checkpoints_come_when_due_and_old_ones_go() {
    let dir = temp();
    let s = SftSettings {
        batch_size: 1,
        checkpoint_every_steps: 2,
        ..settings()
    };
    // what a killed process left behind
    std::fs::create_dir(dir.path().join("checkpoint-9.partial")).unwrap();
    let (log, _) = run(&rows(5), &s, dir.path()).unwrap();
    assert_eq!(log.checkpoints, [2, 4, 5, 6, 8, 10]); // every second, and the end of each epoch
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["checkpoint-10", "checkpoint-8"]);
}

#[test]
fn damaged_checkpoint_is_passed_over_and_all_damaged_is_an_error() {
    let rows = rows(7);
    let s = settings();
    let dir = temp();
    let (_, weights) = run(&rows, &s, dir.path()).unwrap();
    let flip = |folder: &str, name: &str| {
        let path = dir.path().join(folder).join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 3;
        bytes[at] ^= 0x10;
        std::fs::write(path, bytes).unwrap();
    };
    flip("checkpoint-6", "model.safetensors");
    let model = tiny(1);
    let mut log = Log::default();
    train_sft(&model, &rows, &s, dir.path(), &mut log, &Stop::default()).unwrap();
    assert_eq!(log.resumed, [3]);
    assert!(
        log.warnings[0]
            .contains("checkpoint-6` is damaged: the content of `model.safetensors` has changed"),
        "{:?}",
        log.warnings
    );
    assert_eq!(bits(&model), weights);

    flip("checkpoint-3", "optimizer.safetensors");
    std::fs::remove_file(dir.path().join("checkpoint-6/checkpoint.json")).unwrap();
    let before = bits(&model);
    let error = train_sft(&model, &rows, &s, dir.path(), &mut log, &Stop::default()).unwrap_err();
    assert!(
        error.to_string().contains("checkpoint-3` is damaged"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--fresh"));
    assert_eq!(bits(&model), before);
}

#[test]
fn checkpoint_of_other_settings_is_refused() {
    let dir = temp();
    run(&rows(7), &settings(), dir.path()).unwrap();
    let other = SftSettings {
        learning_rate: 1e-3,
        ..settings()
    };
    let error = run(&rows(7), &other, dir.path()).err().unwrap();
    assert!(
        error
            .to_string()
            .ends_with("is of a run with other settings, model or data"),
        "{error}"
    );
    assert!(run(&rows(6), &settings(), dir.path()).is_err());
}

#[test]
fn unusable_rows_are_refused_by_name() {
    let dir = temp();
    let mut long = rows(3);
    long.0[1] = (vec![1; 33], vec![1; 33]);
    let error = run(&long, &settings(), dir.path()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "row 1 has 33 tokens; a pack holds 1 to 32"
    );
    let mut silent = rows(3);
    silent.0.iter_mut().for_each(|(_, mask)| mask[1..].fill(0));
    let error = run(&silent, &settings(), dir.path())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.starts_with("step 1: no token of `row ") && error.ends_with("is trained"),
        "{error}"
    );
    let error = run(&Rows(vec![]), &settings(), dir.path()).err().unwrap();
    assert_eq!(error.to_string(), "there is no row to train on");
}

#[test]
fn a_set_that_can_be_memorised_is_memorised() {
    let s = SftSettings {
        epochs: 60,
        batch_size: 4,
        learning_rate: 2e-2,
        schedule: ScheduleKind::Linear,
        ..settings()
    };
    let (log, _) = run(&rows(4), &s, temp().path()).unwrap();
    let (first, last) = (log.steps[0].loss, log.steps[59].loss);
    assert!(first > 2.5 && last < 0.02, "from {first} to {last}");
}

/// Puts a value into one weight of the model.
fn poke(model: &distill::model::CausalLm, name: &str, value: f32) {
    let parameter = model.parameters().iter().find(|p| p.name == name).unwrap();
    let flat = parameter.value.flatten_all().unwrap();
    let mut values = flat.to_vec1::<f32>().unwrap();
    values[0] = value;
    let new =
        candle_core::Tensor::from_vec(values, parameter.value.shape(), model.device()).unwrap();
    parameter.value.slice_set(&new, 0, 0).unwrap();
}

#[test]
fn loss_that_is_no_number_names_step_and_rows_and_leaves_the_weights() {
    // token 20 stands in one row alone; its huge embedding makes the scores of that row overflow
    let mut rows = rows(3);
    for (tokens, _) in &mut rows.0 {
        tokens
            .iter_mut()
            .filter(|t| **t == 20)
            .for_each(|t| *t = 21);
    }
    rows.0[1].0[2] = 20;
    let model = tiny(7);
    poke(&model, "model.norm.weight", 1.0);
    let embedding = &model.parameters()[0];
    assert_eq!(embedding.name, "model.embed_tokens.weight");
    let mut values = embedding.value.to_vec2::<f32>().unwrap();
    values[20].fill(3e38);
    let new = candle_core::Tensor::new(values, model.device()).unwrap();
    embedding.value.slice_set(&new, 0, 0).unwrap();
    let before = bits(&model);
    let mut log = Log::default();
    let error = train_sft(
        &model,
        &rows,
        &settings(),
        temp().path(),
        &mut log,
        &Stop::default(),
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::NonFinite { .. }), "{text}");
    assert!(
        text.starts_with("step 1: ") && text.contains("`row 1`"),
        "{text}"
    );
    assert!(log.steps.is_empty() && log.checkpoints.is_empty());
    assert_eq!(bits(&model), before);
}

/// Gives a weight other values; `at` gets place and present value.
fn change(model: &distill::model::CausalLm, name: &str, at: impl Fn(usize, f32) -> f32) {
    let parameter = model.parameters().iter().find(|p| p.name == name).unwrap();
    let old = parameter.value.flatten_all().unwrap();
    let old = old.to_vec1::<f32>().unwrap();
    let values: Vec<f32> = old.iter().enumerate().map(|(i, &v)| at(i, v)).collect();
    let new =
        candle_core::Tensor::from_vec(values, parameter.value.shape(), model.device()).unwrap();
    parameter.value.slice_set(&new, 0, 0).unwrap();
}

#[test]
fn a_gradient_that_overflows_under_a_finite_loss_names_step_and_row_and_leaves_the_weights() {
    // Channel 15 (of 16) of the residual stream is token 20's alone. It drives feature 0 of the first feed-forward close
    // to the largest f32; nothing reads that feature, so the loss knows nothing of it, but the gradient of the weights
    // that would read it is the feature times the incoming gradient.
    let rows = |with_20: Option<usize>| {
        let mut rows = rows(3);
        for (i, (tokens, _)) in rows.0.iter_mut().enumerate() {
            tokens
                .iter_mut()
                .filter(|t| **t == 20)
                .for_each(|t| *t = 21);
            if Some(i) == with_20 {
                tokens[2] = 20;
            }
        }
        rows
    };
    let model = |up: f32| {
        let model = tiny(7);
        change(&model, "model.embed_tokens.weight", |i, v| match i % 16 {
            15 => f32::from(u8::from(i / 16 == 20)),
            _ => v,
        });
        for name in ["self_attn.o_proj", "mlp.down_proj"] {
            let columns = if name == "mlp.down_proj" { 24 } else { 16 };
            change(&model, &format!("model.layers.0.{name}.weight"), |i, v| {
                let reads_feature_0 = name == "mlp.down_proj" && i % columns == 0;
                let writes_channel_15 = i / columns == 15;
                if reads_feature_0 || writes_channel_15 {
                    0.0
                } else {
                    v
                }
            });
        }
        for (name, scale) in [("gate", 1.0), ("up", up)] {
            change(
                &model,
                &format!("model.layers.0.mlp.{name}_proj.weight"),
                |i, v| match (i / 16, i % 16) {
                    (0, 15) => scale,
                    (0, _) => 0.0,
                    _ => v,
                },
            );
        }
        // a larger incoming gradient
        change(&model, "model.norm.weight", |_, _| 40.0);
        model
    };
    let train = |model: &distill::model::CausalLm, rows: &Rows, log: &mut Log| {
        let one = SftSettings {
            max_steps: Some(1),
            ..settings()
        };
        train_sft(model, rows, &one, temp().path(), log, &Stop::default())
    };
    let mut log = Log::default();
    train(&model(2e37), &rows(None), &mut log).unwrap();
    assert_eq!(log.steps.len(), 1);

    for (up, what) in [
        (
            2e37,
            "the gradient of `model.layers.0.mlp.down_proj.weight`",
        ),
        // every value of the gradient is finite, its squares are not
        (1e30, "the norm of the gradient"),
    ] {
        let model = model(up);
        let before = bits(&model);
        let mut log = Log::default();
        let error = train(&model, &rows(Some(1)), &mut log).unwrap_err();
        assert!(matches!(error, Error::NonFinite { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            format!(
                "step 1: {what} is not finite because of `row 1`; the weights are as they were before the step"
            )
        );
        assert!(error.hint().unwrap().contains("learning_rate"));
        assert!(log.steps.is_empty() && log.checkpoints.is_empty());
        assert_eq!(bits(&model), before);
    }
}

#[test]
fn broken_weights_are_named() {
    let model = tiny(7);
    poke(&model, "model.layers.1.mlp.up_proj.weight", f32::NAN);
    let mut log = Log::default();
    let error = train_sft(
        &model,
        &rows(3),
        &settings(),
        temp().path(),
        &mut log,
        &Stop::default(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "step 1: the weights of `model.layers.1.mlp.up_proj.weight` are not finite"
    );
}
