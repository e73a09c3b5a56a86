//! Prompts to sample answers for, with what an answer is held to: from a built-in family, or from a file by its columns.
//!
//! Problems of benchmarks, which always have a right answer, are in [`problems`](mod@super::problems).

use super::columns::{self, Values};
use super::{builtin, rows};
use crate::recipe::stage::{PromptFields, Prompts};
use crate::tokenize::{Chat, Message};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::PathBuf;

const PROBLEM: [&str; 4] = ["problem", "question", "prompt", "instruction"];
const ANSWER: [&str; 5] = [
    "gold",
    "answer",
    "ground_truth",
    "reference_answer",
    "solution",
];
const OPTIONS: [&str; 2] = ["options", "choices"];

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// By its column, else its number, from 1.
    pub id: String,
    /// What is asked, without template and system prompt: what a judge reads, and whose language is the one to think in.
    pub question: String,
    /// The conversation before the answer.
    pub messages: Vec<Message>,
    /// Accepted answers; none where there is no right one.
    pub golds: Vec<String>,
    /// Texts of the options of a multiple choice question.
    pub options: Vec<String>,
    pub domain: Option<String>,
    /// The row as the file has it: tests of programs are found there.
    pub row: Values,
}

/// A prompt as a model gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// With the generation prompt.
    pub tokens: Vec<u32>,
    /// What the template wrote behind the question and belongs to the answer, such as `<think>\n`; empty where it wrote
    /// nothing.
    pub opening: String,
}

impl Prompt {
    /// The tokens that an answer starts from.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub fn render(&self, chat: &Chat) -> Result<Rendered> {
        const OPEN: &str = "<think>";
        let rendered = || -> Result<Rendered> {
            let text = chat.prompt_text(&self.messages)?;
            let opening = match text.trim_end().ends_with(OPEN) {
                true => text.rfind(OPEN).map_or("", |at| &text[at..]),
                false => "",
            };
            Ok(Rendered {
                opening: opening.to_string(),
                tokens: chat.prompt(&self.messages)?,
            })
        };
        rendered().map_err(|e| e.at(format!("prompt `{}`", self.id)))
    }
}

/// The prompts of one source in the order of its files; `seed` is for built-in ones, none of which a suite asks.
///
/// # Errors
/// A built-in family that does not exist, no files. The iterator's errors name the row; it ends with the first one.
pub fn prompts(
    spec: &Prompts,
    files: &[PathBuf],
    seed: u64,
) -> Result<Box<dyn Iterator<Item = Result<Prompt>>>> {
    let limit = spec.limit.unwrap_or(usize::MAX);
    if let Some(family) = spec.source.strip_prefix("builtin:") {
        let num = spec.num_problems.unwrap_or(builtin::DEFAULT_NUM_PROBLEMS);
        let spec = spec.clone();
        let traces = builtin::traces(family, seed, num)?;
        let prompts = traces.enumerate().map(move |(i, trace)| {
            Ok(Prompt {
                id: (i + 1).to_string(),
                messages: asked(&spec, trace.system, &trace.problem),
                question: trace.problem,
                golds: trace.gold.into_iter().collect(),
                options: Vec::new(),
                domain: spec.domain.clone().or(trace.domain),
                row: Map::new(),
            })
        });
        return Ok(Box::new(prompts.take(limit)));
    }
    if files.is_empty() {
        return Err(Error::input(format!(
            "`{}` has no files of rows",
            spec.source
        )));
    }
    let files = files.to_vec();
    let rows = files.into_iter().flat_map(|path| {
        let (rows, error) = match rows::open(&path) {
            Ok(rows) => (Some(rows.map(|row| row.map_err(|bad| *bad.error))), None),
            Err(error) => (None, Some(Err(error))),
        };
        rows.into_iter().flatten().chain(error)
    });
    let spec = spec.clone();
    let mut number = 0;
    let prompts = rows.map(move |row| {
        number += 1;
        let row = row?;
        of_row(row.values, &spec, number).map_err(|e| e.at(format!("`{}`", row.place)))
    });
    let mut failed = false;
    let until_failed =
        prompts.take_while(move |prompt| !std::mem::replace(&mut failed, prompt.is_err()));
    Ok(Box::new(until_failed.take(limit)))
}

