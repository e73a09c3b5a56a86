//! Format, multiple choice, language and readability of any text: no panic, no hang, shares between 0 and 1.

#![no_main]

use distill_fuzz::verify::format::Format;
use distill_fuzz::verify::language::{Language, consistency};
use distill_fuzz::verify::readability::{ReadabilityLimits, readability};
use distill_fuzz::verify::{answer_part, choice, extract_boxed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = (
        answer_part(text),
        extract_boxed(text),
        choice::check(text, "C"),
    );
    for (_, format) in Format::NAMES {
        if let Ok(parts) = format.split(text) {
            assert!(!parts.answer.trim().is_empty());
        }
    }
    if let Ok(english) = Language::parse("en") {
        let share = consistency(text, english).share();
        assert!((0.0..=1.0).contains(&share), "{share}");
    }
    let _ = Language::of(text);
    let _ = readability(text, &ReadabilityLimits::default());
});
