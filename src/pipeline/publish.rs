//! What of a folder goes to the Hub, and where: a run's model with its card, its checkpoints, the traces that it made; or a
//! folder that is no run, as it is. Bytes and commits are `hub::publish`'s.
//!
//! What the card says is in [`super::publish_card`] and [`super::publish_data`], what licences want in
//! [`super::publish_license`], where a model comes from in [`super::publish_lineage`].

use super::publish_data::DataJob;
use super::publish_license::Wishes;
use super::publish_lineage::RunPlan;
use super::publish_model::Model;
use crate::hub::publish::{Published, Target, push};
use crate::hub::publish_api::{Account, Api, token_from_env};
use crate::hub::publish_files::{Prepared, RepoKind, Source, Upload, prepare};
use crate::hub::publish_license::Licenses;
use crate::progress::{Reporter, Stop};
use crate::recipe::publish::{Publish, check_language, check_ref, check_repo};
use crate::recipe::stage::Leaves;
use crate::report;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const CARD: &str = "README.md";

/// What is asked for beside, or in place of, `[publish]`.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `owner/name`
    pub repo: Option<String>,
    /// The traces, not the model; of a folder that is no run: it is a data set.
    pub dataset: bool,
    /// Whose model or traces.
    pub stage: Option<String>,
    /// The adapter by itself, not the weights it was merged into.
    pub adapter: bool,
    pub revision: Option<String>,
    pub checkpoints: bool,
    pub public: bool,
    pub create_pr: bool,
    pub tag: Option<String>,
    pub message: Option<String>,
    pub license: Option<String>,
    pub license_file: Option<String>,
    pub languages: Vec<String>,
}

/// A push that is ready: every file is known by its hash.
pub struct Ready {
    pub target: Target,
    pub files: Vec<Prepared>,
    /// Files of the folder that stay, with the reason.
    pub left_out: Vec<(String, &'static str)>,
}

/// A push before its files are read.
pub(super) struct Pending {
    pub target: Target,
    pub uploads: Vec<Upload>,
    pub left_out: Vec<(String, &'static str)>,
}

/// What of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Model,
    Adapter,
    /// After so many steps.
    Checkpoint(u64),
}

/// Where a folder is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// In the folder of a run.
    Run {
        root: PathBuf,
        stage: Option<String>,
        part: Part,
    },
    Folder(PathBuf),
}

/// Everybody who is asked, and told.
pub(super) struct Scene<'a> {
    pub wish: &'a Wish,
    pub hub: Licenses,
    /// Tokens that may go nowhere.
    pub known: Vec<String>,
    pub reporter: &'a dyn Reporter,
}

