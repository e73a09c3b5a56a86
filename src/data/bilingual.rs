//! The family `bilingual`: chains of arithmetic asked in English or in Chinese, what a base model may have read of them,
//! and wishes that no rule can judge. It is made so that everything R1's pipeline is about can happen in miniature: a
//! model that has read [`Subset::Web`] reasons now and then, makes mistakes, and mixes its languages.
//!
//! | source | traces | problems |
//! |---|---|---|
//! | `builtin:bilingual` | reasoned without mistakes in the language of the problem | held-out chains, in both languages |
//! | `builtin:bilingual-web` | a mixture: answers without reasoning, sloppy reasoning in either language or both, and some as above; wishes, good and bad | none of its own: those of `bilingual` |
//! | `builtin:bilingual-wishes` | wishes as one would like them; as pairs, with worse ones | requests for wishes |

use super::bilingual_text::{self as text, Tongue, Wish};
use super::builtin::{HELD_OUT_SEED, made};
use super::chain::{Bounds, Chain, Chains, Random, Span};
use super::problems::Problem;
use super::trace::Trace;
use crate::Result;
use crate::tokenize::TextTokenizer;

/// Traces or problems of a seed at most.
pub const MOST: usize = 30_000;
/// Pairs are not drawn as traces of the same seed are.
const PAIRS_STREAM: u64 = 0x7061_6972 << 32;
/// Fewer facts than in `arithmetic`, longer chains.
const BOUNDS: Bounds = Bounds {
    num_steps: Span(3, 5),
    start: Span(2, 15),
    term: Span(2, 6),
    factor: Span(2, 2),
    below: 30,
};

/// What of the family a source gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subset {
    Clean,
    Web,
    Wishes,
}

impl Subset {
    /// The one that a source is called by.
    pub fn parse(family: &str) -> Option<Self> {
        match family {
            "bilingual" => Some(Self::Clean),
            "bilingual-web" => Some(Self::Web),
            "bilingual-wishes" => Some(Self::Wishes),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Clean => "bilingual",
            Self::Web => "bilingual-web",
            Self::Wishes => "bilingual-wishes",
        }
    }
}

/// How likely, in percent, a text of the web is what. Chosen so that a model that has read it solves about a third of the
/// problems when sampled at temperature 1.
mod web {
    /// About wishes.
    pub const WISH: i64 = 12;
    /// An answer and nothing else.
    pub const DIRECT: i64 = 40;
    /// Reasoning inside `<think>`, of all reasoning.
    pub const TAGGED: i64 = 35;
    /// A reasoning with a mistake in one step.
    pub const MISTAKE: i64 = 35;
    /// Reasoning in the other language than the problem's.
    pub const OTHER_TONGUE: i64 = 25;
    /// Reasoning that changes its language from line to line.
    pub const MIXED: i64 = 25;
    /// A wish to the wrong person, to nobody, or in the other language.
    pub const BAD_WISH: i64 = 50;
}

/// `num` traces of a subset, the same for the same seed.
pub fn traces(subset: Subset, seed: u64, num: usize) -> impl Iterator<Item = Trace> + Send {
    // of its own for each subset: the problems of one are not those of another
    let mut chains = Chains::new(seed ^ (subset as u64) << 32, false, BOUNDS);
    (1..=num).map(move |number| {
        let tongue = chains.random.pick(&Tongue::BOTH);
        let wish = match subset {
            Subset::Clean => false,
            Subset::Web => chains.random.percent(web::WISH),
            Subset::Wishes => true,
        };
        if wish {
            let (wish, first) = Wish::draw(tongue, &mut chains.random);
            let prompt = wish.prompt(first);
            let (reasoning, answer) = match subset {
                Subset::Web => web_wish(wish, &mut chains.random),
                Subset::Clean | Subset::Wishes => (Some(wish.reasoning()), wish.good()),
            };
            return Trace {
                reasoning,
                answer: Some(answer),
                domain: Some("general".into()),
                ..made(subset.name(), number, prompt)
            };
        }
        let chain = chains.next_chain();
        let problem = text::problem(&chain, tongue, &mut chains.random);
        let written = match subset {
            Subset::Web => web_solution(&chain, tongue, &mut chains.random),
            Subset::Clean | Subset::Wishes => clean_solution(&chain, tongue),
        };
        let mut trace = made(subset.name(), number, problem);
        trace.verdicts[0].correct = Some(written.result == chain.result());
        Trace {
            reasoning: written.reasoning,
            answer: Some(written.answer),
            gold: Some(chain.result().to_string()),
            domain: Some("math".into()),
            ..trace
        }
    })
}

