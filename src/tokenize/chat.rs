//! Conversations to tokens: the prompt that generation starts from, and the row that training sees.
//!
//! What is trained is found by rendering prefixes of the conversation, never by searching the row:
//!
//! - The *prompt* of a turn is everything before it, rendered with the generation prompt, and tokenised by itself: these
//!   are the tokens that generation will start from, to the last one.
//! - The *completion* is what the student has to generate after that prompt: what the template renders for the turn
//!   beyond the prompt, up to and with its end-of-turn token. It is tokenised by itself too, and trained.
//! - What follows the end-of-turn token (`\n` in ChatML) belongs to the context of the next turn and is not trained.
//!
//! Tokenising a text in one go could merge characters across the border of prompt and completion; generation never sees
//! such a token there, so rows do not have it either. [`Tokenized::joint_differs`] tells where that made a difference.
//!
//! Two things templates do to reasoning are undone, for the trained turns only:
//!
//! - A template that loses text of the turn: it drops `<think>…</think>` (R1-Distill), or cuts at a tag that the text only
//!   speaks of (Qwen3). The turn is then rendered with a placeholder for its whole content, and the content takes the
//!   placeholder's place.
//! - A generation prompt that already opens the reasoning (`<think>\n`): the completion begins after it. A turn without
//!   reasoning closes it at once: `\n</think>\n\n`.
//!
//! Earlier turns that are not trained stay as the template renders them, since generation sees them so.

use super::template::REASONING_FIELDS;
use super::{ChatTemplate, Message, TextTokenizer};
use crate::{Error, Result};
use minijinja::Value;
use serde_json::{Map, json};
use std::borrow::Cow;
use std::path::Path;

/// Whose tokens are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainOn {
    /// The last assistant turn; the row ends with it.
    #[default]
    LastAssistant,
    /// Every assistant turn, each with its reasoning, in one row. Where the template drops reasoning from history, a later
    /// turn then sees reasoning in training that it would not see in generation.
    AllAssistant,
}

/// What happens where the template puts no special token behind the assistant's turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingEnd {
    /// The row is refused: a student trained on it would never stop.
    #[default]
    Error,
    /// `eos_token` is put behind the turn.
    AppendEos,
}

/// A row as the trainer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    pub tokens: Vec<u32>,
    /// Whether the token is learnt, one entry a token.
    pub trained: Vec<bool>,
    /// Tokenising the row in one go would give other tokens where a completion begins (looked at 32 bytes before and 64
    /// bytes after).
    pub joint_differs: bool,
}

impl Tokenized {
    /// How many tokens are learnt; at least one.
    pub fn num_trained(&self) -> usize {
        self.trained.iter().filter(|&&trained| trained).count()
    }
}

/// A tokenizer with its chat template and the ids that end an answer.
#[derive(Clone, Debug)]
pub struct Chat {
    pub tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    /// Ids that end a generation: those of `generation_config.json`, `eos_token`, and the template's end of turn.
    pub eos_ids: Vec<u32>,
    /// Variables of the template; `enable_thinking` is true unless changed.
    pub variables: Map<String, serde_json::Value>,
    pub missing_end: MissingEnd,
    /// What the template puts behind an assistant's turn, usually; saves looking for its end every time.
    usual_tail: Option<Tail>,
}

/// The source of the template given, else of the tokenizer's own.
fn source<'a>(tokenizer: &'a TextTokenizer, given: Option<&'a str>) -> Option<&'a str> {
    given.or(tokenizer.files().chat_template.as_deref())
}

fn no_template(hint: &str) -> Error {
    Error::input("the tokenizer has no chat template").with_hint(hint)
}

/// What stands in for the assistant's text while the template's frame around it is looked for; from the private use area,
/// without white space that a template could strip.
const ANSWER: &str = "\u{e0d1}answer\u{e0d2}";
const REASONING: &str = "\u{e0d1}reasoning\u{e0d2}";

/// What the template puts behind an assistant's turn.
#[derive(Clone, Debug)]
struct Tail {
    text: String,
    /// The first special token in it, and where that token ends.
    end: Option<(u32, usize)>,
}

/// One assistant turn cut as training needs it.
struct Turn {
    prompt: String,
    /// What is generated after the prompt, without the tail.
    completion: String,
    tail: Tail,
}

