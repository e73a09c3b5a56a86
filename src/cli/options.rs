//! Options that several commands share, and how sizes are written.

use crate::Result;
use crate::generate::Sampling;
use crate::ops::PackedAs;
use crate::recipe::graph::{Resolved, resolve_document};
use crate::recipe::load::{self, Loaded};
use crate::recipe::{Dtype, Optimizer, Recompute};

/// Which recipe, and what is changed in it.
#[derive(clap::Args)]
pub struct RecipeArgs {
    /// Recipe: a path, or the name of a shipped one
    #[arg(long, value_name = "RECIPE")]
    pub recipe: String,
    /// Change a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Where to compute: auto, cpu, cuda:N or metal
    #[arg(long)]
    pub device: Option<String>,
}

impl RecipeArgs {
    /// The recipe with its changes, and what it resolves to.
    pub fn load(&self) -> Result<(Loaded, Resolved)> {
        let mut sets = self.sets.clone();
        if let Some(device) = &self.device {
            sets.push(format!("device={}", toml::Value::String(device.clone())));
        }
        let loaded = load::load(&self.recipe, &sets)?;
        let plan = resolve_document(&loaded.recipe)?;
        Ok((loaded, plan))
    }
}

/// Which model, and where it computes.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Model: a card's name, a Hub repo `org/name[@revision]`, or a folder in the Hugging Face layout
    #[arg(long)]
    pub model: String,
    /// Where to compute: auto, cpu, cuda:N or metal
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Dtype of weights and activations: f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: Dtype,
}

/// A dtype by its name.
pub fn dtype(text: &str) -> std::result::Result<Dtype, String> {
    match text {
        "f32" => Ok(Dtype::F32),
        "bf16" => Ok(Dtype::Bf16),
        "f16" => Ok(Dtype::F16),
        _ => Err("dtypes: f32, bf16, f16".into()),
    }
}

/// A format of quantised weights by its name.
pub fn packed_as(text: &str) -> std::result::Result<PackedAs, String> {
    let named = PackedAs::ALL.into_iter().find(|q| q.name() == text);
    named.ok_or_else(|| "formats: nf4, q8_0, q4_k".into())
}

/// An optimiser by its name.
pub fn optimizer(text: &str) -> std::result::Result<Optimizer, String> {
    match text {
        "adamw" => Ok(Optimizer::AdamW),
        "adamw_8bit" => Ok(Optimizer::AdamW8bit),
        _ => Err("optimisers: adamw, adamw_8bit".into()),
    }
}

/// What is computed again in the backward pass, by its name.
pub fn recompute(text: &str) -> std::result::Result<Recompute, String> {
    let known = [
        Recompute::None,
        Recompute::KeepAttention,
        Recompute::Block,
        Recompute::Offload,
    ];
    let found = known.into_iter().find(|level| level.name() == text);
    found.ok_or_else(|| "what is computed again: none, keep_attention, block, offload".into())
}

/// How tokens are chosen.
#[derive(clap::Args)]
pub struct SamplingArgs {
    /// 0 always takes the most probable token
    #[arg(long, default_value_t = 0.6)]
    pub temperature: f64,
    /// Sample among the most probable tokens that together have this probability
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f64,
    /// Sample among so many of the most probable tokens; 0 among all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Sample among tokens at least this fraction as probable as the most probable one
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f64,
    /// Make tokens that have been there less probable; 1 leaves them as they are
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f64,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 4096)]
    pub max_new_tokens: usize,
    /// Text that ends an answer; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SamplingArgs {
    /// The settings, with the tokens that end a turn.
    ///
    /// # Errors
    /// A setting that means nothing.
    pub fn resolve(&self, stop_ids: &[u32]) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.clone(),
            stop_ids: stop_ids.to_vec(),
            seed: self.seed,
        };
        sampling.validate()?;
        Ok(sampling)
    }
}

/// Bytes of `24GiB`, `24 GB` or `24G` (binary). A number alone is none: `24` is not meant to be 24 bytes.
pub fn size(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" if !number.is_empty() => {
            return Err(format!(
                "`{number}` of what? a size has a unit, such as {number}GiB"
            ));
        }
        "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => return Err(format!("`{other}` is no unit of memory: use GiB or GB")),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 => Ok((n * factor) as u64),
        _ => Err("a size is a number with a unit, such as 24GiB".into()),
    }
}

/// Bytes as people read them, binary units.
pub fn show_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B" && value < 100.0);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A count with commas between thousands.
pub fn show_count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("24GiB"), Ok(24 << 30));
        assert_eq!(size("24 GB"), Ok(24_000_000_000));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        assert_eq!(size("80GB"), Ok(80_000_000_000));
        assert_eq!(size("100b"), Ok(100));
        for bad in [
            "",
            "GiB",
            "24",
            "24TiB?",
            "24 apples",
            "-3GiB",
            "1.2.3GiB",
            "0",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_counts_are_shown() {
        assert_eq!(show_size(12), "12 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(24 << 30), "24.0 GiB");
        assert_eq!(show_size(300 << 30), "300 GiB");
        assert_eq!(show_size(5 << 40), "5.0 TiB");
        assert_eq!(
            ["7", "1,234", "12,345,678"].map(String::from),
            [7, 1234, 12_345_678].map(show_count)
        );
    }
}
