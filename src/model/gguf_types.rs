//! Which type of GGUF each tensor gets: the mixes of llama.cpp's `llama-quantize` without an importance matrix, for the
//! families that train here. A row that does not divide into a type's blocks falls back as it does there.

use super::{Architecture, ModelConfig};
use candle_core::quantized::GgmlDType as T;

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum Quant {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
    Q3_K_L,
    Q3_K_M,
    Q3_K_S,
    Q2_K,
}

impl Quant {
    /// All, the most exact first.
    pub const ALL: [Self; 17] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q5_K_S,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_K_M,
        Self::Q4_K_S,
        Self::Q4_1,
        Self::Q4_0,
        Self::Q3_K_L,
        Self::Q3_K_M,
        Self::Q3_K_S,
        Self::Q2_K,
    ];

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        self.facts().1
    }

    /// The type of what has no rule of its own.
    fn base(self) -> T {
        self.facts().2
    }

    fn facts(self) -> (&'static str, u32, T) {
        match self {
            Self::F32 => ("f32", 0, T::F32),
            Self::F16 => ("f16", 1, T::F16),
            Self::Bf16 => ("bf16", 32, T::BF16),
            Self::Q8_0 => ("q8_0", 7, T::Q8_0),
            Self::Q6_K => ("q6_k", 18, T::Q6K),
            Self::Q5_K_M => ("q5_k_m", 17, T::Q5K),
            Self::Q5_K_S => ("q5_k_s", 16, T::Q5K),
            Self::Q5_1 => ("q5_1", 9, T::Q5_1),
            Self::Q5_0 => ("q5_0", 8, T::Q5_0),
            Self::Q4_K_M => ("q4_k_m", 15, T::Q4K),
            Self::Q4_K_S => ("q4_k_s", 14, T::Q4K),
            Self::Q4_1 => ("q4_1", 3, T::Q4_1),
            Self::Q4_0 => ("q4_0", 2, T::Q4_0),
            Self::Q3_K_L => ("q3_k_l", 13, T::Q3K),
            Self::Q3_K_M => ("q3_k_m", 12, T::Q3K),
            Self::Q3_K_S => ("q3_k_s", 11, T::Q3K),
            Self::Q2_K => ("q2_k", 10, T::Q2K),
        }
    }
}

/// A type that a tensor could not have.
pub(super) struct Fallback {
    pub meant: T,
    pub taken: T,
}

/// Chooses types for one model.
pub(super) struct TypeChooser {
    quant: Quant,
    num_layers: usize,
    /// Query heads that share a key/value head.
    group: usize,
    tied: bool,
    /// llama.cpp's "70B": eighty layers with shared key/value heads.
    is_70b: bool,
}

impl TypeChooser {
    pub fn new(config: &ModelConfig, quant: Quant) -> Self {
        let group = config.num_attention_heads / config.num_key_value_heads.max(1);
        let shares = match config.architecture {
            Architecture::Qwen2 => true,
            Architecture::Llama => group > 1,
            Architecture::Qwen3 => false,
        };
        Self {
            quant,
            num_layers: config.num_hidden_layers,
            group,
            tied: config.tie_word_embeddings,
            is_70b: config.num_hidden_layers == 80 && shares,
        }
    }

    /// The type of the tensor called `name` in the file. Vectors stay in f32.
    pub fn choose(&self, name: &str, shape: &[usize]) -> (T, Option<Fallback>) {
        let base = self.quant.base();
        let [_, width] = shape else {
            return (T::F32, None);
        };
        if matches!(base, T::F32 | T::F16 | T::BF16) {
            return (base, None);
        }
        let meant = self.mixed(name, *width);
        if width.is_multiple_of(meant.block_size()) {
            return (meant, None);
        }
        let smaller = match meant {
            T::Q2K | T::Q3K => T::Q4_0,
            T::Q4K => T::Q5_0,
            T::Q5K => T::Q5_1,
            T::Q6K => T::Q8_0,
            other => other,
        };
        let taken = match width.is_multiple_of(smaller.block_size()) {
            true => smaller,
            false => T::F16,
        };
        (taken, Some(Fallback { meant, taken }))
    }

