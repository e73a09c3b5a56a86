//! The program `distill`: everything is in the library, and what a command does in `src/cli`.

// candle frees and asks for the same large buffers every step; glibc would return and clear their pages each time
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    distill::cli::main()
}
