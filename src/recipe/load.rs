//! Reading a recipe: TOML text, then `--set a.b=v`, then types; every mistake names its key and its line.
//!
//! What a recipe may hold is in [`super`]; what it resolves to in [`super::plan`].

use super::stage::PipelineRecipe;
use super::{Recipe, shipped};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The two forms of a recipe.
#[derive(Clone, Debug)]
pub enum Document {
    /// One student, flat.
    Student(Box<Recipe>),
    /// A list of `[[stage]]`.
    Pipeline(Box<PipelineRecipe>),
}

/// A recipe with where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub recipe: Document,
    /// The text as given, for `RUN/recipe.toml`.
    pub text: String,
    /// What relative paths inside are relative to: the working directory.
    pub origin: String,
}

/// Reads the recipe at `place`, a path or the name of a shipped one, and applies `sets` (`a.b=v`) in order.
///
/// # Errors
/// Unreadable file, invalid TOML (with its line), an unknown key (with what was probably meant), a wrong type.
pub fn load(place: &str, sets: &[String]) -> Result<Loaded> {
    let (origin, text) = read(place)?;
    let recipe = document(&text, &origin, sets)?;
    Ok(Loaded {
        recipe,
        text,
        origin,
    })
}

/// Parses a recipe of either form.
///
/// # Errors
/// As [`load`].
pub fn document(text: &str, origin: &str, sets: &[String]) -> Result<Document> {
    let table = table(text, origin, sets)?;
    if table.contains_key("stage") {
        check_pipeline(&table, origin)?;
        return typed(table, text, origin, sets).map(|r| Document::Pipeline(Box::new(r)));
    }
    // what stands for the list of stages, but is not called so
    let like_stage = |key: &&String| closest(key, ["stage"].into_iter()).is_some();
    if let Some(key) = table.keys().find(like_stage) {
        let line = key_line(text, key).map_or_else(String::new, |l| format!(" line {l}"));
        return Err(
            Error::input(format!("`{origin}`{line}: unknown key `{key}`"))
                .with_hint("did you mean `stage`?"),
        );
    }
    typed(table, text, origin, sets).map(|r| Document::Student(Box::new(r)))
}

/// Tables of a student's recipe that stand beside stages.
fn check_pipeline(table: &toml::Table, origin: &str) -> Result<()> {
    for key in ["traces", "sft", "eval"] {
        if table.contains_key(key) {
            return Err(Error::input(format!(
                "`{origin}`: a recipe of stages has no `{key}` of its own"
            ))
            .with_hint(format!(
                "put it into the stage it is for: `[stage.{key}]`, after its `[[stage]]`"
            )));
        }
    }
    if !table["stage"].is_array() {
        return Err(
            Error::input(format!("`{origin}`: `stage` is no list of tables"))
                .with_hint("every stage begins with `[[stage]]`, in double brackets"),
        );
    }
    Ok(())
}

fn read(place: &str) -> Result<(String, String)> {
    let path = PathBuf::from(place);
    if path.is_file() {
        return Ok((place.to_string(), read_text(&path)?));
    }
    if let Some(text) = shipped::recipe(place) {
        return Ok((place.to_string(), text.to_string()));
    }
    let names = shipped::recipe_names();
    let hint = match closest(
        place.trim_end_matches(".toml"),
        names.iter().map(String::as_str),
    ) {
        Some(name) => format!("did you mean `{name}.toml`?"),
        None => format!(
            "give a path, or one of the shipped recipes: {}",
            names.join(", ")
        ),
    };
    Err(Error::input(format!(
        "no recipe `{place}`: no such file, and no shipped recipe of that name"
    ))
    .with_hint(hint))
}

/// The text of a file that should be UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::input(format!(
            "`{}` is not valid UTF-8 at byte {}",
            path.display(),
            e.utf8_error().valid_up_to()
        ))
    })
}

/// Parses TOML `text` into `T` after applying `sets`; `origin` names the file in errors.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str, sets: &[String]) -> Result<T> {
    typed(table(text, origin, sets)?, text, origin, sets)
}

/// TOML with `sets` applied.
fn table(text: &str, origin: &str, sets: &[String]) -> Result<toml::Table> {
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| line_of(text, s.start));
        Error::input(format!("`{origin}` line {line}: {}", e.message()))
            .with_hint("the file must be valid TOML; strings stand in double quotes")
    })?;
    for set in sets {
        apply_set(&mut table, set)?;
    }
    Ok(table)
}

fn typed<T: DeserializeOwned>(
    table: toml::Table,
    text: &str,
    origin: &str,
    sets: &[String],
) -> Result<T> {
    T::deserialize(table).map_err(|e| {
        // the text itself, without what `--set` changed, knows the line, where it has the same fault
        let of_text = toml::from_str::<T>(text).err();
        let same = of_text.filter(|other| other.message() == e.message());
        let line = same.and_then(|other| other.span());
        explain(&e, text, origin, sets, line.map(|s| line_of(text, s.start)))
    })
}

