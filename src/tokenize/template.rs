//! Jinja chat templates, rendered as transformers' `apply_chat_template(tokenize=False)` renders them, byte for byte.
//!
//! The environment is transformers' one: blocks trimmed, `tojson` without HTML escapes, `raise_exception`,
//! `strftime_now`, loop controls, `{% generation %}` without effect, Python's methods on strings and dictionaries.
//! Which part of the text is trained is decided in [`super::chat`].

use super::Message;
use super::python::{self, JsonStyle};
use crate::{Error, Result};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Map;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A compiled chat template. Cloning is cheap.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    /// `bos_token` and so on, as variables of the template.
    special: Arc<BTreeMap<String, String>>,
}

/// Name under which the one template of an environment is kept; without an ending nothing is escaped.
const NAME: &str = "chat template";

/// Fields of a message that hold its reasoning apart from its text, the first one with a text in it counts.
pub const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What `raise_exception` of a template said, to tell it from an error in the template.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles a template; `special` maps `bos_token`, `eos_token` and so on to their text.
    pub fn new(source: &str, special: &BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = environment
            .syntax()
            .to_builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| failure(&error))?);
        environment.set_unknown_method_callback(python_method);
        environment.add_filter("trim", |text: &str, chars: Option<&str>| {
            strip(text, chars, [true, true])
        });
        environment.add_filter(
            "tojson",
            |value: Value, positional: Rest<Value>, named: Kwargs| {
                JsonStyle::from_args(&positional, &named)?.dumps(&value)
            },
        );
        // in Python a string is a sequence
        environment.add_test("sequence", |value: &Value| {
            matches!(
                value.kind(),
                ValueKind::Seq | ValueKind::Map | ValueKind::String
            )
        });
        environment.add_test("iterable", |value: &Value| {
            value.kind() == ValueKind::String || value.try_iter().is_ok()
        });
        environment.add_function("strftime_now", |format: &str| python::strftime_now(format));
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(
                    minijinja::Error::new(ErrorKind::InvalidOperation, message.clone())
                        .with_source(Raised(message)),
                )
            },
        );
        environment
            .add_template_owned(NAME, prepare(source))
            .map_err(|error| failure(&error))?;
        Ok(Self {
            environment: Arc::new(environment),
            source: source.into(),
            special: Arc::new(special.clone()),
        })
    }

    /// The template as given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text; `add_generation_prompt` ends it where the assistant's answer begins. `extra` are
    /// further variables of the template, such as `enable_thinking`.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String> {
        self.render_values(Self::messages(messages), add_generation_prompt, extra)
    }

    /// Messages as the template sees them; cloning them is cheap.
    pub(super) fn messages(messages: &[Message]) -> Vec<Value> {
        messages
            .iter()
            .map(|message| Self::message(message, &message.content))
            .collect()
    }

    /// [`render`](Self::render) of messages that are converted already.
    pub(super) fn render_values(
        &self,
        messages: Vec<Value>,
        add_generation_prompt: bool,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::input("the conversation has no message"));
        }
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, text) in self.special.iter() {
            variables.insert(name, Value::from(text.as_str()));
        }
        for (name, value) in extra {
            variables.insert(name, json_value(value));
        }
        variables.insert("messages", Value::from(messages));
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        for name in ["tools", "documents"] {
            variables.entry(name).or_insert_with(|| Value::from(()));
        }
        // the engine has places where a template can bring it to panic, such as `[][::-1]`
        let render = std::panic::AssertUnwindSafe(|| {
            let template = self.environment.get_template(NAME)?;
            template.render(Value::from_pairs(variables))
        });
        match std::panic::catch_unwind(render) {
            Ok(rendered) => rendered.map_err(|error| failure(&error)),
            Err(_) => Err(Error::input(
                "the chat template broke the template engine on this conversation",
            )),
        }
    }

    /// A message as the template sees it, with `content` for its text. Reasoning that stands in a field of its own is
    /// offered under the names that templates look for, as transformers does.
    pub(super) fn message(message: &Message, content: &str) -> Value {
        let mut fields: Vec<(&str, Value)> = Vec::with_capacity(4 + message.extra.len());
        let reasoning = REASONING_FIELDS
            .iter()
            .find_map(|name| message.extra.get(*name).filter(|value| !value.is_null()));
        if let Some(reasoning) = reasoning {
            fields.push(("thinking", json_value(reasoning)));
        }
        fields.push(("role", Value::from(message.role.as_str())));
        fields.push(("content", Value::from(content)));
        fields.extend(
            message
                .extra
                .iter()
                .map(|(name, value)| (name.as_str(), json_value(value))),
        );
        if let Some(reasoning) = reasoning {
            fields.push(("reasoning_content", json_value(reasoning)));
        }
        Value::from_pairs(fields)
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({} bytes)", self.source.len())
    }
}

