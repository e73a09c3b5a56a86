//! The GRPO loop on a bandit whose optimum is known: every variant reaches it, a strong pull to the reference keeps the
//! policy where it is, packing changes nothing, and a killed run goes on with the same metrics.

mod train_common;

use distill::generate::{Completion, Engine, LocalEngine, Request, Sampling};
use distill::model::CausalLm;
use distill::progress::Stop;
use distill::recipe::grpo::{Correction, Grpo, Kl, Loss, Preset, Ratio, Scale};
use distill::recipe::reward::{AccuracyReward, RewardKind, RewardSettings, RewardTable};
use distill::reward::{Rewards, Tools};
use distill::train::grpo_record::GrpoRecord;
use distill::train::{GrpoJob, GrpoOutcome, train_grpo};
use distill::verify::Kind;
use distill::{Error, Result};
use std::path::Path;
use train_common::grpo::{END, Log, late, prompts, rewards, settings, timeless, tokenizer};
use train_common::{bits, tiny};

fn train(
    model: &CausalLm,
    settings: &Grpo,
    dir: &Path,
    log: &mut Log,
    stop: &Stop,
) -> Result<GrpoOutcome> {
    let (tokenizer, prompts, rewards) = (tokenizer(), prompts(), rewards());
    let mut engine = LocalEngine::new(model, &tokenizer, settings.batch_size);
    let job = GrpoJob {
        engine: &mut engine,
        prompts: &prompts,
        rewards: &rewards,
        tokenizer: &tokenizer,
        settings,
        stop_ids: &[END],
        seed: 5,
        inputs_key: "test",
    };
    train_grpo(model, job, dir, log, stop)
}

fn run(settings: &Grpo) -> (CausalLm, Vec<GrpoRecord>) {
    let (model, mut log) = (tiny(3), Log::default());
    let dir = tempfile::tempdir().unwrap();
    train(&model, settings, dir.path(), &mut log, &Stop::default()).unwrap();
    (model, log.records)
}

#[test]
fn every_variant_learns_the_right_word() {
    // many completions: the right word is one of 24, and must be met
    let base = Grpo {
        group_size: 64,
        learning_rate: 1e-2,
        num_steps: Some(60),
        ..settings()
    };
    let with = |preset: Preset| Grpo {
        preset,
        num_minibatches: 2,
        num_prompts_per_step: 2,
        num_steps: Some(60),
        ..base.clone()
    };
    let variants = [
        ("grpo", base.clone()),
        (
            "r1",
            Grpo {
                ratio: Ratio::Sequence,
                clip_low: 10.0,
                clip_high: 10.0,
                ..with(Preset::R1)
            },
        ),
        (
            "deepseekmath",
            Grpo {
                kl: Kl::K3,
                kl_coef: 0.001,
                reference_every_steps: 10,
                ..base.clone()
            },
        ),
        (
            "dapo",
            Grpo {
                loss: Loss::Dapo,
                clip_high: 0.28,
                dynamic_sampling_rounds: 2,
                ..with(Preset::Dapo)
            },
        ),
        (
            "dr_grpo",
            Grpo {
                loss: Loss::DrGrpo,
                advantage: Scale::None,
                ..with(Preset::DrGrpo)
            },
        ),
        (
            "gspo",
            Grpo {
                ratio: Ratio::SequenceMean,
                inner_epochs: 2,
                ..with(Preset::Gspo)
            },
        ),
        (
            "cispo",
            Grpo {
                loss: Loss::Cispo,
                clip_high: 5.0,
                ..with(Preset::Cispo)
            },
        ),
        (
            "bnpo",
            Grpo {
                loss: Loss::Bnpo,
                advantage: Scale::Batch,
                ..base.clone()
            },
        ),
        (
            "corrected",
            Grpo {
                correction: Correction::SequenceTruncate,
                ..base.clone()
            },
        ),
        (
            "unbiased",
            Grpo {
                kl: Kl::Unbiased,
                kl_coef: 0.001,
                ..base.clone()
            },
        ),
    ];
    for (name, settings) in variants {
        let (_, records) = run(&settings);
        let (first, last) = (records[0].reward, late(&records));
        assert!(first < 0.3 && last > 0.6, "{name}: {first} to {last}");
        // the sampler is the policy
        assert!(records[0].gap_max < 1e-4, "{name}: {}", records[0].gap_max);
        assert!(records[0].pass_rate == Some(records[0].reward), "{name}");
    }
}

