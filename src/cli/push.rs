//! `distill push DIR`: a run's model, its traces, or a plain folder to the Hugging Face Hub.

use super::options::{show_count, show_size};
use super::{Session, stdout};
use crate::hub::publish::{Preview, Published, preview};
use crate::hub::publish_api::Account;
use crate::pipeline::publish::{Ready, Wish, card_of, publish, ready, summary};
use crate::progress::Reporter;
use crate::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

/// Publish a run, a model or a data set on the Hugging Face Hub
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill push runs/qwen-7b --repo you/R1-Distill-Qwen-7B --dry-run
  distill push runs/qwen-7b --repo you/R1-Distill-Qwen-7B --tag v1
  distill push runs/r1 --repo you/r1-traces --dataset --stage sft-data
  distill push folder/with/config.json --repo you/model --create-pr

Of a run go up: the model, with a card that says how it was made and how it did, or with --dataset the rows that a stage
selected or sampled. Optimiser states, logs and everything else stay. The repository is created where it is not there,
private unless --public. A push that was stopped anywhere goes on when it is called again. HF_TOKEN (with write
permission), HF_HOME and HF_ENDPOINT are read.")]
pub struct Args {
    /// Folder of a run or of one of its stages, or with a model or a data set
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// `owner/name`; default: that of `[publish]` in the run's recipe
    #[arg(long)]
    repo: Option<String>,
    /// Push rows as a data set
    #[arg(long)]
    dataset: bool,
    /// Of a run of several stages: whose model or rows
    #[arg(long)]
    stage: Option<String>,
    /// Push the adapter by itself, not the weights that it was merged into
    #[arg(long, conflicts_with_all = ["dataset", "checkpoints"])]
    adapter: bool,
    /// Branch [default: `main`]; created where it is not there
    #[arg(long, value_name = "BRANCH")]
    revision: Option<String>,
    /// Push every checkpoint that was kept too, each to its branch `checkpoint-N`
    #[arg(long)]
    checkpoints: bool,
    /// Everybody can see the repository, where it is created: the model's, or with --dataset that of the rows
    #[arg(long)]
    public: bool,
    /// Open a pull request in place of a commit
    #[arg(long, conflicts_with_all = ["tag", "checkpoints"])]
    create_pr: bool,
    /// Tag the commit
    #[arg(long)]
    tag: Option<String>,
    /// First line of the commit
    #[arg(long)]
    message: Option<String>,
    /// Licence, as the Hub calls it; default: the base model's
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// Text of the licence
    #[arg(long, value_name = "FILE")]
    license_file: Option<String>,
    /// Language, as an ISO 639 code; may be repeated
    #[arg(long, value_name = "CODE")]
    language: Vec<String>,
    /// Show what would go up and what would be removed, and stop: nothing is sent, and no token is needed
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: print the card
    #[arg(long, requires = "dry_run", conflicts_with = "json")]
    card: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    session.stop_on_signals()?;
    let wish = Wish {
        repo: args.repo.clone(),
        dataset: args.dataset,
        stage: args.stage.clone(),
        adapter: args.adapter,
        revision: args.revision.clone(),
        checkpoints: args.checkpoints,
        public: args.public,
        create_pr: args.create_pr,
        tag: args.tag.clone(),
        message: args.message.clone(),
        license: args.license.clone(),
        license_file: args.license_file.clone(),
        languages: args.language.clone(),
    };
    let (reporter, stop) = (&session.terminal, &session.stop);
    if !args.dry_run {
        let done = publish(&args.dir, &wish, reporter, stop)?;
        return match args.json {
            true => stdout::json(&done),
            false => stdout::text(&done.iter().map(show).collect::<String>()),
        };
    }
    // the Hub is only asked where a licence cannot be known otherwise
    let account = Account::from_env().ok();
    let all = ready(&args.dir, &wish, account.as_ref(), reporter, stop)?;
    if args.card {
        let cards = all.iter().filter_map(|one| card_of(&one.files));
        return stdout::text(&cards.collect::<String>());
    }
    let mut shown = Vec::new();
    for one in &all {
        let there = match &account {
            Some(account) => preview(account, &one.target, &one.files, reporter, stop).map(Some),
            None => Ok(None),
        };
        let there = match there {
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => {
                reporter.warn(&format!("what is there already is not known: {error}"));
                None
            }
            Ok(there) => there,
        };
        shown.push((one, there));
    }
    match args.json {
        true => stdout::json(
            &(shown
                .iter()
                .map(|(one, there)| as_json(one, there.as_ref())))
            .collect::<Vec<_>>(),
        ),
        false => stdout::text(
            &(shown
                .iter()
                .map(|(one, there)| show_ready(one, there.as_ref())))
            .collect::<String>(),
        ),
    }
}