impl Chat {
    /// Reads the tokenizer of a folder in the Hugging Face layout. `template` is the source of a chat template in place of
    /// the folder's own.
    pub fn load(folder: &Path, template: Option<&str>) -> Result<Self> {
        Self::new(TextTokenizer::load(folder)?, template)
            .map_err(|error| error.at(format!("`{}`", folder.display())))
    }

    /// As [`Chat::load`], but a folder without a template is fine until a conversation is rendered.
    pub fn load_for_text(folder: &Path, template: Option<&str>) -> Result<Self> {
        Self::for_text(TextTokenizer::load(folder)?, template)
            .map_err(|error| error.at(format!("`{}`", folder.display())))
    }

    /// As [`Chat::new`], but without a template it is fine until a conversation is rendered.
    pub fn for_text(tokenizer: TextTokenizer, template: Option<&str>) -> Result<Self> {
        let template = source(&tokenizer, template).map(str::to_string);
        Self::build(tokenizer, template.as_deref())
    }

    /// A tokenizer with the given template, else with the one that came with it.
    pub fn new(tokenizer: TextTokenizer, template: Option<&str>) -> Result<Self> {
        let Some(template) = source(&tokenizer, template).map(str::to_string) else {
            return Err(no_template(
                "name one in `[student] chat_template`, a file or one of the shipped ones",
            ));
        };
        Self::build(tokenizer, Some(&template))
    }

    fn build(tokenizer: TextTokenizer, template: Option<&str>) -> Result<Self> {
        let template = template
            .map(|source| ChatTemplate::new(source, tokenizer.special_tokens()))
            .transpose()?;
        let mut chat = Self {
            eos_ids: tokenizer.files().generation_eos_ids(),
            template,
            variables: Map::from_iter([("enable_thinking".to_string(), json!(true))]),
            missing_end: MissingEnd::default(),
            usual_tail: None,
            tokenizer,
        };
        let size = chat.tokenizer.vocab_size();
        if let Some(id) = chat.eos_ids.iter().find(|&&id| id as usize >= size) {
            return Err(Error::input(format!(
                "`eos_token_id` {id} of generation_config.json, else config.json, is not in the vocabulary of {size}"
            )));
        }
        // a template may refuse so short a conversation; its tails are then looked at row by row
        let history = ChatTemplate::messages(&[Message::new("user", "?")]);
        if let Ok((_, text)) = chat.frame(&history, &Message::new("assistant", "")) {
            chat.usual_tail = Some(chat.tail(text)?);
        }
        let end_of_turn = chat
            .usual_tail
            .as_ref()
            .and_then(|tail| tail.end)
            .map(|(id, _)| id);
        for id in [chat.tokenizer.special_id("eos_token"), end_of_turn]
            .into_iter()
            .flatten()
        {
            chat.add_stop_id(id);
        }
        Ok(chat)
    }

