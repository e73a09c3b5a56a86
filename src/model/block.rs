//! One transformer block, forward and backward, written out.
//!
//! Letters as in [`crate::ops`]. Forward, with RMSNorm `n` and residual stream x `[T, C]`:
//! `h = n1(x)`, `q, k, v = h Wq + bq, ...`, q/k norm (Qwen3), RoPE, `x1 = x + attention(q, k, v) Wo`,
//! `x2 = x1 + (silu(n2(x1) Wg) * (n2(x1) Wu)) Wd`.

use super::{CausalLm, ModelConfig};
use crate::ops::{self, Gradients, ParamId, RopeTable, SeqLens};
use crate::{Error, Result};
use candle_core::Tensor;

/// Where the weights of a block stand in the model's list.
#[derive(Clone, Debug)]
pub(super) struct Block {
    norm1: ParamId,
    q: Projection,
    k: Projection,
    v: Projection,
    qk_norm: Option<(ParamId, ParamId)>,
    o: ParamId,
    norm2: ParamId,
    gate: ParamId,
    up: ParamId,
    down: ParamId,
}

/// A weight and its bias.
#[derive(Clone, Copy, Debug)]
struct Projection {
    w: ParamId,
    b: Option<ParamId>,
}

/// What a forward needs besides weights.
pub(super) struct Places<'a> {
    pub rope: &'a RopeTable,
    pub positions: &'a [u32],
}

/// What the backward needs from the forward.
pub(super) struct Saved {
    x: Tensor,
    h1: Tensor,
    /// Before q/k norm; only kept where there is one.
    raw_qk: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    x1: Tensor,
    h2: Tensor,
    gate: Tensor,
    up: Tensor,
}

/// Queries, keys and values of T tokens, ready for attention.
pub(super) struct Qkv {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    raw_qk: Option<(Tensor, Tensor)>,
}

/// The product that fits the occasion: training, a prompt, or one token a sequence.
type LinearsFn = fn(&Tensor, &[ops::Projection]) -> Result<Vec<Tensor>>;

/// One product.
fn one(linears: LinearsFn, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let [y] = several(linears, x, [(w, None)])?;
    Ok(y)
}

/// As many products as weights.
fn several<const N: usize>(
    linears: LinearsFn,
    x: &Tensor,
    weights: [ops::Projection; N],
) -> Result<[Tensor; N]> {
    let ys = linears(x, &weights)?;
    ys.try_into()
        .map_err(|ys: Vec<Tensor>| Error::input(format!("{} products of {N} weights", ys.len())))
}

impl Block {
    pub(super) fn new(config: &ModelConfig, layer: usize, id: &dyn Fn(&str) -> ParamId) -> Self {
        let at = |name: &str| id(&format!("model.layers.{layer}.{name}"));
        let projection = |name: &str| Projection {
            w: at(&format!("self_attn.{name}.weight")),
            b: config
                .attention_bias
                .then(|| at(&format!("self_attn.{name}.bias"))),
        };
        Self {
            norm1: at("input_layernorm.weight"),
            q: projection("q_proj"),
            k: projection("k_proj"),
            v: projection("v_proj"),
            qk_norm: config
                .qk_norm
                .then(|| (at("self_attn.q_norm.weight"), at("self_attn.k_norm.weight"))),
            o: at("self_attn.o_proj.weight"),
            norm2: at("post_attention_layernorm.weight"),
            gate: at("mlp.gate_proj.weight"),
            up: at("mlp.up_proj.weight"),
            down: at("mlp.down_proj.weight"),
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
        let weights = [&self.q, &self.k, &self.v].map(|p| (m.w(p.w), p.b.map(|b| m.w(b))));
        let [q, k, v] = several(linears, h, weights)?;
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
        let x1 = one(linears, &o, m.w(self.o))?;
        ops::add_inplace(&x1, x)?;
        let h2 = ops::rms_norm(&x1, m.w(self.norm2), m.config().rms_norm_eps)?;
        let [gate, up] = several(linears, &h2, [self.gate, self.up].map(|id| (m.w(id), None)))?;
        let y = one(linears, &ops::swiglu(&gate, &up)?, m.w(self.down))?;
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
        let h1 = self.norm1(m, x)?;
        let qkv = self.qkv(m, &h1, places, ops::linears)?;
        let (o, lse) = ops::attention(&qkv.q, &qkv.k, &qkv.v, seqs, m.scale())?;
        let x1 = ops::linear(&o.flatten_from(1)?, m.w(self.o), None)?;
        ops::add_inplace(&x1, x)?;
        let h2 = ops::rms_norm(&x1, m.w(self.norm2), m.config().rms_norm_eps)?;
        let gate = ops::linear(&h2, m.w(self.gate), None)?;
        let up = ops::linear(&h2, m.w(self.up), None)?;
        let y = ops::linear(&ops::swiglu(&gate, &up)?, m.w(self.down), None)?;
        ops::add_inplace(&y, &x1)?;
        let saved = Saved {
            x: x.clone(),
            h1,
            raw_qk: qkv.raw_qk,
            q: qkv.q,
            k: qkv.k,
            v: qkv.v,
            o,
            lse,
            x1,
            h2,
            gate,
            up,
        };
        Ok((y, saved))
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
        grads.add_matmul(self.down, &dy, &act)?;
        drop(act);
        let d_act = ops::linear_backward_input(&dy, m.w(self.down))?;
        let (d_gate, d_up) = ops::swiglu_backward(&s.gate, &s.up, &d_act)?;
        grads.add_matmul(self.gate, &d_gate, &s.h2)?;
        grads.add_matmul(self.up, &d_up, &s.h2)?;
        let d_h2 = ops::linear_backward_input(&d_gate, m.w(self.gate))?;
        ops::add_inplace(&d_h2, &ops::linear_backward_input(&d_up, m.w(self.up))?)?;
        let (d_norm, d_w) = ops::rms_norm_backward(&s.x1, m.w(self.norm2), eps, &d_h2)?;
        grads.add(self.norm2, &d_w)?;
        ops::add_inplace(&d_norm, &dy)?;
        drop(dy);
        let d_x1 = d_norm;
        // attention
        let o_flat = s.o.flatten_from(1)?;
        grads.add_matmul(self.o, &d_x1, &o_flat)?;
        let d_o = ops::linear_backward_input(&d_x1, m.w(self.o))?.reshape(s.o.shape())?;
        let (dq, dk, dv) =
            ops::attention_backward(&s.q, &s.k, &s.v, &s.o, &s.lse, &d_o, seqs, m.scale())?;
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
        let mut d_h1: Option<Tensor> = None;
        for (p, d) in [(&self.q, dq), (&self.k, dk), (&self.v, dv)] {
            let d = d.flatten_from(1)?; // [T, heads * D]
            grads.add_matmul(p.w, &d, &s.h1)?;
            if let Some(b) = p.b {
                grads.add(b, &ops::sum_rows(&d)?)?;
            }
            let part = ops::linear_backward_input(&d, m.w(p.w))?;
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
