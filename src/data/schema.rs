//! The schemas of the published trace data sets, told apart by their columns, and each one's way to [`Trace`]s.
//! What a recipe maps itself is read in [`super::mapping`].

use super::columns::{self, Judged, Prompt, Values, required, text};
use super::thinking::{self, Parts};
use super::trace::{Trace, Verdict};
use crate::tokenize::Message;
use crate::tokenize::template::REASONING_FIELDS;
use crate::{Error, Result};
use serde_json::Value;

/// A schema, by what its rows look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// `problem`, `generations[]` and lists of what is known of each (OpenR1-Math).
    Generations,
    /// `problem`, `deepseek_reasoning`, `deepseek_solution` (OpenThoughts, `metadata`).
    SplitDeepseek,
    /// `question`, `deepseek_thinking_trajectory`, `deepseek_attempt` (s1K).
    S1k,
    /// `reannotated_messages` (R1-Distill-SFT v1).
    ReannotatedMessages,
    /// `problem`, `reannotated_assistant_content` (R1-Distill-SFT v0).
    ReannotatedContent,
    /// `prompt`, `generation` (codeforces-cots).
    Generation,
    /// `messages` without the assistant's turn, `reasoning`, `answer` (dolphin-r1).
    SplitAfterMessages,
    /// `messages` (Mixture-of-Thoughts, AM-DeepSeek-R1-Distilled, and whoever follows the custom).
    Messages,
    /// `conversations` with `from` and `value` (OpenThoughts, Bespoke-Stratos).
    Conversations,
    /// `input`, `output` (Llama-Nemotron).
    InputOutput,
    /// A problem and a marked text: `response` or `completion`.
    Response,
    /// `problem` or `question`, `reasoning`, `answer`.
    Split,
    /// `question` or `problem`, `solution` that reasons, `answer` (LIMO).
    Solution,
}

const PROBLEM: [&str; 4] = ["problem", "question", "prompt", "instruction"];
/// Columns that say whether the answer is right, whatever the schema.
const VERDICTS: [&str; 2] = ["correct", "verified"];
const RESPONSE: [&str; 3] = ["response", "completion", "output"];

/// Tells the schema; the most specific one wins.
pub fn detect(row: &Values) -> Option<Schema> {
    let has = |name: &str| row.contains_key(name);
    let problem = PROBLEM.iter().any(|name| has(name));
    Some(if has("generations") && problem {
        Schema::Generations
    } else if has("deepseek_reasoning") && has("deepseek_solution") {
        Schema::SplitDeepseek
    } else if has("deepseek_thinking_trajectory") && has("deepseek_attempt") {
        Schema::S1k
    } else if has("reannotated_messages") {
        Schema::ReannotatedMessages
    } else if has("reannotated_assistant_content") && problem {
        Schema::ReannotatedContent
    } else if has("generation") && problem {
        Schema::Generation
    } else if has("messages") && has("reasoning") && has("answer") {
        Schema::SplitAfterMessages
    } else if has("messages") {
        Schema::Messages
    } else if has("conversations") {
        Schema::Conversations
    } else if has("input") && has("output") {
        Schema::InputOutput
    } else if problem && RESPONSE.iter().any(|name| has(name)) {
        Schema::Response
    } else if problem && has("reasoning") && has("answer") {
        Schema::Split
    } else if problem && has("solution") && has("answer") {
        Schema::Solution
    } else {
        return None;
    })
}

/// The column of a row whose texts carry the marks of thinking: a text, a list of texts, or a conversation.
pub(super) fn marked(schema: Schema, row: &Values) -> Option<&'static str> {
    Some(match schema {
        Schema::Generations => "generations",
        Schema::Generation => "generation",
        Schema::ReannotatedMessages => "reannotated_messages",
        Schema::ReannotatedContent => "reannotated_assistant_content",
        Schema::Messages | Schema::SplitAfterMessages => "messages",
        Schema::Conversations => "conversations",
        Schema::InputOutput => "output",
        Schema::Response => response_column(row),
        Schema::Solution => "solution",
        Schema::SplitDeepseek | Schema::S1k | Schema::Split => return None,
    })
}

/// That no schema fits: which columns there are, and the way out.
pub fn unknown(row: &Values) -> Error {
    let names: Vec<&str> = row.keys().map(String::as_str).collect();
    Error::input(format!(
        "no known schema of traces has these columns: {}",
        names.join(", ")
    ))
    .with_hint("say where the parts are: `[traces.columns]` with `problem = ...` and `generation = ...` or `reasoning` and `answer`")
}

