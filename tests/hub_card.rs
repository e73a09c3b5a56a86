//! Cards as text: the YAML that the Hub reads, the tables that people read.

use distill::hub::card::{
    Block, DataCard, DataConfig, EvalRow, License, ModelCard, Relation, Section,
};

fn row(suite: &str) -> EvalRow {
    EvalRow {
        suite: suite.into(),
        version: Some("1".into()),
        dataset: Some("HuggingFaceH4/aime_2024".into()),
        split: Some("train".into()),
        revision: Some("2fe88a2f".into()),
        value: 55.512,
        ci95: Some((50.04, 60.96)),
        num_problems: 30,
        k: 64,
        num_tokens_mean: Some(9120.4),
        truncated: Some(1.25),
        sampling: Some("temperature 0.6, top p 0.95".into()),
        verifier: Some("math".into()),
        before: Some(13.3),
        paper: Some(55.5),
        date: Some("2026-01-31".into()),
        ..EvalRow::default()
    }
}

fn card() -> ModelCard {
    ModelCard {
        name: "R1-Distill".into(),
        license: Some(License {
            id: "apache-2.0".into(),
            ..License::default()
        }),
        base: Some(("Qwen/Qwen2.5-Math-7B".into(), Relation::Finetune)),
        datasets: vec!["open-r1/Mixture-of-Thoughts".into()],
        languages: vec!["en".into(), "no".into()],
        tags: vec!["reasoning".into()],
        library: "transformers".into(),
        task: None,
        results: vec![row("aime-2024")],
        lead: "A model.".into(),
        sections: vec![
            Section {
                title: "Use".into(),
                blocks: vec![Block::Code {
                    language: "sh",
                    text: "echo ```".into(),
                }],
            },
            Section {
                title: "Data".into(),
                blocks: vec![Block::Table {
                    head: vec!["rows".into(), "count".into()],
                    rows: vec![vec![
                        "dropped: marks such as `<think>` | more".into(),
                        "21".into(),
                    ]],
                }],
            },
        ],
    }
}

