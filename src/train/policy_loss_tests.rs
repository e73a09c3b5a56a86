//! The numbers of [`super`], by hand and by differences.

use super::*;
use crate::recipe::grpo::Preset;

fn plain() -> Grpo {
    Grpo {
        kl: Kl::None,
        kl_coef: 0.0,
        max_new_tokens: 10,
        ..Grpo::default()
    }
}

fn close(a: f64, b: f64, what: &str) {
    assert!(
        (a - b).abs() < 1e-9 * (1.0 + b.abs()),
        "{what}: {a} is not {b}"
    );
}

/// ln of ratios to one half
fn logs(ratios: &[f64]) -> Vec<f64> {
    ratios.iter().map(|r| (r * 0.5f64).ln()).collect()
}

fn of(settings: &Grpo, ratios: &[f64], advantage: f64) -> Terms {
    let (l, o) = (logs(ratios), logs(&vec![1.0; ratios.len()]));
    terms(
        settings,
        &Known {
            logprobs: &l,
            old: Some(&o),
            reference: None,
            sampled: None,
            advantages: &vec![advantage; l.len()],
            scale: 1.0,
        },
    )
}

#[test]
fn clipping_by_hand() {
    let s = plain();
    // A = 2: the ratio 1.5 counts 1.2 and has no gradient; 0.5 counts in full
    let up = of(&s, &[1.5, 0.5, 1.0], 2.0);
    close(up.loss, -2.0 * (1.2 + 0.5 + 1.0), "up");
    assert_eq!(up.coefs[0], 0.0);
    close(up.coefs[1], -1.0, "up");
    close(up.coefs[2], -2.0, "up");
    assert_eq!(
        (up.tally.num_clipped_low, up.tally.num_clipped_high),
        (0, 1)
    );
    // A = -2: 0.5 counts 0.8 and has no gradient; 1.5 counts in full
    let down = of(&s, &[1.5, 0.5], -2.0);
    close(down.loss, 2.0 * (1.5 + 0.8), "down");
    close(down.coefs[0], 3.0, "down");
    assert_eq!(down.coefs[1], 0.0);
    assert_eq!(
        (down.tally.num_clipped_low, down.tally.num_clipped_high),
        (1, 0)
    );
    // dual clip at 1.3: 1.5 counts 1.3 and has no gradient
    let dual = of(
        &Grpo {
            clip_max: Some(1.3),
            ..s
        },
        &[1.5],
        -2.0,
    );
    close(dual.loss, 2.6, "dual");
    assert_eq!(dual.coefs, [0.0]);
}

#[test]
fn ratios_of_completions_by_hand() {
    // ratios 1.1 and 1.2: product 1.32, its root 1.148913
    let s = Grpo {
        clip_high: 10.0,
        clip_low: 10.0,
        ..plain()
    };
    let whole = of(
        &Grpo {
            ratio: Ratio::Sequence,
            ..s.clone()
        },
        &[1.1, 1.2],
        1.0,
    );
    close(whole.loss, -2.64, "sequence");
    close(whole.coefs[0], -2.64, "sequence");
    let mean = of(
        &Grpo {
            ratio: Ratio::SequenceMean,
            ..s
        },
        &[1.1, 1.2],
        1.0,
    );
    close(mean.loss, -2.0 * 1.32f64.sqrt(), "mean");
    close(mean.coefs[1], -(1.32f64.sqrt()), "mean");
    // GSPO clips at 1.0004
    let gspo = of(&Preset::Gspo.settings(), &[1.1, 1.2], 1.0);
    close(gspo.loss, -2.0 * 1.0004, "gspo");
    assert_eq!(gspo.coefs, [0.0, 0.0]);
}

#[test]
fn cispo_by_hand() {
    let s = Grpo {
        clip_high: 1.2,
        ..Preset::Cispo.settings()
    };
    let t = of(&s, &[1.5, 0.8], 2.0);
    close(t.coefs[0], -2.4, "cispo");
    close(t.coefs[1], -1.6, "cispo");
    close(t.loss, -2.4 * 0.75f64.ln() - 1.6 * 0.4f64.ln(), "cispo");
}