/// The prompt in a row, number `number` of its source.
///
/// # Errors
/// A column that is missing or holds something else.
pub fn of_row(row: Values, spec: &Prompts, number: usize) -> Result<Prompt> {
    let fields = &spec.fields;
    let id = match &fields.id {
        Some(path) => columns::required(&row, path)?,
        None => columns::text(&row, "id")
            .ok()
            .flatten()
            .unwrap_or_else(|| number.to_string()),
    };
    let (question, messages) = question(&row, spec)?;
    let golds = match column(&row, fields.answer.as_ref(), &ANSWER)? {
        Some(path) => texts(&row, path)?,
        None => Vec::new(),
    };
    let options = match column(&row, fields.options.as_ref(), &OPTIONS)? {
        Some(path) => texts(&row, path)?,
        None => Vec::new(),
    };
    let domain = match &spec.domain {
        Some(domain) => Some(domain.clone()),
        None => columns::text(&row, "domain").ok().flatten(),
    };
    Ok(Prompt {
        id,
        question,
        messages,
        golds,
        options,
        domain,
        row,
    })
}

/// What is asked, and the conversation that asks it.
fn question(row: &Values, spec: &Prompts) -> Result<(String, Vec<Message>)> {
    let PromptFields { problem, .. } = &spec.fields;
    let path = match problem {
        Some(path) => path.as_str(),
        None if columns::get(row, "messages").is_some() => "messages",
        None => PROBLEM
            .into_iter()
            .find(|name| columns::get(row, name).is_some())
            .ok_or_else(|| columns::missing(row, PROBLEM[0]))?,
    };
    if !matches!(columns::get(row, path), Some(Value::Array(_))) {
        let problem = columns::required(row, path)?;
        if problem.trim().is_empty() {
            return Err(Error::input(format!("column `{path}` is empty")));
        }
        return Ok((problem.clone(), asked(spec, None, &problem)));
    }
    let mut turns = columns::messages(row, path)?;
    let last = turns
        .iter()
        .rposition(|turn| turn.role == "user")
        .ok_or_else(|| Error::input(format!("column `{path}` has no turn of a user")))?;
    turns.truncate(last + 1);
    let mut question = turns[last].content.clone();
    if question.trim().is_empty() {
        return Err(Error::input(format!(
            "the last turn of the user in column `{path}` is empty"
        )));
    }
    turns[last].content = spec.template.replace("{problem}", &question);
    // as it is, not as a template has put it already
    if problem.is_none()
        && let Some(Value::String(bare)) = columns::get(row, "question")
        && !bare.trim().is_empty()
    {
        question = bare.clone();
    }
    if let Some(system) = &spec.system {
        turns.retain(|turn| turn.role != "system");
        turns.insert(0, Message::new("system", system));
    }
    Ok((question, turns))
}

fn asked(spec: &Prompts, system: Option<String>, problem: &str) -> Vec<Message> {
    let system = spec.system.clone().or(system);
    let turn = spec.template.replace("{problem}", problem);
    let system = system.map(|text| Message::new("system", text));
    let user = Message::new("user", turn);
    system.into_iter().chain([user]).collect()
}

/// The column of a part: the one that is named, which must be there, else the first of the usual ones.
fn column<'a>(
    row: &Values,
    named: Option<&'a String>,
    usual: &[&'static str],
) -> Result<Option<&'a str>> {
    match named {
        Some(path) if !columns::has(row, path) => Err(columns::missing(row, path)),
        Some(path) => Ok(Some(path)),
        None => Ok(usual
            .iter()
            .copied()
            .find(|name| columns::get(row, name).is_some())),
    }
}

