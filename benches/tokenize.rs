//! Rows tokenised, masked and packed, in MB of text a second on one core, and the same ids from the crate `tokenizers`.
//!
//! `cargo bench --bench tokenize -- TOKENIZER TRACES`: a folder (or file) of a `tokenizer.json`, and a folder of `*.jsonl`
//! with `problem` and `response`.

use distill::tokenize::{Chat, Message, TextTokenizer, TrainOn, pack};
use std::path::Path;
use std::time::Instant;

const CHATML: &str = include_str!("../models/templates/r1-chatml.jinja");
const LLAMA3: &str = include_str!("../models/templates/r1-llama3.jinja");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let [tokenizer, traces] = paths.as_slice() else {
        eprintln!("usage: cargo bench --bench tokenize -- TOKENIZER TRACES");
        return Ok(());
    };
    let start = Instant::now();
    let tokenizer = TextTokenizer::load(Path::new(tokenizer))?;
    println!(
        "load            {:6.2} s, quick way: {}",
        start.elapsed().as_secs_f64(),
        tokenizer.is_fast()
    );
    let rows = rows(Path::new(traces))?;
    let bytes: usize = rows
        .iter()
        .flatten()
        .map(|message| message.content.len())
        .sum();
    let rate = |start: Instant| bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!(
        "rows            {:6}, {:.2} MB",
        rows.len(),
        bytes as f64 / 1e6
    );

    let start = Instant::now();
    let texts = || {
        rows.iter()
            .flatten()
            .map(|message| message.content.as_str())
    };
    let ids = texts()
        .map(|text| tokenizer.encode(text))
        .collect::<Result<Vec<_>, _>>()?;
    println!(
        "encode, cold    {:6.1} MB/s, {} tokens",
        rate(start),
        ids.iter().map(Vec::len).sum::<usize>()
    );
    let start = Instant::now();
    let again = texts()
        .map(|text| tokenizer.encode(text))
        .collect::<Result<Vec<_>, _>>()?;
    println!("encode, warm    {:6.1} MB/s", rate(start));
    let start = Instant::now();
    let expected = texts()
        .map(|text| tokenizer.encode_by_crate(text))
        .collect::<Result<Vec<_>, _>>()?;
    println!("encode by crate {:6.1} MB/s", rate(start));
    assert!(
        ids == expected && again == expected,
        "ids differ from the crate's"
    );

    let llama = tokenizer.token_to_id("<|eot_id|>").is_some();
    let chat = Chat::new(tokenizer, Some(if llama { LLAMA3 } else { CHATML }))?;
    let start = Instant::now();
    let rows = rows
        .iter()
        .map(|messages| chat.tokenize(messages, TrainOn::LastAssistant))
        .collect::<Result<Vec<_>, _>>()?;
    let lengths: Vec<usize> = rows
        .iter()
        .map(|row| row.tokens.len().min(32_768))
        .collect();
    let packs = pack::best_fit(&lengths, 32_768)?;
    println!("rows, masked and packed {:6.1} MB/s", rate(start));
    println!(
        "packs           {:6}, {:.1}% full; joint tokens differ in {} rows; {} of {} tokens trained",
        packs.len(),
        100.0 * pack::utilisation(&packs, &lengths, 32_768),
        rows.iter().filter(|row| row.joint_differs).count(),
        rows.iter().map(|row| row.num_trained()).sum::<usize>(),
        lengths.iter().sum::<usize>(),
    );
    Ok(())
}

fn rows(folder: &Path) -> Result<Vec<Vec<Message>>, Box<dyn std::error::Error>> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            for line in std::fs::read_to_string(&path)?.lines() {
                let row: serde_json::Value = serde_json::from_str(line)?;
                if let (Some(problem), Some(response)) =
                    (row["problem"].as_str(), row["response"].as_str())
                {
                    let answer = format!("<think>\n{response}");
                    rows.push(vec![
                        Message::new("user", problem),
                        Message::new("assistant", answer),
                    ]);
                }
            }
        }
    }
    Ok(rows)
}