/// What would go up: files are hashed and searched, nothing is sent. Without an account nobody is asked about licences.
///
/// # Errors
/// A folder that holds nothing to publish, a run that is not finished, a name that a licence does not allow, a link out of
/// the folder, an access token in a file.
pub fn ready(
    dir: &Path,
    wish: &Wish,
    account: Option<&Account>,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Vec<Ready>> {
    check_wish(wish)?;
    let scene = Scene {
        wish,
        hub: Licenses::new(account, stop),
        // also where nothing is sent yet: what would be refused shows
        known: match account {
            Some(account) => account.secrets(),
            None => token_from_env().into_iter().collect(),
        },
        reporter,
    };
    let pending = match locate(dir)? {
        Place::Run { root, stage, part } => scene.of_run(&root, stage, part)?,
        Place::Folder(folder) => vec![scene.of_folder(&folder)?],
    };
    pending
        .into_iter()
        .map(|pending| {
            Ok(Ready {
                target: pending.target,
                files: prepare(pending.uploads, &scene.known, reporter)?,
                left_out: pending.left_out,
            })
        })
        .collect()
}

/// Pushes what [`ready`] says.
///
/// # Errors
/// As [`ready`] and [`push`].
pub fn publish(
    dir: &Path,
    wish: &Wish,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Vec<Published>> {
    let account = Account::from_env()?;
    account.need_token()?;
    let all = ready(dir, wish, Some(&account), reporter, stop)?;
    let mut done = Vec::new();
    for Ready {
        target,
        files,
        left_out,
    } in &all
    {
        reporter.stage(
            "publish",
            &format!(
                "{} files to {} `{}`",
                files.len(),
                target.kind.name(),
                target.repo
            ),
        );
        if let Some(text) = summary(left_out) {
            reporter.note(&text);
        }
        done.push(push(&account, target, files, reporter, stop)?);
    }
    Ok(done)
}

/// That a run with this table can be published when it is done: shows before hours of training, not after.
///
/// # Errors
/// No token, one that is not valid, no network.
pub fn check_account(reporter: &dyn Reporter, stop: &Stop) -> Result<()> {
    let account = Account::from_env()?;
    let name = Api::open(account, stop.clone())?.whoami();
    let name = name.map_err(|e| e.at("`[publish]`"))?;
    reporter.note(&format!(
        "the result is published by `{name}` when the run is done"
    ));
    Ok(())
}

/// What stays, in a line.
pub fn summary(left_out: &[(String, &'static str)]) -> Option<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (path, reason) in left_out {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, paths)) => paths.push(path),
            None => reasons.push((reason, vec![path])),
        }
    }
    let parts: Vec<String> = reasons
        .iter()
        .map(|(reason, paths)| {
            let first: Vec<String> = paths.iter().take(3).map(|p| format!("`{p}`")).collect();
            let more = if paths.len() > 3 { ", ..." } else { "" };
            format!("{} ({reason}: {}{more})", paths.len(), first.join(", "))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("left out: {}", parts.join("; ")))
}

fn check_wish(wish: &Wish) -> Result<()> {
    if let Some(repo) = &wish.repo {
        check_repo("--repo", repo)?;
    }
    for (key, name) in [("--revision", &wish.revision), ("--tag", &wish.tag)] {
        if let Some(name) = name {
            check_ref(key, name)?;
        }
    }
    wish.languages
        .iter()
        .try_for_each(|code| check_language(code))
}

fn locate(dir: &Path) -> Result<Place> {
    let dir = fs::canonicalize(dir).map_err(|e| Error::io("reading", dir, e))?;
    if !dir.is_dir() {
        return Err(Error::input(format!("`{}` is no folder", dir.display()))
            .with_hint("give a run folder, or a folder with a model or a data set"));
    }
    let run = |root: &Path, stage: Option<&str>, part| Place::Run {
        root: root.to_path_buf(),
        stage: stage.map(String::from),
        part,
    };
    let is_run = |root: Option<&Path>| root.is_some_and(|root| root.join("plan.json").is_file());
    let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).map(String::from);
    if is_run(Some(&dir)) {
        return Ok(run(&dir, None, Part::Model));
    }
    if let Some(root) = dir.parent()
        && is_run(Some(root))
    {
        return Ok(run(root, name(&dir).as_deref(), Part::Model));
    }
    if let (Some(stage), Some(own)) = (dir.parent(), name(&dir))
        && let Some(root) = stage.parent()
        && is_run(Some(root))
    {
        let step = own.strip_prefix("checkpoint-").and_then(|n| n.parse().ok());
        let part = match own.as_str() {
            "model" => Some(Part::Model),
            "adapter" => Some(Part::Adapter),
            _ => step.map(Part::Checkpoint),
        };
        if let Some(part) = part {
            return Ok(run(root, name(stage).as_deref(), part));
        }
    }
    Ok(Place::Folder(dir))
}

impl Scene<'_> {
    fn of_run(&self, root: &Path, stage: Option<String>, part: Part) -> Result<Vec<Pending>> {
        let plan = RunPlan::read(root)?;
        let table = plan.publish().cloned();
        let wish = self.wish;
        let stage = wish.stage.clone().or(stage);
        let report = report::collect(root)?;
        let mut pending = Vec::new();
        if !wish.dataset {
            let own = table.as_ref().map(|table| &table.repo);
            let repo = wish.repo.as_ref().or(own).ok_or_else(no_repo)?;
            let wanted = stage
                .as_deref()
                .or(table.as_ref().and_then(|t| t.stage.as_deref()));
            let stage = plan.stage(wanted, &[Leaves::Model, Leaves::RewardModel])?;
            let lineage = plan.lineage(root, &stage)?;
            let model = Model {
                scene: self,
                root,
                repo,
                lineage: &lineage,
                report: &report,
                table: table.as_ref(),
            };
            let all = wish.checkpoints || table.as_ref().is_some_and(|table| table.checkpoints);
            let part = match part {
                Part::Model if wish.adapter => Part::Adapter,
                part => part,
            };
            pending.push(model.pending(part)?);
            if all && part == Part::Model {
                for step in model.checkpoints() {
                    pending.push(model.pending(Part::Checkpoint(step))?);
                }
            }
        }
        let traces = table.as_ref().and_then(|table| table.traces.as_ref());
        // another repository by name is for what is named
        if wish.dataset || (wish.repo.is_none() && traces.is_some()) {
            let own = traces.map(|traces| &traces.repo);
            let repo = wish.repo.as_ref().or(own).ok_or_else(no_repo)?;
            let wanted = match wish.dataset {
                true => stage.as_deref(),
                false => None,
            };
            let wanted = wanted.or(traces.and_then(|traces| traces.stage.as_deref()));
            let stage = plan.stage(wanted, &[Leaves::Traces, Leaves::Samples])?;
            let lineage = plan.lineage(root, &stage)?;
            let license = wish.license.as_deref();
            let job = DataJob {
                root,
                repo,
                lineage: &lineage,
                report: &report,
                wishes: Wishes {
                    license: license.or(traces.and_then(|traces| traces.license.as_deref())),
                    // with a model beside it, the file is the model's
                    license_file: wish.license_file.as_deref().filter(|_| wish.dataset),
                },
                languages: &wish.languages,
                hub: &self.hub,
                known: &self.known,
                reporter: self.reporter,
            };
            let message = format!("Rows of stage {stage} of run {}", plan.name());
            pending.push(Pending {
                target: self.target(RepoKind::Dataset, repo, table.as_ref(), message),
                uploads: job.uploads()?,
                left_out: Vec::new(),
            });
        }
        Ok(pending)
    }

    pub fn target(
        &self,
        kind: RepoKind,
        repo: &str,
        table: Option<&Publish>,
        message: String,
    ) -> Target {
        let wish = self.wish;
        // branches and tags of the table are the model's
        let own = table.filter(|_| kind == RepoKind::Model);
        let said = |wish: &Option<String>, own: Option<&Option<String>>| {
            wish.clone().or_else(|| own.cloned().flatten())
        };
        Target {
            kind,
            repo: repo.to_string(),
            revision: said(&wish.revision, own.map(|table| &table.revision)),
            public: match kind {
                RepoKind::Model => wish.public || table.is_some_and(|table| table.public),
                // what the model may be, its traces need not be: they are asked for by themselves
                RepoKind::Dataset => {
                    let traces = table.and_then(|table| table.traces.as_ref());
                    (wish.public && wish.dataset) || traces.is_some_and(|traces| traces.public)
                }
            },
            create_pr: wish.create_pr || own.is_some_and(|table| table.create_pr),
            tag: said(&wish.tag, own.map(|table| &table.tag)),
            message: said(&wish.message, own.map(|table| &table.message)).unwrap_or(message),
        }
    }
}

pub(super) fn no_repo() -> Error {
    Error::input("it is not said where to push")
        .with_hint("give `--repo owner/name`, or `repo` in `[publish]` of the recipe")
}

/// The card among files that are ready.
pub fn card_of(files: &[Prepared]) -> Option<String> {
    let card = files.iter().find(|file| file.path == CARD)?;
    match &card.source {
        Source::Text(text) => Some(text.clone()),
        Source::File(path) => fs::read_to_string(path).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_runs_are_found_from_within() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        for path in ["sft/model", "sft/adapter", "sft/checkpoint-30", "sft/store"] {
            fs::create_dir_all(root.join("run").join(path)).unwrap();
        }
        fs::create_dir_all(root.join("other")).unwrap();
        let at = |path: &str| locate(&root.join(path)).unwrap();
        assert_eq!(at("other"), Place::Folder(root.join("other")));
        fs::write(root.join("run/plan.json"), "{}").unwrap();
        let run = |stage: Option<&str>, part| Place::Run {
            root: root.join("run"),
            stage: stage.map(String::from),
            part,
        };
        let sft = Some("sft");
        assert_eq!(at("run"), run(None, Part::Model));
        assert_eq!(at("run/sft"), run(sft, Part::Model));
        assert_eq!(at("run/sft/model"), run(sft, Part::Model));
        assert_eq!(at("run/sft/adapter"), run(sft, Part::Adapter));
        assert_eq!(at("run/sft/checkpoint-30"), run(sft, Part::Checkpoint(30)));
        assert_eq!(
            at("run/sft/store"),
            Place::Folder(root.join("run/sft/store"))
        );
    }

    #[test]
    fn what_stays_is_counted_by_reason() {
        let left: Vec<(String, &str)> = vec![
            (".env".into(), "hidden"),
            ("a".into(), "not part of a model"),
            ("b".into(), "not part of a model"),
        ];
        assert_eq!(
            summary(&left).unwrap(),
            "left out: 1 (hidden: `.env`); 2 (not part of a model: `a`, `b`)"
        );
        assert_eq!(summary(&[]), None);
    }
}