    /// The type before a look at the width of the tensor's rows.
    fn mixed(&self, name: &str, width: usize) -> T {
        let base = self.quant.base();
        let is_head = name == "output.weight" || (self.tied && name == "token_embd.weight");
        if is_head {
            return match base {
                _ if !width.is_multiple_of(base.block_size()) => T::Q8_0,
                T::Q8_0 => T::Q8_0,
                _ => T::Q6K,
            };
        }
        let Some((layer, part)) = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(layer, part)| Some((layer.parse::<usize>().ok()?, part)))
        else {
            return base;
        };
        match part {
            "attn_v.weight" => match self.value_type(layer) {
                T::Q3K | T::Q4K if self.is_70b => T::Q5K,
                other => other,
            },
            "ffn_down.weight" => self.down_type(layer),
            "attn_output.weight" => match self.quant {
                Quant::Q2_K => T::Q3K,
                Quant::Q3_K_M => T::Q4K,
                Quant::Q3_K_L => T::Q5K,
                _ => base,
            },
            _ => base,
        }
    }

    fn value_type(&self, layer: usize) -> T {
        match self.quant {
            Quant::Q2_K if self.group >= 4 => T::Q4K,
            Quant::Q2_K => T::Q3K,
            Quant::Q3_K_M if layer < 2 => T::Q5K,
            Quant::Q3_K_M => T::Q4K,
            Quant::Q3_K_L => T::Q5K,
            Quant::Q4_K_S if layer < 4 => T::Q5K,
            Quant::Q4_K_M | Quant::Q5_K_M if self.has_more_bits(layer) => T::Q6K,
            other => other.base(),
        }
    }

    fn down_type(&self, layer: usize) -> T {
        match self.quant {
            Quant::Q2_K => T::Q3K,
            Quant::Q3_K_M if layer < self.num_layers / 16 => T::Q5K,
            Quant::Q3_K_M => T::Q4K,
            Quant::Q3_K_L => T::Q5K,
            Quant::Q4_K_S if layer < self.num_layers / 8 => T::Q5K,
            Quant::Q4_K_M | Quant::Q5_K_M if self.has_more_bits(layer) => T::Q6K,
            other => other.base(),
        }
    }

    /// The first and the last eighth of the layers, and every third between.
    fn has_more_bits(&self, layer: usize) -> bool {
        let eighth = self.num_layers / 8;
        layer < eighth || layer >= 7 * self.num_layers / 8 || (layer - eighth) % 3 == 2
    }
}

/// Its number in a file.
pub(super) fn type_id(dtype: T) -> u32 {
    facts(dtype).0
}

/// llama.cpp's name of it.
pub(super) fn name_of(dtype: T) -> &'static str {
    facts(dtype).1
}

fn facts(dtype: T) -> (u32, &'static str) {
    match dtype {
        T::F32 => (0, "F32"),
        T::F16 => (1, "F16"),
        T::Q4_0 => (2, "Q4_0"),
        T::Q4_1 => (3, "Q4_1"),
        T::Q5_0 => (6, "Q5_0"),
        T::Q5_1 => (7, "Q5_1"),
        T::Q8_0 => (8, "Q8_0"),
        T::Q8_1 => (9, "Q8_1"),
        T::Q2K => (10, "Q2_K"),
        T::Q3K => (11, "Q3_K"),
        T::Q4K => (12, "Q4_K"),
        T::Q5K => (13, "Q5_K"),
        T::Q6K => (14, "Q6_K"),
        T::Q8K => (15, "Q8_K"),
        T::BF16 => (30, "BF16"),
    }
}

/// Bytes of so many values.
pub(super) fn block_bytes(dtype: T, num_values: usize) -> usize {
    num_values / dtype.block_size() * dtype.type_size()
}

#[cfg(test)]
mod tests {
    use super::super::family;
    use super::*;

    /// The types of a tensor's layers, runs of the same type written once: `Q6_K*4 Q4_K*2 ...`.
    fn layers(chooser: &TypeChooser, part: &str, width: usize) -> String {
        let mut runs: Vec<(&str, usize)> = Vec::new();
        for layer in 0..chooser.num_layers {
            let name = format!("blk.{layer}.{part}.weight");
            let found = name_of(chooser.choose(&name, &[width, width]).0);
            match runs.last_mut() {
                Some((last, n)) if *last == found => *n += 1,
                _ => runs.push((found, 1)),
            }
        }
        let runs: Vec<String> = runs.iter().map(|(name, n)| format!("{name}*{n}")).collect();
        runs.join(" ")
    }

