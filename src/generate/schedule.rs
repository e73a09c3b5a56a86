//! Continuous batching: a finished sequence leaves its slot of the KV cache, and what it held there, to the next request at
//! once, and requests with the same prompt read it once.
//!
//! The loop is written against the few things a language model does for it ([`Lm`]), so that it can be tested without
//! weights. What it hands out does not depend on the batch: a row of logits depends on its own sequence only
//! (`ops::decode`, `ops::paged`; on a GPU but for the last bits), and a draw on (seed, request id, position) only.

use std::collections::{HashMap, HashSet, VecDeque};

use rayon::prelude::*;

use super::sampler::{self, Choice, Scratch};
use super::stopping::{Detokenize, Watch, first_stop};
use super::{Completion, FinishReason, Request, Sampling};
use crate::progress::Stop;
use crate::{Error, Result};

/// What the loop asks of a language model. Rows of logits are f32; V is the vocabulary.
pub trait Lm {
    /// Logits: one row after prefill, B rows after decode.
    type Logits;
    fn vocab_size(&self) -> usize;
    /// The longest sequence, prompt and completion together.
    fn max_positions(&self) -> usize;
    /// Reads `prompt` into the empty `slot`; logits of what follows it.
    fn prefill(&mut self, slot: u32, prompt: &[u32]) -> Result<Self::Logits>;
    /// Appends one token to each of `slots`; logits of what follows, in their order.
    fn decode(&mut self, slots: &[u32], tokens: &[u32]) -> Result<Self::Logits>;
    /// Makes `to` hold the first `len` positions of `from`, and nothing else; they may be the same slot.
    fn share(&mut self, from: u32, to: u32, len: usize) -> Result<()>;
    /// Forgets what a slot holds.
    fn clear(&mut self, slot: u32) -> Result<()>;
    /// One choice a row with the numbers `us`, none for a row that is no distribution, where the model can draw by itself
    /// where its logits are; repetition is not looked at.
    fn draw(
        &self,
        _logits: &Self::Logits,
        _sampling: &Sampling,
        _us: &[f64],
    ) -> Result<Option<Vec<Option<Choice>>>> {
        Ok(None)
    }
    /// The numbers of all rows, one after the other.
    fn with_rows<R>(&self, logits: &Self::Logits, read: impl FnOnce(&[f32]) -> R) -> Result<R>;
}

/// One sequence that is being continued.
pub struct Sequence {
    /// index into the requests
    request: usize,
    slot: u32,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    sampled_logprobs: Vec<f32>,
    watch: Watch,
    /// distinct tokens of prompt and completion, where a repetition penalty needs them
    seen: HashSet<u32>,
    limit: usize,
}

/// Requests with the same prompt.
struct Prompt<L> {
    len: usize,
    /// how many of them have not begun
    waiting: usize,
    /// the logits after the prompt, kept while somebody waits for them
    logits: Option<L>,
}