#[test]
fn a_strong_pull_keeps_the_policy() {
    let pulled = Grpo {
        kl: Kl::K3,
        kl_coef: 100.0,
        learning_rate: 1e-3,
        ..settings()
    };
    let (_, records) = run(&pulled);
    assert!(late(&records) < 0.3, "{}", late(&records));
    assert!(records.iter().all(|r| r.kl.unwrap() < 0.05));
    // no advantage at all: nothing moves
    let still = Grpo {
        learning_rate: 0.0,
        num_steps: Some(2),
        ..settings()
    };
    assert_eq!(bits(&run(&still).0), bits(&tiny(3)));
}

#[test]
fn packing_changes_nothing_and_the_seed_decides() {
    let longer = Grpo {
        max_new_tokens: 4,
        num_steps: Some(6),
        kl: Kl::K3,
        kl_coef: 0.01,
        learning_rate: 1e-3,
        num_minibatches: 2,
        num_prompts_per_step: 2,
        ..settings()
    };
    let (model, records) = run(&longer);
    let (again, same) = run(&longer);
    assert_eq!(timeless(&records), timeless(&same));
    assert_eq!(bits(&model), bits(&again));
    // one by one, in pairs, all together; few sampled side by side
    let once = Grpo {
        max_new_tokens: 1,
        group_size: 64,
        num_steps: Some(1),
        num_minibatches: 1,
        num_prompts_per_step: 4,
        kl: Kl::None,
        ..longer
    };
    let first = &run(&once).1[0];
    assert!(first.grad_norm > 0.0);
    for (pack_length, batch_size) in [(1, 64), (13, 3), (10_000, 7)] {
        let other = Grpo {
            pack_length,
            batch_size,
            ..once.clone()
        };
        let other = &run(&other).1[0];
        assert!((first.loss - other.loss).abs() < 1e-5);
        assert!((first.grad_norm / other.grad_norm - 1.0).abs() < 1e-3);
        assert_eq!((first.reward, first.length), (other.reward, other.length));
    }
}

/// Fails after some completions, as a killed process would leave it.
struct Killed<'a> {
    engine: LocalEngine<'a>,
    num_left: usize,
}

impl Engine for Killed<'_> {
    fn generate(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        on_done: &mut dyn FnMut(Completion) -> Result<()>,
        stop: &Stop,
    ) -> Result<()> {
        let left = &mut self.num_left;
        let mut some = |done| {
            if *left == 0 {
                return Err(Error::input("killed"));
            }
            *left -= 1;
            on_done(done)
        };
        self.engine.generate(requests, sampling, &mut some, stop)
    }
}

