//! How a published model is used, as its card shows it: transformers, vLLM, llama.cpp, distill.

use super::publish_card::About;
use crate::hub::card::{Block, Section};
use crate::report::ReportData;

/// The section of the card.
pub fn usage(about: &About, report: &ReportData) -> Section {
    let repo = about.repo;
    let revision = about.checkpoint.map(|step| format!("checkpoint-{step}"));
    let (python, shell) = match &revision {
        Some(revision) => (
            format!(", revision=\"{revision}\""),
            format!(" --revision {revision}"),
        ),
        None => (String::new(), String::new()),
    };
    let at = revision
        .as_ref()
        .map_or(String::new(), |revision| format!("@{revision}"));
    let load = match about.is_adapter {
        true => format!(
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained(\"{repo}\"{python})\nmodel = AutoPeftModelForCausalLM.from_pretrained(\"{repo}\"{python})"
        ),
        false => format!(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained(\"{repo}\"{python})\nmodel = AutoModelForCausalLM.from_pretrained(\"{repo}\"{python}, dtype=\"auto\", device_map=\"auto\")"
        ),
    };
    let code = |language, text: String| Block::Code { language, text };
    if about.is_reward {
        return scoring(about, &python, &at);
    }
    let title = |text: &str| Block::Text(text.to_string());
    let mut blocks = vec![
        title(if about.is_adapter {
            "transformers with peft:"
        } else {
            "transformers:"
        }),
        code(
            "python",
            format!(
                "{load}\nmessages = [{{\"role\": \"user\", \"content\": \"What is 17 * 23?\"}}]\ninputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors=\"pt\").to(model.device)\noutput = model.generate(**inputs, max_new_tokens=4096, do_sample=True, temperature=0.6, top_p=0.95)\nprint(tokenizer.decode(output[0][inputs[\"input_ids\"].shape[1]:]))"
            ),
        ),
    ];
    if !about.is_adapter {
        blocks.push(title("vLLM:"));
        blocks.push(code("sh", format!("vllm serve {repo}{shell}")));
        blocks.push(title("llama.cpp, by way of GGUF:"));
        blocks.push(code(
        "sh",
        format!(
            "distill export --model {repo}{at} --gguf model.gguf --quant q8_0\nllama-cli -m model.gguf -p \"What is 17 * 23?\" --temp 0.6 --top-p 0.95"
        ),
    ));
        blocks.push(title("distill:"));
        blocks.push(code(
            "sh",
            format!("distill chat --model {repo}{at} --temperature 0.6"),
        ));
    }
    if let Some(limit) = longest(report) {
        blocks.push(Block::Text(format!(
            "The longest text it was trained on had {limit} tokens; leave answers room to think."
        )));
    }
    Section {
        title: "Use".into(),
        blocks,
    }
}

/// How a reward model is asked.
fn scoring(about: &About, python: &str, at: &str) -> Section {
    let repo = about.repo;
    let text = |text: &str| Block::Text(text.to_string());
    Section {
        title: "Use".into(),
        blocks: vec![
            text("transformers:"),
            Block::Code {
                language: "python",
                text: format!(
                    "import torch\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained(\"{repo}\"{python})\nmodel = AutoModelForSequenceClassification.from_pretrained(\"{repo}\"{python})\nmessages = [{{\"role\": \"user\", \"content\": \"What is 17 * 23?\"}}, {{\"role\": \"assistant\", \"content\": \"391\"}}]\ninputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors=\"pt\")\nwith torch.no_grad():\n    print(model(**inputs).logits[0, 0].item())"
                ),
            },
            text(
                "distill, as a reward: `reward_model.json` says what of an answer it was trained to see:",
            ),
            Block::Code {
                language: "sh",
                text: format!(
                    "distill pull {repo}{at}      # prints the folder, for `model` of a reward `reward_model`"
                ),
            },
        ],
    }
}

fn longest(report: &ReportData) -> Option<u64> {
    let stages = report.stages.iter().filter_map(|stage| stage.data.as_ref());
    stages.map(|data| data.longest).max().filter(|n| *n > 0)
}