#[test]
fn distances_by_hand() {
    // the reference is twice as likely: d = ln 2
    let d = 2f64.ln();
    let table = [
        (Kl::K1, -d, 1.0),
        (Kl::K2, d * d / 2.0, -d),
        (Kl::K3, 1.0 - d, -1.0),
        (Kl::Unbiased, 1.5 * (1.0 - d), 1.5 * (-1.0 + 1.0 - d)),
    ];
    for (kl, value, slope) in table {
        let s = Grpo {
            kl,
            kl_coef: 0.1,
            ..Grpo::default()
        };
        let known = Known {
            logprobs: &logs(&[0.9]),
            old: Some(&logs(&[0.6])),
            reference: Some(&logs(&[1.8])),
            sampled: None,
            advantages: &[0.0],
            scale: 2.0,
        };
        let t = terms(&s, &known);
        close(t.tally.kl, value, &format!("{kl:?}"));
        close(t.loss, 0.2 * value, &format!("{kl:?}"));
        close(t.coefs[0], 0.2 * slope, &format!("{kl:?}"));
        // its own reference: nothing but k1 pulls
        let same = terms(
            &s,
            &Known {
                reference: None,
                ..known
            },
        );
        let pull = if kl == Kl::K1 { 0.2 } else { 0.0 };
        close(same.coefs[0], pull, &format!("{kl:?}"));
        assert_eq!(same.tally.kl, 0.0);
    }
}

#[test]
fn corrections_by_hand() {
    // p_policy / p_sampler is 3 and 0.5, of the completion 1.5
    let table = [
        (Correction::None, [1.0, 1.0], 0),
        (Correction::TokenTruncate, [2.0, 0.5], 1),
        (Correction::TokenMask, [0.0, 0.5], 1),
        (Correction::SequenceTruncate, [1.4, 1.4], 2),
        (Correction::SequenceMask, [0.0, 0.0], 2),
    ];
    for (correction, expected, num) in table {
        let whole = matches!(
            correction,
            Correction::SequenceTruncate | Correction::SequenceMask
        );
        let correction_max = if whole { 1.4 } else { 2.0 };
        let s = Grpo {
            correction,
            correction_max,
            correction_min: 0.4,
            ..plain()
        };
        let l = logs(&[0.9, 0.3]);
        let t = terms(
            &s,
            &Known {
                logprobs: &l,
                old: None,
                reference: None,
                sampled: Some(&logs(&[0.3, 0.6])),
                advantages: &[1.0, 1.0],
                scale: 1.0,
            },
        );
        for (c, e) in t.coefs.iter().zip(expected) {
            close(*c, -e, &format!("{correction:?}"));
        }
        assert_eq!(t.tally.num_corrected, num, "{correction:?}");
        close(t.tally.gap_max, 3f64.ln(), "gap");
    }
}

#[test]
fn completions_off_the_policy_are_left_out() {
    // mean ln(s / l) is ln 2: kept below 0.7, and always where the advantage is positive
    for (most, advantage, kept) in [(0.6, -1.0, false), (0.7, -1.0, true), (0.6, 1.0, true)] {
        let s = Grpo {
            off_policy_max: Some(most),
            ..plain()
        };
        let t = terms(
            &s,
            &Known {
                logprobs: &logs(&[0.5, 0.5]),
                old: None,
                reference: None,
                sampled: Some(&logs(&[1.0, 1.0])),
                advantages: &[advantage; 2],
                scale: 1.0,
            },
        );
        assert_eq!(t.coefs[0] != 0.0, kept);
        assert_eq!(t.tally.num_off_policy, if kept { 0 } else { 2 });
    }
}

#[test]
fn denominators_by_hand() {
    let lengths = [2, 0, 6];
    let table = [
        (Loss::Grpo, [1.0 / 6.0, 1.0 / 3.0, 1.0 / 18.0]),
        (Loss::DrGrpo, [1.0 / 30.0; 3]),
        (Loss::Dapo, [1.0 / 8.0; 3]),
        (Loss::Bnpo, [1.0 / 8.0; 3]),
        (Loss::Cispo, [1.0 / 8.0; 3]),
    ];
    for (loss, expected) in table {
        assert_eq!(scales(&Grpo { loss, ..plain() }, &lengths), expected);
    }
    assert!(scales(&plain(), &[]).is_empty());
    // all left out
    assert_eq!(
        scales(
            &Grpo {
                loss: Loss::Dapo,
                ..plain()
            },
            &[0, 0]
        ),
        [1.0, 1.0]
    );
    let none = Known {
        logprobs: &[],
        old: None,
        reference: None,
        sampled: None,
        advantages: &[],
        scale: 1.0,
    };
    assert!(terms(&plain(), &none).coefs.is_empty());
}