#[test]
fn a_killed_run_goes_on_with_the_same_metrics() {
    let settings = Grpo {
        num_steps: Some(12),
        max_new_tokens: 3,
        kl: Kl::K3,
        kl_coef: 0.01,
        reference_every_steps: 4,
        checkpoint_every_steps: 4,
        num_minibatches: 2,
        num_prompts_per_step: 2,
        dynamic_sampling_rounds: 1,
        ..settings()
    };
    let (model, straight) = run(&settings);
    let straight = timeless(&straight);
    let dir = tempfile::tempdir().unwrap();
    let stop = Stop::default();

    // in the middle of a rollout, after some updates that no checkpoint has
    let (policy, mut log) = (tiny(3), Log::default());
    let (words, asked, scores) = (tokenizer(), prompts(), rewards());
    let mut killed = Killed {
        engine: LocalEngine::new(&policy, &words, 64),
        num_left: 3 * 64 + 40,
    };
    let job = GrpoJob {
        engine: &mut killed,
        prompts: &asked,
        rewards: &scores,
        tokenizer: &words,
        settings: &settings,
        stop_ids: &[END],
        seed: 5,
        inputs_key: "test",
    };
    let error = train_grpo(&policy, job, dir.path(), &mut log, &stop).unwrap_err();
    assert!(error.to_string().contains("killed"), "{error}");
    let num_before = log.records.len();
    assert_eq!(timeless(&log.records), straight[..num_before]);

    // a full disk two steps later, after an update
    let (policy, mut log) = (
        tiny(3),
        Log {
            fail_after: Some(7),
            ..Log::default()
        },
    );
    let error = train(&policy, &settings, dir.path(), &mut log, &stop).unwrap_err();
    assert_eq!(error.to_string(), "the disk is full");
    let from = log.resumed[0];
    assert_eq!(timeless(&log.records), straight[from..7]);

    // stopped, and to the end
    let mut log = Log {
        stop: Some((9, stop.clone())),
        ..Log::default()
    };
    let error = train(&tiny(3), &settings, dir.path(), &mut log, &stop).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    let (policy, mut log) = (tiny(3), Log::default());
    let outcome = train(&policy, &settings, dir.path(), &mut log, &Stop::default()).unwrap();
    assert_eq!(log.resumed, [10]);
    assert_eq!(outcome.num_resumed_steps, 10);
    assert_eq!(timeless(&log.records), straight[10..]);
    assert_eq!(bits(&policy), bits(&model));

    // nothing is left to do, and other settings are refused
    let mut log = Log::default();
    let outcome = train(&tiny(3), &settings, dir.path(), &mut log, &Stop::default()).unwrap();
    assert!(outcome.num_steps == 12 && log.records.is_empty());
    let other = Grpo {
        kl_coef: 0.02,
        ..settings
    };
    let error = train(&tiny(3), &other, dir.path(), &mut log, &Stop::default()).unwrap_err();
    assert!(error.to_string().contains("other settings"), "{error}");
}

#[test]
fn what_is_watched() {
    let watched = Grpo {
        num_steps: Some(6),
        max_new_tokens: 2,
        eval_every_steps: 2,
        samples_every_steps: 3,
        num_sample_groups: 3,
        overlong_filter: true,
        learning_rate: 5e-2,
        ..settings()
    };
    // the accuracy falls while the reward climbs
    let mut log = Log {
        held_out: vec![0.1, 0.2, 0.9],
        ..Log::default()
    };
    let dir = tempfile::tempdir().unwrap();
    train(&tiny(3), &watched, dir.path(), &mut log, &Stop::default()).unwrap();
    let accuracies: Vec<_> = log.records.iter().map(|r| r.held_out_accuracy).collect();
    assert_eq!(
        accuracies,
        [None, Some(0.9), None, Some(0.2), None, Some(0.1)]
    );
    assert_eq!(log.num_samples, 6);
    assert_eq!(log.checkpoints, [6]);
    for r in &log.records {
        assert_eq!(r.num_completions, 64);
        assert!(r.length <= 2.0 && r.length_max <= 2);
        assert!(r.entropy >= 0.0 && (0.0..=1.0).contains(&r.truncated));
        assert!(r.rewards.contains_key("accuracy"));
        assert_eq!(r.kl, None);
    }
    // all completions cut off and filtered: an update by nothing
    let all_cut = Grpo {
        max_new_tokens: 1,
        num_steps: Some(1),
        ..watched
    };
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let model = tiny(3);
    let stop_ids_never_drawn = Grpo {
        temperature: 1e-3,
        ..all_cut
    };
    train(
        &model,
        &stop_ids_never_drawn,
        dir.path(),
        &mut log,
        &Stop::default(),
    )
    .unwrap();
    assert_eq!(log.records[0].grad_norm, 0.0);
    assert_eq!(bits(&model), bits(&tiny(3)));
}