/// Continues `requests`, at most `max_batch` at a time, and hands each completion to `on_done` as it ends.
pub fn run<M: Lm>(
    model: &mut M,
    decoder: &impl Detokenize,
    max_batch: usize,
    requests: &[Request],
    sampling: &Sampling,
    on_done: &mut dyn FnMut(Completion) -> Result<()>,
    stop: &Stop,
) -> Result<()> {
    sampling.validate()?;
    check_requests(requests, model.vocab_size(), model.max_positions())?;
    let mut prompt_of: HashMap<&[u32], usize> = HashMap::new();
    let mut prompts: Vec<Prompt<M::Logits>> = Vec::new();
    let mut waiting: VecDeque<(usize, usize)> = VecDeque::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        let prompt = *prompt_of.entry(&request.prompt).or_insert(prompts.len());
        if prompt == prompts.len() {
            prompts.push(Prompt {
                len: request.prompt.len(),
                waiting: 0,
                logits: None,
            });
        }
        prompts[prompt].waiting += 1;
        waiting.push_back((index, prompt));
    }
    let num_slots = max_batch.clamp(1, requests.len().max(1));
    // the prompt each slot begins with, also after its sequence has ended as long as somebody waits for it
    let mut holds: Vec<Option<usize>> = vec![None; num_slots];
    let mut free: Vec<u32> = (0..num_slots as u32).rev().collect();
    let mut active: Vec<Sequence> = Vec::with_capacity(num_slots);
    let mut scratch: Vec<Scratch> = Vec::new();
    loop {
        if stop.requested() {
            return Err(Error::Interrupted {
                message: format!("with {} completions to go", waiting.len() + active.len()),
            });
        }
        // a prompt can take long: whoever stops waits for one of them, not for all slots
        while !stop.requested()
            && !free.is_empty()
            && let Some((index, prompt)) = waiting.pop_front()
        {
            let request = &requests[index];
            let slot = take_slot(&mut free, &holds, prompt, &prompts);
            let source = holds.iter().position(|&held| held == Some(prompt));
            match (source, &prompts[prompt].logits) {
                (Some(source), Some(_)) => {
                    model.share(source as u32, slot, request.prompt.len())?
                }
                _ => {
                    model.clear(slot)?;
                    prompts[prompt].logits = Some(model.prefill(slot, &request.prompt)?);
                }
            }
            holds[slot as usize] = Some(prompt);
            prompts[prompt].waiting -= 1;
            let mut sequence = Sequence::new(request, index, slot, sampling, model.max_positions());
            if let Some(logits) = &prompts[prompt].logits {
                let first = std::slice::from_ref(&sequence);
                let choices = choose(model, logits, first, requests, sampling, &mut scratch)?;
                match sequence.push(choices[0], request, sampling, decoder)? {
                    Some(completion) => {
                        free.push(slot);
                        leave(model, slot, &mut holds, &prompts)?;
                        on_done(completion)?;
                    }
                    None => active.push(sequence),
                }
            }
            if prompts[prompt].waiting == 0 {
                prompts[prompt].logits = None;
                for &slot in &free {
                    if holds[slot as usize] == Some(prompt) {
                        leave(model, slot, &mut holds, &prompts)?;
                    }
                }
            }
        }
        if stop.requested() {
            continue;
        }
        if active.is_empty() {
            return Ok(());
        }
        let slots: Vec<u32> = active.iter().map(|sequence| sequence.slot).collect();
        let last: Vec<u32> = active
            .iter()
            .filter_map(|sequence| sequence.tokens.last().copied())
            .collect();
        let logits = model.decode(&slots, &last)?;
        let choices = choose(model, &logits, &active, requests, sampling, &mut scratch)?;
        let mut going = Vec::with_capacity(num_slots);
        for (mut sequence, choice) in active.drain(..).zip(choices) {
            match sequence.push(choice, &requests[sequence.request], sampling, decoder)? {
                Some(completion) => {
                    free.push(sequence.slot);
                    leave(model, sequence.slot, &mut holds, &prompts)?;
                    on_done(completion)?;
                }
                None => going.push(sequence),
            }
        }
        active = going;
    }
}

/// Refuses prompts that a model of this vocabulary and these positions cannot continue.
pub fn check_requests(requests: &[Request], vocab: usize, max_positions: usize) -> Result<()> {
    for request in requests {
        if request.prompt.is_empty() {
            return Err(Error::input(format!(
                "request {}: the prompt has no tokens",
                request.id
            )));
        }
        if let Some(token) = request
            .prompt
            .iter()
            .find(|&&token| token as usize >= vocab)
        {
            return Err(Error::input(format!(
                "request {}: token {token} is outside the model's vocabulary of {vocab}",
                request.id
            ))
            .with_hint("the tokenizer belongs to another model"));
        }
        if request.prompt.len() >= max_positions {
            return Err(Error::input(format!(
                "request {}: a prompt of {} tokens leaves no room in the model's {} positions",
                request.id,
                request.prompt.len(),
                max_positions
            ))
            .with_hint("shorten the prompt, or raise `max_position_embeddings` of the model"));
        }
    }
    Ok(())
}

/// A free slot: one that holds the prompt already, or else one whose prompt nobody waits for, or else any.
fn take_slot<L>(
    free: &mut Vec<u32>,
    holds: &[Option<usize>],
    prompt: usize,
    prompts: &[Prompt<L>],
) -> u32 {
    let held = |slot: &u32| holds[*slot as usize];
    let best = free
        .iter()
        .rposition(|slot| held(slot) == Some(prompt))
        .or_else(|| {
            free.iter()
                .rposition(|slot| held(slot).is_none_or(|other| prompts[other].waiting == 0))
        })
        .unwrap_or(free.len() - 1);
    free.swap_remove(best)
}

/// Gives back what a slot holds after its sequence has ended: all but the prompt, and that too where nobody waits for it.
fn leave<M: Lm>(
    model: &mut M,
    slot: u32,
    holds: &mut [Option<usize>],
    prompts: &[Prompt<M::Logits>],
) -> Result<()> {
    match holds[slot as usize].map(|prompt| &prompts[prompt]) {
        Some(prompt) if prompt.waiting > 0 => model.share(slot, slot, prompt.len),
        _ => {
            holds[slot as usize] = None;
            model.clear(slot)
        }
    }
}

