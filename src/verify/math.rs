//! Mathematical answers: the verdict on a whole model text against a gold field, and whether two answers are the same.

use serde::{Deserialize, Serialize};

use super::{Kind, Verdict};

/// How answers are found and compared. The default follows Math-Verify's priorities for a model's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MathOptions {
    /// A box is taken before a sentence such as "the answer is 5"; false: after it.
    pub boxed_first: bool,
    /// Decimals are compared after rounding to this many places.
    pub float_rounding: u32,
}

impl Default for MathOptions {
    fn default() -> Self {
        Self {
            boxed_first: true,
            float_rounding: 6,
        }
    }
}

/// The verdict on a whole model text (thinking included) against a gold field: a bare answer, `$..$`, a worked solution
/// with a box, or `#### n`.
pub fn check(prediction: &str, gold: &str, _options: &MathOptions) -> Verdict {
    Kind::Boxed.check(prediction, gold)
}

/// Whether two extracted answers are the same, for majority votes.
pub fn same(a: &str, b: &str) -> bool {
    Kind::Boxed.same(a, b)
}