/// What was published.
pub fn show(done: &Published) -> String {
    let num_bytes = done.files.iter().map(|file| file.bytes).sum();
    let what = match done.num_commits {
        0 => "is there already".to_string(),
        1 => "published".to_string(),
        n => format!("published in {n} commits"),
    };
    let mut text = format!(
        "{what:<12} {} at {} ({}): {} files, {}, each listed by the server with its hash\n",
        done.url,
        done.revision,
        done.commit.get(..12).unwrap_or(&done.commit),
        show_count(done.files.len() as u64),
        show_size(num_bytes),
    );
    if let Some(page) = &done.pull_request {
        text += &format!("{:<12} {page}\n", "pull request");
    }
    if let Some(tag) = &done.tag {
        text += &format!("{:<12} {tag}\n", "tag");
    }
    text
}

fn show_ready(one: &Ready, there: Option<&Preview>) -> String {
    let target = &one.target;
    let mut text = format!(
        "{} {} at {}, {} where it is created\n",
        target.kind.name(),
        target.repo,
        match target.create_pr {
            true => "a pull request",
            false => target.revision.as_deref().unwrap_or("main"),
        },
        if target.public { "public" } else { "private" },
    );
    let widest = one
        .files
        .iter()
        .map(|file| file.path.len())
        .max()
        .unwrap_or(0);
    for file in &one.files {
        text += &format!(
            "  {:<widest$}  {:>14}  {}  {}{}\n",
            file.path,
            show_count(file.bytes),
            file.sha256,
            kept(file.is_large()),
            match there.is_some_and(|there| !there.changed.contains(&file.path)) {
                true => ", there already",
                false => "",
            },
        );
    }
    let num_bytes: u64 = one.files.iter().map(|file| file.bytes).sum();
    text += &format!(
        "  {} files, {} bytes\n",
        show_count(one.files.len() as u64),
        show_count(num_bytes)
    );
    match there {
        Some(there) if there.exists => {
            text += &format!(
                "  {} go up, {} are there already, {} of an earlier version are removed\n",
                there.changed.len(),
                one.files.len() - there.changed.len(),
                there.removed.len()
            );
            for path in &there.removed {
                text += &format!("  removed: {path}\n");
            }
        }
        Some(_) => text += "  the repository would be created\n",
        None => {
            text += "  the server was not asked what it has: what it would remove is not known\n"
        }
    }
    if let Some(left) = summary(&one.left_out) {
        text += &format!("  {left}\n");
    }
    text
}

fn as_json(one: &Ready, there: Option<&Preview>) -> serde_json::Value {
    let target = &one.target;
    let files = one.files.iter().map(|file| {
        json!({"path": file.path, "bytes": file.bytes, "sha256": file.sha256, "upload": kept(file.is_large())})
    });
    json!({
        "repo": target.repo,
        "kind": target.kind.name(),
        "revision": target.revision.as_deref().unwrap_or("main"),
        "public": target.public,
        "create_pr": target.create_pr,
        "tag": target.tag,
        "message": target.message,
        "files": files.collect::<Vec<_>>(),
        // null where the server was not asked
        "on_server": there,
        "left_out": one.left_out.iter().map(|(path, reason)| json!({"path": path, "reason": reason})).collect::<Vec<_>>(),
    })
}

/// Where the Hub keeps a file.
fn kept(is_large: bool) -> &'static str {
    match is_large {
        true => "lfs",
        false => "inline",
    }
}
