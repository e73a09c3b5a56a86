//! Training beside frozen weights: what moves and what does not, the reference of GRPO, stopped and resumed.

mod train_common;

use distill::model::{AdapterConfig, CausalLm};
use distill::progress::Stop;
use distill::recipe::grpo::{Grpo, Kl};
use distill::train::grpo_reference::ReferencePolicy;
use distill::train::{GrpoJob, train_grpo, train_sft};
use std::path::Path;
use train_common::{bits, grpo, rows, settings, tiny};

fn adapted(dora: bool) -> CausalLm {
    let config = AdapterConfig {
        rank: 4,
        alpha: 8.0,
        rslora: false,
        dora,
        targets: ["q_proj", "v_proj", "up_proj", "down_proj"]
            .map(str::to_string)
            .to_vec(),
    };
    tiny(3).with_adapters(config, 11).unwrap()
}

fn sft(dir: &Path, stop_after: Option<usize>) -> (CausalLm, train_common::Log) {
    let (model, stop) = (adapted(true), Stop::default());
    let mut log = match stop_after {
        Some(step) => train_common::Log::stopping_after(step, stop.clone()),
        None => train_common::Log::default(),
    };
    let settings = distill::train::SftSettings {
        learning_rate: 5e-2,
        epochs: 4,
        ..settings()
    };
    let result = train_sft(&model, &rows(9), &settings, dir, &mut log, &stop);
    assert_eq!(result.is_ok(), stop_after.is_none());
    (model, log)
}

#[test]
fn sft_moves_the_adapters_alone_and_resumes_to_the_bit() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (model, log) = sft(whole.path(), None);
    let first = log.steps[0].loss;
    let last = log.steps.last().unwrap().loss;
    assert!(last < 0.8 * first, "{first} to {last}");
    assert_eq!(bits(&model.without_adapters().unwrap()), bits(&tiny(3)));
    let saved = whole.path().join(format!("checkpoint-{}", log.steps.len()));
    assert!(saved.join("adapter_model.safetensors").is_file());
    assert!(!saved.join("model.safetensors").exists());

    sft(parts.path(), Some(5));
    let (again, log) = sft(parts.path(), None);
    assert_eq!((log.resumed, log.steps[0].step), (vec![5], 6));
    assert_eq!(bits(&again), bits(&model));
}

fn rl(model: &CausalLm, settings: &Grpo, dir: &Path, log: &mut grpo::Log, stop: &Stop) -> bool {
    let (tokenizer, prompts, rewards) = (grpo::tokenizer(), grpo::prompts(), grpo::rewards());
    let mut engine = distill::generate::LocalEngine::new(model, &tokenizer, settings.batch_size);
    let job = GrpoJob {
        engine: &mut engine,
        prompts: &prompts,
        rewards: &rewards,
        tokenizer: &tokenizer,
        settings,
        stop_ids: &[grpo::END],
        seed: 5,
        inputs_key: "test",
    };
    train_grpo(model, job, dir, log, stop).is_ok()
}

#[test]
fn a_policy_of_adapters_learns_against_its_base_and_resumes_to_the_bit() {
    for reference_every_steps in [0, 6] {
        let settings = Grpo {
            kl: Kl::K3,
            kl_coef: 0.01,
            learning_rate: 5e-2,
            reference_every_steps,
            ..grpo::settings()
        };
        let dir = tempfile::tempdir().unwrap();
        let (model, mut log) = (adapted(false), grpo::Log::default());
        assert!(rl(
            &model,
            &settings,
            dir.path(),
            &mut log,
            &Stop::default()
        ));
        assert!(
            // one word of 24 by chance
            grpo::late(&log.records) > 0.3,
            "{}",
            grpo::late(&log.records)
        );
        assert_eq!(bits(&model.without_adapters().unwrap()), bits(&tiny(3)));
        // the reference is no file: the frozen weights are shared
        assert!(!dir.path().join("reference").exists());
        assert!(log.records[0].kl.is_some_and(|kl| kl.abs() < 1e-6));
        assert!(log.records[5].kl.is_some_and(|kl| kl > 1e-6));

        let parts = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        let mut first = grpo::Log {
            stop: Some((17, stop.clone())),
            ..grpo::Log::default()
        };
        assert!(!rl(
            &adapted(false),
            &settings,
            parts.path(),
            &mut first,
            &stop
        ));
        let (again, mut second) = (adapted(false), grpo::Log::default());
        let stop = Stop::default();
        assert!(rl(&again, &settings, parts.path(), &mut second, &stop));
        assert_eq!(second.resumed, [17]);
        assert_eq!(bits(&again), bits(&model));
        assert_eq!(
            grpo::timeless(&log.records[17..]),
            grpo::timeless(&second.records)
        );
    }
}

#[test]
fn a_reference_in_a_file_is_the_policy_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, settings) = (tiny(3), grpo::settings());
    let reference = ReferencePolicy::of(&policy, &settings, dir.path()).unwrap();
    let learnt = vec![distill::train::grpo_update::Learnt {
        tokens: vec![1, 7, 1, 9, 4, 0],
        num_prompt_tokens: 3,
        is_trained: true,
        ..Default::default()
    }];
    let ask = |reference: &ReferencePolicy| {
        let found = reference.logprobs(&policy, &learnt, &settings).unwrap();
        found[0].clone()
    };
    let before = ask(&reference);
    let kept = dir.path().join("kept.safetensors");
    reference.save(&kept).unwrap();
    for p in policy.parameters() {
        let moved = (&p.value * 1.1).unwrap();
        p.value.slice_set(&moved, 0, 0).unwrap();
    }
    assert_eq!(ask(&reference), before);
    reference.follow(&policy).unwrap();
    let after = ask(&reference);
    assert_ne!(after, before);
    reference.restore(&kept).unwrap();
    assert_eq!(ask(&reference), before);
    // neither is changed through the other
    reference.follow(&policy).unwrap();
    let other = ReferencePolicy::InFile(kept);
    assert_eq!(ask(&other), before);

    std::fs::write(dir.path().join("reference/reference.safetensors"), "no").unwrap();
    let error = reference.logprobs(&policy, &learnt, &settings).unwrap_err();
    assert!(
        error.to_string().contains("reference.safetensors"),
        "{error}"
    );
    reference.close().unwrap();
    assert!(!dir.path().join("reference").exists());
}
