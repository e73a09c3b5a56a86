//! Chat templates against what transformers rendered. The cases are in `tokenize_render.json`, made by
//! `tests/peers/template_render.py --write`, which also hands in cases of its own by `DISTILL_RENDER_CASES`.

use distill::tokenize::{ChatTemplate, Message};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Cases {
    special_tokens: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<Message>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    #[serde(default)]
    variables: serde_json::Map<String, serde_json::Value>,
    text: Option<String>,
    /// What `raise_exception` said; empty for any other error.
    error: Option<String>,
}

#[test]
fn renders_as_transformers() {
    let file = std::env::var("DISTILL_RENDER_CASES").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tokenize_render.json").into()
    });
    let cases: Cases = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for case in &cases.cases {
        let rendered = ChatTemplate::new(&cases.templates[&case.template], &cases.special_tokens)
            .and_then(|template| {
                template.render(
                    &cases.conversations[&case.conversation],
                    case.add_generation_prompt,
                    &case.variables,
                )
            });
        let right = match (&rendered, &case.text, &case.error) {
            (Ok(text), Some(expected), None) => text == expected,
            (Err(error), None, Some(message)) => error.to_string().contains(message),
            _ => false,
        };
        if !right {
            wrong.push(format!(
                "{} on {} (generation prompt: {}, variables: {:?})\n  expected {:?}{:?}\n  rendered {rendered:?}",
                case.template, case.conversation, case.add_generation_prompt, case.variables, case.text, case.error
            ));
        }
    }
    assert!(!cases.cases.is_empty());
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ:\n{}",
        wrong.len(),
        cases.cases.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
}
