//! Tests of [`super`] with a model made up for them.

use super::*;

const VOCAB: usize = 23;

/// A language model whose next token depends on everything its slot holds, and which counts what it is asked to do.
struct Fake {
    slots: Vec<Vec<u32>>,
    max_positions: usize,
    num_prefills: usize,
    widest: usize,
    num_rows: usize,
    /// the most that a slot held which was not continued
    most_idle: usize,
    poison: Option<u32>,
}

impl Fake {
    fn new(max_positions: usize) -> Self {
        Self {
            slots: vec![Vec::new(); 64],
            max_positions,
            num_prefills: 0,
            widest: 0,
            num_rows: 0,
            most_idle: 0,
            poison: None,
        }
    }

    fn row(&self, slot: u32) -> Vec<f32> {
        let held = &self.slots[slot as usize];
        assert!(held.len() <= self.max_positions);
        let hash = held.iter().fold(17u64, |hash, &token| {
            hash.wrapping_mul(31).wrapping_add(u64::from(token))
        });
        let nan = self.poison.is_some_and(|token| held.contains(&token));
        (0..VOCAB as u64)
            .map(|v| {
                if nan {
                    f32::NAN
                } else {
                    sampler::uniform(hash, v, 0) as f32 * 4.0
                }
            })
            .collect()
    }
}

impl Lm for Fake {
    type Logits = Vec<f32>;
    fn vocab_size(&self) -> usize {
        VOCAB
    }
    fn max_positions(&self) -> usize {
        self.max_positions
    }
    fn prefill(&mut self, slot: u32, prompt: &[u32]) -> Result<Vec<f32>> {
        assert!(self.slots[slot as usize].is_empty());
        self.num_prefills += 1;
        self.slots[slot as usize] = prompt.to_vec();
        Ok(self.row(slot))
    }
    fn decode(&mut self, slots: &[u32], tokens: &[u32]) -> Result<Vec<f32>> {
        assert_eq!(slots.len(), tokens.len());
        self.widest = self.widest.max(slots.len());
        self.num_rows += slots.len();
        let idle = (0..).zip(&self.slots).filter(|(i, _)| !slots.contains(i));
        let held = idle.map(|(_, held)| held.len()).max().unwrap_or(0);
        self.most_idle = self.most_idle.max(held);
        for (&slot, &token) in slots.iter().zip(tokens) {
            self.slots[slot as usize].push(token);
        }
        Ok(slots.iter().flat_map(|&slot| self.row(slot)).collect())
    }
    fn share(&mut self, from: u32, to: u32, len: usize) -> Result<()> {
        self.slots[to as usize] = self.slots[from as usize][..len].to_vec();
        Ok(())
    }
    fn clear(&mut self, slot: u32) -> Result<()> {
        self.slots[slot as usize].clear();
        Ok(())
    }
    fn with_rows<R>(&self, logits: &Vec<f32>, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        Ok(read(logits))
    }
}

struct Letters;

impl Detokenize for Letters {
    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        Ok(tokens
            .iter()
            .map(|&token| char::from(b'a' + token as u8))
            .collect())
    }
}

fn complete(
    model: &mut Fake,
    max_batch: usize,
    requests: &[Request],
    sampling: &Sampling,
) -> Vec<Completion> {
    let mut done = Vec::new();
    let mut on_done = |completion| {
        done.push(completion);
        Ok(())
    };
    run(
        model,
        &Letters,
        max_batch,
        requests,
        sampling,
        &mut on_done,
        &Stop::default(),
    )
    .unwrap();
    done.sort_by_key(|completion| completion.id);
    done
}

fn requests(num_prompts: u32, samples: u64) -> Vec<Request> {
    (0..num_prompts)
        .flat_map(|p| (0..samples).map(move |s| (p, s)))
        .map(|(p, s)| Request {
            id: u64::from(p) * 1000 + s,
            prompt: (0..3 + p % 5).map(|i| (p + i) % 20).collect(),
        })
        .collect()
}

fn sampling() -> Sampling {
    Sampling {
        max_new_tokens: 12,
        stop_ids: vec![21],
        stop: vec!["ab".into()],
        seed: 5,
        ..Sampling::default()
    }
}

#[test]
fn completions_do_not_depend_on_the_batch_or_the_order() {
    let requests = requests(9, 4);
    let alone = complete(&mut Fake::new(100), 1, &requests, &sampling());
    assert_eq!(alone.len(), 36);
    assert!(alone.iter().any(|c| c.finish_reason == FinishReason::Stop));
    assert!(
        alone
            .iter()
            .any(|c| c.finish_reason == FinishReason::Length)
    );
    let mut shuffled = requests.clone();
    shuffled.sort_by_key(|request| sampler::uniform(3, request.id, 0).to_bits());
    for max_batch in [2, 3, 16, 100] {
        let mut model = Fake::new(100);
        assert_eq!(
            complete(&mut model, max_batch, &requests, &sampling()),
            alone
        );
        assert_eq!(model.num_prefills, 9, "one prefill a prompt");
        assert_eq!(
            complete(&mut Fake::new(100), max_batch, &shuffled, &sampling()),
            alone
        );
    }
    assert_ne!(
        complete(
            &mut Fake::new(100),
            4,
            &requests,
            &Sampling {
                seed: 6,
                ..sampling()
            }
        ),
        alone
    );
}