/// Every variant there is.
fn variants() -> Vec<Grpo> {
    let mut all = Vec::new();
    for loss in [Loss::Grpo, Loss::Cispo] {
        for ratio in [Ratio::Token, Ratio::SequenceMean, Ratio::Sequence] {
            for kl in [Kl::None, Kl::K1, Kl::K2, Kl::K3, Kl::Unbiased] {
                for clip_max in [None, Some(1.3)] {
                    all.push(Grpo {
                        loss,
                        ratio,
                        kl,
                        kl_coef: 0.3,
                        clip_max,
                        clip_high: if loss == Loss::Cispo { 1.1 } else { 0.28 },
                        correction: Correction::TokenTruncate,
                        correction_max: 1.05,
                        ..plain()
                    });
                }
            }
        }
    }
    all.retain(|s| s.check().is_ok());
    all
}

#[test]
fn coefficients_are_the_derivatives() {
    let mut state = 9u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    for settings in variants() {
        for advantage in [1.3, -0.7] {
            let mut near = |of: &[f64], by: f64| -> Vec<f64> {
                of.iter().map(|l| l + by * (random() - 0.5)).collect()
            };
            let old = near(&[-1.0, -2.0, -0.5, -3.0, -0.1], 0.2);
            let (l, reference, sampled) = (near(&old, 1.0), near(&old, 1.0), near(&old, 0.3));
            let at = |l: &[f64]| {
                // what is held constant of cispo's weight is found at the first place
                terms(
                    &settings,
                    &Known {
                        logprobs: l,
                        old: Some(&old),
                        reference: Some(&reference),
                        sampled: Some(&sampled),
                        advantages: &[advantage; 5],
                        scale: 0.4,
                    },
                )
            };
            let here = at(&l);
            for t in 0..5 {
                let moved = |h: f64| {
                    let mut l = l.clone();
                    l[t] += h;
                    at(&l).loss
                };
                let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                if settings.loss == Loss::Cispo {
                    // by differences the weight moves too, where it is not clipped
                    continue;
                }
                assert!(
                    (slope - here.coefs[t]).abs() < 1e-6,
                    "{settings:?}, A {advantage}, token {t}: {} by differences {slope}",
                    here.coefs[t]
                );
            }
            // in pieces
            if is_per_token(&settings) {
                let part = |r: std::ops::Range<usize>| {
                    terms(
                        &settings,
                        &Known {
                            logprobs: &l[r.clone()],
                            old: Some(&old[r.clone()]),
                            reference: Some(&reference[r.clone()]),
                            sampled: Some(&sampled[r.clone()]),
                            advantages: &[advantage; 5][r],
                            scale: 0.4,
                        },
                    )
                };
                let (mut a, b) = (part(0..2), part(2..5));
                a.coefs.extend(b.coefs);
                assert_eq!(a.coefs, here.coefs);
                close(a.loss + b.loss, here.loss, "in pieces");
            }
        }
    }
}

#[test]
fn cispo_is_the_derivative_with_its_weight_held() {
    let s = Grpo {
        clip_high: 1.2,
        kl: Kl::K3,
        kl_coef: 0.5,
        ..Preset::Cispo.settings()
    };
    let f = |l: f64, held: f64| -held * 2.0 * l + 0.5 * ((-0.4 - l).exp() - (-0.4 - l) - 1.0);
    let known = Known {
        logprobs: &[-0.7],
        old: Some(&[-0.8]),
        reference: Some(&[-0.4]),
        sampled: None,
        advantages: &[2.0],
        scale: 1.0,
    };
    let held = 0.1f64.exp().min(1.2);
    let slope = (f(-0.7 + 1e-6, held) - f(-0.7 - 1e-6, held)) / 2e-6;
    let t = terms(&s, &known);
    assert!((t.coefs[0] - slope).abs() < 1e-8 && (t.loss - f(-0.7, held)).abs() < 1e-12);
}