fn apply_set(table: &mut toml::Table, set: &str) -> Result<()> {
    let usage = || {
        Error::input(format!("`--set {set}` is not `key=value`"))
            .with_hint("for example `--set sft.epochs=3`")
    };
    let (key, raw) = set.split_once('=').ok_or_else(usage)?;
    let path: Vec<&str> = key.trim().split('.').collect();
    if path.iter().any(|p| p.is_empty()) {
        return Err(usage());
    }
    // a bare word is a string: `--set device=cpu` needs no quotes inside quotes
    let value = format!("v = {raw}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(raw.to_string()));
    let mut root = toml::Value::Table(std::mem::take(table));
    let done = set_in(&mut root, &path, value).map_err(|at| {
        Error::input(format!(
            "`--set {set}`: `{at}` is neither a table nor an entry of a list"
        ))
        .with_hint(set_hint(&root, &path))
    });
    if let toml::Value::Table(t) = root {
        *table = t;
    }
    done
}

/// What may have been meant where a `--set` goes nowhere: of a list of named tables, such as the stages, their names.
fn set_hint(root: &toml::Value, path: &[&str]) -> String {
    let mut node = root;
    for key in path {
        let next = match node {
            toml::Value::Table(table) => table.get(*key),
            toml::Value::Array(list) => entry_of(list, key).and_then(|i| list.get(i)),
            _ => None,
        };
        match (next, node) {
            (Some(next), _) => node = next,
            (None, toml::Value::Array(list)) => {
                let names: Vec<&str> = list
                    .iter()
                    .filter_map(|t| t.get("name")?.as_str())
                    .collect();
                if let Some(near) = closest(key, names.iter().copied()) {
                    return format!("did you mean `{near}`?");
                }
                if !names.is_empty() {
                    return format!("the entries are {}", names.join(", "));
                }
                break;
            }
            _ => break,
        }
    }
    "entries of a list are counted from 0: `--set traces.0.limit=100`".into()
}

/// The place of an entry of a list: by its number from 0, or by its `name`.
fn entry_of(list: &[toml::Value], key: &str) -> Option<usize> {
    let by_number = key.parse::<usize>().ok().filter(|i| *i < list.len());
    let is_named = |entry: &toml::Value| entry.get("name").and_then(|n| n.as_str()) == Some(key);
    by_number.or_else(|| list.iter().position(is_named))
}

fn set_in(
    node: &mut toml::Value,
    path: &[&str],
    value: toml::Value,
) -> std::result::Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *node = value;
        return Ok(());
    };
    let next = match node {
        toml::Value::Table(t) => t
            .entry(first.to_string())
            .or_insert_with(|| toml::Value::Table(toml::Table::new())),
        toml::Value::Array(a) => entry_of(a, first)
            .and_then(|i| a.get_mut(i))
            .ok_or_else(|| first.to_string())?,
        _ => return Err(first.to_string()),
    };
    set_in(next, rest, value)
}

/// Turns serde's words into ours: the key, the table, the line, and what was probably meant.
///
/// `known_line` is used where several lines set the key.
fn explain(
    error: &toml::de::Error,
    text: &str,
    origin: &str,
    sets: &[String],
    known_line: Option<usize>,
) -> Error {
    let key_line = |key: &str| match (key_lines(text, key), known_line) {
        (lines, Some(line)) if lines.len() > 1 => Some(line),
        (lines, _) => lines.first().copied(),
    };
    let message = in_words(error.message());
    let full = error.to_string();
    let place = full
        .lines()
        .rev()
        .find_map(|l| l.trim().strip_prefix("in `")?.strip_suffix('`'))
        .unwrap_or_default()
        .to_string();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let within = if place.is_empty() {
        String::new()
    } else {
        format!(" in `{place}`")
    };
    if (message.starts_with("unknown field") || message.starts_with("unknown variant"))
        && !quoted.is_empty()
    {
        let what = if message.starts_with("unknown field") {
            "key"
        } else {
            "value"
        };
        let line = key_line(quoted[0])
            .map_or_else(|| " (from `--set`)".to_string(), |l| format!(" line {l}"));
        let hint = match closest(quoted[0], quoted[1..].iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", quoted[1..].join(", ")),
        };
        return Error::input(format!(
            "`{origin}`{line}: unknown {what} `{}`{within}",
            quoted[0]
        ))
        .with_hint(hint);
    }
    let key = place.rsplit('.').next().unwrap_or_default();
    // entries of lists have numbers or names there, and none here
    let is_set = |set: &String| {
        let path: Vec<&str> = set
            .split('=')
            .next()
            .unwrap_or_default()
            .trim()
            .split('.')
            .collect();
        path.last() == Some(&key) && path.first().copied() == place.split('.').next()
    };
    let line = match key_line(key) {
        _ if sets.iter().any(is_set) => " (from `--set`)".to_string(),
        Some(line) => format!(" line {line}"),
        None => String::new(),
    };
    let error = Error::input(format!("`{origin}`{line}: {message}{within}"));
    match quoted.first() {
        Some(field) if message.starts_with("missing field") => error.with_hint(format!(
            "add `{field} = ...`{within}; `distill --help` shows an example"
        )),
        _ => error,
    }
}

