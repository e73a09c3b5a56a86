//! The stand-in Hub as a program: `cargo run --example hub_server -- [PORT [FOLDER]]` prints its address and runs until its
//! standard input ends. With a folder, large files lie there and not in memory.

#[path = "mod.rs"]
mod hub_server;

use std::io::Read;

fn main() {
    let mut args = std::env::args().skip(1);
    let port = args.next().and_then(|port| port.parse().ok()).unwrap_or(0);
    let folder = args.next().map(std::path::PathBuf::from);
    let server = hub_server::Server::start_with(port, folder);
    println!("{}", server.url());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
