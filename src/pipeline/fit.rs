//! Whether a run fits into the memory at hand, before it starts: what is free, and what is said where it is too little. What
//! a run takes is in [`super::estimate`].

use super::estimate::{Estimate, gib, of_stage};
use super::run::RunOptions;
use crate::model::ModelConfig;
use crate::progress::Reporter;
use crate::recipe::Recompute;
use crate::recipe::graph::{PipelinePlan, StagePlan};
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Refuses training that takes more memory than there is, and says what is to be computed again in its backward pass, where
/// the recipe leaves that to the memory. Sampling alone is only warned of: few answers are as long as they may be.
///
/// # Errors
/// It does not fit, and `--force` does not say to try.
pub fn check(
    name: &str,
    device: &str,
    options: &RunOptions,
    estimate: impl FnOnce(Option<u64>) -> Result<Option<Estimate>>,
    reporter: &dyn Reporter,
) -> Result<Option<Recompute>> {
    let room = options.device_memory.or_else(|| free_memory(device));
    let Some(estimate) = estimate(room)? else {
        return Ok(None);
    };
    let chosen = estimate.recompute.filter(|_| estimate.recompute_chosen);
    if let Some(level) = chosen.filter(|level| *level != Recompute::None) {
        let level = level.name();
        reporter.note(&format!("{name}: `recompute = \"{level}\"`"));
    }
    let Some(room) = room.filter(|room| estimate.peak_memory > *room) else {
        return Ok(chosen);
    };
    let is_certain = estimate.memory.without_evaluation().peak() > room;
    let text = format!(
        "{name} takes {} at its peak, and {} of memory {}: {}",
        gib(estimate.peak_memory),
        gib(room),
        if options.device_memory.is_some() {
            "may be used"
        } else {
            "are free"
        },
        parts(&estimate)
    );
    let changes = estimate.advice.join("; and ");
    if !is_certain || options.force {
        reporter.warn(&format!("{text}; change {changes}"));
        return Ok(chosen);
    }
    Err(Error::input(text).with_hint(format!("{changes}; or run it anyway with `--force`")))
}

/// The same of a stage whose model is of shape `config`; an unknown shape is not looked at.
///
/// # Errors
/// As [`check`]; prompts that cannot be read.
pub fn check_stage(
    plan: &PipelinePlan,
    stage: &StagePlan,
    config: Option<&ModelConfig>,
    options: &RunOptions,
    reporter: &dyn Reporter,
) -> Result<Option<Recompute>> {
    let Some(config) = config else {
        return Ok(None);
    };
    let name = format!("stage `{}`", stage.name);
    let estimate = |room| of_stage(plan, stage, config, room, reporter);
    check(&name, &plan.device, options, estimate, reporter)
}

/// What was computed again in a training that is finished, as the run folder has it: of one stage, or of the run's only
/// training.
pub fn recomputed(root: &Path, stage: Option<&str>) -> Option<Recompute> {
    fn find(value: &Value) -> Option<Recompute> {
        match value {
            Value::Object(map) => match map.get("recompute") {
                Some(level) => serde_json::from_value(level.clone()).ok(),
                None => map.values().find_map(find),
            },
            _ => None,
        }
    }
    let plan: Value =
        serde_json::from_str(&fs::read_to_string(root.join("plan.json")).ok()?).ok()?;
    match stage {
        None => find(&plan["sft"]),
        Some(name) => find(
            plan["stages"]
                .as_array()?
                .iter()
                .find(|s| s["name"] == name)?,
        ),
    }
}

/// The largest parts first.
fn parts(estimate: &Estimate) -> String {
    let mut parts = estimate.memory.parts();
    parts.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let parts = parts
        .iter()
        .map(|(part, size)| format!("{part} {}", gib(*size)));
    parts.collect::<Vec<_>>().join(", ")
}

/// Bytes that this process may still take on a device; none where that is not known.
pub fn free_memory(device: &str) -> Option<u64> {
    match super::device(device).ok()? {
        candle_core::Device::Cpu => free_on_host(),
        device => crate::ops::device::free_memory(&device),
    }
}

/// What the kernel could give without swapping, what the process has already, and no more than its control groups allow.
fn free_on_host() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // pages of files are available already
    let own = kib_of(&status, "RssAnon:").or_else(|| kib_of(&status, "VmRSS:"));
    let own = own.unwrap_or(0);
    let available = kib_of(&meminfo, "MemAvailable:")? + own;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups_of(&groups, Path::new("/sys/fs/cgroup"))
        .into_iter()
        .filter_map(|group| free_in_group(&group));
    Some(
        limits
            .map(|free| free + own)
            .fold(available, |least, free| least.min(free)),
    )
}

/// Bytes of a line such as `VmRSS:  1234 kB`.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The folders of a process's memory groups and of those around them, of both versions of the hierarchy.
fn groups_of(text: &str, root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let base = match controllers {
            "" => root.to_path_buf(),
            some if some.split(',').any(|c| c == "memory") => root.join("memory"),
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        // in a container the hierarchy often begins at the process's own group
        all.extend(path.ancestors().map(|part| base.join(part)));
    }
    all
}

/// What is left below a group's limit; what the kernel could give back of file pages is left too. None without a limit.
fn free_in_group(group: &Path) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let of = |key: &str| -> Option<u64> {
        let value = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key));
        let value = value(&format!("total_{key} ")).or_else(|| value(&format!("{key} ")));
        value?.trim().parse().ok()
    };
    // as `MemAvailable` counts them for the whole machine
    let given_back = ["inactive_file", "active_file", "slab_reclaimable"].map(of);
    let given_back: u64 = given_back.into_iter().flatten().sum();
    Some(limit.saturating_sub(used.saturating_sub(given_back)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions() {
        let text = "5:cpuset:/a\n4:memory,cpu:/jobs/one\n0::/user/app\nnonsense";
        let root = Path::new("/sys");
        let expected = [
            "/sys/memory/jobs/one",
            "/sys/memory/jobs",
            "/sys/memory/",
            "/sys/user/app",
            "/sys/user",
            "/sys/",
        ];
        assert_eq!(groups_of(text, root), expected.map(PathBuf::from));
    }

    #[test]
    fn what_a_group_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(free_in_group(dir.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(free_in_group(dir.path()), None);
        write("memory.max", "1000\n");
        write(
            "memory.stat",
            "anon 500\ninactive_file 150\nactive_file 50\n",
        );
        assert_eq!(free_in_group(dir.path()), Some(500));
        write("memory.current", "2000\n");
        assert_eq!(free_in_group(dir.path()), Some(0));
    }

    #[test]
    fn lines_of_the_kernel() {
        let text = "MemTotal:       24684084 kB\nMemAvailable:   22657860 kB\n";
        assert_eq!(kib_of(text, "MemAvailable:"), Some(22_657_860 * 1024));
        assert_eq!(kib_of(text, "MemFree:"), None);
        assert_eq!(kib_of("VmRSS: many kB", "VmRSS:"), None);
    }
}