/// A text or a list of texts; numbers are written out.
fn texts(row: &Values, path: &str) -> Result<Vec<String>> {
    let Some(Value::Array(list)) = columns::get(row, path) else {
        return Ok(columns::text(row, path)?.into_iter().collect());
    };
    (0..list.len())
        .map(|i| columns::required(row, &format!("{path}.{i}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::stage::FromSource;

    fn read(rows: &str, change: impl Fn(&mut Prompts)) -> Result<Vec<Prompt>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        std::fs::write(&path, rows).unwrap();
        let mut spec = Prompts::from_source("p.jsonl".into());
        change(&mut spec);
        prompts(&spec, &[path], 0)?.collect()
    }

    #[test]
    fn usual_columns_are_found_and_others_named() {
        let rows = "{\"question\": \"1+1?\", \"answer\": 2}\n{\"question\": \"?\", \"answer\": [\"a\", 3], \"id\": \"x\"}\n";
        let all = read(rows, |_| ()).unwrap();
        assert_eq!((all[0].id.as_str(), all[0].golds[0].as_str()), ("1", "2"));
        assert_eq!((all[1].id.as_str(), all[1].golds.len()), ("x", 2));
        assert_eq!(all[0].messages.len(), 1);

        let row = "{\"meta\": {\"q\": \"Why?\"}, \"choices\": [\"a\", \"b\"]}\n";
        let all = read(row, |spec| {
            spec.fields.problem = Some("meta.q".into());
            spec.system = Some("Be brief.".into());
            spec.template = "Q: {problem}".into();
        })
        .unwrap();
        let said: Vec<_> = all[0].messages.iter().map(|m| m.content.as_str()).collect();
        assert_eq!(said, ["Be brief.", "Q: Why?"]);
        assert_eq!((all[0].question.as_str(), all[0].golds.len()), ("Why?", 0));
        assert_eq!(all[0].options, ["a", "b"]);
    }

    #[test]
    fn a_conversation_is_cut_after_the_last_question() {
        let row = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}, {\"role\": \"user\", \"content\": \"c\"}, {\"role\": \"assistant\", \"content\": \"d\"}]}\n";
        let all = read(row, |_| ()).unwrap();
        let said: Vec<_> = all[0].messages.iter().map(|m| m.content.as_str()).collect();
        assert_eq!((said, all[0].question.as_str()), (vec!["a", "b", "c"], "c"));
        // the bare question beside it is the one that is judged
        let row = "{\"question\": \"1+1?\", \"messages\": [{\"role\": \"user\", \"content\": \"Solve: 1+1?\"}]}\n";
        let all = read(row, |_| ()).unwrap();
        let asked = (
            all[0].messages[0].content.as_str(),
            all[0].question.as_str(),
        );
        assert_eq!(asked, ("Solve: 1+1?", "1+1?"));
    }

    #[test]
    fn bad_rows_are_named_and_end_the_reading() {
        let e = read("{\"x\": 1}\n", |_| ()).unwrap_err();
        assert_eq!(
            e.to_string(),
            "`p.jsonl:1`: no column `problem`; the columns are x"
        );
        let e = read("{\"problem\": \" \"}\n", |_| ()).unwrap_err();
        assert_eq!(e.to_string(), "`p.jsonl:1`: column `problem` is empty");
        let named = |spec: &mut Prompts| spec.fields.answer = Some("golt".into());
        let e = read("{\"problem\": \"a\", \"gold\": 1}\n", named).unwrap_err();
        assert_eq!(e.hint().unwrap(), "did you mean `gold`?");
    }

    #[test]
    fn built_in_prompts_are_those_of_the_traces_and_never_held_out() {
        let mut spec = Prompts::from_source("builtin:arithmetic".into());
        spec.num_problems = Some(50);
        spec.limit = Some(20);
        let all: Vec<Prompt> = prompts(&spec, &[], 7)
            .unwrap()
            .collect::<Result<_>>()
            .unwrap();
        let traces: Vec<_> = builtin::traces("arithmetic", 7, 20).unwrap().collect();
        assert_eq!(all.len(), 20);
        for (prompt, trace) in all.iter().zip(&traces) {
            assert_eq!(
                (&prompt.question, &prompt.golds[0]),
                (&trace.problem, trace.gold.as_ref().unwrap())
            );
        }
    }
}
