//! At which commits of the Hub the sources of a stage are read: it goes on with the rows it was begun with, whatever has
//! changed there since. They stand beside its inputs and in no key: what counts is the content of the files.

use super::folder::{read_json, write_json};
use crate::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// In a stage's folder.
const SOURCES: &str = "sources.json";

/// The sources of a stage, each with the commit it was read at.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Commits(Vec<Read>);

/// A source that was read.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct Read {
    source: String,
    /// As the recipe asks for it.
    #[serde(default)]
    revision: Option<String>,
    /// None where it is not on the Hub.
    commit: Option<String>,
}

impl Commits {
    /// Those of the stage in `dir`; none where it was not begun.
    ///
    /// # Errors
    /// A damaged file.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(SOURCES);
        match path.exists() {
            true => read_json(&path),
            false => Ok(Self::default()),
        }
    }

    /// # Errors
    /// The disk refuses.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(SOURCES), self)
    }

    /// The commit of a source for which the recipe asks for no revision.
    pub fn of(&self, source: &str) -> Option<&str> {
        let mut same = self.0.iter().filter(|one| one.source == source);
        let open = same.find(|one| one.revision.is_none() && one.commit.is_some())?;
        open.commit.as_deref()
    }

    /// The commit at which a source was read, for which the recipe asks for this revision.
    pub fn read_at(&self, source: &str, revision: Option<&str>) -> Option<&str> {
        let mut same = self.0.iter().filter(|one| one.source == source);
        let found = same.find(|one| one.revision.as_deref() == revision && one.commit.is_some())?;
        found.commit.as_deref()
    }

    /// What was asked for, and the commit that it was.
    pub fn add(&mut self, source: &str, revision: Option<&str>, commit: Option<String>) {
        self.0.push(Read {
            source: source.to_string(),
            revision: revision.map(String::from),
            commit,
        });
    }

    /// Whether nothing was read from the Hub.
    pub fn is_local(&self) -> bool {
        self.0.iter().all(|one| one.commit.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_found_by_its_name_wherever_it_stands() {
        let mut commits = Commits::default();
        commits.add("file.jsonl", None, None);
        assert!(commits.is_local());
        commits.add("a/data", Some("v1"), Some("1".into()));
        commits.add("b/data", None, Some("2".into()));
        commits.add("a/data", None, Some("3".into()));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Commits::read(dir.path()).unwrap(), Commits::default());
        commits.write(dir.path()).unwrap();
        let read = Commits::read(dir.path()).unwrap();
        assert!(!read.is_local());
        // a revision that the recipe asks for is no commit of the newest
        for (source, commit) in [
            ("a/data", Some("3")),
            ("b/data", Some("2")),
            ("c/data", None),
            ("file.jsonl", None),
        ] {
            assert_eq!(read.of(source), commit, "{source}");
        }
    }
}