/// A JSON value as the template sees it.
pub(super) fn json_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(json_value).collect(),
        Json::Object(map) => Value::from_pairs(
            map.iter()
                .map(|(key, value)| (key.as_str(), json_value(value))),
        ),
    }
}

/// The source as Jinja2 would read it: one kind of line end, and `{% generation %}` a block that does nothing. Like the
/// block of transformers it is a scope of its own.
fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    let mut raw = false;
    while let Some(at) = rest.find("{%") {
        let comment_end = rest[..at].rfind("{#").filter(|_| !raw).and_then(|start| {
            let inside = &rest[start..];
            inside
                .find("#}")
                .map(|len| start + len + 2)
                .filter(|&end| end > at)
        });
        if let Some(end) = comment_end {
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let name = rest[at + 2..].trim_start_matches(['-', '+']).trim_start();
        let name_at = rest.len() - name.len();
        let is = |word: &str| {
            name.strip_prefix(word).is_some_and(|after| {
                after
                    .trim_start()
                    .trim_start_matches(['-', '+'])
                    .starts_with("%}")
            })
        };
        raw = if raw { !is("endraw") } else { is("raw") };
        let (len, ours) = match (raw, is("generation"), is("endgeneration")) {
            (false, true, _) => ("generation".len(), "with"),
            (false, _, true) => ("endgeneration".len(), "endwith"),
            _ => (0, ""),
        };
        out.push_str(&rest[..name_at]);
        out.push_str(ours);
        rest = &name[len..];
    }
    out.push_str(rest);
    out
}

/// Python's methods: `strip` and its kin with Python's idea of white space, everything else from minijinja-contrib.
fn python_method(
    state: &mut minijinja::State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    let sides = match method {
        "strip" => Some([true, true]),
        "lstrip" => Some([true, false]),
        "rstrip" => Some([false, true]),
        _ => None,
    };
    match (sides, value.as_str()) {
        (Some(sides), Some(text)) => {
            let (chars,): (Option<&str>,) = minijinja::value::from_args(args)?;
            Ok(Value::from(strip(text, chars, sides)))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `str.strip`, on the left, on the right or both.
fn strip(text: &str, chars: Option<&str>, [left, right]: [bool; 2]) -> String {
    let stripped = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => python::is_space(c),
    };
    let text = if left {
        text.trim_start_matches(stripped)
    } else {
        text
    };
    let text = if right {
        text.trim_end_matches(stripped)
    } else {
        text
    };
    text.to_string()
}

fn failure(error: &minijinja::Error) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(at) = cause {
        if let Some(Raised(message)) = at.downcast_ref() {
            return Error::input(format!(
                "the chat template refuses the conversation: {message}"
            ));
        }
        cause = at.source();
    }
    let line = error
        .line()
        .map_or(String::new(), |line| format!(", line {line}"));
    let detail = error.detail().map_or_else(
        || error.kind().to_string(),
        |d| format!("{}: {d}", error.kind()),
    );
    Error::input(format!("chat template{line}: {detail}")).with_hint(
        "name another template in `[student] chat_template`, a file or one of the shipped ones",
    )
}
