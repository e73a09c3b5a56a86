//! What of a row is trained: every kind of template against rows written out by hand.

use distill::tokenize::files::TokenizerFiles;
use distill::tokenize::{Chat, Message, MissingEnd, TextTokenizer, TrainOn};
use std::collections::BTreeMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// R1-Distill: reasoning dropped from every turn, opened by the generation prompt.
const DROPS: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}\
                     {{ '<A>' + message.content.split('</think>')[-1] + eos_token }}{% else %}{{ '<U>' + message.content }}\
                     {% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<A><think>\\n' }}{% endif %}";
const R1_CHATML: &str = include_str!("../models/templates/r1-chatml.jinja");
const R1_LLAMA3: &str = include_str!("../models/templates/r1-llama3.jinja");

/// How Qwen2 cuts text into words.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen3's template as `tests/peers/template_render.py` imitates it: reasoning cut out and set again, in the last turn only.
fn rebuilds() -> String {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("tokenize_render.json")).unwrap();
    let source = cases["templates"]["rebuilds reasoning"].as_str().unwrap();
    source.replace("[end]", "<|im_end|>")
}

/// One token a byte, `\n\n` as the only merge, and the special tokens of several families.
fn tokenizer() -> TextTokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab: Vec<String> = alphabet.into_iter().map(String::from).collect();
    vocab.push("ĊĊ".into());
    let ids = vocab
        .into_iter()
        .zip(0..)
        .collect::<BTreeMap<String, u32>>();
    let model = BPE::builder()
        .vocab_and_merges(
            ids.into_iter().collect::<Vocab>(),
            vec![("Ċ".into(), "Ċ".into())],
        )
        .build()
        .unwrap();
    let mut tokenizer = Tokenizer::new(model);
    let split = Split::new(
        SplitPattern::Regex(QWEN2.into()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .unwrap();
    let bytes = ByteLevel::new(false, false, false);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let special = [
        "<pad>",
        "<bos>",
        "<eos>",
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ];
    tokenizer
        .add_special_tokens(special.map(|text| AddedToken::from(text, true)))
        .unwrap();
    let config =
        serde_json::json!({"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"});
    let files = TokenizerFiles {
        config: config.as_object().unwrap().clone(),
        ..TokenizerFiles::default()
    };
    TextTokenizer::new(tokenizer.to_string(false).unwrap().into_bytes(), files).unwrap()
}

fn chat(template: &str) -> Chat {
    Chat::new(tokenizer(), Some(template)).unwrap()
}

fn talk(turns: &[(&str, &str)]) -> Vec<Message> {
    turns
        .iter()
        .map(|(role, content)| Message::new(*role, *content))
        .collect()
}

/// The row as text, with what is trained between `«` and `»`.
fn marked(chat: &Chat, turns: &[(&str, &str)], train_on: TrainOn) -> String {
    let row = chat.tokenize(&talk(turns), train_on).unwrap();
    assert_eq!(row.tokens.len(), row.trained.len());
    let mut text = String::new();
    let mut at = 0;
    while at < row.tokens.len() {
        let len = row.trained[at..]
            .iter()
            .take_while(|&&t| t == row.trained[at])
            .count();
        let part = chat
            .tokenizer
            .decode(&row.tokens[at..at + len], false)
            .unwrap();
        text += &if row.trained[at] {
            format!("«{part}»")
        } else {
            part
        };
        at += len;
    }
    text
}

fn refused(chat: &Chat, turns: &[(&str, &str)]) -> String {
    chat.tokenize(&talk(turns), TrainOn::LastAssistant)
        .unwrap_err()
        .to_string()
}

const REASONED: &str = "<think>\nr\n</think>\n\na";
const LAST: TrainOn = TrainOn::LastAssistant;
const ALL: TrainOn = TrainOn::AllAssistant;

#[test]
fn chatml_trains_the_answer_and_its_end() {
    let chat = chat(CHATML);
    assert_eq!(
        marked(
            &chat,
            &[("system", "s"), ("user", "q"), ("assistant", REASONED)],
            LAST
        ),
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n\
         «<think>\nr\n</think>\n\na<|im_end|>»\n"
    );
    let turns = [
        ("user", "1"),
        ("assistant", "a"),
        ("user", "2"),
        ("assistant", "b"),
        ("user", "3"),
    ];
    assert_eq!(
        marked(&chat, &turns, LAST),
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\n2<|im_end|>\n\
         <|im_start|>assistant\n«b<|im_end|>»\n"
    );
    assert_eq!(
        marked(&chat, &turns, ALL),
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n«a<|im_end|>»\n<|im_start|>user\n2<|im_end|>\n\
         <|im_start|>assistant\n«b<|im_end|>»\n"
    );
}

#[test]
fn reasoning_survives_a_template_that_drops_it() {
    let chat = chat(DROPS);
    let expected = "<bos><U>q<A><think>\n«r\n</think>\n\na<eos>»";
    for content in [
        REASONED,
        "<think>r\n</think>\n\na",     // no line end after the tag
        "r\n</think>\n\na",            // tag left to the generation prompt
        "\n<think>\nr\n</think>\n\na", // a line end too many
    ] {
        assert_eq!(
            marked(&chat, &[("user", "q"), ("assistant", content)], LAST),
            expected,
            "{content:?}"
        );
    }
    // earlier turns stay as generation will see them
    assert_eq!(
        marked(
            &chat,
            &[
                ("user", "1"),
                ("assistant", REASONED),
                ("user", "2"),
                ("assistant", "<think>\nx\n</think>\n\ny")
            ],
            LAST
        ),
        "<bos><U>1<A>\n\na<eos><U>2<A><think>\n«x\n</think>\n\ny<eos>»"
    );
    // unless they are trained
    assert_eq!(
        marked(
            &chat,
            &[
                ("user", "1"),
                ("assistant", REASONED),
                ("user", "2"),
                ("assistant", "<think>\nx\n</think>\n\ny")
            ],
            ALL
        ),
        "<bos><U>1<A><think>\n«r\n</think>\n\na<eos>»<U>2<A><think>\n«x\n</think>\n\ny<eos>»"
    );
}

#[test]
fn an_answer_without_reasoning_closes_the_opened_tag() {
    assert_eq!(
        marked(&chat(DROPS), &[("user", "q"), ("assistant", "a")], LAST),
        "<bos><U>q<A><think>\n«\n</think>\n\na<eos>»"
    );
}

#[test]
fn reasoning_rebuilt_by_the_template_is_trained_as_it_renders_it() {
    let chat = chat(&rebuilds());
    let turns = [
        ("user", "1"),
        ("assistant", "<think>r</think>a"),
        ("user", "2"),
        ("assistant", "b"),
    ];
    assert_eq!(
        marked(&chat, &turns[..2], LAST),
        "[user]\n1<|im_end|>\n[assistant]\n«<think>\nr\n</think>\n\na<|im_end|>»\n"
    );
    // reasoning dropped from history, and empty where there is none
    assert_eq!(
        marked(&chat, &turns, LAST),
        "[user]\n1<|im_end|>\n[assistant]\na<|im_end|>\n[user]\n2<|im_end|>\n[assistant]\n«<think>\n\n</think>\n\nb<|im_end|>»\n"
    );
    assert_eq!(
        marked(&chat, &turns, ALL),
        "[user]\n1<|im_end|>\n[assistant]\n«<think>\nr\n</think>\n\na<|im_end|>»\n[user]\n2<|im_end|>\n[assistant]\n\
         «<think>\n\n</think>\n\nb<|im_end|>»\n"
    );
}

#[test]
fn text_that_speaks_of_the_tags_is_trained_whole() {
    let rebuilt = chat(&rebuilds());
    for text in [
        "<think>\nUse the <think> tag here\n</think>\n\nThe tag </think> closes it. A1",
        "Well: <think>\nr\n</think>\n\na",
        "<think>\nr\n</think>\n\nfirst </think> last",
    ] {
        assert_eq!(
            marked(&rebuilt, &[("user", "q"), ("assistant", text)], LAST),
            format!("[user]\nq<|im_end|>\n[assistant]\n«{text}<|im_end|>»\n")
        );
    }
}

#[test]
fn shipped_templates_keep_every_turn() {
    let turns = [
        ("user", "1"),
        ("assistant", REASONED),
        ("user", "2"),
        ("assistant", REASONED),
    ];
    assert_eq!(
        marked(&chat(R1_CHATML), &turns, LAST),
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n<think>\nr\n</think>\n\na<|im_end|>\n<|im_start|>user\n2<|im_end|>\n\
         <|im_start|>assistant\n<think>\n«r\n</think>\n\na<|im_end|>»\n"
    );
    assert_eq!(
        marked(&chat(R1_LLAMA3), &turns[2..], LAST),
        "<bos><|start_header_id|>user<|end_header_id|>\n\n2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\n\
         «r\n</think>\n\na<|eot_id|>»"
    );
}

#[test]
fn prompt_is_the_beginning_of_the_row() {
    let turns = [
        ("system", "é 好 😀"),
        ("user", "1"),
        ("assistant", REASONED),
        ("user", "2"),
        ("assistant", REASONED),
    ];
    for template in [CHATML, DROPS, &rebuilds(), R1_CHATML, R1_LLAMA3] {
        let chat = chat(template);
        let prompt = chat.prompt(&talk(&turns[..4])).unwrap();
        let row = chat.tokenize(&talk(&turns), LAST).unwrap();
        assert_eq!(row.tokens[..prompt.len()], prompt);
        assert!(row.trained[..prompt.len()].iter().all(|&t| !t) && row.trained[prompt.len()]);
    }
}

#[test]
fn reasoning_in_a_field_of_its_own_is_trained() {
    for field in ["reasoning_content", "thinking", "reasoning"] {
        let mut messages = talk(&[("user", "q"), ("assistant", "a")]);
        messages[1].extra.insert(field.into(), "\nr\n".into());
        for (template, expected) in [
            (DROPS, "r\n</think>\n\na<eos>"),
            (CHATML, "<think>\nr\n</think>\n\na<|im_end|>"),
        ] {
            let chat = chat(template);
            let row = chat.tokenize(&messages, LAST).unwrap();
            let trained: Vec<u32> = row
                .tokens
                .iter()
                .zip(&row.trained)
                .filter(|(_, t)| **t)
                .map(|(id, _)| *id)
                .collect();
            assert_eq!(
                chat.tokenizer.decode(&trained, false).unwrap(),
                expected,
                "{field}"
            );
            assert_eq!(row.num_trained(), trained.len());
        }
    }
}

#[test]
fn tokens_do_not_reach_over_the_border_of_prompt_and_completion() {
    // `\n` + `\n</think>` would be one token `\n\n`, which generation never sees behind its prompt
    let chat = chat(DROPS);
    let row = chat
        .tokenize(&talk(&[("user", "q"), ("assistant", "a")]), LAST)
        .unwrap();
    assert!(row.joint_differs);
    let double = chat.tokenizer.token_to_id("ĊĊ").unwrap();
    assert_eq!(row.tokens.iter().filter(|&&id| id == double).count(), 1); // the one behind </think>
    let row = chat
        .tokenize(&talk(&[("user", "q"), ("assistant", REASONED)]), LAST)
        .unwrap();
    assert!(!row.joint_differs);
}

#[test]
fn rows_that_cannot_be_trained_say_why() {
    let chatml = chat(CHATML);
    assert_eq!(
        refused(&chatml, &[("user", "q")]),
        "the row has no assistant turn"
    );
    assert_eq!(
        refused(&chatml, &[("user", "q"), ("assistant", " \n")]),
        "the assistant's turn is empty"
    );
    assert_eq!(
        refused(&chatml, &[("user", "q"), ("assistant", "a<|im_end|>b")]),
        "the assistant's text holds a token that ends the turn"
    );
    assert_eq!(
        refused(
            &chat("{{ raise_exception('no ' + messages[0].role) }}"),
            &[("user", "q"), ("assistant", "a")]
        ),
        "the chat template refuses the conversation: no user"
    );
    let forgets = chat("{% for m in messages %}{{ m.role + '<|im_end|>' }}{% endfor %}");
    assert!(refused(&forgets, &[("user", "q"), ("assistant", "a")]).contains("exactly once"));
    let unlike = chat(
        "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}bot:{% endif %}",
    );
    assert!(refused(&unlike, &[("user", "q"), ("assistant", "a")]).contains("generation prompt"));
}

#[test]
fn a_template_without_an_end_is_refused_or_gets_one() {
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let mut chat = chat(source);
    let turns = [
        ("user", "q"),
        ("assistant", "a"),
        ("user", "r"),
        ("assistant", "b"),
    ];
    assert!(refused(&chat, &turns).starts_with("the row has no end"));
    chat.missing_end = MissingEnd::AppendEos;
    assert_eq!(
        marked(&chat, &turns, LAST),
        "user: q\nassistant: a\nuser: r\nassistant: «b<eos>»\n"
    );
    assert_eq!(
        marked(&chat, &turns, ALL),
        "user: q\nassistant: «a<eos>»\nuser: r\nassistant: «b<eos>»\n"
    );
}

#[test]
fn what_ends_a_generation() {
    let tokenizer = tokenizer();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert_eq!(chat(CHATML).stop_ids(), [id("<eos>"), id("<|im_end|>")]);
    assert_eq!(chat(R1_LLAMA3).end_of_turn(), Some(id("<|eot_id|>")));
    assert_eq!(chat(DROPS).stop_ids(), [id("<eos>")]);
    let mut chat = chat(DROPS);
    chat.add_stop_token("<pad>").unwrap();
    assert_eq!(chat.stop_ids(), [id("<eos>"), id("<pad>")]);
    assert!(
        chat.add_stop_token("<none>")
            .unwrap_err()
            .to_string()
            .contains("<none>")
    );
}

#[test]
fn saved_and_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut chat = chat(CHATML);
    chat.add_stop_token("<bos>").unwrap();
    chat.save(folder.path()).unwrap();
    let again = Chat::load(folder.path(), None).unwrap();
    assert_eq!(again.template().unwrap().source(), CHATML);
    assert_eq!(again.stop_ids(), chat.stop_ids());
    let turns = talk(&[("user", "q"), ("assistant", REASONED)]);
    assert_eq!(
        again.tokenize(&turns, LAST).unwrap(),
        chat.tokenize(&turns, LAST).unwrap()
    );
    let generation: serde_json::Value = serde_json::from_slice(
        &std::fs::read(folder.path().join("generation_config.json")).unwrap(),
    )
    .unwrap();
    let pad = chat.tokenizer.token_to_id("<pad>").unwrap();
    assert_eq!(generation["eos_token_id"].as_array().unwrap().len(), 3);
    assert_eq!(generation["pad_token_id"], pad);
}

