//! Gold and prediction in one input, parted by the first newline: no panic, no hang, and what must hold of any pair.

#![no_main]

use distill_fuzz::verify::Outcome;
use distill_fuzz::verify::math::{MathOptions, check, same};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (gold, prediction) = text.split_once('\n').unwrap_or((text, text));
    let options = MathOptions::default();
    let verdict = check(prediction, gold, &options);
    // the same input has the same verdict
    assert_eq!(verdict, check(prediction, gold, &options));
    assert_eq!(
        same(gold, prediction),
        same(prediction, gold),
        "{gold:?} {prediction:?}"
    );
    // a gold answer is its own right answer, where it can be read and put into a box at all
    let boxed = format!("\\boxed{{{gold}}}");
    let itself = check(&boxed, gold, &options);
    let is_plain = gold
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || " +-*/^().,".contains(c));
    assert!(
        !is_plain || itself.outcome != Outcome::Wrong,
        "{gold:?} is not itself: {itself:?}"
    );
});
