//! The command line: one file a command, and the only room that prints. Results go to stdout, everything else to stderr.
//!
//! | file | holds |
//! |---|---|
//! | [`run`], [`run_stages`] | `distill --recipe R`; the plan of several stages |
//! | [`preview`] | rows as the trainer will see them |
//! | [`generate`], [`score`], [`chat`], [`eval`] | a model on prompts, on given text, in a conversation, on a benchmark |
//! | [`data`] | what trace files hold |
//! | [`grade`], [`reward`] | verdicts on answers; weighted sums of rewards |
//! | [`plan`] | what a run would take |
//! | [`mod@bench`] | what a shape takes on this device |
//! | [`pull`], [`push`] | fetch a model or a data set from the Hub; publish one |
//! | [`export`] | a model as a GGUF file |
//! | [`report`] | a run as one HTML page |
//! | [`debug_model`] | hidden: logits and gradients on token ids |
//! | [`debug_policy`] | hidden: loss and gradient of a policy update |
//! | [`debug_preference`] | hidden: preference and reward-model training on rows of token ids |
//! | [`debug_train`] | hidden: the loop on rows of token ids |
//! | [`options`] | options that several commands share |
//! | [`rows`], [`stream`], `cases` | JSON lines in and out, by chunks, and the fields of graded rows |
//! | [`stdout`] | the way of results |
//! | [`terminal`], [`color`] | progress, errors, signals; styles |
//!
//! Exit codes: 0 done, 1 failed, 2 usage.

pub mod bench;
mod cases;
pub mod chat;
pub mod color;
pub mod data;
pub mod debug_model;
pub mod debug_policy;
pub mod debug_preference;
pub mod debug_train;
pub mod eval;
pub mod export;
pub mod generate;
pub mod grade;
pub mod options;
pub mod plan;
pub mod preview;
pub mod pull;
pub mod push;
pub mod report;
pub mod reward;
pub mod rows;
pub mod run;
pub mod run_stages;
pub mod score;
pub mod stdout;
pub mod stream;
mod tasks;
pub mod terminal;

use crate::Result;
use crate::progress::Stop;
use clap::{Args as _, FromArgMatches as _, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;
use terminal::{Terminal, Verbosity};

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
    #[command(hide = true)]
    DebugModel(debug_model::Args),
    #[command(hide = true)]
    DebugPreference(debug_preference::Args),
    #[command(hide = true)]
    DebugTrain(debug_train::Args),
    #[command(hide = true)]
    DebugPolicy(debug_policy::Args),
    Plan(plan::Args),
    Preview(preview::Args),
    Generate(generate::Args),
    Score(score::Args),
    Grade(grade::Args),
    Reward(reward::Args),
    Eval(eval::Args),
    Chat(chat::Args),
    Data(data::Args),
    Bench(bench::Args),
    Pull(pull::Args),
    Push(push::Args),
    Export(export::Args),
    Report(report::Args),
}

impl Command {
    fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::DebugModel(args) => debug_model::run(&args, session),
            Self::DebugPreference(args) => debug_preference::run(&args, session),
            Self::DebugTrain(args) => debug_train::run(&args, session),
            Self::DebugPolicy(args) => debug_policy::run(&args, session),
            Self::Plan(args) => plan::run(&args, session),
            Self::Preview(args) => preview::run(&args, session),
            Self::Eval(args) => eval::run(&args, session),
            Self::Generate(args) => generate::run(&args, session),
            Self::Score(args) => score::run(&args, session),
            Self::Grade(args) => grade::run(&args, session),
            Self::Reward(args) => reward::run(&args, session),
            Self::Chat(args) => chat::run(&args, session),
            Self::Data(args) => data::run(&args, session),
            Self::Bench(args) => bench::run(&args, session),
            Self::Pull(args) => pull::run(&args, session),
            Self::Push(args) => push::run(&args, session),
            Self::Export(args) => export::run(&args, session),
            Self::Report(args) => report::run(&args, session),
        }
    }
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

/// The whole command line. The flags of a run stand beside the subcommands, not under one.
fn command_line() -> clap::Command {
    let root = Output::augment_args(run::Args::augment_args(clap::Command::new("distill")));
    Command::augment_subcommands(root)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Turns small open models into reasoning models the way DeepSeek-R1 did")
        .after_help(run::EXAMPLES)
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .subcommand_required(false)
        .arg_required_else_help(true)
}

/// `distill -q eval` as `distill eval -q`: what stands before a command would otherwise belong to a run.
fn with_general_flags_last(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_general = |arg: &&OsString| *arg == "-q" || *arg == "--quiet" || *arg == "--no-progress";
    let num_flags = args.iter().skip(1).take_while(is_general).count();
    let command = args.get(1 + num_flags);
    if command.is_some_and(|arg| !arg.to_string_lossy().starts_with('-')) {
        args[1..=1 + num_flags].rotate_right(1);
    }
    args
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let mut line = command_line();
    let matches = line
        .try_get_matches_from_mut(with_general_flags_last(std::env::args_os().collect()))
        .unwrap_or_else(|e| e.exit());
    let output = Output::from_arg_matches(&matches).unwrap_or_else(|e| e.format(&mut line).exit());
    let session = Session {
        terminal: Terminal::new(Verbosity::from_options(output.quiet, output.no_progress)),
        stop: Stop::default(),
    };
    let done = match matches.subcommand_name() {
        Some(_) => match Command::from_arg_matches(&matches) {
            Ok(command) => command.run(&session),
            Err(e) => e.format(&mut line).exit(),
        },
        None => match run::Args::from_arg_matches(&matches) {
            Ok(args) => run::run(&args, &session),
            Err(e) => e.format(&mut line).exit(),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // whoever read the results has had enough, as in `distill plan ... | head -1`
        Err(e) if stdout::is_closed(&e) => ExitCode::SUCCESS,
        Err(e) => {
            terminal::print_error(&e);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command_line().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        let mut root = super::command_line();
        root.build();
        let mut todo: Vec<&clap::Command> = vec![&root];
        while let Some(command) = todo.pop() {
            if command.get_name() == "help" || command.is_hide_set() {
                continue;
            }
            let help = command
                .get_after_help()
                .map(|h| h.to_string())
                .unwrap_or_default();
            assert!(
                help.contains("distill"),
                "{} has no example",
                command.get_name()
            );
            todo.extend(command.get_subcommands());
        }
    }
}
