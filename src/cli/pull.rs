//! `distill pull REPO`: fetches a model or a data set from the Hugging Face Hub into the standard cache.

use super::{Session, stdout};
use crate::model::adapter_files;
use crate::progress::Reporter;
use crate::{Result, hub};
use serde_json::json;
use std::path::Path;

/// Fetch a model or a data set from the Hugging Face Hub
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill pull Qwen/Qwen2.5-Math-1.5B
  distill pull open-r1/Mixture-of-Thoughts --dataset --config math
  distill pull Qwen/Qwen2.5-Math-1.5B --files '*.json'

Of a model, what loads it is fetched: config, tokenizer, licence and safetensors weights. Every file is checked against
the size and hash that the Hub lists, cached ones too; a download that was cut goes on where it stopped. Files go into the cache that Python's huggingface_hub shares. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_DISABLE_XET
are read; with HF_HUB_OFFLINE=1 only what is there already is found.")]
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
    #[arg(long, value_name = "GLOB")]
    files: Vec<String>,
    /// Print what was fetched as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    // a folder of that name beside us is not meant: it needs no fetching
    let is_shadowed = !args.dataset
        && args.repo.matches('/').count() == 1
        && !args.repo.starts_with(['.', '/', '~'])
        && Path::new(&args.repo).exists();
    let whole;
    let (repo, revision) = match is_shadowed {
        false => (&args.repo, args.revision.as_deref()),
        true => {
            whole = format!(
                "{}@{}",
                args.repo,
                args.revision.as_deref().unwrap_or("main")
            );
            (&whole, None)
        }
    };
    let (files, revision) = if args.dataset {
        let wanted = hub::Wanted {
            config: args.config.as_deref(),
            split: None,
            patterns: &args.files,
        };
        let found = hub::resolve_dataset(repo, revision, wanted, &session.terminal)?;
        (found.files, found.revision)
    } else if !args.files.is_empty() {
        let found = hub::resolve_model_files(repo, revision, &args.files, &session.terminal)?;
        (found.files, found.revision)
    } else {
        let found = hub::resolve_model(repo, revision, &session.terminal)?;
        (vec![found.folder], found.revision)
    };
    if let [folder] = files.as_slice()
        && let Some((base, _)) = adapter_files::base_of(folder)?
    {
        session.terminal.note(&format!(
            "an adapter for `{base}`, which is fetched when the adapter is used"
        ));
    }
    let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    if args.json {
        let is_list = args.dataset || !args.files.is_empty();
        let (key, value) = match (is_list, files.first()) {
            (false, Some(folder)) => ("folder", json!(folder)),
            _ => ("files", json!(files)),
        };
        return stdout::json(&json!({"repo": args.repo, "revision": revision, key: value}));
    }
    stdout::text(&(files.join("\n") + "\n"))
}