/// The traces of a row; several where it has several generations. `opened` as in [`thinking::split`].
///
/// # Errors
/// A column that is missing or holds something else than the schema says.
pub fn traces(schema: Schema, row: &Values, place: &str, opened: bool) -> Result<Vec<Trace>> {
    let mut trace = Trace {
        name: place.to_string(),
        source: text(row, "source").ok().flatten(),
        domain: first_text(row, &["domain", "problem_type", "category", "cot_type"]),
        finish_reason: text(row, "finish_reason").ok().flatten(),
        ..Trace::default()
    };
    match schema {
        Schema::Generations => return generations(row, trace, opened),
        Schema::SplitDeepseek => {
            trace.problem = required(row, "problem")?;
            trace.gold = text(row, "ground_truth_solution")?;
            trace.set_parts(halves(
                text(row, "deepseek_reasoning")?,
                text(row, "deepseek_solution")?,
            ));
        }
        Schema::S1k => {
            trace.problem = required(row, "question")?;
            trace.gold = text(row, "solution")?;
            trace.set_parts(halves(
                text(row, "deepseek_thinking_trajectory")?,
                text(row, "deepseek_attempt")?,
            ));
            add_verdict(&mut trace, row, "deepseek_grade");
        }
        Schema::ReannotatedMessages => {
            conversation(
                columns::messages(row, "reannotated_messages")?,
                &mut trace,
                opened,
            )?;
            trace.gold = text(row, "solution")?;
        }
        Schema::ReannotatedContent => {
            let content = required(row, "reannotated_assistant_content")?;
            answer(
                &mut trace,
                columns::prompt(row, problem_column(row))?,
                thinking::split(&content, opened),
            )?;
            trace.gold = text(row, "solution")?;
        }
        Schema::Generation => {
            let prompt = if row.contains_key("prompt") {
                "prompt"
            } else {
                problem_column(row)
            };
            let parts = thinking::split(&required(row, "generation")?, opened);
            answer(&mut trace, columns::prompt(row, prompt)?, parts)?;
            trace.gold = gold(row);
        }
        Schema::SplitAfterMessages => {
            let mut turns = columns::messages(row, "messages")?;
            let last = turns.last_mut();
            if let Some(last) =
                last.filter(|m| m.role == "assistant" && !m.content.trim().is_empty())
            {
                // the turn is what was said; `answer` beside it is the short form to check it by
                if turn(last, false)?.reasoning.is_none()
                    && let Some(reasoning) = text(row, "reasoning")?
                {
                    let key = REASONING_FIELDS[0].to_string();
                    last.extra.insert(key, Value::String(reasoning));
                }
                whole(turns, row, &mut trace, opened)?;
            } else {
                turns.truncate(
                    turns
                        .iter()
                        .rposition(|m| m.role == "user")
                        .map_or(0, |at| at + 1),
                );
                let parts = halves(text(row, "reasoning")?, text(row, "answer")?);
                answer(&mut trace, columns::prompt_of(turns), parts)?;
            }
        }
        Schema::Messages | Schema::Conversations => {
            let column = match schema {
                Schema::Messages => "messages",
                _ => "conversations",
            };
            whole(columns::messages(row, column)?, row, &mut trace, opened)?;
        }
        Schema::InputOutput => {
            let mut prompt = columns::prompt(row, "input")?;
            if let Some(system) = text(row, "system_prompt")?.filter(|s| thinking::is_usable(s)) {
                prompt.system.get_or_insert(system);
            }
            let parts = thinking::split(&required(row, "output")?, opened);
            answer(&mut trace, prompt, parts)?;
        }
        Schema::Response => {
            let column = response_column(row);
            let prompt = columns::prompt(row, problem_column(row))?;
            let parts = match columns::get(row, column) {
                Some(Value::Array(_)) => {
                    let turns = columns::messages(row, column)?;
                    let last = turns.last().map(|m| m.content.as_str());
                    thinking::split(last.unwrap_or_default(), opened)
                }
                _ => thinking::split(&required(row, column)?, opened),
            };
            answer(&mut trace, prompt, parts)?;
            trace.gold = gold(row);
        }
        Schema::Split => {
            let parts = halves(text(row, "reasoning")?, text(row, "answer")?);
            answer(
                &mut trace,
                columns::prompt(row, problem_column(row))?,
                parts,
            )?;
            trace.gold = text(row, "gold")?;
        }
        Schema::Solution => {
            trace.gold = text(row, "answer")?;
            let solution = required(row, "solution")?;
            let parts = worked(&solution, trace.gold.as_deref(), opened);
            answer(
                &mut trace,
                columns::prompt(row, problem_column(row))?,
                parts,
            )?;
        }
    }
    for column in VERDICTS {
        add_verdict(&mut trace, row, column);
    }
    Ok(vec![trace])
}

