//! The draws of [`super`], by hand and against sorted rows.

use super::*;

/// exp(logit) = 8, 4, 2, 1, 1 in a mixed order: probabilities 2/16, 8/16, 1/16, 4/16, 1/16.
fn row() -> Vec<f32> {
    [2.0f32, 8.0, 1.0, 4.0, 1.0]
        .iter()
        .map(|weight| weight.ln())
        .collect()
}

/// Which tokens are ever drawn, and how often in a thousand, over evenly spaced uniform numbers.
fn shares(sampling: &Sampling, logits: &[f32]) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let mut scratch = Scratch::default();
    for i in 0..1000 {
        let u = (f64::from(i) + 0.5) / 1000.0;
        let choice = choose(logits, sampling, std::iter::empty(), u, &mut scratch).unwrap();
        counts[choice.token as usize] += 1;
    }
    counts
}

fn sampling() -> Sampling {
    Sampling::default()
}

#[test]
fn draws_follow_the_probabilities() {
    assert_eq!(shares(&sampling(), &row()), [125, 500, 62, 250, 63]);
}

#[test]
fn temperature_sharpens() {
    // at temperature 1/2 the weights are squared: 4, 64, 1, 16, 1 of 86
    let sampling = Sampling {
        temperature: 0.5,
        ..sampling()
    };
    let expected = [4.0, 64.0, 1.0, 16.0, 1.0].map(|w: f64| w / 86.0 * 1000.0);
    for (count, expected) in shares(&sampling, &row()).into_iter().zip(expected) {
        assert!((count as f64 - expected).abs() <= 1.0, "{count} {expected}");
    }
}

#[test]
fn filters_keep_what_they_should() {
    let kept = |sampling: Sampling| -> Vec<usize> {
        let counts = shares(&sampling, &row());
        (0..counts.len())
            .filter(|&token| counts[token] > 0)
            .collect()
    };
    let cases = [
        (
            Sampling {
                top_k: 2,
                ..sampling()
            },
            vec![1, 3],
        ),
        (
            Sampling {
                top_k: 4,
                ..sampling()
            },
            vec![0, 1, 2, 3],
        ), // of two equals the lower id
        (
            Sampling {
                top_k: 9,
                ..sampling()
            },
            vec![0, 1, 2, 3, 4],
        ),
        (
            Sampling {
                top_p: 0.01,
                ..sampling()
            },
            vec![1],
        ),
        (
            Sampling {
                top_p: 0.5,
                ..sampling()
            },
            vec![1],
        ), // 8/16 is reached by the first
        (
            Sampling {
                top_p: 0.51,
                ..sampling()
            },
            vec![1, 3],
        ),
        (
            Sampling {
                top_p: 0.9,
                ..sampling()
            },
            vec![0, 1, 2, 3],
        ),
        (
            Sampling {
                top_p: 0.99,
                ..sampling()
            },
            vec![0, 1, 2, 3, 4],
        ),
        (
            Sampling {
                min_p: 0.25,
                ..sampling()
            },
            vec![0, 1, 3],
        ),
        (
            Sampling {
                min_p: 0.26,
                ..sampling()
            },
            vec![1, 3],
        ),
        (
            Sampling {
                min_p: 1.0,
                ..sampling()
            },
            vec![1],
        ),
        // top-p counts within what top-k left: of 8 + 4, 60% is reached by the first
        (
            Sampling {
                top_k: 2,
                top_p: 0.6,
                ..sampling()
            },
            vec![1],
        ),
        (
            Sampling {
                top_k: 2,
                top_p: 0.7,
                ..sampling()
            },
            vec![1, 3],
        ),
    ];
    for (sampling, expected) in cases {
        assert_eq!(kept(sampling.clone()), expected, "{sampling:?}");
    }
    // what is left is renormalised
    assert_eq!(
        shares(
            &Sampling {
                top_k: 2,
                ..sampling()
            },
            &row()
        )[1],
        667
    );
}

#[test]
fn greedy_takes_the_first_of_the_best() {
    let sampling = Sampling {
        temperature: 0.0,
        ..sampling()
    };
    let choice = choose(
        &[0.0, 3.0, 3.0],
        &sampling,
        std::iter::empty(),
        0.9,
        &mut Scratch::default(),
    )
    .unwrap();
    assert_eq!(choice.token, 1);
    // log(e^3 / (1 + 2 e^3))
    assert!(
        (choice.logprob - -0.717_741).abs() < 1e-5,
        "{}",
        choice.logprob
    );
}

