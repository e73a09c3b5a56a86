//! `distill report RUN`: the run as one HTML page.

use super::{Session, stdout};
use crate::{Error, Result, report};
use std::path::PathBuf;

/// Write a run as one HTML page with plots
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill report runs/quickstart

Writes `report.html` into the run folder and prints its path. The page loads nothing from anywhere.")]
pub struct Args {
    /// Folder of a run, finished or not
    run: PathBuf,
    /// Print what the page shows as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, _: &Session) -> Result<()> {
    let is_run = ["plan.json", "recipe.toml"]
        .iter()
        .any(|name| args.run.join(name).is_file());
    if !is_run {
        return Err(Error::input(format!(
            "`{}` is no run folder: it holds no `plan.json`",
            args.run.display()
        ))
        .with_hint("a run folder is what `distill --recipe R` leaves, `runs/<name>` by default"));
    }
    let data = report::collect(&args.run)?;
    report::html::write(&args.run, &data)?;
    if args.json {
        return stdout::json(&data);
    }
    stdout::text(&format!("{}\n", args.run.join("report.html").display()))
}
