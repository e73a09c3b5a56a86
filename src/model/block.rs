//! One transformer block, forward and backward, written out.
//!
//! Letters as in [`crate::ops`]. Forward, with RMSNorm `n` and residual stream x `[T, C]`:
//! `h = n1(x)`, `q, k, v = h Wq + bq, ...`, q/k norm (Qwen3), RoPE, `x1 = x + attention(q, k, v) Wo`,
//! `x2 = x1 + (silu(n2(x1) Wg) * (n2(x1) Wu)) Wd`.

use super::linear::{Linear, LinearsFn};
use super::{CausalLm, ModelConfig};
use crate::Result;
use crate::ops::{self, Gradients, ParamId, RopeTable, SeqLens};
use candle_core::Tensor;

/// Where the weights of a block stand in the model's list.
#[derive(Clone, Debug)]
pub(super) struct Block {
    norm1: ParamId,
    q: Linear,
    k: Linear,
    v: Linear,
    qk_norm: Option<(ParamId, ParamId)>,
    o: Linear,
    norm2: ParamId,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What a forward needs besides weights.
pub(super) struct Places<'a> {
    pub rope: &'a RopeTable,
    pub positions: &'a [u32],
}

/// What the backward needs from the forward.
///
/// The normed inputs of the products are not in it: computing them again costs less than a hundredth of the block.
pub(super) struct Saved {
    x: Tensor,
    /// Before q/k norm; only kept where there is one.
    raw_qk: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pub attended: Attended,
    x1: Tensor,
    gate: Tensor,
    up: Tensor,
}

/// What attention gave: the costly part of a block of long sequences, and a small one of what its backward needs.
#[derive(Clone)]
pub(super) struct Attended {
    o: Tensor,
    lse: Tensor,
}

/// Queries, keys and values of T tokens, ready for attention.
pub(super) struct Qkv {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    raw_qk: Option<(Tensor, Tensor)>,
}

impl Block {
    pub(super) fn new(config: &ModelConfig, layer: usize, id: &dyn Fn(&str) -> ParamId) -> Self {
        let at = |name: &str| id(&format!("model.layers.{layer}.{name}"));
        let with_bias = |name: &str| Linear {
            w: at(&format!("self_attn.{name}.weight")),
            b: config
                .attention_bias
                .then(|| at(&format!("self_attn.{name}.bias"))),
        };
        let plain = |name: &str| Linear {
            w: at(name),
            b: None,
        };
        Self {
            norm1: at("input_layernorm.weight"),
            q: with_bias("q_proj"),
            k: with_bias("k_proj"),
            v: with_bias("v_proj"),
            qk_norm: config
                .qk_norm
                .then(|| (at("self_attn.q_norm.weight"), at("self_attn.k_norm.weight"))),
            o: plain("self_attn.o_proj.weight"),
            norm2: at("post_attention_layernorm.weight"),
            gate: plain("mlp.gate_proj.weight"),
            up: plain("mlp.up_proj.weight"),
            down: plain("mlp.down_proj.weight"),
        }
    }

    /// Normed input to rotated queries and keys, and values. h: `[T, C]`.
    pub(super) fn qkv(
        &self,
        m: &CausalLm,
        h: &Tensor,
        places: &Places,
        linears: LinearsFn,
    ) -> Result<Qkv> {
        let c = m.config();
        let t = h.dim(0)?;
        let [q, k, v] = m.through(linears, h, [self.q, self.k, self.v])?;
        let q = q.reshape((t, c.num_attention_heads, c.head_dim))?; // [T, H, D]
        let k = k.reshape((t, c.num_key_value_heads, c.head_dim))?; // [T, K, D]
        let v = v.reshape((t, c.num_key_value_heads, c.head_dim))?;
        let (q, k, raw_qk) = match self.qk_norm {
            None => (q, k, None),
            Some((qn, kn)) => (
                ops::rms_norm(&q, m.w(qn), c.rms_norm_eps)?,
                ops::rms_norm(&k, m.w(kn), c.rms_norm_eps)?,
                Some((q, k)),
            ),
        };
        Ok(Qkv {
            q: ops::rope(&q, places.rope, places.positions)?,
            k: ops::rope(&k, places.rope, places.positions)?,
            v,
            raw_qk,
        })
    }