#[test]
fn an_alarm_stays_with_the_run() {
    let watched = Grpo {
        num_steps: Some(60),
        group_size: 64,
        learning_rate: 1e-2,
        eval_every_steps: 30,
        checkpoint_every_steps: 10,
        ..settings()
    };
    // the accuracy falls while the reward climbs
    let mut whole = Log {
        held_out: vec![0.2, 0.9],
        ..Log::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let outcome = train(&tiny(3), &watched, dir.path(), &mut whole, &Stop::default()).unwrap();
    let alarms: Vec<_> = whole.records.iter().filter_map(|r| r.alarm).collect();
    let [alarm] = alarms[..] else {
        panic!("{alarms:?}");
    };
    assert_eq!((alarm.since.step, alarm.now.step), (30, 60));
    let mean = |records: &[GrpoRecord]| records.iter().map(|r| r.reward).sum::<f64>() / 30.0;
    assert!((alarm.since.reward - mean(&whole.records[..30])).abs() < 1e-9);
    assert!((alarm.now.reward - mean(&whole.records[30..])).abs() < 1e-9);
    assert_eq!((alarm.since.accuracy, alarm.now.accuracy), (0.9, 0.2));
    assert_eq!((outcome.num_alarms, whole.warnings.len()), (1, 1));

    // a run that goes on knows the evaluations before
    let (dir, stop) = (tempfile::tempdir().unwrap(), Stop::default());
    let mut first = Log {
        held_out: vec![0.9],
        stop: Some((40, stop.clone())),
        ..Log::default()
    };
    train(&tiny(3), &watched, dir.path(), &mut first, &stop).unwrap_err();
    let mut second = Log {
        held_out: vec![0.2],
        ..Log::default()
    };
    let outcome = train(
        &tiny(3),
        &watched,
        dir.path(),
        &mut second,
        &Stop::default(),
    )
    .unwrap();
    assert_eq!(outcome.num_alarms, 1);
    let both = [first.records, second.records].concat();
    assert_eq!(timeless(&both), timeless(&whole.records));
}

#[test]
fn what_cannot_be_learnt_from_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let too_many = Grpo {
        num_steps: None,
        num_prompts_per_step: 5,
        ..settings()
    };
    let error = |settings: &Grpo| {
        let (log, stop) = (&mut Log::default(), Stop::default());
        train(&tiny(3), settings, dir.path(), log, &stop).unwrap_err()
    };
    let found = error(&too_many).to_string();
    assert_eq!(found, "4 prompts make no rollout of 5");
    // a rate that breaks the weights is one error
    let broken = Grpo {
        learning_rate: 1e300,
        ..settings()
    };
    let found = error(&broken);
    assert!(matches!(found, Error::NonFinite { .. }), "{found:?}");
}

