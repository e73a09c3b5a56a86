// Operations over rows and elements: RMSNorm, RoPE, SwiGLU, sums over rows, gradients of embeddings. Formulas stand in
// plain.rs. Every sum has a fixed order: the same input gives the same bits.
#include "kernel.cuh"

// A warp a row; rows are `size` values. Wide loads where `size` is a multiple of WIDE.
template <class F> __device__ __forceinline__ void over_row(unsigned size, F each) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned i = lane * WIDE; i < size; i += 32 * WIDE)
        each(i);
}

template <class T> __device__ __forceinline__ void load_part(const T* at, unsigned i, unsigned size, float (&v)[WIDE]) {
    if (size % WIDE == 0) {
        load_wide(at + i, v);
    } else {
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            v[j] = i + j < size ? to_float(at[i + j]) : 0.0f;
    }
}
template <class T> __device__ __forceinline__ void store_part(T* at, unsigned i, unsigned size, const float (&v)[WIDE]) {
    if (size % WIDE == 0) {
        store_wide(at + i, v);
    } else {
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            if (i + j < size)
                store(at + i + j, v[j]);
    }
}

template <class T> __device__ __forceinline__ float reciprocal_rms(const T* x, unsigned size, float eps) {
    float sum = 0.0f;
    over_row(size, [&](unsigned i) {
        float v[WIDE];
        load_part(x, i, size, v);
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            sum += v[j] * v[j];
    });
    return rsqrtf(warp_sum(sum) / size + eps);
}

// Grid: rows over the warps of a block.
template <class T>
__device__ __forceinline__ void rms_norm(const T* x, const T* w, T* y, unsigned num_rows, unsigned size, float eps) {
    const size_t row = static_cast<size_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= num_rows)
        return;
    x += row * size, y += row * size;
    const float rstd = reciprocal_rms(x, size, eps);
    over_row(size, [&](unsigned i) {
        float v[WIDE], weight[WIDE];
        load_part(x, i, size, v);
        load_part(w, i, size, weight);
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            v[j] = v[j] * rstd * weight[j];
        store_part(y, i, size, v);
    });
}
extern "C" __global__ void rms_norm_f32(const float* x, const float* w, float* y, unsigned num_rows, unsigned size, float eps) {
    rms_norm(x, w, y, num_rows, size, eps);
}
extern "C" __global__ void rms_norm_bf16(const bf16* x, const bf16* w, bf16* y, unsigned num_rows, unsigned size, float eps) {
    rms_norm(x, w, y, num_rows, size, eps);
}

// dx, and the rows' 1 / rms for the gradient of the weight, which `column_sums` takes.
template <class T>
__device__ __forceinline__ void rms_norm_backward(const T* x, const T* w, const T* dy, T* dx, float* rstds, unsigned num_rows,
                                                  unsigned size, float eps) {
    const size_t row = static_cast<size_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= num_rows)
        return;
    x += row * size, dy += row * size, dx += row * size;
    const float rstd = reciprocal_rms(x, size, eps);
    float inner = 0.0f;
    over_row(size, [&](unsigned i) {
        float v[WIDE], weight[WIDE], d[WIDE];
        load_part(x, i, size, v);
        load_part(w, i, size, weight);
        load_part(dy, i, size, d);
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            inner += d[j] * weight[j] * v[j];
    });
    inner = warp_sum(inner) * rstd / size;
    over_row(size, [&](unsigned i) {
        float v[WIDE], weight[WIDE], d[WIDE];
        load_part(x, i, size, v);
        load_part(w, i, size, weight);
        load_part(dy, i, size, d);
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            v[j] = rstd * (d[j] * weight[j] - v[j] * rstd * inner);
        store_part(dx, i, size, v);
    });
    if (threadIdx.x % 32 == 0)
        rstds[row] = rstd;
}
extern "C" __global__ void rms_norm_backward_f32(const float* x, const float* w, const float* dy, float* dx, float* rstds,
                                                 unsigned num_rows, unsigned size, float eps) {
    rms_norm_backward(x, w, dy, dx, rstds, num_rows, size, eps);
}
extern "C" __global__ void rms_norm_backward_bf16(const bf16* x, const bf16* w, const bf16* dy, bf16* dx, float* rstds,
                                                  unsigned num_rows, unsigned size, float eps) {
    rms_norm_backward(x, w, dy, dx, rstds, num_rows, size, eps);
}