    pub(super) fn norm1(&self, m: &CausalLm, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, m.w(self.norm1), m.config().rms_norm_eps)
    }

    /// The residual stream after attention and after the feed-forward. o: `[T, H, D]`, x: `[T, C]`.
    pub(super) fn finish(
        &self,
        m: &CausalLm,
        x: &Tensor,
        o: &Tensor,
        linears: LinearsFn,
    ) -> Result<Tensor> {
        let o = o.flatten_from(1)?; // [T, H * D]
        let [x1] = m.through(linears, &o, [self.o])?;
        ops::add_inplace(&x1, x)?;
        let h2 = ops::rms_norm(&x1, m.w(self.norm2), m.config().rms_norm_eps)?;
        let [gate, up] = m.through(linears, &h2, [self.gate, self.up])?;
        let [y] = m.through(linears, &ops::swiglu(&gate, &up)?, [self.down])?;
        ops::add_inplace(&y, &x1)?;
        Ok(y)
    }

    /// x `[T, C]` to the next residual stream, with what the backward needs.
    pub(super) fn forward(
        &self,
        m: &CausalLm,
        x: &Tensor,
        seqs: &SeqLens,
        places: &Places,
    ) -> Result<(Tensor, Saved)> {
        let saved = self.saved(m, x, None, seqs, places)?;
        let act = ops::swiglu(&saved.gate, &saved.up)?;
        let [y] = m.through(ops::linears, &act, [self.down])?;
        ops::add_inplace(&y, &saved.x1)?;
        Ok((y, saved))
    }

    /// What the backward needs, from the block's input x `[T, C]` and, where it was kept, what attention gave: its output
    /// `[T, H, D]` and log sums. The block's last product is not needed.
    pub(super) fn saved(
        &self,
        m: &CausalLm,
        x: &Tensor,
        attended: Option<Attended>,
        seqs: &SeqLens,
        places: &Places,
    ) -> Result<Saved> {
        let h1 = self.norm1(m, x)?;
        let qkv = self.qkv(m, &h1, places, ops::linears)?;
        let Attended { o, lse } = match attended {
            Some(attended) => attended,
            None => {
                let (o, lse) = ops::attention(&qkv.q, &qkv.k, &qkv.v, seqs, m.scale())?;
                Attended { o, lse }
            }
        };
        let [x1] = m.through(ops::linears, &o.flatten_from(1)?, [self.o])?;
        ops::add_inplace(&x1, x)?;
        let h2 = ops::rms_norm(&x1, m.w(self.norm2), m.config().rms_norm_eps)?;
        let [gate, up] = m.through(ops::linears, &h2, [self.gate, self.up])?;
        Ok(Saved {
            x: x.clone(),
            raw_qk: qkv.raw_qk,
            q: qkv.q,
            k: qkv.k,
            v: qkv.v,
            attended: Attended { o, lse },
            x1,
            gate,
            up,
        })
    }

    /// dy `[T, C]` to dx; the gradients of the weights are added to `grads`.
    pub(super) fn backward(
        &self,
        m: &CausalLm,
        s: Saved,
        dy: Tensor,
        seqs: &SeqLens,
        places: &Places,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let eps = m.config().rms_norm_eps;
        // feed-forward
        let act = ops::swiglu(&s.gate, &s.up)?;
        let d_act = m.linear_backward(self.down, &act, &dy, grads)?;
        drop(act);
        let (d_gate, d_up) = ops::swiglu_backward(&s.gate, &s.up, &d_act)?;
        drop(d_act);
        let h2 = ops::rms_norm(&s.x1, m.w(self.norm2), eps)?;
        let d_h2 = m.linear_backward(self.gate, &h2, &d_gate, grads)?;
        ops::add_inplace(&d_h2, &m.linear_backward(self.up, &h2, &d_up, grads)?)?;
        drop((h2, d_gate, d_up));
        let (d_norm, d_w) = ops::rms_norm_backward(&s.x1, m.w(self.norm2), eps, &d_h2)?;
        grads.add(self.norm2, &d_w)?;
        ops::add_inplace(&d_norm, &dy)?;
        drop(dy);
        let d_x1 = d_norm;
        // attention
        let Attended { o, lse } = s.attended;
        let o_flat = o.flatten_from(1)?;
        let d_o = m.linear_backward(self.o, &o_flat, &d_x1, grads)?;
        let d_o = d_o.reshape(o.shape())?;
        let (dq, dk, dv) =
            ops::attention_backward(&s.q, &s.k, &s.v, &o, &lse, &d_o, seqs, m.scale())?;
        let mut dq = ops::rope_backward(&dq, places.rope, places.positions)?;
        let mut dk = ops::rope_backward(&dk, places.rope, places.positions)?;
        if let (Some((qn, kn)), Some((raw_q, raw_k))) = (self.qk_norm, &s.raw_qk) {
            let (d, d_w) = ops::rms_norm_backward(raw_q, m.w(qn), eps, &dq)?;
            grads.add(qn, &d_w)?;
            dq = d;
            let (d, d_w) = ops::rms_norm_backward(raw_k, m.w(kn), eps, &dk)?;
            grads.add(kn, &d_w)?;
            dk = d;
        }
        let h1 = self.norm1(m, &s.x)?;
        let mut d_h1: Option<Tensor> = None;
        for (layer, d) in [(self.q, dq), (self.k, dk), (self.v, dv)] {
            let d = d.flatten_from(1)?; // [T, heads * D]
            let part = m.linear_backward(layer, &h1, &d, grads)?;
            d_h1 = Some(match d_h1 {
                None => part,
                Some(sum) => {
                    ops::add_inplace(&sum, &part)?;
                    sum
                }
            });
        }
        let Some(d_h1) = d_h1 else { return Ok(d_x1) };
        let (d_norm, d_w) = ops::rms_norm_backward(&s.x, m.w(self.norm1), eps, &d_h1)?;
        grads.add(self.norm1, &d_w)?;
        ops::add_inplace(&d_norm, &d_x1)?;
        Ok(d_norm)
    }
}