/// One choice a row of `logits`, by the model itself where it can.
fn choose<M: Lm>(
    model: &M,
    logits: &M::Logits,
    sequences: &[Sequence],
    requests: &[Request],
    sampling: &Sampling,
    scratch: &mut Vec<Scratch>,
) -> Result<Vec<Choice>> {
    if sampling.repetition_penalty == 1.0 {
        let us: Vec<f64> = sequences
            .iter()
            .map(|s| s.uniform(requests, sampling))
            .collect();
        if let Some(drawn) = model.draw(logits, sampling, &us)? {
            let choices = drawn.into_iter().zip(sequences);
            return choices
                .map(|(choice, sequence)| choice.ok_or_else(|| sequence.not_finite(requests)))
                .collect();
        }
    }
    model.with_rows(logits, |rows| {
        choose_rows(rows, sequences, requests, sampling, scratch)
    })?
}

/// One choice a row, rows in parallel. `rows` is [B, V] flat, B the number of sequences.
fn choose_rows(
    rows: &[f32],
    sequences: &[Sequence],
    requests: &[Request],
    sampling: &Sampling,
    scratch: &mut Vec<Scratch>,
) -> Result<Vec<Choice>> {
    scratch.resize_with(scratch.len().max(sequences.len()), Scratch::default);
    let vocab = rows.len() / sequences.len();
    let choose = |(row, (sequence, scratch)): (&[f32], (&Sequence, &mut Scratch))| {
        let (seen, u) = (
            sequence.seen.iter().copied(),
            sequence.uniform(requests, sampling),
        );
        sampler::choose(row, sampling, seen, u, scratch)
            .ok_or_else(|| sequence.not_finite(requests))
    };
    if sequences.len() == 1 {
        return Ok(vec![choose((rows, (&sequences[0], &mut scratch[0])))?]);
    }
    rows.par_chunks(vocab)
        .zip(sequences.par_iter().zip(scratch.par_iter_mut()))
        .map(choose)
        .collect()
}

impl Sequence {
    pub fn new(
        request: &Request,
        index: usize,
        slot: u32,
        sampling: &Sampling,
        max_positions: usize,
    ) -> Self {
        let seen = match sampling.repetition_penalty == 1.0 {
            true => HashSet::new(),
            false => request.prompt.iter().copied().collect(),
        };
        Self {
            request: index,
            slot,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            sampled_logprobs: Vec::new(),
            watch: Watch::default(),
            seen,
            limit: sampling
                .max_new_tokens
                .min(max_positions - request.prompt.len()),
        }
    }

    /// The number that its next token is drawn with.
    fn uniform(&self, requests: &[Request], sampling: &Sampling) -> f64 {
        let position = self.tokens.len() as u64;
        sampler::uniform(sampling.seed, requests[self.request].id, position)
    }

    fn not_finite(&self, requests: &[Request]) -> Error {
        Error::NonFinite {
            message: format!(
                "request {}: the logits of token {} of its completion are not finite",
                requests[self.request].id,
                self.tokens.len() + 1
            ),
            hint: Some("the weights hold NaN or infinite values, or a 16-bit dtype overflows: try `dtype = \"f32\"`".into()),
        }
    }

    /// Takes one more token; the completion where it is the last.
    pub fn push(
        &mut self,
        choice: Choice,
        request: &Request,
        sampling: &Sampling,
        decoder: &impl Detokenize,
    ) -> Result<Option<Completion>> {
        self.tokens.push(choice.token);
        self.logprobs.push(choice.logprob);
        self.sampled_logprobs.push(choice.sampled_logprob);
        if sampling.repetition_penalty != 1.0 {
            self.seen.insert(choice.token);
        }
        let by_token = sampling.stop_ids.contains(&choice.token);
        let by_text = !by_token
            && !sampling.stop.is_empty()
            && self.watch.grew(&self.tokens, &sampling.stop, decoder)?;
        if !(by_token || by_text || self.tokens.len() >= self.limit) {
            return Ok(None);
        }
        let spoken = self.tokens.len() - usize::from(by_token);
        let has_stopped = by_token || by_text;
        self.end(request, spoken, has_stopped, sampling, decoder)
            .map(Some)
    }

    /// The completion of what was taken so far; the first `spoken` tokens are its text.
    pub fn end(
        &mut self,
        request: &Request,
        spoken: usize,
        has_stopped: bool,
        sampling: &Sampling,
        decoder: &impl Detokenize,
    ) -> Result<Completion> {
        let mut text = decoder.detokenize(&self.tokens[..spoken])?;
        let cut = first_stop(&text, &sampling.stop);
        if let Some(at) = cut {
            text.truncate(at);
        }
        Ok(Completion {
            id: request.id,
            tokens: std::mem::take(&mut self.tokens),
            logprobs: std::mem::take(&mut self.logprobs),
            sampled_logprobs: std::mem::take(&mut self.sampled_logprobs),
            text,
            finish_reason: match has_stopped || cut.is_some() {
                true => FinishReason::Stop,
                false => FinishReason::Length,
            },
        })
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
