// The head: what a pass tells of each target from its row of logits, and the gradient of the logits, in place. A block a row.
#include "kernel.cuh"

// Largest logit m, s = sum exp(x - m) and e = sum exp(x - m) x of some logits, which merge.
struct Sums {
    float m, s, e;
};

__device__ __forceinline__ Sums merge(Sums a, Sums b) {
    const float m = fmaxf(a.m, b.m);
    // an empty part has m = -inf, and -inf - -inf is no number
    const float fa = a.m == -INFINITY ? 0.0f : expf(a.m - m), fb = b.m == -INFINITY ? 0.0f : expf(b.m - m);
    return Sums{m, a.s * fa + b.s * fb, a.e * fa + b.e * fb};
}

// stats[row] = {log-probability of the target, entropy, log-sum-exp}. logits `[rows, vocab]`, rows `stride` apart.
extern "C" __global__ void head_stats_f32(const float* logits, size_t stride, const unsigned* targets, float* stats,
                                          unsigned vocab) {
    __shared__ Sums of_warps[32];
    const float* x = logits + blockIdx.x * stride;
    Sums mine{-INFINITY, 0.0f, 0.0f};
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float v = x[i];
        if (v > mine.m) {
            const float f = mine.m == -INFINITY ? 0.0f : expf(mine.m - v);
            mine = Sums{v, mine.s * f + 1.0f, mine.e * f + v};
        } else if (v > -INFINITY) {
            const float p = expf(v - mine.m);
            mine.s += p;
            mine.e += p * v;
        } else if (!(v <= INFINITY)) {
            mine.s = v; // NaN: it has to be seen
        }
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2)
        mine = merge(mine, Sums{__shfl_xor_sync(0xffffffff, mine.m, mask), __shfl_xor_sync(0xffffffff, mine.s, mask),
                                __shfl_xor_sync(0xffffffff, mine.e, mask)});
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        Sums all = of_warps[0];
        for (unsigned i = 1; i < blockDim.x / 32; i++)
            all = merge(all, of_warps[i]);
        const float lse = all.m + logf(all.s);
        stats[3 * blockIdx.x] = x[targets[blockIdx.x]] - lse;
        stats[3 * blockIdx.x + 1] = lse - all.e / all.s;
        stats[3 * blockIdx.x + 2] = lse;
    }
}

// dlogits = coef (onehot - softmax) over the logits they are made of: as f32, or as bf16 in the first half of each row.
template <class T>
__device__ __forceinline__ void head_gradient(float* logits, size_t stride, const unsigned* targets, const float* stats,
                                              const float* coefs, unsigned vocab) {
    float* x = logits + blockIdx.x * stride;
    T* d = reinterpret_cast<T*>(x);
    const float lse = stats[3 * blockIdx.x + 2], coef = coefs[blockIdx.x];
    const unsigned target = targets[blockIdx.x];
    for (unsigned first = 0; first < vocab; first += blockDim.x) {
        const unsigned i = first + threadIdx.x;
        float v = 0.0f;
        if (i < vocab)
            v = coef * ((i == target ? 1.0f : 0.0f) - expf(x[i] - lse));
        // what is written lies where this round or an earlier one has read
        __syncthreads();
        if (i < vocab)
            store(d + i, v);
    }
}
extern "C" __global__ void head_gradient_f32(float* logits, size_t stride, const unsigned* targets, const float* stats,
                                             const float* coefs, unsigned vocab) {
    head_gradient<float>(logits, stride, targets, stats, coefs, vocab);
}
extern "C" __global__ void head_gradient_bf16(float* logits, size_t stride, const unsigned* targets, const float* stats,
                                              const float* coefs, unsigned vocab) {
    head_gradient<bf16>(logits, stride, targets, stats, coefs, vocab);
}