#[test]
fn slots_are_never_idle_while_requests_wait() {
    let mut model = Fake::new(100);
    let done = complete(&mut model, 4, &requests(8, 5), &sampling());
    assert_eq!(model.widest, 4);
    // the last token of a completion is never fed back, and nothing is computed for an ended sequence
    assert_eq!(
        model.num_rows,
        done.iter().map(|c| c.tokens.len() - 1).sum::<usize>()
    );
}

#[test]
fn what_ended_holds_no_memory() {
    let requests = requests(8, 5);
    for max_batch in [1, 4, 16] {
        let mut model = Fake::new(100);
        complete(&mut model, max_batch, &requests, &sampling());
        // prompts have seven tokens at most, completions twelve
        assert!(model.most_idle <= 7, "{}", model.most_idle);
        assert!(model.slots.iter().all(Vec::is_empty));
    }
}

#[test]
fn completions_end_where_they_should() {
    for completion in complete(&mut Fake::new(100), 16, &requests(9, 6), &sampling()) {
        let Completion {
            tokens,
            logprobs,
            text,
            finish_reason,
            ..
        } = completion;
        assert_eq!(tokens.len(), logprobs.len());
        assert!(logprobs.iter().all(|&logprob| logprob < 0.0));
        let full = Letters.detokenize(&tokens).unwrap();
        let by_token = tokens.iter().position(|&token| token == 21);
        match (by_token, full.find("ab")) {
            (_, Some(at)) => {
                assert_eq!((at + 2, finish_reason), (full.len(), FinishReason::Stop));
                assert_eq!(text, full[..at]);
            }
            (Some(at), None) => {
                assert_eq!((at + 1, finish_reason), (tokens.len(), FinishReason::Stop));
                assert_eq!(text, full[..at]);
            }
            (None, None) => {
                assert_eq!((tokens.len(), finish_reason), (12, FinishReason::Length));
                assert_eq!(text, full);
            }
        }
    }
}

#[test]
fn positions_bound_a_completion() {
    let request = Request {
        id: 1,
        prompt: vec![1; 6],
    };
    let sampling = Sampling {
        max_new_tokens: 50,
        ..Sampling::default()
    };
    let done = complete(
        &mut Fake::new(10),
        2,
        std::slice::from_ref(&request),
        &sampling,
    );
    assert_eq!(
        (done[0].tokens.len(), done[0].finish_reason),
        (4, FinishReason::Length)
    );
}

fn error_of(model: &mut Fake, requests: &[Request], sampling: &Sampling, stop: &Stop) -> Error {
    run(
        model,
        &Letters,
        4,
        requests,
        sampling,
        &mut |_| Ok(()),
        stop,
    )
    .unwrap_err()
}

#[test]
fn what_cannot_be_continued_is_refused_by_name() {
    let go = Stop::default();
    let cases = [
        (vec![], "no tokens"),
        (vec![1, 23], "token 23"),
        (vec![1; 10], "10 positions"),
    ];
    for (prompt, message) in cases {
        let request = Request { id: 77, prompt };
        let error = error_of(&mut Fake::new(10), &[request], &sampling(), &go).to_string();
        assert!(
            error.contains("request 77") && error.contains(message),
            "{error}"
        );
    }
    let wrong = Sampling {
        top_p: 0.0,
        ..sampling()
    };
    assert!(
        error_of(&mut Fake::new(10), &requests(1, 1), &wrong, &go)
            .to_string()
            .contains("`top_p`")
    );
    let mut model = Fake {
        poison: Some(19),
        ..Fake::new(100)
    };
    let requests = [
        Request {
            id: 5,
            prompt: vec![1],
        },
        Request {
            id: 6,
            prompt: vec![19],
        },
    ];
    match error_of(&mut model, &requests, &sampling(), &go) {
        Error::NonFinite { message, .. } => assert!(message.contains("request 6"), "{message}"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_stop_is_honoured_between_steps() {
    let stop = Stop::default();
    let mut num_done = 0;
    let mut on_done = |_| {
        num_done += 1;
        stop.request();
        Ok(())
    };
    let result = run(
        &mut Fake::new(100),
        &Letters,
        3,
        &requests(9, 4),
        &sampling(),
        &mut on_done,
        &stop,
    );
    assert!(matches!(result, Err(Error::Interrupted { .. })));
    assert!((1..=3).contains(&num_done));
}
