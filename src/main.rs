//! The program `distill`: everything is in the library, and what a command does in `src/cli`.

fn main() -> std::process::ExitCode {
    distill::keep_freed_memory();
    distill::cli::main()
}