#[test]
fn the_penalty_divides_and_multiplies() {
    let sampling = Sampling {
        temperature: 0.0,
        repetition_penalty: 2.0,
        ..sampling()
    };
    let mut scratch = Scratch::default();
    let mut best = |logits: &[f32], seen: &[u32]| {
        choose(logits, &sampling, seen.iter().copied(), 0.0, &mut scratch).unwrap()
    };
    assert_eq!(best(&[3.0, 2.0], &[0]).token, 1); // 1.5 < 2
    assert_eq!(best(&[-1.0, -1.5], &[0]).token, 1); // -2 < -1.5
    // the log-probability is the model's: log(e^2 / (e^3 + e^2))
    assert!((best(&[3.0, 2.0], &[0, 7]).logprob - -1.313_262).abs() < 1e-5);
}

#[test]
fn log_probabilities_ignore_temperature_and_filters() {
    let sampling = Sampling {
        temperature: 0.6,
        top_p: 0.95,
        top_k: 3,
        ..sampling()
    };
    for i in 0..10 {
        let u = f64::from(i) / 10.0;
        let choice = choose(
            &row(),
            &sampling,
            std::iter::empty(),
            u,
            &mut Scratch::default(),
        )
        .unwrap();
        let expected = [2.0f32, 8.0, 1.0, 4.0, 1.0][choice.token as usize].ln() - 16.0f32.ln();
        assert!((choice.logprob - expected).abs() < 1e-6);
    }
}

/// Against the definition, on rows long enough for several chunks and buckets.
#[test]
fn filters_agree_with_sorting() {
    for round in 0..40u64 {
        let len = 700 + 13 * round as usize;
        let spread = [0.001, 1.0, 6.0, 30.0][round as usize % 4];
        let logits: Vec<f32> = (0..len)
            .map(|i| (uniform(7, round, i as u64) * spread) as f32)
            .collect();
        let (top_k, top_p) = (
            [0, 50][round as usize / 4 % 2],
            [0.1, 0.9, 0.999][round as usize % 3],
        );
        let sampling = Sampling {
            top_k,
            top_p,
            temperature: 0.6,
            ..sampling()
        };
        let mut scratch = Scratch::default();
        softmax::weigh(&logits, 0.6, &mut scratch.weights);
        let Scratch {
            weights,
            counts,
            masses,
            keys,
            ..
        } = &mut scratch;
        let lowest = lowest_kept(weights, &sampling, counts, masses, keys);
        let kept = (0..len)
            .filter(|&token| key(weights.each[token], token) >= lowest)
            .count();

        let mut sorted: Vec<f64> = weights.each.iter().map(|&w| f64::from(w)).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        if top_k > 0 {
            sorted.truncate(top_k);
        }
        let target = top_p * sorted.iter().sum::<f64>();
        let mut sum = 0.0;
        let expected = 1 + sorted
            .iter()
            .take_while(|&&w| {
                sum += w;
                sum < target
            })
            .count();
        assert!(
            kept.abs_diff(expected.min(sorted.len())) <= 1,
            "round {round}: {kept} {expected}"
        );
    }
}

#[test]
fn what_is_no_distribution_is_refused() {
    let mut scratch = Scratch::default();
    let mut rows = vec![vec![f32::NEG_INFINITY; 40]];
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 17, 39] {
            let mut row = vec![0.5; 40];
            row[at] = bad;
            rows.push(row);
        }
    }
    for row in rows {
        assert_eq!(
            choose(&row, &sampling(), std::iter::empty(), 0.5, &mut scratch),
            None,
            "{row:?}"
        );
    }
    // a masked token is no error and is never drawn
    let masked = [f32::NEG_INFINITY, 0.0];
    assert_eq!(
        choose(&masked, &sampling(), std::iter::empty(), 0.0, &mut scratch)
            .unwrap()
            .token,
        1
    );
}

#[test]
fn uniform_numbers_are_uniform_and_independent() {
    let mut buckets = [0; 10];
    for position in 0..10_000 {
        buckets[(uniform(42, 3, position) * 10.0) as usize] += 1;
    }
    assert!(
        buckets.iter().all(|&count| (880..1120).contains(&count)),
        "{buckets:?}"
    );
    assert_ne!(uniform(1, 2, 3), uniform(1, 3, 2));
    assert_ne!(uniform(1, 2, 3), uniform(2, 1, 3));
    assert_eq!(uniform(0, 0, 0), uniform(0, 0, 0));
}