/// One trace a generation, with what the lists beside say of it. One verdict for a row of several generations says nothing
/// of any of them.
fn generations(row: &Values, base: Trace, opened: bool) -> Result<Vec<Trace>> {
    let prompt = columns::prompt(row, problem_column(row))?;
    let generations =
        columns::list(row, "generations")?.ok_or_else(|| columns::missing(row, "generations"))?;
    let mut of_each: [Option<&[Value]>; 4] = [None; 4];
    let names = [
        "is_reasoning_complete",
        "finish_reasons",
        "correctness_math_verify",
        "correctness_llama",
    ];
    for (values, name) in of_each.iter_mut().zip(names) {
        *values = columns::list(row, name)?;
        if let Some(list) = values
            && list.len() != generations.len()
        {
            return Err(Error::input(format!(
                "column `{name}` has {} entries for {} generations",
                list.len(),
                generations.len()
            )));
        }
    }
    let mut of_columns = Vec::new();
    for column in VERDICTS {
        if let Some(value) = row.get(column) {
            let verdicts = match Judged::of(value) {
                Judged::One(_) if generations.len() > 1 => vec![None; generations.len()],
                judged => judged.each(generations.len(), &format!("column `{column}`"))?,
            };
            of_columns.push((column, verdicts));
        }
    }
    let mut traces = Vec::with_capacity(generations.len());
    for (index, generation) in generations.iter().enumerate() {
        let Value::String(generation) = generation else {
            let path = format!("generations.{index}");
            return Err(columns::wrong_type(&path, generation, "text"));
        };
        let at = |which: usize| of_each[which].map(|values| &values[index]);
        let mut trace = Trace {
            name: format!("{} trace {}", base.name, index + 1),
            gold: text(row, "answer")?.or(text(row, "solution")?),
            complete: at(0).and_then(Value::as_bool),
            finish_reason: at(1).and_then(Value::as_str).map(String::from),
            ..base.clone()
        };
        for which in [2, 3] {
            if let Some(value) = at(which) {
                trace.verdicts.push(Verdict {
                    by: names[which].into(),
                    correct: columns::verdict(value),
                });
            }
        }
        for (column, verdicts) in &of_columns {
            trace.verdicts.push(Verdict {
                by: (*column).into(),
                correct: verdicts[index],
            });
        }
        let parts = thinking::split(generation, opened);
        answer(&mut trace, prompt.clone(), parts)?;
        traces.push(trace);
    }
    Ok(traces)
}

/// A conversation that holds the answer too, with the system prompt and the right answer that stand beside it.
fn whole(mut messages: Vec<Message>, row: &Values, trace: &mut Trace, opened: bool) -> Result<()> {
    if let Some(system) = text(row, "system")?.filter(|s| !s.trim().is_empty())
        && messages.first().is_none_or(|m| m.role != "system")
    {
        messages.insert(0, Message::new("system", system));
    }
    conversation(messages, trace, opened)?;
    if trace.gold.is_none() {
        trace.gold = gold(row);
    }
    Ok(())
}

/// A whole conversation up to its last answer. `opened` is of that answer: what earlier answers thought is often left out.
pub(super) fn conversation(
    mut messages: Vec<Message>,
    trace: &mut Trace,
    opened: bool,
) -> Result<()> {
    let Some(last) = messages.iter().rposition(|m| m.role == "assistant") else {
        return Err(Error::input("the conversation has no assistant turn"));
    };
    if let Some(answer) = messages[..=last]
        .iter()
        .find_map(|m| info(m, "reference_answer").filter(|answer| !answer.is_empty()))
    {
        trace.gold = Some(answer);
    }
    let parts = turn(&messages[last], opened)?;
    messages.truncate(last);
    answer(trace, columns::prompt_of(messages), parts)
}

