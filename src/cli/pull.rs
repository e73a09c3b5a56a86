//! `distill pull REPO`: fetches a model or a data set from the Hugging Face Hub into the standard cache.

use super::{Session, stdout};
use crate::{Result, hub};
use serde_json::json;

/// Fetch a model or a data set from the Hugging Face Hub
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill pull Qwen/Qwen2.5-Math-1.5B
  distill pull open-r1/Mixture-of-Thoughts --dataset --config math

Files go into the cache that Python's huggingface_hub shares. HF_TOKEN, HF_HOME and HF_ENDPOINT are read; with
HF_HUB_OFFLINE=1 only what is there already is found.")]
pub struct Args {
    /// `org/name` or `org/name@revision`
    repo: String,
    /// Branch, tag or commit
    #[arg(long)]
    revision: Option<String>,
    /// It is a data set
    #[arg(long)]
    dataset: bool,
    /// Configuration of the data set
    #[arg(long, requires = "dataset")]
    config: Option<String>,
    /// Only files that match this glob; may be repeated
    #[arg(long, value_name = "GLOB", requires = "dataset")]
    files: Vec<String>,
    /// Print what was fetched as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let revision = args.revision.as_deref();
    let (files, revision) = if args.dataset {
        let wanted = hub::Wanted {
            config: args.config.as_deref(),
            split: None,
            patterns: &args.files,
        };
        let found = hub::resolve_dataset(&args.repo, revision, wanted, &session.terminal)?;
        (found.files, found.revision)
    } else {
        let found = hub::resolve_model(&args.repo, revision, &session.terminal)?;
        (vec![found.folder], found.revision)
    };
    let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    if args.json {
        let key = if args.dataset { "files" } else { "folder" };
        let value = if args.dataset {
            json!(files)
        } else {
            json!(files[0])
        };
        return stdout::json(&json!({"repo": args.repo, "revision": revision, key: value}));
    }
    stdout::text(&(files.join("\n") + "\n"))
}
