//! `RUN/run.json`: on what machine a run ran, when it began, and how long it took in all its sessions.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// One session of a run; what it took is added when it is stopped or dropped. A killed session is not counted.
pub struct RunClock {
    path: PathBuf,
    facts: Map<String, Value>,
    earlier_seconds: f64,
    begun: Instant,
    stopped: bool,
}

impl RunClock {
    /// Notes the machine and goes on counting where the run's last session ended.
    pub fn start(run_dir: &Path, device: &str) -> Result<Self> {
        let path = run_dir.join("run.json");
        let earlier: Map<String, Value> = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let count = |key: &str| earlier.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        let started = earlier.get("started").cloned();
        let facts = json!({
            "started": started.unwrap_or_else(|| utc(SystemTime::now()).into()),
            "seconds": count("seconds"),
            "num_sessions": count("num_sessions") as u64 + 1,
            "version": env!("CARGO_PKG_VERSION"),
            "device": device,
            "processor": processor(),
            "num_threads": std::thread::available_parallelism().map_or(1, |n| n.get()),
            "memory_bytes": memory_bytes(),
            "operating_system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        });
        let clock = Self {
            path,
            earlier_seconds: count("seconds"),
            facts: facts.as_object().cloned().unwrap_or_default(),
            begun: Instant::now(),
            stopped: false,
        };
        clock.write()?;
        Ok(clock)
    }

    /// Writes down how long this session took.
    pub fn stop(mut self) -> Result<()> {
        self.add()
    }

    fn add(&mut self) -> Result<()> {
        self.stopped = true;
        let seconds = self.earlier_seconds + self.begun.elapsed().as_secs_f64();
        self.facts
            .insert("seconds".into(), json!((seconds * 10.0).round() / 10.0));
        self.write()
    }

    fn write(&self) -> Result<()> {
        let beside = self.path.with_extension("json.tmp");
        let text = serde_json::to_vec_pretty(&self.facts)
            .map_err(|e| Error::input(format!("`run.json`: {e}")))?;
        std::fs::write(&beside, text).map_err(|e| Error::io("writing", &beside, e))?;
        std::fs::rename(&beside, &self.path).map_err(|e| Error::io("writing", &self.path, e))
    }
}

impl Drop for RunClock {
    fn drop(&mut self) {
        if !self.stopped {
            // on the way out of an error or of Ctrl-C, which is what there is to tell
            let _ = self.add();
        }
    }
}

/// `2026-11-21 05:28 UTC` (days to dates after Howard Hinnant's `civil_from_days`).
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) as i64;
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60
    )
}

/// The processor's name, where the system tells it.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim())
        .collect();
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(", "))
}

fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sessions_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let facts = || -> Map<String, Value> {
            serde_json::from_slice(&std::fs::read(folder.path().join("run.json")).unwrap()).unwrap()
        };
        std::fs::write(
            folder.path().join("run.json"),
            r#"{"started":"then","seconds":100.0,"num_sessions":1}"#,
        )
        .unwrap();
        let mut clock = RunClock::start(folder.path(), "cpu").unwrap();
        assert_eq!(facts()["seconds"], 100.0);
        clock.begun -= Duration::from_secs(20);
        drop(clock);
        assert_eq!(facts()["started"], "then");
        assert_eq!(facts()["num_sessions"], 2);
        assert_eq!(facts()["seconds"], 120.0);
    }

    #[test]
    fn dates_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        // date -u -d @N
        assert_eq!(at(0), "1970-01-01 00:00 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(at(1_795_238_892), "2026-11-21 05:28 UTC");
    }
}