// Sums over rows `[num_rows, size]`, a part of the rows a block row: `parts[blockIdx.y][column]`. With `x`, of
// `a * x * scale of the row`. Threads: 32 columns x 8 rows.
template <class T>
__device__ __forceinline__ void column_sums(const T* a, const T* x, const float* scales, float* parts, unsigned num_rows,
                                            unsigned size, unsigned rows_a_part) {
    __shared__ float sums[8][33];
    const unsigned column = blockIdx.x * 32 + threadIdx.x % 32, of_block = threadIdx.x / 32;
    const unsigned first = blockIdx.y * rows_a_part, end = min(first + rows_a_part, num_rows);
    float sum = 0.0f;
    if (column < size) {
        for (unsigned row = first + of_block; row < end; row += 8) {
            const size_t at = static_cast<size_t>(row) * size + column;
            sum += scales == nullptr ? to_float(a[at]) : to_float(a[at]) * to_float(x[at]) * scales[row];
        }
    }
    sums[of_block][threadIdx.x % 32] = sum;
    __syncthreads();
    if (of_block == 0 && column < size) {
        for (int i = 1; i < 8; i++)
            sum += sums[i][threadIdx.x % 32];
        parts[static_cast<size_t>(blockIdx.y) * size + column] = sum;
    }
}
extern "C" __global__ void column_sums_f32(const float* a, const float* x, const float* scales, float* parts, unsigned num_rows,
                                           unsigned size, unsigned rows_a_part) {
    column_sums(a, x, scales, parts, num_rows, size, rows_a_part);
}
extern "C" __global__ void column_sums_bf16(const bf16* a, const bf16* x, const float* scales, float* parts, unsigned num_rows,
                                            unsigned size, unsigned rows_a_part) {
    column_sums(a, x, scales, parts, num_rows, size, rows_a_part);
}

// The two halves of each head rotated. Grid: T x H x D/2 pairs; `sign` is -1 for the backward.
template <class T>
__device__ __forceinline__ void rope(const T* x, const float* cos, const float* sin, const unsigned* positions, T* y,
                                     unsigned num_tokens, unsigned num_heads, unsigned half, float sign) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(num_tokens) * num_heads * half)
        return;
    const size_t row = i / half;
    const unsigned pair = i % half, token = row / num_heads;
    const size_t angle = static_cast<size_t>(positions[token]) * half + pair, at = row * 2 * half + pair;
    const float c = cos[angle], s = sign * sin[angle], x1 = to_float(x[at]), x2 = to_float(x[at + half]);
    store(y + at, x1 * c - x2 * s);
    store(y + at + half, x2 * c + x1 * s);
}
extern "C" __global__ void rope_f32(const float* x, const float* cos, const float* sin, const unsigned* positions, float* y,
                                    unsigned num_tokens, unsigned num_heads, unsigned half, float sign) {
    rope(x, cos, sin, positions, y, num_tokens, num_heads, half, sign);
}
extern "C" __global__ void rope_bf16(const bf16* x, const float* cos, const float* sin, const unsigned* positions, bf16* y,
                                     unsigned num_tokens, unsigned num_heads, unsigned half, float sign) {
    rope(x, cos, sin, positions, y, num_tokens, num_heads, half, sign);
}

// Elements by the thread, WIDE at a time where that divides their number and one at a time elsewhere.
template <class F> __device__ __forceinline__ void over_elements(size_t num, F each) {
    const size_t first = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * WIDE;
    if (first < num)
        each(first);
}
template <class T> __device__ __forceinline__ void load_some(const T* at, size_t i, size_t num, float (&v)[WIDE]) {
    if (num % WIDE == 0) {
        load_wide(at + i, v);
    } else {
        for (int j = 0; j < WIDE; j++)
            v[j] = i + j < num ? to_float(at[i + j]) : 0.0f;
    }
}
template <class T> __device__ __forceinline__ void store_some(T* at, size_t i, size_t num, const float (&v)[WIDE]) {
    if (num % WIDE == 0) {
        store_wide(at + i, v);
    } else {
        for (int j = 0; j < WIDE; j++)
            if (i + j < num)
                store(at + i + j, v[j]);
    }
}