#[test]
fn broken_folders_are_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = Chat::load(folder.path(), None).unwrap_err();
    assert!(
        error.to_string().contains("there is no") && error.hint().is_some(),
        "{error}"
    );
    std::fs::write(folder.path().join("tokenizer.json"), "{\"version\": 1").unwrap();
    assert!(
        Chat::load(folder.path(), None)
            .unwrap_err()
            .to_string()
            .contains("tokenizer.json")
    );
    tokenizer().save(folder.path()).unwrap();
    let error = Chat::load(folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
    let error = Chat::load(folder.path(), Some("{% for m in messages %}\n{{ m.role }"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("chat template, line 2"), "{error}");
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"eos_token":"<gone>"}"#,
    )
    .unwrap();
    let error = Chat::load(folder.path(), Some(CHATML))
        .unwrap_err()
        .to_string();
    assert!(error.contains("eos_token `<gone>`"), "{error}");
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    std::fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": 9999}"#,
    )
    .unwrap();
    let error = Chat::load(folder.path(), Some(CHATML))
        .unwrap_err()
        .to_string();
    assert!(error.contains("9999"), "{error}");
}

#[test]
fn tokens_of_the_config_are_added() {
    let folder = tempfile::tempdir().unwrap();
    let plain = tokenizer();
    plain.save(folder.path()).unwrap();
    let next = plain.vocab_size();
    let config = serde_json::json!({"added_tokens_decoder": {
        next.to_string(): {"content": "<tool>", "special": false, "normalized": false},
        (next + 1).to_string(): {"content": "<end>", "special": true},
    }});
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        config.to_string(),
    )
    .unwrap();
    let loaded = TextTokenizer::load(folder.path()).unwrap();
    assert_eq!(loaded.vocab_size(), next + 2);
    assert_eq!(
        loaded.encode("<end><tool>").unwrap(),
        [next as u32 + 1, next as u32]
    );
    assert!(loaded.is_special(next as u32 + 1) && !loaded.is_special(next as u32));
    let again = tempfile::tempdir().unwrap();
    loaded.save(again.path()).unwrap();
    std::fs::remove_file(again.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(
        TextTokenizer::load(again.path()).unwrap().vocab_size(),
        next + 2
    );
}

#[test]
fn r1_zero_asks_as_the_paper_prints_it() {
    let template = include_str!("../models/templates/r1-zero.jinja");
    let chat = Chat::new(tokenizer(), Some(template)).unwrap();
    let asked = [Message::new("user", "1+1?")];
    let text = chat.prompt_text(&asked).unwrap();
    assert!(
        text.contains("A conversation between User and Assistant. The user asks"),
        "{text}"
    );
    assert!(
        text.ends_with("<answer> answer here </answer>. User: 1+1? Assistant:"),
        "{text}"
    );
    // without a token that begins texts, as in Qwen's tokenizers
    let none: BTreeMap<String, String> =
        BTreeMap::from([("eos_token".to_string(), "<end>".to_string())]);
    let bare = distill::tokenize::ChatTemplate::new(template, &none).unwrap();
    let told = [asked[0].clone(), Message::new("assistant", " <think>")];
    let text = bare.render(&told, false, &serde_json::Map::new()).unwrap();
    assert!(text.starts_with("A conversation"), "{text}");
    assert!(
        text.ends_with(" User: 1+1? Assistant: <think><end>"),
        "{text}"
    );
}