/// Reasoning and answer of an assistant's turn: beside the text where it is kept there, else inside it.
fn turn(message: &Message, opened: bool) -> Result<Parts> {
    if let (Some(think), Some(answer)) = (
        info(message, "think_content").filter(|t| !t.trim().is_empty()),
        info(message, "answer_content"),
    ) {
        return Ok(halves(Some(think), Some(answer)));
    }
    for field in REASONING_FIELDS {
        match message.extra.get(field) {
            Some(Value::String(reasoning)) if !reasoning.trim().is_empty() => {
                return Ok(halves(
                    Some(reasoning.clone()),
                    Some(message.content.clone()),
                ));
            }
            Some(other @ (Value::Array(_) | Value::Object(_))) => {
                let kind = columns::kind(other);
                return Err(Error::input(format!(
                    "`{field}` of an assistant turn holds {kind}, expected text"
                )));
            }
            _ => {}
        }
    }
    Ok(thinking::split(&message.content, opened))
}

/// A text in a message's `info` (AM-DeepSeek-R1-Distilled).
fn info(message: &Message, key: &str) -> Option<String> {
    Some(message.extra.get("info")?.get(key)?.as_str()?.to_string())
}

/// Puts in a prompt, of one turn or several, and what was answered. Earlier answers get the form that is trained.
pub(super) fn answer(trace: &mut Trace, prompt: Prompt, parts: Parts) -> Result<()> {
    trace.problem = prompt.problem;
    trace.system = prompt.system;
    trace.set_parts(parts);
    let Some(mut turns) = prompt.turns else {
        return Ok(());
    };
    for message in turns.iter_mut().filter(|m| m.role == "assistant") {
        let parts = turn(message, false)?;
        if !parts.complete {
            trace.complete = Some(false);
        }
        let answer = parts.answer.as_deref().unwrap_or_default();
        message.content = thinking::join(parts.reasoning.as_deref(), answer);
        message
            .extra
            .retain(|name, _| name != "info" && !REASONING_FIELDS.contains(&name.as_str()));
    }
    if let Some(system) = &trace.system {
        place_system(&mut turns, system);
    }
    let answer = trace.answer.as_deref().unwrap_or_default();
    let content = thinking::join(trace.reasoning.as_deref(), answer);
    turns.push(Message::new("assistant", content));
    trace.messages = Some(turns);
    Ok(())
}

/// Puts a system prompt that stands beside a conversation into it, in place of the one with which it begins.
pub(super) fn place_system(turns: &mut Vec<Message>, system: &str) {
    let is_system = |m: &Message| m.role == "system";
    if turns.iter().any(|m| is_system(m) && m.content == system) {
        return;
    }
    match turns.first_mut().filter(|m| is_system(m)) {
        Some(first) => first.content = system.to_string(),
        None => turns.insert(0, Message::new("system", system)),
    }
}

/// Reasoning and answer from two columns.
pub(super) fn halves(reasoning: Option<String>, answer: Option<String>) -> Parts {
    thinking::pair(reasoning.as_deref(), answer.as_deref())
}

/// A worked solution without marks: it reasons up to its final answer.
fn worked(solution: &str, gold: Option<&str>, opened: bool) -> Parts {
    let parts = thinking::split(solution, opened);
    if parts.reasoning.is_some() {
        return parts;
    }
    let text = solution.trim();
    match (text.rfind("**Final Answer**"), gold) {
        (Some(at), _) if at > 0 => halves(Some(text[..at].into()), Some(text[at..].into())),
        (_, Some(gold)) => halves(
            Some(text.into()),
            Some(format!("The answer is \\boxed{{{gold}}}.")),
        ),
        (_, None) => parts,
    }
}

fn problem_column(row: &Values) -> &'static str {
    let found = PROBLEM
        .iter()
        .find(|name| columns::get(row, name).is_some());
    found.copied().unwrap_or(PROBLEM[0])
}

fn response_column(row: &Values) -> &'static str {
    let found = RESPONSE.iter().find(|name| row.contains_key(**name));
    found.copied().unwrap_or(RESPONSE[0])
}

/// The right answer; of several that are accepted, the first.
fn gold(row: &Values) -> Option<String> {
    if let Some(Value::Array(all)) = row.get("gold")
        && !all.is_empty()
    {
        return text(row, "gold.0").ok().flatten();
    }
    first_text(
        row,
        &["gold", "gold_answer", "ground_truth", "answer", "solution"],
    )
}

fn first_text(row: &Values, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| text(row, name).ok().flatten())
}

fn add_verdict(trace: &mut Trace, row: &Values, column: &str) {
    if let Some(value) = row.get(column) {
        trace.verdicts.push(Verdict {
            by: column.into(),
            correct: columns::verdict(value),
        });
    }
}
