//! `distill preview`: rows as the trainer will see them.

use super::color::Color;
use super::options::{RecipeArgs, show_count};
use super::{Session, stdout};
use crate::pipeline::preview::{PreviewRow, preview, stage_of};
use crate::recipe::graph::Resolved;
use crate::{Error, Result};
use std::path::PathBuf;

/// Show rows as the trainer will see them
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill preview --recipe quickstart.toml --n 1

Trained text stands in ⟦ ⟧ (and is green on a terminal), the rest is context that is not learnt.")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Number of rows
    #[arg(long, short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Which `sft` stage of a recipe of several [default: the first]
    #[arg(long)]
    stage: Option<String>,
    /// Run folder in which traces of earlier stages are looked for [default: `runs/NAME`]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Print the rows as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let (_, plan) = args.recipe.load()?;
    let plan = match plan {
        Resolved::Student(plan) => match &args.stage {
            None => *plan,
            Some(name) => {
                return Err(Error::input(format!("`--stage {name}`: no such stage"))
                    .with_hint("this recipe has no `[[stage]]`: leave `--stage` out"));
            }
        },
        Resolved::Pipeline(plan) => {
            stage_of(&plan, args.stage.as_deref(), args.run_dir.as_deref())?
        }
    };
    session.stop_on_signals()?;
    let rows = preview(&plan, args.n as usize, &session.terminal, &session.stop)?;
    if args.json {
        return stdout::json(&rows);
    }
    let color = Color::stdout();
    let text: Vec<String> = rows.iter().map(|row| show(row, color)).collect();
    stdout::text(&text.join("\n"))
}

/// One row with a line above it.
fn show(row: &PreviewRow, color: Color) -> String {
    let heading = format!(
        "{}: {} tokens, {} trained",
        row.name,
        show_count(row.num_tokens as u64),
        show_count(row.num_trained as u64)
    );
    let mut text = format!("{}\n", color.bold(&heading));
    for (segment, trained) in &row.segments {
        text += &match trained {
            true => color.green(&format!("⟦{segment}⟧")),
            false => color.dim(segment),
        };
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trained_text_is_marked_with_and_without_colour() {
        let row = PreviewRow {
            name: "t.jsonl:3".into(),
            segments: vec![
                ("<user>a".into(), false),
                ("b<end>".into(), true),
                ("\n".into(), false),
            ],
            num_tokens: 1234,
            num_trained: 2,
        };
        assert_eq!(
            show(&row, Color::never()),
            "t.jsonl:3: 1,234 tokens, 2 trained\n<user>a⟦b<end>⟧\n"
        );
        let coloured = show(&row, Color::always());
        assert!(coloured.contains("\x1b[32m⟦b<end>⟧\x1b[0m"), "{coloured:?}");
    }
}
