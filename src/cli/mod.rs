//! The command line: one file a command, and the only room that prints. Results go to stdout, everything else to stderr.
//!
//! | file | holds |
//! |---|---|
//! | [`run`] | `distill --recipe R` |
//! | [`options`] | options that several commands share |
//! | [`rows`] | JSON lines in and out |
//! | [`stdout`] | the way of results |
//! | [`terminal`], [`color`] | progress, errors, signals; styles |
//!
//! Exit codes: 0 done, 1 failed, 2 usage.

pub mod color;
pub mod options;
pub mod rows;
pub mod run;
pub mod stdout;
pub mod terminal;

use crate::progress::Stop;
use crate::{Error, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use terminal::{Terminal, Verbosity};

/// Turns small open models into reasoning models the way DeepSeek-R1 did.
#[derive(Parser)]
#[command(
    name = "distill",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = run::EXAMPLES
)]
struct Cli {
    #[command(flatten)]
    run: Option<run::Args>,
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    command: Option<Command>,
}

/// How much is said on stderr.
#[derive(clap::Args)]
struct Output {
    /// Say nothing but warnings and errors
    #[arg(short, long, global = true, help_heading = "Output")]
    quiet: bool,
    /// Plain lines in place of progress bars
    #[arg(long, global = true, help_heading = "Output")]
    no_progress: bool,
}

#[derive(Subcommand)]
enum Command {
}

/// What every command has at hand.
pub struct Session {
    pub terminal: Terminal,
    pub stop: Stop,
}

impl Session {
    /// From here on Ctrl-C asks the command to stop at the next safe point, in place of ending the process.
    pub fn stop_on_signals(&self) -> Result<()> {
        terminal::stop_on_signals(&self.stop, &self.terminal)
    }
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let session = Session {
        terminal: Terminal::new(Verbosity::from_options(cli.output.quiet, cli.output.no_progress)),
        stop: Stop::default(),
    };
    match dispatch(cli, &session) {
        Ok(()) => ExitCode::SUCCESS,
        // whoever read the results has had enough, as in `distill plan ... | head -1`
        Err(e) if stdout::is_closed(&e) => ExitCode::SUCCESS,
        Err(e) => {
            terminal::print_error(&e);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli, session: &Session) -> Result<()> {
    match (cli.command, cli.run) {
        (None, Some(args)) => run::run(&args, session),
        (None, None) => Err(Error::input("no recipe and no command").with_hint("`distill --help` shows both")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        let mut root = super::Cli::command();
        root.build();
        let mut todo: Vec<&clap::Command> = vec![&root];
        while let Some(command) = todo.pop() {
            if command.get_name() == "help" || command.is_hide_set() {
                continue;
            }
            let help = command.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            assert!(help.contains("distill"), "{} has no example", command.get_name());
            todo.extend(command.get_subcommands());
        }
    }
}
