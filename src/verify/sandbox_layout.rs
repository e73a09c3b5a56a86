//! What a box shows of the host: a list of directories, files, links and devices, as steps that
//! `sandbox_spawn.rs` takes between `clone` and `execve`. Everything else of the host is absent.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The root directory of a box, step by step.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub(super) steps: Vec<Step>,
    made: BTreeSet<PathBuf>,
}

/// One thing to make in it. Paths begin with `/new`, the half-made root, or `/old`, the host's.
#[derive(Debug, Clone)]
pub(super) enum Step {
    MakeDir(CString),
    MakeFile(CString),
    Symlink { target: CString, at: CString },
    Bind { from: CString, to: CString },
    BindDevice { from: CString, to: CString },
}

impl Layout {
    /// Shows `path` of the host at the same place, read-only; a link stays a link, and its target is shown as well.
    pub fn show(&mut self, path: &Path) {
        let Ok(kind) = std::fs::symlink_metadata(path).map(|meta| meta.file_type()) else {
            return;
        };
        let seen = |made: &PathBuf| path.starts_with(made);
        if self.made.iter().any(seen) || path == Path::new("/") {
            return;
        }
        if let Some(parent) = path.parent() {
            self.make_parents(parent);
        }
        let (inside, outside) = (below("new", path), below("old", path));
        if kind.is_symlink() {
            let Ok(target) = std::fs::read_link(path) else {
                return;
            };
            self.made.insert(path.to_path_buf());
            self.steps.push(Step::Symlink {
                target: c_string(target.as_os_str().as_bytes()),
                at: inside,
            });
            if let Ok(real) = path.canonicalize() {
                self.show(&real);
            }
            return;
        }
        self.made.insert(path.to_path_buf());
        self.steps.push(if kind.is_dir() {
            Step::MakeDir(inside.clone())
        } else {
            Step::MakeFile(inside.clone())
        });
        self.steps.push(Step::Bind {
            from: outside,
            to: inside,
        });
    }

    /// Shows a character device such as `/dev/null`.
    pub fn show_device(&mut self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.make_parents(parent);
        }
        let (from, to) = (below("old", path), below("new", path));
        self.steps.push(Step::MakeFile(to.clone()));
        self.steps.push(Step::BindDevice { from, to });
    }

    /// A link at `at` to `target`.
    pub fn link(&mut self, at: &Path, target: &Path) {
        if let Some(parent) = at.parent() {
            self.make_parents(parent);
        }
        self.steps.push(Step::Symlink {
            target: c_string(target.as_os_str().as_bytes()),
            at: below("new", at),
        });
    }

    /// Directories on the way to what is shown; making one twice is no error.
    fn make_parents(&mut self, path: &Path) {
        let mut ways: Vec<&Path> = path.ancestors().collect();
        ways.reverse();
        for way in ways.into_iter().skip(1) {
            self.steps.push(Step::MakeDir(below("new", way)));
        }
    }
}

/// `path` of the host below `/new` or `/old` of the half-made root.
fn below(place: &str, path: &Path) -> CString {
    let mut text = format!("/{place}").into_bytes();
    text.extend_from_slice(path.as_os_str().as_bytes());
    c_string(&text)
}

/// No path, argument or number of ours holds a zero byte.
pub(super) fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}
