//! `[publish]`: where the result of a run goes on the Hub, and `[publish.traces]`, where the traces it made go.
//!
//! ```toml
//! [publish]
//! repo = "you/R1-Distill-Qwen-7B"
//! language = ["en"]
//! tag = "v1"
//! ```
//!
//! A run with this table publishes its result when all stages are done; `distill push RUN` does the same at any time.

use super::card::Card;
use super::graph::{Resolved, StagePlan};
use super::load::closest;
use super::plan::StudentSource;
use super::stage::Leaves;
use super::terms;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[publish]`
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The model's repository, `owner/name`; created where it is not there. What is trained from a Llama has a name that
    /// begins with `Llama`.
    pub repo: String,
    /// Of a recipe of stages: whose model; default: the last stage that leaves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Branch; default: `main`. Created where it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Every checkpoint that was kept goes to a branch of its own, `checkpoint-N`.
    #[serde(default)]
    pub checkpoints: bool,
    /// Everybody can see the model's repository; only asked when it is created. That of the traces has a key of its own.
    #[serde(default)]
    pub public: bool,
    /// Open a pull request in place of a commit.
    #[serde(default)]
    pub create_pr: bool,
    /// Tag the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// First line of the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Id of the licence as the Hub has it; default: the base model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Text of the licence; default: the base model's own file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license_file: Option<String>,
    /// Languages of the result, ISO 639 codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub language: Vec<String>,
    /// More tags of the card.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The traces that a stage selected or sampled, as a data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traces: Option<PublishTraces>,
}

/// `[publish.traces]`
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PublishTraces {
    /// The data set's repository, `owner/name`.
    pub repo: String,
    /// Whose traces; default: the last stage that selects, else the last that samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Everybody can see the data set's repository; only asked when it is created. Whoever made the traces may not allow it.
    #[serde(default)]
    pub public: bool,
    /// Id of the licence as the Hub has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

impl Resolved {
    /// Where the result goes.
    pub fn publish(&self) -> Option<&Publish> {
        match self {
            Self::Student(plan) => plan.publish.as_ref(),
            Self::Pipeline(plan) => plan.publish.as_ref(),
        }
    }
}

/// Refuses what the Hub, or a licence, would refuse after hours of training. `card` and `source` are those of the model that
/// is trained.
///
/// # Errors
/// Names the key.
pub fn check(publish: &Publish, card: Option<&Card>, source: Option<&StudentSource>) -> Result<()> {
    check_repo("publish.repo", &publish.repo)?;
    if let Some(StudentSource::Hub { repo, .. }) = source {
        for terms in terms::known(repo) {
            terms.check_name(&publish.repo)?;
        }
    }
    if let Some(prefix) = card.and_then(|card| card.name_prefix.as_deref()) {
        check_prefix(&publish.repo, prefix)?;
    }
    for (key, name) in [
        ("publish.revision", &publish.revision),
        ("publish.tag", &publish.tag),
    ] {
        if let Some(name) = name {
            check_ref(key, name)?;
        }
    }
    for code in &publish.language {
        check_language(code)?;
    }
    if publish.create_pr && (publish.tag.is_some() || publish.checkpoints) {
        return Err(
            Error::input("`publish.create_pr` goes with neither `tag` nor `checkpoints`")
                .with_hint("tag after the pull request is merged"),
        );
    }
    if let Some(traces) = &publish.traces {
        check_repo("publish.traces.repo", &traces.repo)?;
        if traces.repo == publish.repo {
            // not refused by the Hub, but nobody could tell them apart
            return Err(Error::input("`publish.traces.repo` is that of the model")
                .with_hint("for example the same name with `-traces`"));
        }
    }
    Ok(())
}

/// [`check`] for a recipe of stages, each with the card of its model.
///
/// # Errors
/// As [`check`]; a stage that is not there or leaves nothing to publish.
pub fn check_stages(publish: &Publish, done: &[(StagePlan, Option<Card>)]) -> Result<()> {
    let named = |stage: &StagePlan| match &publish.stage {
        Some(name) => stage.name == *name,
        None => stage.kind.leaves() == Some(Leaves::Model),
    };
    let published = done.iter().rev().find(|(stage, _)| named(stage));
    let source = |stage: &StagePlan| stage.student.as_ref().map(|s| s.source.clone());
    check(
        publish,
        published.and_then(|(_, card)| card.as_ref()),
        published.and_then(|(stage, _)| source(stage)).as_ref(),
    )?;
    if let Some((stage, _)) = published {
        check_teachers(&publish.repo, stage, done)?;
    }
    let stages: Vec<&StagePlan> = done.iter().map(|(stage, _)| stage).collect();
    let of = |key: &str, name: &Option<String>, leaves: &[Leaves]| -> Result<()> {
        let fits = |stage: &StagePlan| stage.kind.leaves().is_some_and(|l| leaves.contains(&l));
        let what = leaves[0].name();
        let kinds = || format!("stages of kind {} do", leaves[0].kinds());
        let Some(name) = name else {
            return match stages.iter().any(|stage| fits(stage)) {
                true => Ok(()),
                false => Err(Error::input(format!(
                    "`[{key}]`: no stage leaves what goes up: {what}"
                ))
                .with_hint(kinds())),
            };
        };
        match stages.iter().find(|stage| stage.name == *name) {
            Some(stage) if fits(stage) => Ok(()),
            Some(stage) => Err(Error::input(format!(
                "`{key}.stage`: stage `{name}` is of kind `{}` and leaves no {what}",
                stage.kind.name()
            ))
            .with_hint(kinds())),
            None => {
                let names = || stages.iter().map(|stage| stage.name.as_str());
                let hint = match closest(name, names()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the stages are {}", names().collect::<Vec<_>>().join(", ")),
                };
                Err(Error::input(format!("`{key}.stage`: no stage `{name}`")).with_hint(hint))
            }
        }
    };
    let models: &[Leaves] = match publish.stage {
        Some(_) => &[Leaves::Model, Leaves::RewardModel],
        None => &[Leaves::Model],
    };
    of("publish", &publish.stage, models)?;
    match &publish.traces {
        Some(traces) => of(
            "publish.traces",
            &traces.stage,
            &[Leaves::Traces, Leaves::Samples],
        ),
        None => Ok(()),
    }
}

/// What licences say of a model that learnt from the outputs of others.
fn check_teachers(
    repo: &str,
    published: &StagePlan,
    done: &[(StagePlan, Option<Card>)],
) -> Result<()> {
    let mut part: Vec<&str> = vec![&published.name];
    for (stage, _) in done.iter().rev() {
        if part.contains(&stage.name.as_str()) {
            part.extend(stage.inputs());
        }
    }
    let named = |stage: &StagePlan| match stage.student.as_ref().map(|s| &s.source) {
        Some(StudentSource::Hub { repo, .. }) => Some(repo.clone()),
        _ => None,
    };
    let own = named(published).map_or(Vec::new(), |repo| terms::known(&repo));
    let others = done.iter().map(|(stage, _)| stage);
    for stage in others.filter(|stage| part.contains(&stage.name.as_str())) {
        // a stage that starts from another has its model, whose own stage is among these
        let Some(teacher) = named(stage).filter(|_| stage.model.is_none()) else {
            continue;
        };
        for terms in terms::known(&teacher) {
            terms.check_name(repo)?;
            // what a folder holds is seen when it is pushed
            if named(published).is_some() {
                terms.check_outputs(repo, &teacher, own.contains(&terms))?;
            }
        }
    }
    Ok(())
}

/// `owner/name` as the Hub has names.
///
/// # Errors
/// Anything else.
pub fn check_repo(key: &str, repo: &str) -> Result<()> {
    let part = |text: &str| {
        !text.is_empty()
            && text.len() <= 96
            && !text.starts_with(['-', '.'])
            && !text.ends_with(['-', '.'])
            && !text.contains("--")
            && !text.contains("..")
            && !text.ends_with(".git")
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match repo.split_once('/') {
        Some((owner, name)) if part(owner) && part(name) => Ok(()),
        _ => Err(
            Error::input(format!("`{key} = \"{repo}\"` cannot name a repository")).with_hint(
                "give `owner/name` of letters, digits, `-`, `_` and `.`, without `--` and `..`",
            ),
        ),
    }
}