/// Rust's names of types in words.
fn in_words(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once("expected ") else {
        return message.to_string();
    };
    let words = match expected {
        "usize" | "u64" | "u32" => "a whole number of at least 0",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other => other,
    };
    format!("{found}expected {words}")
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|b| *b == b'\n').count()
}

/// The first line that sets `key`, opens a table of that name or holds it as a quoted value.
fn key_line(text: &str, key: &str) -> Option<usize> {
    key_lines(text, key).first().copied()
}

/// All of them.
fn key_lines(text: &str, key: &str) -> Vec<usize> {
    if key.is_empty() {
        return Vec::new();
    }
    let quoted = format!("\"{key}\"");
    let is_line = |line: &str| {
        let line = line.trim();
        let name = line.trim_start_matches('[').trim_start();
        let rest = name.strip_prefix(key);
        rest.is_some_and(|r| r.trim_start().starts_with('=') || r.trim_start().starts_with(']'))
            || line.split('#').next().is_some_and(|l| l.contains(&quoted))
    };
    let lines = text.lines().enumerate().filter(|(_, line)| is_line(line));
    lines.map(|(i, _)| i + 1).collect()
}

/// The candidate nearest to `word`, where one is near enough to be meant.
pub fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| {
            // in a short word one exchange of neighbours or one letter is most of what it shares
            let slip = strsim::damerau_levenshtein(word, c) == 1 && c.len() > 2;
            let score = strsim::jaro_winkler(word, c);
            (if slip { score.max(0.9) } else { score }, c)
        })
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name = \"x\"\n[student]\nmodel = \"a\"\n[[traces]]\nsource = \"t.jsonl\"\n[sft]\nepochs = 3\n";

    fn recipe(text: &str, sets: &[&str]) -> Result<Recipe> {
        parse(
            text,
            "r.toml",
            &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn an_unknown_key_names_line_table_and_what_was_meant() {
        let e = recipe(&SMALL.replace("epochs", "epoch"), &[]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "`r.toml` line 7: unknown key `epoch` in `sft`"
        );
        assert_eq!(e.hint().unwrap(), "did you mean `epochs`?");
    }

    #[test]
    fn an_unknown_value_lists_or_guesses() {
        let e = recipe(&format!("{SMALL}schedule = \"cosin\"\n"), &[]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "`r.toml` line 8: unknown value `cosin` in `sft.schedule`"
        );
        assert_eq!(e.hint().unwrap(), "did you mean `cosine`?");
    }

    #[test]
    fn a_slip_in_a_short_key_is_guessed() {
        let e = recipe(&SMALL.replace("[sft]", "[stf]"), &[]).unwrap_err();
        assert_eq!(e.to_string(), "`r.toml` line 6: unknown key `stf`");
        assert_eq!(e.hint().unwrap(), "did you mean `sft`?");
    }

    #[test]
    fn set_wins_over_the_file_and_may_be_a_bare_word() {
        let r = recipe(
            SMALL,
            &[
                "sft.epochs=5",
                "device=cpu",
                "traces.0.limit=7",
                "eval.suites=[\"a\"]",
            ],
        )
        .unwrap();
        assert_eq!(
            (r.sft.epochs, r.device.as_str(), r.traces[0].limit),
            (5, "cpu", Some(7))
        );
        assert_eq!(r.eval.unwrap().suites, ["a"]);
    }

    #[test]
    fn mistakes_in_set_are_told() {
        assert!(
            recipe(SMALL, &["epochs"])
                .unwrap_err()
                .to_string()
                .contains("is not `key=value`")
        );
        assert!(
            recipe(SMALL, &["name.x=1"])
                .unwrap_err()
                .to_string()
                .contains("neither a table")
        );
        let e = recipe(SMALL, &["sft.epcohs=1"]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "`r.toml` (from `--set`): unknown key `epcohs` in `sft`"
        );
    }

    #[test]
    fn wrong_type_and_invalid_toml_name_the_line() {
        let e = recipe(&SMALL.replace("= 3", "= \"many\""), &[]).unwrap_err();
        assert!(
            e.to_string().starts_with("`r.toml` line 7: invalid type"),
            "{e}"
        );
        let e = recipe(SMALL, &["sft.epochs=\"two\""]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "`r.toml` (from `--set`): invalid type: string \"two\", expected a whole number of at least 0 in `sft.epochs`"
        );
        let e = recipe("name = \"x\"\nfoo bar\n", &[]).unwrap_err();
        assert!(e.to_string().starts_with("`r.toml` line 2"), "{e}");
        let e = recipe("[student]\nmodel = \"x\"\n", &[]).unwrap_err();
        assert!(e.to_string().contains("missing field `name`"), "{e}");
    }
}