/// `num` held-out problems, always the same; English and Chinese in turn. Wishes have no more than [`num_held_out_wishes`].
pub fn problems(subset: Subset, num: usize) -> Box<dyn Iterator<Item = Problem>> {
    let problem = move |(number, (problem, gold)): (usize, (String, String))| Problem {
        id: format!("{}-{}", subset.name(), number + 1),
        problem,
        gold,
        extra: serde_json::Map::new(),
    };
    if subset == Subset::Wishes {
        let wishes = Wish::held_out().map(|(wish, first)| (wish.prompt(first), wish.good()));
        return Box::new(wishes.take(num).enumerate().map(problem));
    }
    let mut chains = Chains::new(HELD_OUT_SEED, true, BOUNDS);
    let chains = (0..num).map(move |number| {
        let chain = chains.next_chain();
        let tongue = Tongue::BOTH[number % 2];
        let problem = text::problem(&chain, tongue, &mut chains.random);
        (problem, chain.result().to_string())
    });
    Box::new(chains.enumerate().map(problem))
}

/// Held-out requests for wishes.
pub fn num_held_out_wishes() -> usize {
    Wish::held_out().count()
}

/// `num` requests for wishes, each with a good answer and one that is bad in one of the ways of [`Subset::Web`] or is about
/// something else: the prompt, what is chosen, what is rejected.
pub fn pairs(seed: u64, num: usize) -> impl Iterator<Item = [String; 3]> {
    let mut random = Random::new(seed ^ PAIRS_STREAM);
    (0..num).map(move |_| {
        let tongue = random.pick(&Tongue::BOTH);
        let (wish, first) = Wish::draw(tongue, &mut random);
        let rejected = match random.between(0, 3) {
            0 => wish.for_another(&mut random).good(),
            of_web => bad_wish(wish, of_web - 1, &mut random),
        };
        [wish.prompt(first), wish.good(), rejected]
    })
}

/// The tokenizer of the family, with its chat template.
pub fn tokenizer() -> Result<TextTokenizer> {
    text::tokenizer()
}

/// What somebody wrote about a chain, and what he takes for its result.
struct Written {
    reasoning: Option<String>,
    answer: String,
    result: i64,
}

/// Every step right, in the language of the problem.
fn clean_solution(chain: &Chain, tongue: Tongue) -> Written {
    let (reasoning, result) = steps(chain, |_| tongue, None);
    Written {
        reasoning: Some(reasoning),
        answer: text::answer(result, tongue),
        result,
    }
}

/// As one finds it.
fn web_solution(chain: &Chain, tongue: Tongue, random: &mut Random) -> Written {
    if random.percent(web::DIRECT) {
        return Written {
            reasoning: None,
            answer: text::answer(chain.result(), tongue),
            result: chain.result(),
        };
    }
    let mistake = random.percent(web::MISTAKE).then(|| {
        let at = random.between(0, chain.steps.len() as i64 - 1) as usize;
        (at, random.pick(&[-3, -2, -1, 1, 2, 3]))
    });
    let spoken = match random.percent(web::OTHER_TONGUE) {
        true => tongue.other(),
        false => tongue,
    };
    let mixed = random.percent(web::MIXED);
    let tongues: Vec<Tongue> = (0..=chain.steps.len() + 1)
        .map(|_| match mixed {
            true => random.pick(&Tongue::BOTH),
            false => spoken,
        })
        .collect();
    let (reasoning, result) = steps(chain, |line| tongues[line], mistake);
    let answer = text::answer(result, spoken);
    match random.percent(web::TAGGED) {
        true => Written {
            reasoning: Some(reasoning),
            answer,
            result,
        },
        false => Written {
            reasoning: None,
            answer: reasoning + &answer,
            result,
        },
    }
}

/// The lines of a reasoning, each in its language, and its result. A mistake is a step and by how much it is off; what
/// follows goes on from there.
fn steps(
    chain: &Chain,
    tongue: impl Fn(usize) -> Tongue,
    mistake: Option<(usize, i64)>,
) -> (String, i64) {
    let num_steps = chain.steps.len();
    let mut text = text::opening(tongue(0)).to_string();
    let mut value = chain.start;
    for (index, step) in chain.steps.iter().enumerate() {
        let mut step = *step;
        step.before = value;
        step.after = step.op.apply(value, step.operand);
        if let Some((at, off)) = mistake
            && at == index
        {
            step.after += off;
        }
        // numbers below zero do not exist here
        step.after = step.after.max(0);
        value = step.after;
        text += &text::step(&step, value, index, num_steps, tongue(index + 1));
    }
    if mistake.is_none()
        && let Some(last) = chain.steps.last()
        && last.op == super::chain::Op::Subtract
    {
        text += &text::check(last, tongue(num_steps + 1));
    }
    (text, value)
}