/// What the licence says of the name.
///
/// # Errors
/// Another name.
pub fn check_prefix(repo: &str, prefix: &str) -> Result<()> {
    let (owner, name) = repo.split_once('/').unwrap_or(("", repo));
    if name.starts_with(prefix) {
        return Ok(());
    }
    Err(Error::input(format!(
        "`{repo}`: the licence of what it is made of wants a name that begins with `{prefix}`"
    ))
    .with_hint(format!("for example `{owner}/{prefix}-{name}`")))
}

/// A branch or a tag as git has them.
///
/// # Errors
/// A name that git refuses.
pub fn check_ref(key: &str, name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && !name.starts_with(['/', '-', '.'])
        && !name.ends_with(['/', '.'])
        && !name.ends_with(".lock")
        && !name.starts_with("refs/")
        && !["..", "//", "@{", "/."]
            .iter()
            .any(|bad| name.contains(bad))
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./@+".contains(c));
    match fine {
        true => Ok(()),
        false => Err(Error::input(format!(
            "`{key} = \"{name}\"` cannot name a branch or a tag"
        ))
        .with_hint("use letters, digits, `-`, `_`, `.` and `/`")),
    }
}

/// # Errors
/// No code of two or three letters, and none of the Hub's words.
pub fn check_language(code: &str) -> Result<()> {
    let is_code = matches!(code.len(), 2 | 3) && code.bytes().all(|b| b.is_ascii_lowercase());
    match is_code || matches!(code, "code" | "multilingual") {
        true => Ok(()),
        false => Err(Error::input(format!(
            "`publish.language`: `{code}` is no code of a language"
        ))
        .with_hint("ISO 639 codes such as `en`, `zh`; or `multilingual`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Result<Publish> {
        let publish = super::super::load::parse(text, "r.toml", &[])?;
        check(&publish, None, None).map(|()| publish)
    }

    #[test]
    fn names_that_the_hub_takes() {
        for repo in ["you/R1-Distill-Qwen-7B", "a_b/c.d-e", "o/1"] {
            check_repo("repo", repo).unwrap();
        }
        for repo in [
            "you", "you/", "/x", "a/b/c", "a/b--c", "a/.b", "a/b c", "a/b..c", "a/b.git", "ü/x",
        ] {
            assert!(check_repo("repo", repo).is_err(), "{repo}");
        }
        for name in ["main", "v1.0", "runs/three", "checkpoint-100"] {
            check_ref("tag", name).unwrap();
        }
        for name in [
            "",
            "a..b",
            "/a",
            "a/",
            "refs/pr/1",
            "a b",
            "a.lock",
            "-a",
            "a@{1}",
        ] {
            assert!(check_ref("tag", name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_table_is_checked_as_a_whole() {
        let good = publish("repo = \"you/x\"\nlanguage = [\"en\", \"zh\"]\ntag = \"v1\"\n[traces]\nrepo = \"you/x-traces\"").unwrap();
        assert_eq!(good.traces.unwrap().repo, "you/x-traces");
        for (text, want) in [
            (
                "repo = \"x\"",
                "`publish.repo = \"x\"` cannot name a repository",
            ),
            (
                "repo = \"you/x\"\nlanguage = [\"English\"]",
                "`publish.language`: `English` is no code of a language",
            ),
            (
                "repo = \"you/x\"\ntag = \"a b\"",
                "`publish.tag = \"a b\"` cannot name a branch or a tag",
            ),
            (
                "repo = \"you/x\"\ntag = \"a\"\ncreate_pr = true",
                "`publish.create_pr` goes with neither `tag` nor `checkpoints`",
            ),
            (
                "repo = \"you/x\"\n[traces]\nrepo = \"you/x\"",
                "`publish.traces.repo` is that of the model",
            ),
        ] {
            assert_eq!(publish(text).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn stages_that_leave_nothing_to_publish_are_told() {
        let text = |publish: &str| {
            format!(
                "name = \"p\"\n[student]\nmodel = \"qwen2.5-math-1.5b\"\n[[stage]]\nname = \"one\"\nkind = \"sft\"\ntraces = \"t.jsonl\"\n\
                 [[stage]]\nname = \"asked\"\nkind = \"eval\"\nmodel = \"@one\"\n[stage.eval]\nsuites = [\"arithmetic\"]\n[publish]\n{publish}"
            )
        };
        let resolve = |publish: &str| {
            let document = super::super::load::document(&text(publish), "r.toml", &[])?;
            super::super::graph::resolve_document(&document)
        };
        let plan = resolve("repo = \"you/x\"\nstage = \"one\"").unwrap();
        assert_eq!(plan.publish().unwrap().stage.as_deref(), Some("one"));
        for (table, want, hint) in [
            (
                "repo = \"you/x\"\nstage = \"asked\"",
                "`publish.stage`: stage `asked` is of kind `eval` and leaves no model",
                "stages of kind `sft`, `grpo` or `preference` do",
            ),
            (
                "repo = \"you/x\"\nstage = \"ones\"",
                "`publish.stage`: no stage `ones`",
                "did you mean `one`?",
            ),
            (
                "repo = \"you/x\"\n[publish.traces]\nrepo = \"you/t\"",
                "`[publish.traces]`: no stage leaves what goes up: traces",
                "stages of kind `select` do",
            ),
        ] {
            let error = resolve(table).unwrap_err();
            assert_eq!(
                (error.to_string().as_str(), error.hint().unwrap().as_str()),
                (want, hint)
            );
        }
    }

    #[test]
    fn what_a_licence_would_refuse_is_refused_before_the_training() {
        let text = |teacher: &str, student: &str, repo: &str| {
            format!(
                "name = \"p\"\n[student]\nmodel = \"{student}\"\n[[stage]]\nname = \"samples\"\nkind = \"generate\"\nmodel = \"{teacher}\"\nprompts = \"p.jsonl\"\n\
                 [[stage]]\nname = \"chosen\"\nkind = \"select\"\nsamples = \"@samples\"\n\
                 [[stage]]\nname = \"final\"\nkind = \"sft\"\ntraces = \"@chosen\"\n[stage.sft]\nlearning_rate = 1e-5\n[publish]\nrepo = \"{repo}\"\n"
            )
        };
        let resolve = |teacher: &str, student: &str, repo: &str| {
            let document =
                super::super::load::document(&text(teacher, student, repo), "r.toml", &[])?;
            super::super::graph::resolve_document(&document)
        };
        let (qwen, llama2) = ("Qwen/Qwen2.5-1.5B", "meta-llama/Llama-2-7b-hf");
        resolve("Qwen/Qwen3-4B", qwen, "you/x").unwrap();
        resolve("meta-llama/Llama-3.1-8B", qwen, "you/Llama-x").unwrap();
        resolve(llama2, "meta-llama/Llama-2-13b-hf", "you/x").unwrap();
        for (teacher, student, want) in [
            (
                "meta-llama/Llama-3.1-8B",
                qwen,
                "`you/x`: the licence of what it is made of wants a name that begins with `Llama`",
            ),
            (
                qwen,
                "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
                "`you/x`: the licence of what it is made of wants a name that begins with `Llama`",
            ),
            (
                llama2,
                qwen,
                "`you/x` learns from outputs of meta-llama/Llama-2-7b-hf, and the LLAMA 2 Community License does not allow them to improve any other model",
            ),
        ] {
            let error = resolve(teacher, student, "you/x").unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn a_llama_has_a_name_that_says_so() {
        let card = Card::load("llama-3.1-8b").unwrap();
        let named = |repo: &str| Publish {
            repo: repo.into(),
            ..Publish::default()
        };
        check(&named("you/Llama-R1-8B"), Some(&card), None).unwrap();
        let error = check(&named("you/R1-8B"), Some(&card), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`you/R1-8B`: the licence of what it is made of wants a name that begins with `Llama`"
        );
        assert_eq!(error.hint().unwrap(), "for example `you/Llama-R1-8B`");
    }
}