    /// The template.
    ///
    /// # Errors
    /// There is none.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template
            .as_ref()
            .ok_or_else(|| no_template("put a `chat_template.jinja` beside `tokenizer.json`"))
    }

    /// Ids that end a generation.
    pub fn stop_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// One more token that ends a generation, by its text.
    pub fn add_stop_token(&mut self, token: &str) -> Result<()> {
        let id = self.tokenizer.token_to_id(token).ok_or_else(|| {
            Error::input(format!("stop token `{token}` is no token of the tokenizer"))
        })?;
        self.add_stop_id(id);
        Ok(())
    }

    fn add_stop_id(&mut self, id: u32) {
        if !self.eos_ids.contains(&id) {
            self.eos_ids.push(id);
        }
    }

    /// The token that the template puts behind an assistant's turn, where it puts one.
    pub fn end_of_turn(&self) -> Option<u32> {
        Some(self.usual_tail.as_ref()?.end?.0)
    }

    /// Text that generation starts from: the conversation with the generation prompt.
    pub fn prompt_text(&self, messages: &[Message]) -> Result<String> {
        self.template()?
            .render(&with_reasoning_inside(messages), true, &self.variables)
    }

    /// Tokens that generation starts from.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.tokenizer.encode(&self.prompt_text(messages)?)
    }

    /// The row of a conversation and what of it is trained.
    ///
    /// An error is the reason why the row cannot be trained. Its message does not depend on the row's text, so that rows
    /// can be counted by it.
    pub fn tokenize(&self, messages: &[Message], train_on: TrainOn) -> Result<Tokenized> {
        let messages = with_reasoning_inside(messages);
        let is_assistant = |index: &usize| messages[*index].role == "assistant";
        let turns: Vec<usize> = match train_on {
            TrainOn::LastAssistant => (0..messages.len())
                .rev()
                .find(is_assistant)
                .into_iter()
                .collect(),
            TrainOn::AllAssistant => (0..messages.len()).filter(is_assistant).collect(),
        };
        let values = ChatTemplate::messages(&messages);
        let mut row = Tokenized {
            tokens: Vec::new(),
            trained: Vec::new(),
            joint_differs: false,
        };
        let mut last: Option<(usize, Tail)> = None;
        for &index in &turns {
            let turn = self.turn(&values[..index], &messages[index])?;
            let context = match &last {
                None => turn.prompt,
                Some((last, tail)) => {
                    self.between(&values, &messages[*last], *last, index, tail)?
                }
            };
            row.push(self.tokenizer.encode(&context)?, false);
            let (completion, joint) = self.completion(&context, turn.completion, &turn.tail)?;
            row.joint_differs |= joint;
            row.push(completion, true);
            last = Some((index, turn.tail));
        }
        let Some((_, tail)) = last else {
            return Err(Error::input("the row has no assistant turn"));
        };
        row.push(self.tokenizer.encode(tail.after_end())?, false);
        Ok(row)
    }

    /// Writes the tokenizer's files into `folder`, which exists: with this template, and a `generation_config.json` that
    /// names every id that ends a generation.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut files = self.tokenizer.files().clone();
        files.chat_template = self.template.as_ref().map(|t| t.source().to_string());
        let mut generation = files.generation_config.take().unwrap_or_default();
        let eos = match self.eos_ids.as_slice() {
            [] => None,
            [id] => Some(json!(id)),
            ids => Some(json!(ids)),
        };
        if let Some(eos) = eos {
            generation.insert("eos_token_id".into(), eos);
        }
        for (key, name) in [("bos_token_id", "bos_token"), ("pad_token_id", "pad_token")] {
            if let (false, Some(id)) = (
                generation.contains_key(key),
                self.tokenizer.special_id(name),
            ) {
                generation.insert(key.into(), json!(id));
            }
        }
        files.generation_config = Some(generation);
        // without it transformers takes its own class's, which is another one for Qwen2
        if let (false, Some(&id)) = (
            files.special_tokens().contains_key("eos_token"),
            self.eos_ids.first(),
        ) && let Some(token) = self.tokenizer.id_to_token(id)
        {
            files.config.insert("eos_token".into(), json!(token));
        }
        self.tokenizer.save_with(folder, &files)
    }

    fn render(&self, messages: Vec<Value>, add_generation_prompt: bool) -> Result<String> {
        self.template()?
            .render_values(messages, add_generation_prompt, &self.variables)
    }

    /// The conversation so far and one assistant turn with this content.
    fn render_turn(&self, history: &[Value], turn: &Message, content: &str) -> Result<String> {
        let mut messages = history.to_vec();
        messages.push(ChatTemplate::message(turn, content));
        self.render(messages, false)
    }

    /// What the template renders before and after the text of an assistant turn.
    fn frame(&self, history: &[Value], turn: &Message) -> Result<(String, String)> {
        let text = self.render_turn(history, turn, ANSWER)?;
        match cut_at(&text, ANSWER) {
            Some((head, tail)) => Ok((head.to_string(), tail.to_string())),
            None => Err(Error::input(
                "the chat template does not render the assistant's text exactly once",
            )),
        }
    }

    /// Whether the reasoning inside this turn survives the template.
    fn keeps_reasoning(&self, history: &[Value], turn: &Message) -> Result<bool> {
        let probe = format!("<think>\n{REASONING}\n</think>\n\n{ANSWER}");
        Ok(self.render_turn(history, turn, &probe)?.contains(REASONING))
    }

    fn turn(&self, history: &[Value], turn: &Message) -> Result<Turn> {
        let content = turn.content.as_str();
        if content.trim().is_empty() {
            return Err(Error::input("the assistant's turn is empty"));
        }
        let prompt = self.render(history.to_vec(), true)?;
        let (mut head, tail) = self.frame(history, turn)?;
        let mut whole = self.render_turn(history, turn, content)?;
        let is_whole = ends_with_text(whole.strip_suffix(&tail).unwrap_or(&whole), content)
            || self.keeps_reasoning(history, turn)? && is_set_anew(&whole, &tail, content);
        if !is_whole {
            if content.contains("</think>") {
                head.truncate(without_empty_reasoning(&head).len());
            }
            whole = [&head, content, &tail].concat();
        }
        let rendered = whole.strip_suffix(&tail).ok_or_else(|| {
            Error::input("the chat template ends this turn unlike any other text")
        })?;
        let completion = match rendered.strip_prefix(&prompt) {
            Some(completion) => completion.to_string(),
            None => {
                let beyond = "the chat template's generation prompt is not how it begins the assistant's turn";
                let (prefill, body) = prompt
                    .strip_prefix(&head)
                    .zip(rendered.strip_prefix(&head))
                    .ok_or_else(|| {
                        Error::input(beyond).with_hint("use one of the shipped chat templates")
                    })?;
                after_prefill(prefill, body)?
            }
        };
        Ok(Turn {
            prompt,
            completion,
            tail: self.tail(tail)?,
        })
    }

    fn tail(&self, text: String) -> Result<Tail> {
        if let Some(usual) = self.usual_tail.as_ref().filter(|usual| usual.text == text) {
            return Ok(usual.clone());
        }
        let ids = self.tokenizer.encode(&text)?;
        let ends = |id: &u32| self.tokenizer.is_special(*id) || self.eos_ids.contains(id);
        let end = ids.into_iter().find(ends).and_then(|id| {
            let token = self.tokenizer.id_to_token(id)?;
            Some((id, text.find(&token)? + token.len()))
        });
        Ok(Tail { text, end })
    }

    /// What lies between the end-of-turn token of one assistant turn and where the next one's completion begins, as the
    /// template renders it: with a placeholder for the earlier turn's text, whatever becomes of that text in history.
    fn between(
        &self,
        values: &[Value],
        turn: &Message,
        index: usize,
        next: usize,
        tail: &Tail,
    ) -> Result<String> {
        let mut messages = values[..next].to_vec();
        messages[index] = ChatTemplate::message(turn, ANSWER);
        let text = self.render(messages, true)?;
        cut_at(&text, ANSWER)
            .and_then(|(_, after)| after.strip_prefix(&tail.text))
            .map(|after| format!("{}{after}", tail.after_end()))
            .ok_or_else(|| {
                Error::input("the chat template renders an earlier turn unlike the last one")
            })
    }

    /// Tokens of a completion with its end, and whether tokenising it together with its context would differ.
    fn completion(
        &self,
        context: &str,
        completion: String,
        tail: &Tail,
    ) -> Result<(Vec<u32>, bool)> {
        let joint = {
            let before = &context[boundary(context, context.len().saturating_sub(32))..];
            let after = &completion[..boundary(&completion, 64)];
            let mut apart = self.tokenizer.encode(before)?;
            apart.extend(self.tokenizer.encode(after)?);
            apart != self.tokenizer.encode(&[before, after].concat())?
        };
        let mut tokens;
        match (
            tail.end,
            self.missing_end,
            self.tokenizer.special_id("eos_token"),
        ) {
            (Some((end, at)), _, _) => {
                tokens = self.tokenizer.encode(&(completion + &tail.text[..at]))?;
                if tokens.last() != Some(&end) {
                    return Err(Error::input(
                        "the end-of-turn token merges with the text before it",
                    ));
                }
            }
            (None, MissingEnd::AppendEos, Some(eos)) => {
                tokens = self.tokenizer.encode(&completion)?;
                tokens.push(eos);
            }
            (None, MissingEnd::AppendEos, None) => {
                return Err(Error::input(
                    "the row has no end: the tokenizer has no `eos_token` to append",
                ));
            }
            (None, MissingEnd::Error, _) => {
                return Err(Error::input(
                    "the row has no end: the chat template puts no special token behind the turn",
                )
                .with_hint("use one of the shipped chat templates"));
            }
        }
        let (_, text) = tokens.split_last().unwrap_or((&0, &[]));
        if text.is_empty() {
            return Err(Error::input("the row has no trained token"));
        }
        if text.iter().any(|id| self.eos_ids.contains(id)) {
            return Err(Error::input(
                "the assistant's text holds a token that ends the turn",
            ));
        }
        Ok((tokens, joint))
    }
}

