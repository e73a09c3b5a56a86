//! What the training loop is made of: rows as micro-batches, settings as numbers of steps and as a key.

mod train_common;

use distill::recipe::Recompute;
use distill::train::SftSettings;
use distill::train::micro_batch::{MicroBatch, group, num_trained};
use train_common::{Rows, settings};

#[test]
fn targets_and_weights_by_hand() {
    let rows = Rows(vec![
        (vec![5, 6, 7], vec![1, 0, 1]),
        (vec![8, 9], vec![0, 1]),
        (vec![4], vec![1]),
    ]);
    let micro = MicroBatch::new(vec![1, 0, 2], &rows, 10).unwrap();
    assert_eq!(micro.batch.tokens, [8, 9, 5, 6, 7, 4]);
    assert_eq!(micro.batch.seq_lens, [2, 3, 1]);
    assert_eq!(micro.batch.targets, [9, 0, 6, 7, 0, 0]);
    assert_eq!(micro.batch.weights, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    let spans: Vec<_> = micro.spans().collect();
    assert_eq!(spans, [(1, 0..2), (0, 2..5), (2, 5..6)]);
    let counts: Vec<usize> = (0..3).map(|i| num_trained(&rows, i)).collect();
    assert_eq!(counts, [1, 1, 0]);
}

#[test]
fn grouping() {
    let rows = Rows(
        [4, 7, 3, 6]
            .map(|n| (vec![0; n], vec![1; n]))
            .into_iter()
            .collect(),
    );
    assert_eq!(
        group(&[3, 2, 0], &rows, true, 10).unwrap(),
        [vec![3, 0], vec![2]]
    );
    assert_eq!(
        group(&[3, 2, 0], &rows, false, 10).unwrap(),
        [[3], [2], [0]]
    );
}

#[test]
fn unusable_rows_are_named() {
    let rows = Rows(vec![(vec![5, 6], vec![1]), (vec![5, 10], vec![0, 1])]);
    let error = |row| {
        MicroBatch::new(vec![row], &rows, 10)
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(error(0), "row 0: 2 tokens with a mask of 1");
    assert_eq!(
        error(1),
        "row 1: token 10 is outside the model's vocabulary of 10"
    );
}

#[test]
fn steps_count_the_last_partial_batch() {
    let s = settings();
    assert_eq!(s.steps_per_epoch(7), 3);
    assert_eq!(s.total_steps(7), 6);
    let most = |n| SftSettings {
        max_steps: Some(n),
        ..settings()
    };
    assert_eq!(most(4).total_steps(7), 4);
    assert_eq!(most(100).total_steps(7), 6);
}

#[test]
fn key_is_about_what_is_learned() {
    let key = |s: &SftSettings, n| s.key(n).unwrap();
    let s = settings();
    let saved_more_often = SftSettings {
        checkpoint_every_steps: 1,
        recompute: Recompute::Block,
        ..settings()
    };
    let slower = SftSettings {
        learning_rate: 1e-3,
        ..settings()
    };
    assert_eq!(key(&s, 7), key(&saved_more_often, 7));
    assert_ne!(key(&s, 7), key(&slower, 7));
    assert_ne!(key(&s, 7), key(&s, 8));
}