#[test]
fn stopped_among_held_out_problems_it_asks_them_again() {
    let watched = Grpo {
        num_steps: Some(6),
        max_new_tokens: 2,
        eval_every_steps: 2,
        ..settings()
    };
    let all = [0.1, 0.2, 0.9];
    let (dir, mut log) = (
        tempfile::tempdir().unwrap(),
        Log {
            held_out: all.to_vec(),
            ..Log::default()
        },
    );
    let straight = tiny(3);
    train(&straight, &watched, dir.path(), &mut log, &Stop::default()).unwrap();

    // stopped at step 4, then again before anything else is done, then at the last one
    let dir = tempfile::tempdir().unwrap();
    let mut left = all.to_vec();
    let mut records = Vec::new();
    for (num_answered, resumed, reopened) in [(1, 0, vec![]), (0, 4, vec![4]), (1, 4, vec![4])] {
        let held_out = left[left.len() - num_answered..].to_vec();
        left.truncate(left.len() - num_answered);
        let mut log = Log {
            held_out,
            stop_evaluation_after: Some(num_answered),
            ..Log::default()
        };
        let error = train(&tiny(3), &watched, dir.path(), &mut log, &Stop::default()).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
        assert_eq!((log.resumed, log.reopened), (vec![resumed], reopened));
        records.extend(log.records);
    }
    let (policy, mut last) = (
        tiny(3),
        Log {
            held_out: left,
            ..Log::default()
        },
    );
    let outcome = train(&policy, &watched, dir.path(), &mut last, &Stop::default()).unwrap();
    assert_eq!((outcome.num_steps, last.reopened), (6, vec![6]));
    records.extend(last.records);
    assert_eq!(timeless(&records), timeless(&log.records));
    assert_eq!(bits(&policy), bits(&straight));
}

#[test]
fn groups_that_are_replaced_are_counted_with_the_others() {
    // at this temperature all completions of a prompt are the same
    let first = |rounds: usize| {
        let settings = Grpo {
            num_steps: Some(1),
            temperature: 1e-3,
            dynamic_sampling_rounds: rounds,
            ..settings()
        };
        let (_, records) = run(&settings);
        records[0].clone()
    };
    let (once, thrice) = (first(0), first(2));
    for record in [&once, &thrice] {
        assert_eq!(record.all_right + record.all_wrong, 1.0);
        assert_eq!(record.num_completions, 64);
    }
    assert_eq!(
        (once.num_dropped_groups, thrice.num_dropped_groups),
        (0, 12)
    );
    // two more rounds of 4 prompts, 16 completions of one token each
    assert_eq!(thrice.num_tokens - once.num_tokens, 128);
}

#[test]
fn a_reward_that_applies_to_nothing_is_told() {
    let mut asked = prompts();
    asked
        .iter_mut()
        .take(2)
        .for_each(|prompt| prompt.prompt.domain = Some("math".into()));
    let reward = |domain: &str| RewardSettings {
        weight: 1.0,
        domains: vec![domain.into()],
        kind: RewardKind::Accuracy(AccuracyReward {
            verifier: Kind::Exact,
            ..AccuracyReward::default()
        }),
    };
    let settings = Grpo {
        num_steps: Some(1),
        ..settings()
    };
    for (domain, num_unrewarded) in [("math", 32), ("maths", 64)] {
        let table = RewardTable::List(vec![reward(domain)]);
        let scores = Rewards::build(&table, Tools::default()).unwrap();
        let (policy, words, mut log) = (tiny(3), tokenizer(), Log::default());
        let job = GrpoJob {
            engine: &mut LocalEngine::new(&policy, &words, 64),
            prompts: &asked,
            rewards: &scores,
            tokenizer: &words,
            settings: &settings,
            stop_ids: &[END],
            seed: 5,
            inputs_key: "test",
        };
        let dir = tempfile::tempdir().unwrap();
        let outcome = train_grpo(&policy, job, dir.path(), &mut log, &Stop::default()).unwrap();
        assert_eq!(outcome.num_unrewarded, num_unrewarded as u64);
        let record = &log.records[0];
        assert_eq!(record.num_unrewarded, num_unrewarded);
        assert_eq!(record.rewards_missing["accuracy"], num_unrewarded);
        let warned = num_unrewarded == 64;
        assert_eq!(
            log.warnings.len(),
            usize::from(warned),
            "{:?}",
            log.warnings
        );
        if warned {
            let text = &log.warnings[0];
            assert!(
                text.starts_with(
                    "reward `accuracy` applies to no completion of the first rollout: "
                ),
                "{text}"
            );
            assert_eq!((record.reward, outcome.reward), (0.0, None));
        }
    }
}