    #[test]
    fn mixes_are_those_of_llama_quantize() {
        // 28 layers: the first 3 and those from 24 on, between them 5, 8, 11, 14, 17, 20, 23
        let most = "Q6_K*3 Q4_K*2 Q6_K*1 Q4_K*2 Q6_K*1 Q4_K*2 Q6_K*1 Q4_K*2 Q6_K*1 Q4_K*2 Q6_K*1 Q4_K*2 Q6_K*1 Q4_K*2 Q6_K*5";
        let table: [(Quant, &str, &str, &str, &str, &str); 8] = [
            // attn_q, attn_v, attn_output, ffn_down, embedding
            (Quant::Q4_K_M, "Q4_K*28", most, "Q4_K*28", most, "Q6_K"),
            (
                Quant::Q4_K_S,
                "Q4_K*28",
                "Q5_K*4 Q4_K*24",
                "Q4_K*28",
                "Q5_K*3 Q4_K*25",
                "Q6_K",
            ),
            (
                Quant::Q6_K,
                "Q6_K*28",
                "Q6_K*28",
                "Q6_K*28",
                "Q6_K*28",
                "Q6_K",
            ),
            (
                Quant::Q8_0,
                "Q8_0*28",
                "Q8_0*28",
                "Q8_0*28",
                "Q8_0*28",
                "Q8_0",
            ),
            (
                Quant::Q4_0,
                "Q4_0*28",
                "Q4_0*28",
                "Q4_0*28",
                "Q4_0*28",
                "Q6_K",
            ),
            (
                Quant::Q3_K_M,
                "Q3_K*28",
                "Q5_K*2 Q4_K*26",
                "Q4_K*28",
                "Q5_K*1 Q4_K*27",
                "Q6_K",
            ),
            (
                Quant::Q3_K_L,
                "Q3_K*28",
                "Q5_K*28",
                "Q5_K*28",
                "Q5_K*28",
                "Q6_K",
            ),
            (
                Quant::Q2_K,
                "Q2_K*28",
                "Q4_K*28",
                "Q3_K*28",
                "Q3_K*28",
                "Q6_K",
            ),
        ];
        let config = family::config("qwen2.5-1.5b").unwrap();
        for (quant, q, v, output, down, embedding) in table {
            let chooser = TypeChooser::new(&config, quant);
            for (part, expected) in [
                ("attn_q", q),
                ("attn_k", q),
                ("ffn_up", q),
                ("attn_v", v),
                ("attn_output", output),
                ("ffn_down", down),
            ] {
                let found = layers(&chooser, part, 1536);
                assert_eq!(found, expected, "{} {part}", quant.name());
            }
            let found = chooser.choose("token_embd.weight", &[151_936, 1536]).0;
            assert_eq!(name_of(found), embedding, "{}", quant.name());
            assert_eq!(chooser.choose("blk.0.attn_norm.weight", &[1536]).0, T::F32);
        }
    }

    #[test]
    fn an_untied_embedding_is_no_head_and_large_models_keep_their_values() {
        let config = family::config("llama-3.3-70b").unwrap();
        let chooser = TypeChooser::new(&config, Quant::Q4_K_S);
        let of = |name: &str| name_of(chooser.choose(name, &[8192, 8192]).0);
        assert_eq!(of("token_embd.weight"), "Q4_K");
        assert_eq!(of("output.weight"), "Q6_K");
        assert_eq!(of("blk.40.attn_v.weight"), "Q5_K");
        assert_eq!(of("blk.40.attn_k.weight"), "Q4_K");
    }

    #[test]
    fn names_and_numbers_are_one_to_one() {
        let mut numbers: Vec<u32> = Quant::ALL.iter().map(|q| q.file_type()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), Quant::ALL.len());
        assert!(
            Quant::ALL
                .iter()
                .all(|q| q.name() == format!("{q:?}").to_lowercase())
        );
    }
}