impl Tail {
    /// What follows the end-of-turn token; all of it where there is none.
    fn after_end(&self) -> &str {
        &self.text[self.end.map_or(0, |(_, at)| at)..]
    }
}

impl Tokenized {
    fn push(&mut self, tokens: Vec<u32>, trained: bool) {
        self.trained
            .resize(self.trained.len() + tokens.len(), trained);
        self.tokens.extend(tokens);
    }
}

/// The last character boundary at or before `at`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

/// The text before and after the one occurrence of `mark`.
fn cut_at<'a>(text: &'a str, mark: &str) -> Option<(&'a str, &'a str)> {
    text.split_once(mark)
        .filter(|(_, after)| !after.contains(mark))
}

/// Whether `text` ends with all of `content`, white space aside.
fn ends_with_text(text: &str, content: &str) -> bool {
    let backwards =
        |text: &str| -> Vec<char> { text.chars().rev().filter(|c| !c.is_whitespace()).collect() };
    backwards(text).starts_with(&backwards(content))
}

/// Whether a template that marks reasoning in its own way has kept the reasoning and the answer whole. Text before the
/// reasoning has no place in such a form.
fn is_set_anew(whole: &str, tail: &str, content: &str) -> bool {
    let Some((reasoning, answer)) = content
        .trim_start()
        .strip_prefix("<think>")
        .and_then(|rest| rest.split_once("</think>"))
    else {
        return false;
    };
    let body = whole.strip_suffix(tail).unwrap_or(whole);
    // a tag within them is what a template may cut at: then only the content as it is will do
    ![reasoning, answer]
        .iter()
        .any(|part| part.contains("<think>") || part.contains("</think>"))
        && ends_with_text(body, answer)
}