__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

template <class T> __device__ __forceinline__ void swiglu(const T* gate, const T* up, T* y, size_t num) {
    over_elements(num, [&](size_t i) {
        float g[WIDE], u[WIDE];
        load_some(gate, i, num, g);
        load_some(up, i, num, u);
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            g[j] = g[j] * sigmoid(g[j]) * u[j];
        store_some(y, i, num, g);
    });
}
extern "C" __global__ void swiglu_f32(const float* gate, const float* up, float* y, size_t num) {
    swiglu(gate, up, y, num);
}
extern "C" __global__ void swiglu_bf16(const bf16* gate, const bf16* up, bf16* y, size_t num) {
    swiglu(gate, up, y, num);
}

template <class T>
__device__ __forceinline__ void swiglu_backward(const T* gate, const T* up, const T* dy, T* dgate, T* dup, size_t num) {
    over_elements(num, [&](size_t i) {
        float g[WIDE], u[WIDE], d[WIDE];
        load_some(gate, i, num, g);
        load_some(up, i, num, u);
        load_some(dy, i, num, d);
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            const float s = sigmoid(g[j]);
            const float slope = s * (1.0f + g[j] * (1.0f - s));
            const float of_up = d[j] * g[j] * s;
            g[j] = d[j] * u[j] * slope;
            u[j] = of_up;
        }
        store_some(dgate, i, num, g);
        store_some(dup, i, num, u);
    });
}
extern "C" __global__ void swiglu_backward_f32(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                                               size_t num) {
    swiglu_backward(gate, up, dy, dgate, dup, num);
}
extern "C" __global__ void swiglu_backward_bf16(const bf16* gate, const bf16* up, const bf16* dy, bf16* dgate, bf16* dup,
                                                size_t num) {
    swiglu_backward(gate, up, dy, dgate, dup, num);
}

// dst += x
template <class D, class X> __device__ __forceinline__ void add(D* dst, const X* x, size_t num) {
    over_elements(num, [&](size_t i) {
        float a[WIDE], b[WIDE];
        load_some(dst, i, num, a);
        load_some(x, i, num, b);
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            a[j] += b[j];
        store_some(dst, i, num, a);
    });
}
extern "C" __global__ void add_f32(float* dst, const float* x, size_t num) {
    add(dst, x, num);
}
extern "C" __global__ void add_bf16(bf16* dst, const bf16* x, size_t num) {
    add(dst, x, num);
}
extern "C" __global__ void add_to_f32_bf16(float* dst, const bf16* x, size_t num) {
    add(dst, x, num);
}

// rows += bias
template <class T> __device__ __forceinline__ void add_bias(T* y, const T* bias, size_t num, unsigned size) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < num)
        store(y + i, to_float(y[i]) + to_float(bias[i % size]));
}
extern "C" __global__ void add_bias_f32(float* y, const float* bias, size_t num, unsigned size) {
    add_bias(y, bias, num, size);
}
extern "C" __global__ void add_bias_bf16(bf16* y, const bf16* bias, size_t num, unsigned size) {
    add_bias(y, bias, num, size);
}

// sums[row_ids[r]] += rows of dy that `order[starts[r] .. starts[r + 1]]` names. Grid: distinct ids x columns.
template <class T>
__device__ __forceinline__ void add_rows(float* sums, const T* dy, const unsigned* row_ids, const unsigned* starts,
                                         const unsigned* order, unsigned size) {
    const unsigned column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= size)
        return;
    const unsigned end = starts[blockIdx.x + 1];
    float sum = 0.0f;
    for (unsigned i = starts[blockIdx.x]; i < end; i++)
        sum += to_float(dy[static_cast<size_t>(order[i]) * size + column]);
    sums[static_cast<size_t>(row_ids[blockIdx.x]) * size + column] += sum;
}
extern "C" __global__ void add_rows_f32(float* sums, const float* dy, const unsigned* row_ids, const unsigned* starts,
                                        const unsigned* order, unsigned size) {
    add_rows(sums, dy, row_ids, starts, order, size);
}
extern "C" __global__ void add_rows_bf16(float* sums, const bf16* dy, const unsigned* row_ids, const unsigned* starts,
                                         const unsigned* order, unsigned size) {
    add_rows(sums, dy, row_ids, starts, order, size);
}
