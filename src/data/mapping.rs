//! Rows to traces where the recipe says itself which column holds what (`[traces.columns]`).

use super::columns::{self, Judged, Prompt, Values, missing, text};
use super::schema::{answer, conversation, halves, place_system};
use super::thinking::{self, Parts};
use super::trace::{Trace, Verdict};
use crate::recipe::load::closest;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// The parts of a trace that a recipe can map.
pub const PARTS: [&str; 11] = [
    "problem",
    "reasoning",
    "answer",
    "generation",
    "messages",
    "gold",
    "system",
    "correct",
    "domain",
    "finish_reason",
    "id",
];

/// Of a longer id, so many characters name its row.
const MAX_ID_CHARS: usize = 100;

/// Part to column; dots go into objects and lists.
#[derive(Clone, Debug)]
pub struct Mapping {
    columns: BTreeMap<String, String>,
}

impl Mapping {
    /// Checks what a recipe says.
    ///
    /// # Errors
    /// An unknown part, or parts that do not make a trace.
    pub fn new(columns: &BTreeMap<String, String>) -> Result<Self> {
        for part in columns.keys() {
            if !PARTS.contains(&part.as_str()) {
                let error = Error::input(format!("`traces.columns` has no part `{part}`"));
                return Err(error.with_hint(match closest(part, PARTS.into_iter()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("parts: {}", PARTS.join(", ")),
                }));
            }
        }
        let has = |part: &str| columns.contains_key(part);
        if !(has("messages") || has("problem") && (has("generation") || has("answer"))) {
            return Err(Error::input(
                "`traces.columns` says too little to make a trace",
            )
            .with_hint(
                "map `messages`, or `problem` with `generation`, or `problem` with `reasoning` and `answer`",
            ));
        }
        Ok(Self {
            columns: columns.clone(),
        })
    }

    fn column(&self, part: &str) -> Option<&str> {
        self.columns.get(part).map(String::as_str)
    }

    /// The column whose texts carry the marks of thinking.
    pub fn marked(&self) -> Option<&str> {
        self.column("messages").or(self.column("generation"))
    }

    /// That every mapped column is there, by the first row of a file.
    ///
    /// # Errors
    /// The first column that is not, with the ones that are.
    pub fn check(&self, row: &Values) -> Result<()> {
        match self.columns.values().find(|path| !columns::has(row, path)) {
            Some(path) => Err(missing(row, path)),
            None => Ok(()),
        }
    }

    fn text(&self, row: &Values, part: &str) -> Result<Option<String>> {
        self.column(part).map_or(Ok(None), |path| text(row, path))
    }

    /// The traces of a row; several where `generation` is a list. `opened` as in [`thinking::split`].
    ///
    /// # Errors
    /// A column that holds something else than its part.
    pub fn traces(&self, row: &Values, place: &str, opened: bool) -> Result<Vec<Trace>> {
        let place = match self.text(row, "id")? {
            Some(id) => format!("{place} ({})", shown(&id)),
            None => place.to_string(),
        };
        let mut base = Trace {
            name: place.clone(),
            gold: self.text(row, "gold")?,
            domain: self.text(row, "domain")?,
            finish_reason: self.text(row, "finish_reason")?,
            source: text(row, "source").ok().flatten(),
            ..Trace::default()
        };
        let system = self
            .text(row, "system")?
            .filter(|system| thinking::is_usable(system));
        let correct = self
            .column("correct")
            .and_then(|path| columns::get(row, path));
        if let Some(path) = self.column("messages") {
            let gold = base.gold.take();
            conversation(columns::messages(row, path)?, &mut base, opened)?;
            base.gold = gold.or(base.gold);
            if let Some(system) = system {
                if let Some(turns) = &mut base.messages {
                    place_system(turns, &system);
                }
                base.system = Some(system);
            }
            return self.judged(vec![base], correct);
        }
        let generations = match self.column("generation") {
            None => None,
            Some(path) => match columns::get(row, path) {
                Some(Value::Array(list)) => Some(texts(list, path)?),
                _ => Some(vec![columns::required(row, path)?]),
            },
        };
        let Some(generations) = generations else {
            let parts = halves(self.text(row, "reasoning")?, self.text(row, "answer")?);
            let mut trace = base;
            answer(&mut trace, self.prompt(row, system)?, parts)?;
            return self.judged(vec![trace], correct);
        };
        let several = generations.len() > 1;
        let mut traces = Vec::with_capacity(generations.len());
        for (index, generation) in generations.iter().enumerate() {
            let mut trace = base.clone();
            if several {
                trace.name = format!("{place} trace {}", index + 1);
            }
            let parts: Parts = thinking::split(generation, opened);
            answer(&mut trace, self.prompt(row, system.clone())?, parts)?;
            traces.push(trace);
        }
        self.judged(traces, correct)
    }

    fn prompt(&self, row: &Values, system: Option<String>) -> Result<Prompt> {
        let path = self.column("problem").unwrap_or("problem");
        let mut prompt = columns::prompt(row, path)?;
        prompt.system = system.or(prompt.system);
        Ok(prompt)
    }

    /// The traces with the verdicts of the mapped column.
    fn judged(&self, mut traces: Vec<Trace>, correct: Option<&Value>) -> Result<Vec<Trace>> {
        let Some(by) = self.column("correct") else {
            return Ok(traces);
        };
        let judged = correct.map_or(Judged::One(None), Judged::of);
        let verdicts = judged.each(traces.len(), &format!("column `{by}`"))?;
        for (trace, correct) in traces.iter_mut().zip(verdicts) {
            trace.verdicts.push(Verdict {
                by: by.to_string(),
                correct,
            });
        }
        Ok(traces)
    }
}

/// An id within a name: one short line.
fn shown(id: &str) -> String {
    let line = id.chars().map(|c| if c.is_control() { ' ' } else { c });
    let line: String = line.take(MAX_ID_CHARS).collect();
    line.trim().to_string()
}

fn texts(list: &[Value], path: &str) -> Result<Vec<String>> {
    list.iter()
        .enumerate()
        .map(|(index, value)| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(columns::wrong_type(
                &format!("{path}.{index}"),
                other,
                "text",
            )),
        })
        .collect()
}
