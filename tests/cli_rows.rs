//! Commands that read rows and write rows, on a model whose numbers are worked out by hand (`cli_support::model`).

mod cli_support;

use cli_support::model::{self, IM_END, IM_START, logprob};
use cli_support::{Place, finished};
use serde_json::{Value, json};

fn place() -> Place {
    let place = Place::new();
    model::save(&place.path().join("m"));
    place
}

fn rows(place: &Place, name: &str) -> Vec<Value> {
    place
        .read(name)
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// Log-probabilities of tokens, each after the one before.
fn assert_logprobs(found: &Value, tokens: &[u32]) {
    let found = found.as_array().unwrap();
    let want: Vec<f64> = tokens.windows(2).map(|w| logprob(w[0], w[1])).collect();
    assert_eq!(found.len(), want.len());
    for (found, want) in found.iter().zip(want) {
        assert!(
            (found.as_f64().unwrap() - want).abs() < 1e-4,
            "{found} {want}"
        );
    }
}

const GREEDY: [&str; 11] = [
    "generate",
    "--model",
    "m",
    "--input",
    "p.jsonl",
    "--output",
    "o.jsonl",
    "--temperature",
    "0",
    "--max-new-tokens",
    "6",
];

#[test]
fn generate_continues_prompts_and_answers_messages() {
    let place = place();
    place.file(
        "p.jsonl",
        "{\"id\": 1.50, \"prompt\": \"ka\"}\n\n{\"messages\":[{\"role\":\"user\",\"content\":\"k\"}],\"é\":\"😀\"}\n\
         {\"prompt\":\"k\",\"generations\":\"old\"}\n",
    );
    place.works(&GREEDY);
    let text = place.read("o.jsonl");
    assert!(text.starts_with(
        "{\"id\": 1.50, \"prompt\": \"ka\",\"generations\":[{\"text\":\"bc\",\"tokens\":[4,5,2],"
    ));
    let rows = rows(&place, "o.jsonl");
    let answers: Vec<_> = rows.iter().map(|r| &r["generations"][0]).collect();
    assert_eq!(
        answers
            .iter()
            .map(|a| json!([a["text"], a["tokens"], a["finish_reason"]]))
            .collect::<Vec<_>>(),
        [
            json!(["bc", [4, 5, IM_END], "stop"]),
            json!(["abc", [3, 4, 5, IM_END], "stop"]),
            json!(["kkkkkk", [13, 13, 13, 13, 13, 13], "length"]),
        ]
    );
    assert_eq!((&rows[0]["id"], &rows[1]["é"]), (&json!(1.5), &json!("😀")));
    assert_logprobs(&answers[0]["logprobs"], &[3, 4, 5, IM_END]);
    assert_logprobs(&answers[1]["logprobs"], &[IM_START, 3, 4, 5, IM_END]);
}

#[test]
fn generate_goes_on_where_it_was_cut() {
    let place = place();
    let prompts: String = (0..12)
        .map(|i| format!("{{\"n\":{i},\"prompt\":\"a\"}}\n"))
        .collect();
    place.file("p.jsonl", prompts);
    let args = [
        "generate",
        "--model",
        "m",
        "--input",
        "p.jsonl",
        "--output",
        "o.jsonl",
        "--n",
        "3",
        "--temperature",
        "1.5",
        "--max-new-tokens",
        "8",
        "--seed",
        "5",
        "--batch-size",
    ];
    place.works(&[&args[..], &["4"]].concat());
    let whole = place.read("o.jsonl");
    let texts: std::collections::BTreeSet<_> = rows(&place, "o.jsonl")
        .iter()
        .flat_map(|r| r["generations"].as_array().unwrap().clone())
        .map(|g| g["text"].to_string())
        .collect();
    assert!(texts.len() > 5, "36 samples and so few texts: {texts:?}");
    // whole again, cut between lines, cut within a line, gone; whatever the batch
    let ends: Vec<usize> = whole.match_indices('\n').map(|(i, _)| i + 1).collect();
    for (cut, batch, note) in [
        (whole.len(), "4", "12 of 12 rows are in `o.jsonl` already"),
        (ends[4], "4", "5 of 12 rows are in `o.jsonl` already"),
        (ends[6] + 20, "1", "7 of 12 rows are in `o.jsonl` already"),
        (0, "32", ""),
    ] {
        place.file("o.jsonl", &whole[..cut]);
        let run = place.works(&[&args[..], &[batch]].concat());
        assert_eq!(place.read("o.jsonl"), whole, "cut at {cut}");
        assert!(run.stderr.starts_with(note), "{}", run.stderr);
    }
    // other sampling is another file
    let mut other = args.to_vec();
    other[14] = "6";
    let (error, _) = place.fails(&[&other[..], &["4"]].concat());
    assert!(
        error.starts_with("`o.jsonl` holds answers of another `sampling`"),
        "{error}"
    );
    assert_eq!(place.read("o.jsonl"), whole);
}

#[test]
fn generate_refuses_what_it_cannot_use() {
    let place = place();
    for (input, want) in [
        (
            "{\"prompt\":\"a\"}\n{\"prompt\":}\n",
            "`p.jsonl` line 2 column 11: expected value",
        ),
        (
            "{\"text\":\"a\"}\n",
            "`p.jsonl` line 1: no `prompt` or `messages`; the row has `text`",
        ),
        (
            "{\"prompt\":[1]}\n",
            "`p.jsonl` line 1: `prompt`: invalid type: sequence, expected a string",
        ),
        (
            "{\"prompt\":\"\"}\n",
            "`p.jsonl` line 1: the prompt has no tokens",
        ),
        (
            "{\"messages\":[{\"content\":\"a\"}]}\n",
            "`p.jsonl` line 1: `messages`: missing field `role`",
        ),
    ] {
        place.file("p.jsonl", input);
        assert_eq!(place.fails(&GREEDY).0, want);
    }
    place.file(
        "p.jsonl",
        format!("{{\"prompt\":\"{}\"}}\n", "a".repeat(64)),
    );
    assert_eq!(
        place.fails(&GREEDY).0,
        "`p.jsonl` line 1: the prompt has 64 tokens, and the model 64 positions"
    );
    place.file("p.jsonl", b"{\"prompt\":\"a\"}\n{\"prompt\":\"\xc3\"}\n");
    assert_eq!(
        place.fails(&GREEDY).0,
        "`p.jsonl` line 2 is not valid UTF-8 at byte 12"
    );
    place.file("p.jsonl", "{\"prompt\":\"a\"}\n");
    place.file("o.jsonl", "{\"prompt\":\"b\",\"generations\":[{}]}\n");
    let (error, hint) = place.fails(&GREEDY);
    assert_eq!(error, "`o.jsonl` line 1: not the row of `p.jsonl` line 1");
    assert_eq!(
        hint,
        "give another `--output`, or delete that file to sample all rows again"
    );
    let (error, _) = place.fails(&[&GREEDY[..], &["--top-p", "0"]].concat());
    assert_eq!(error, "`top_p` is 0, and must be above 0 and at most 1");
    assert_eq!(
        place.run(&[&GREEDY[..], &["--n", "0"]].concat()).code,
        Some(2)
    );
}

#[test]
fn score_knows_every_token() {
    let place = place();
    place.file(
        "r.jsonl",
        "{\"text\": \"abk\"}\n{\"messages\":[{\"role\":\"user\",\"content\":\"k\"},{\"role\":\"assistant\",\"content\":\"ab\"}]}\n\
         {\"tokens\":[3,4],\"n\":1}\n{\"text\":\"a\"}\n{\"tokens\":[]}\n",
    );
    let args = [
        "score", "--model", "m", "--input", "r.jsonl", "--output", "s.jsonl",
    ];
    place.works(&args);
    let rows = rows(&place, "s.jsonl");
    let tokens: Vec<Vec<u32>> = rows
        .iter()
        .map(|r| serde_json::from_value(r["tokens"].clone()).unwrap())
        .collect();
    assert_eq!(
        tokens,
        [
            vec![3, 4, 13],
            vec![1, 13, 2, 1, 3, 4, 2],
            vec![3, 4],
            vec![3],
            vec![]
        ]
    );
    for (row, tokens) in rows.iter().zip(&tokens) {
        let mut logprobs = row["logprobs"].as_array().unwrap().clone();
        if !tokens.is_empty() {
            assert_eq!(logprobs.remove(0), Value::Null);
            assert_logprobs(&logprobs.into(), tokens);
        }
    }
    assert_eq!(
        rows[1]["trained"],
        json!([false, false, false, false, true, true, true])
    );
    assert!(rows[0].get("trained").is_none());
    // exp of the mean of -logprob: (a b) is likely, (b k) is not
    let want = (-(logprob(3, 4) + logprob(4, 13)) / 2.0).exp();
    assert!((rows[0]["perplexity"].as_f64().unwrap() - want).abs() < 1e-3 * want);
    assert_eq!(
        (&rows[3]["perplexity"], &rows[4]["perplexity"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(rows[2]["n"], 1);
}

#[test]
fn a_model_without_a_template_reads_all_but_conversations() {
    let place = place();
    std::fs::remove_file(place.path().join("m/chat_template.jinja")).unwrap();
    let score = [
        "score", "--model", "m", "--input", "r.jsonl", "--output", "s.jsonl",
    ];
    place.file("r.jsonl", "{\"text\": \"abk\"}\n{\"tokens\":[3,4]}\n");
    place.works(&score);
    assert_eq!(rows(&place, "s.jsonl")[0]["tokens"], json!([3, 4, 13]));
    place.file("p.jsonl", "{\"prompt\": \"ka\"}\n");
    place.works(&GREEDY);
    assert_eq!(rows(&place, "o.jsonl")[0]["generations"][0]["text"], "bc");

    let message = "{\"messages\":[{\"role\":\"user\",\"content\":\"k\"},{\"role\":\"assistant\",\"content\":\"a\"}]}";
    place.file("r.jsonl", format!("{{\"text\":\"a\"}}\n{message}\n"));
    let (error, hint) = place.fails(&score);
    assert_eq!(
        error,
        "`r.jsonl` line 2: the tokenizer has no chat template"
    );
    assert!(hint.contains("chat_template.jinja"), "{hint}");
}

#[test]
fn score_refuses_what_it_cannot_use() {
    let place = place();
    let args = [
        "score", "--model", "m", "--input", "r.jsonl", "--output", "s.jsonl",
    ];
    place.file("r.jsonl", "{\"text\":\"a\"}\n{\"tokens\":[3,16]}\n");
    assert_eq!(
        place.fails(&args).0,
        "`r.jsonl` line 2: token 16 is outside the model's vocabulary of 16"
    );
    place.file("r.jsonl", "{\"prompt\":\"a\"}\n");
    let (error, hint) = place.fails(&args);
    assert_eq!(
        error,
        "`r.jsonl` line 1: no `text`, `messages` or `tokens`; the row has `prompt`"
    );
    assert_eq!(
        hint,
        "rows are {\"text\": \"...\"}, {\"messages\": [...]} or {\"tokens\": [...]}"
    );
    assert!(!place.path().join("s.jsonl").exists(), "no half file");
    place.file("r.jsonl", "{\"text\":\"a\"}\n");
    let full = [
        "score",
        "--model",
        "m",
        "--input",
        "r.jsonl",
        "--output",
        "/dev/full",
    ];
    let (error, hint) = place.fails(&full);
    assert_eq!(
        error,
        "writing `/dev/full`: No space left on device (os error 28)"
    );
    assert!(hint.starts_with("free some space"), "{hint}");
    let generate = [
        "generate",
        "--model",
        "m",
        "--input",
        "p.jsonl",
        "--output",
        "/dev/full",
        "--max-new-tokens",
        "3",
    ];
    place.file("p.jsonl", "{\"prompt\":\"a\"}\n");
    assert_eq!(
        place.fails(&generate).0,
        "writing `/dev/full`: No space left on device (os error 28)"
    );
}

#[test]
fn chat_answers_line_by_line() {
    let place = place();
    place.file("talk", "k\n\n/new\nab\n/exit\nnever\n");
    let mut command = place.command(&[
        "chat",
        "--model",
        "m",
        "--temperature",
        "0",
        "--max-new-tokens",
        "9",
    ]);
    command.stdin(std::fs::File::open(place.path().join("talk")).unwrap());
    let run = finished(command);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "abc\nabc\n"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_model_that_cannot_be_used_is_refused_by_name() {
    let place = place();
    place.file("r.jsonl", "{\"text\":\"a\"}\n");
    let score = |model: &str| {
        place.fails(&[
            "score", "--model", model, "--input", "r.jsonl", "--output", "s.jsonl",
        ])
    };
    let folder = |name: &str| place.path().join(name);

    let mut weights = model::weights();
    weights.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN;
    model::save_with(&folder("nan"), &weights, model::config(), model::TEMPLATE);
    let mut weights = model::weights();
    weights.remove("model.layers.0.mlp.up_proj.weight");
    model::save_with(
        &folder("missing"),
        &weights,
        model::config(),
        model::TEMPLATE,
    );
    let mut weights = model::weights();
    weights
        .get_mut("model.layers.0.self_attn.k_proj.weight")
        .unwrap()
        .0 = vec![16, 8];
    model::save_with(&folder("shape"), &weights, model::config(), model::TEMPLATE);
    let mut config = model::config();
    config["model_type"] = json!("gpt_neox");
    config["architectures"] = json!(["GPTNeoXForCausalLM"]);
    model::save_with(
        &folder("family"),
        &model::weights(),
        config,
        model::TEMPLATE,
    );
    model::save_with(
        &folder("template"),
        &model::weights(),
        model::config(),
        "{% for m in messages %}{{ m.content }",
    );
    model::save(&folder("cut"));
    let bytes = std::fs::read(folder("cut").join("model.safetensors")).unwrap();
    std::fs::write(
        folder("cut").join("model.safetensors"),
        &bytes[..bytes.len() - 100],
    )
    .unwrap();
    std::fs::create_dir(folder("empty")).unwrap();

    for (name, parts) in [
        ("nan", &["nan/model.safetensors", "`model.norm.weight`"][..]),
        (
            "missing",
            &["missing", "`model.layers.0.mlp.up_proj.weight`"],
        ),
        (
            "shape",
            &[
                "shape/model.safetensors",
                "`model.layers.0.self_attn.k_proj.weight`",
                "[16, 8]",
                "[8, 16]",
            ],
        ),
        ("family", &["family/config.json", "`gpt_neox`"]),
        ("template", &["template", "chat template"]),
        ("cut", &["cut/model.safetensors"]),
        ("empty", &["empty"]),
        ("./gone", &["no folder `./gone`"]),
        ("qwen2.5-mth-7b", &["no student `qwen2.5-mth-7b`"]),
    ] {
        let (error, _) = score(name);
        for part in parts {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
    let (error, _) = place.fails(&[
        "score", "--model", "m", "--device", "tpu", "--input", "r.jsonl", "--output", "s.jsonl",
    ]);
    assert_eq!(error, "unknown device `tpu`");
}