#[test]
fn a_model_card_as_a_whole() {
    let want = r#"---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
base_model: Qwen/Qwen2.5-Math-7B
base_model_relation: finetune
datasets:
- open-r1/Mixture-of-Thoughts
language:
- en
- "no"
tags:
- reasoning
model-index:
- name: R1-Distill
  results:
  - task:
      type: text-generation
      name: "Text Generation"
    dataset:
      name: aime-2024
      type: HuggingFaceH4/aime_2024
      split: train
      revision: "2fe88a2f"
    metrics:
    - type: "pass@1"
      name: "pass@1 over 64 samples a problem"
      value: 55.51
      verified: false
---

# R1-Distill

A model.

## Use

````sh
echo ```
````

## Evaluation

| benchmark | pass@1 | 95% interval | before training | DeepSeek-R1-Distill | problems | k | tokens | cut off |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| aime-2024 (version 1) | 55.5 | 50.0 to 61.0 | 13.3 | 55.5 | 30 | 64 | 9120 | 1.2% |

pass@1 is the share of right samples in percent, over `k` samples a problem; the interval is over problems. `tokens` is the mean length of an answer, `cut off` the share that ran into the limit. The figures of DeepSeek-R1-Distill are those of the paper (arXiv 2501.12948) for the student of the same base model, trained on its own 800k traces.

| benchmark | problems | sampling | verifier |
| --- | --- | --- | --- |
| aime-2024 | HuggingFaceH4/aime\_2024 at 2fe88a2f | temperature 0.6, top p 0.95 | math |

## Data

| rows | count |
| --- | --- |
| dropped: marks such as \`&lt;think&gt;\` \| more | 21 |
"#;
    assert_eq!(card().render(), want);
}

#[test]
fn what_is_not_known_is_left_out() {
    let bare = ModelCard {
        name: "x".into(),
        library: "peft".into(),
        ..ModelCard::default()
    };
    assert_eq!(
        bare.render(),
        "---\nlibrary_name: peft\npipeline_tag: text-generation\n---\n\n# x\n"
    );
    let mut other = bare;
    other.license = Some(License {
        id: "other".into(),
        name: Some("my-licence".into()),
        link: Some("LICENSE".into()),
    });
    let text = other.render();
    assert!(
        text.contains("license: other\nlicense_name: my-licence\nlicense_link: LICENSE\n"),
        "{text}"
    );
}

#[test]
fn results_of_suites_on_the_hub_have_a_file_each() {
    let mut card = card();
    let mut built_in = row("arithmetic");
    built_in.dataset = None;
    let mut with_config = row("a suite/of mine");
    with_config.config = Some("main".into());
    card.results.extend([built_in, with_config]);
    let files = card.eval_results();
    let names: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        names,
        [
            ".eval_results/aime-2024.yaml",
            ".eval_results/a-suite-of-mine.yaml"
        ]
    );
    assert_eq!(
        files[0].1,
        r#"- dataset:
    id: HuggingFaceH4/aime_2024
    task_id: default
    revision: "2fe88a2f"
  value: 55.51
  date: "2026-01-31"
  notes: "pass@1 in percent over 64 samples of 30 problems, 95% interval 50.0 to 61.0; temperature 0.6, top p 0.95; verifier math"
"#
    );
    assert!(files[1].1.contains("task_id: main"));
    // without a data set of its own a suite is named by its own name
    assert!(
        card.render()
            .contains("      name: arithmetic\n      type: arithmetic\n")
    );
}

#[test]
fn results_that_differ_by_their_seed_are_one_for_machines() {
    let mut card = card();
    let seeded = |seed: u64, value: f64, ci95: (f64, f64)| EvalRow {
        seeds: vec![seed],
        value,
        ci95: Some(ci95),
        ..row("aime-2024")
    };
    card.results = vec![
        seeded(1, 50.0, (40.0, 60.0)),
        seeded(2, 60.0, (52.0, 68.0)),
        // asked in another way
        EvalRow {
            k: 1,
            ..seeded(1, 30.0, (20.0, 40.0))
        },
    ];
    let files = card.eval_results();
    assert_eq!(files.len(), 1);
    assert_eq!(
        files[0].1,
        r#"- dataset:
    id: HuggingFaceH4/aime_2024
    task_id: default
    revision: "2fe88a2f"
  value: 55.0
  date: "2026-01-31"
  notes: "pass@1 in percent over 64 samples of 30 problems, 95% interval 46.0 to 64.0, mean of 2 seeds; temperature 0.6, top p 0.95, seeds 1 2; verifier math"
- dataset:
    id: HuggingFaceH4/aime_2024
    task_id: default
    revision: "2fe88a2f"
  value: 30.0
  date: "2026-01-31"
  notes: "pass@1 in percent over 1 sample of 30 problems, 95% interval 20.0 to 40.0; temperature 0.6, top p 0.95, seed 1; verifier math"
"#
    );
    let text = card.render();
    for line in [
        "      name: \"pass@1 over 64 samples a problem, mean of 2 seeds\"\n      value: 55.0\n",
        "      name: \"pass@1 over 1 sample a problem\"\n      value: 30.0\n",
        "| aime-2024 (version 1), seed 1 | 50.0 | 40.0 to 60.0 |",
        "| aime-2024 (version 1), seed 2 | 60.0 | 52.0 to 68.0 |",
        "| aime-2024 (version 1), mean of 2 seeds | 55.0 | 46.0 to 64.0 |",
        "| aime-2024 (version 1) | 30.0 | 20.0 to 40.0 |",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    assert_eq!(text.matches("      value: ").count(), 2);
}

#[test]
fn a_data_card_names_its_files_and_its_size() {
    let card = DataCard {
        name: "traces".into(),
        licenses: ["apache-2.0", "mit"]
            .map(|id| License {
                id: id.into(),
                ..License::default()
            })
            .into(),
        languages: vec!["en".into()],
        tags: vec!["synthetic".into()],
        configs: vec![DataConfig {
            name: "default".into(),
            split: "train".into(),
            path: "data/train-*".into(),
        }],
        num_rows: Some(6723),
        sources: vec!["open-r1/OpenR1-Math-220k".into()],
        lead: "Rows.".into(),
        sections: Vec::new(),
    };
    assert_eq!(
        card.render(),
        r#"---
license:
- apache-2.0
- mit
language:
- en
pretty_name: traces
size_categories:
- "1K<n<10K"
task_categories:
- text-generation
tags:
- synthetic
source_datasets:
- "extended|open-r1/OpenR1-Math-220k"
configs:
- config_name: default
  data_files:
  - split: train
    path: "data/train-*"
---

# traces

Rows.
"#
    );
}