/// `head` without the `<think></think>` that a template puts before an answer without reasoning.
fn without_empty_reasoning(head: &str) -> &str {
    head.trim_end()
        .strip_suffix("</think>")
        .and_then(|head| head.trim_end().strip_suffix("<think>"))
        .unwrap_or(head)
}

/// What is left to generate of `body` when the generation prompt has already put `prefill`.
fn after_prefill(prefill: &str, body: &str) -> Result<String> {
    if let Some(rest) = body.strip_prefix(prefill) {
        return Ok(rest.to_string());
    }
    let opened = prefill.trim_end();
    if let Some(rest) = body.strip_prefix(opened).filter(|_| !opened.is_empty()) {
        return Ok(rest.trim_start().to_string());
    }
    if opened.ends_with("<think>") && !body.contains("</think>") {
        let line_end = if opened == prefill { "\n\n" } else { "\n" };
        return Ok(format!("{line_end}</think>\n\n{}", body.trim_start()));
    }
    Err(Error::input(
        "the chat template's generation prompt begins the answer with text that the row's answer does not have",
    ))
}

/// Reasoning at the head of the content, as `<think>\n…\n</think>\n\n…`: what stands in a field of its own is put there, an
/// opening tag that the source left out is put in front, white space before the tag goes.
fn with_reasoning_inside(messages: &[Message]) -> Cow<'_, [Message]> {
    let changed = |message: &Message| -> Option<String> {
        if message.role != "assistant" {
            return None;
        }
        let content = message.content.as_str();
        let trimmed = content.trim_start();
        if let Some((reasoning, _)) = content.split_once("</think>") {
            return if !reasoning.contains("<think>") {
                Some(format!("<think>\n{trimmed}"))
            } else if trimmed.starts_with("<think>") && trimmed != content {
                Some(trimmed.to_string())
            } else {
                None
            };
        }
        let reasoning = REASONING_FIELDS
            .iter()
            .filter_map(|name| Some(message.extra.get(*name)?.as_str()?.trim_matches('\n')))
            .find(|text| !text.is_empty())?;
        let answer = content.trim_start_matches('\n');
        Some(format!("<think>\n{reasoning}\n</think>\n\n{answer}"))
    };
    let mut result = Cow::Borrowed(messages);
    for (index, message) in messages.iter().enumerate() {
        if let Some(content) = changed(message) {
            let message = &mut result.to_mut()[index];
            message.content = content;
            message
                .extra
                .retain(|name, _| !REASONING_FIELDS.contains(&name.as_str()));
        }
    }
    result
}
