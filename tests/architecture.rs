//! The shape of the source: who may import whom, how long a file may be, who may print.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 600;

/// The layers of the table in `src/lib.rs`.
fn layers() -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut layers = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = line.split('|').map(str::trim);
        let Some(Ok(layer)) = cells.next().map(str::parse) else {
            continue;
        };
        for room in cells.next().unwrap().split('`').skip(1).step_by(2) {
            layers.insert(room.to_string(), layer);
        }
    }
    layers
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `src`, as a path from there and its text.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut paths = Vec::new();
    walk(&src, &mut paths);
    paths.sort();
    let name = |path: &PathBuf| {
        path.strip_prefix(&src)
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/")
    };
    paths
        .iter()
        .map(|path| (name(path), std::fs::read_to_string(path).unwrap()))
        .collect()
}

/// The room a file belongs to: its folder, or its own name at the top.
fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The code of a file: comments and the text within quotes taken out, line by line. Raw strings over several lines are
/// not understood, nor needed.
fn code(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| {
            let line = line
                .replace("\\\\", "")
                .replace("\\\"", "")
                .replace("'\"'", "");
            let outside: Vec<&str> = line.split('"').step_by(2).collect();
            let code = outside.join("\"\"");
            code.split("//").next().unwrap().to_string()
        })
        .collect()
}

/// The rooms that a line of code names: `crate::room` and each of `crate::{a, b::c, d}`.
fn named_rooms(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => rooms.push(std::mem::take(&mut item)),
                    _ => {}
                }
                if depth == 0 && c != ',' && c != '}' {
                    item.push(c);
                }
            }
            rooms.push(item);
        } else {
            rooms.push(rest.to_string());
        }
    }
    let word = |text: String| {
        text.trim()
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap()
            .to_string()
    };
    rooms.into_iter().map(word).collect()
}

/// Every line that offends, as `file:line: why`.
fn offences(check: impl Fn(&str, &str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in sources() {
        for (i, line) in code(&text).iter().enumerate() {
            if let Some(why) = check(&file, line) {
                found.push(format!("src/{file}:{}: {why}", i + 1));
            }
        }
    }
    found
}

fn assert_none(offences: Vec<String>) {
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn imports_go_down() {
    let layers = layers();
    assert!(
        layers.len() > 10,
        "the table in src/lib.rs cannot be read: {layers:?}"
    );
    let mut found = Vec::new();
    for (file, text) in sources() {
        let here = room(&file);
        if matches!(here, "lib" | "main") {
            continue;
        }
        let Some(layer) = layers.get(here) else {
            found.push(format!(
                "src/{file}: room `{here}` is not in the table of src/lib.rs"
            ));
            continue;
        };
        // a list of imports may go over several lines
        for other in named_rooms(&code(&text).join(" ")) {
            match layers.get(&other) {
                // what everything stands on
                Some(_) if matches!(other.as_str(), "error" | "progress") => {}
                Some(below) if other == here || below < layer => {}
                Some(_) => found.push(format!(
                    "src/{file}: `{here}` (layer {layer}) names `{other}` (layer {})",
                    layers[&other]
                )),
                None => {}
            }
        }
    }
    found.sort();
    found.dedup();
    assert_none(found);
}

#[test]
fn the_table_and_the_folders_agree() {
    let layers = layers();
    let mut rooms: Vec<String> = sources()
        .iter()
        .map(|(file, _)| room(file).to_string())
        .collect();
    rooms.retain(|room| room != "lib" && room != "main");
    rooms.sort();
    rooms.dedup();
    assert_eq!(layers.into_keys().collect::<Vec<_>>(), rooms);
}

#[test]
fn files_open_with_what_they_hold_and_stay_short_and_flat() {
    let mut found = Vec::new();
    for (file, text) in sources() {
        if !text.starts_with("//!") {
            found.push(format!("src/{file}: does not open with `//!`"));
        }
        if text.lines().count() > MAX_LINES {
            found.push(format!(
                "src/{file}: {} lines, more than {MAX_LINES}",
                text.lines().count()
            ));
        }
        if file.matches('/').count() > 1 {
            found.push(format!("src/{file}: deeper than src/x/y.rs"));
        }
    }
    assert_none(found);
}

#[test]
fn only_the_command_line_prints() {
    let macros = ["println!", "print!", "dbg!"];
    assert_none(offences(|file, line| {
        let says = macros.iter().find(|m| line.contains(*m))?;
        let may = matches!(room(file), "cli" | "main") && *says != "dbg!";
        (!may).then(|| format!("`{says}`"))
    }));
}

#[test]
fn nothing_is_left_to_do() {
    assert_none(offences(|_, line| {
        let left = ["todo!", "unimplemented!"]
            .into_iter()
            .find(|m| line.contains(m))?;
        Some(format!("`{left}`"))
    }));
}

#[test]
fn models_use_our_own_operations() {
    assert_none(offences(|file, line| {
        let foreign =
            matches!(room(file), "model" | "train" | "ops" | "optim") && line.contains("candle_nn");
        foreign.then(|| "candle's fused operations cut the gradient".into())
    }));
}

#[test]
fn this_test_can_read_code() {
    let names = |code| named_rooms(code).join(" ");
    assert_eq!(names("use crate::hub::Hub;"), "hub");
    assert_eq!(
        names("use crate::{Error, hub, model::{a, b}, ops};"),
        "Error hub model ops"
    );
    assert_eq!(
        names("let x = crate::ops::f(crate::error::Error);"),
        "ops error"
    );
    assert_eq!(code("a(\"crate::hub // x\"); // crate::cli"), ["a(\"\"); "]);
    assert_eq!(room("hub/fetch.rs"), "hub");
    assert_eq!(room("error.rs"), "error");
}