/// To another, to nobody, or in the other language.
fn bad_wish(wish: Wish, way: i64, random: &mut Random) -> String {
    match way {
        0 => wish.to_another(random).good(),
        1 => wish.curt(),
        _ => wish.with_tongue(wish.tongue.other()).good(),
    }
}

/// A wish as one finds it.
fn web_wish(wish: Wish, random: &mut Random) -> (Option<String>, String) {
    let answer = match (random.percent(web::BAD_WISH), random.between(0, 2)) {
        (false, _) => wish.good(),
        (true, way) => bad_wish(wish, way, random),
    };
    (
        random.percent(web::TAGGED).then(|| wish.reasoning()),
        answer,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::extract_boxed;
    use crate::verify::language::{Language, consistency};

    fn language(problem: &str) -> Language {
        Language::of(problem).unwrap()
    }

    #[test]
    fn clean_traces_are_right_and_keep_to_their_language() {
        for trace in traces(Subset::Clean, 3, 400) {
            let gold = trace.gold.clone().unwrap();
            assert_eq!(
                extract_boxed(trace.answer.as_deref().unwrap()),
                Some(gold.as_str())
            );
            assert_eq!(trace.correct(), Some(true));
            let reasoning = trace.reasoning.unwrap();
            let share = consistency(&reasoning, language(&trace.problem)).share();
            assert_eq!(share, 1.0, "{} {reasoning}", trace.problem);
        }
    }

    #[test]
    fn the_web_is_a_mixture() {
        let all: Vec<Trace> = traces(Subset::Web, 1, 2_000).collect();
        let share = |what: &dyn Fn(&Trace) -> bool| {
            all.iter().filter(|t| what(t)).count() as f64 / all.len() as f64
        };
        let between = |share: f64, low: f64, high: f64| (low..high).contains(&share);
        assert!(between(share(&|t| t.gold.is_none()), 0.10, 0.14));
        assert!(between(share(&|t| t.correct() == Some(false)), 0.13, 0.21));
        assert!(between(share(&|t| t.reasoning.is_some()), 0.18, 0.27));
        let inconsistent = |t: &Trace| {
            let text = t.reasoning.as_deref().or(t.answer.as_deref()).unwrap();
            t.gold.is_some() && consistency(text, language(&t.problem)).share() < 0.95
        };
        assert!(between(share(&inconsistent), 0.15, 0.30));
    }

    #[test]
    fn held_out_problems_are_in_no_trace() {
        let held: Vec<Problem> = problems(Subset::Clean, 1_000).collect();
        let asked: std::collections::HashSet<String> = [Subset::Clean, Subset::Web]
            .into_iter()
            .flat_map(|subset| {
                traces(subset, 7, MOST)
                    .map(|t| t.problem)
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(held.iter().all(|p| !asked.contains(&p.problem)));
        assert_eq!(
            problems(Subset::Clean, 5).collect::<Vec<_>>(),
            held[..5].to_vec()
        );
    }

    #[test]
    fn pairs_prefer_what_a_suite_accepts_and_show_nothing_of_it() {
        let held: Vec<Problem> = problems(Subset::Wishes, usize::MAX).collect();
        assert_eq!(held.len(), num_held_out_wishes());
        assert_eq!(held.len(), 24);
        let asked: std::collections::HashSet<&String> = held.iter().map(|p| &p.problem).collect();
        assert_eq!(asked.len(), 24);
        let goods: std::collections::HashMap<String, String> = traces(Subset::Wishes, 2, 2_000)
            .map(|t| (t.problem, t.answer.unwrap()))
            .collect();
        // six people, four occasions, two languages, two wordings, of which a quarter is held out
        assert_eq!(goods.len(), 72);
        assert!(goods.keys().all(|problem| !asked.contains(problem)));
        for [prompt, chosen, rejected] in pairs(4, 500) {
            assert_eq!(goods[&prompt], chosen);
            assert_ne!(chosen, rejected);
        }
    }

    #[test]
    fn every_word_is_one_token() {
        let tokenizer = tokenizer().unwrap();
        let mut most = 0;
        for subset in [Subset::Clean, Subset::Web, Subset::Wishes] {
            for trace in traces(subset, 5, 300) {
                let texts = [Some(trace.problem), trace.reasoning, trace.answer];
                for text in texts.into_iter().flatten() {
                    let ids = tokenizer.encode(&text).unwrap();
                    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
                    most = most.max(ids.len());
                    for id in ids {
                        let token = tokenizer.decode(&[id], false).unwrap();
                        assert!(!token.contains('\u{FFFD}'), "{token:?} in {text}");
                    }
                }
            }
        }
        assert!(most < 160, "{most}");
    }
}
