// The update: squares of the gradient's norm, and AdamW with states in f32 or in 8 bits.
#include "kernel.cuh"

// parts[offset + block] = sum of squares of the block's share, in f64: the square of a norm over 10^9 values.
extern "C" __global__ void sum_squares_f32(const float* x, double* parts, size_t num) {
    __shared__ double of_threads[256];
    double sum = 0.0;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num;
         i += static_cast<size_t>(gridDim.x) * blockDim.x)
        sum += static_cast<double>(x[i]) * x[i];
    of_threads[threadIdx.x] = sum;
    for (unsigned half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            of_threads[threadIdx.x] += of_threads[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        parts[blockIdx.x] = of_threads[0];
}

// Constants of a step: `decay` = 1 - lr wd, `rate` = lr / (1 - b1^t), `correction` = 1 / (1 - b2^t).
struct Adam {
    float beta1, beta2, eps, decay, rate, correction, grad_scale;
};

__device__ __forceinline__ float adam(float w, float g, float& m, float& v, const Adam& c) {
    g *= c.grad_scale;
    m = m * c.beta1 + g * (1.0f - c.beta1);
    v = v * c.beta2 + g * g * (1.0f - c.beta2);
    return w * c.decay - c.rate * m / (sqrtf(v * c.correction) + c.eps);
}

// Weights of a step: `w` in f32; or `w`, which is then the master copy, and `rounded`, which takes it rounded to bf16; or,
// without `w`, `rounded` and `rest`, the distance of the f32 number's bits from it (ops/master.rs).
struct Weights {
    float* w;
    bf16* rounded;
    int16_t* rest;

    __device__ __forceinline__ float read(size_t i) const {
        if (w != nullptr)
            return w[i];
        const uint32_t high = static_cast<uint32_t>(rounded[i].bits) << 16;
        return __uint_as_float(high + static_cast<uint32_t>(static_cast<int32_t>(rest[i])));
    }

    __device__ __forceinline__ void write(size_t i, float updated) const {
        if (w != nullptr)
            w[i] = updated;
        if (rounded != nullptr)
            store(rounded + i, updated);
        if (w == nullptr) {
            const uint32_t high = static_cast<uint32_t>(rounded[i].bits) << 16;
            const int32_t left = static_cast<int32_t>(__float_as_uint(updated) - high);
            rest[i] = static_cast<int16_t>(min(max(left, -0x8000), 0x7fff));
        }
    }
};

extern "C" __global__ void adamw_f32(float* w, bf16* rounded, int16_t* rest, float* m, float* v, const float* grad, size_t num,
                                     float beta1, float beta2, float eps, float decay, float rate, float correction,
                                     float grad_scale) {
    const Adam c{beta1, beta2, eps, decay, rate, correction, grad_scale};
    const Weights weights{w, rounded, rest};
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num)
        return;
    weights.write(i, adam(weights.read(i), grad[i], m[i], v[i], c));
}

// Place of the value of an ascending map of 256 that is nearest; halfway, the lower.
__device__ __forceinline__ uint8_t nearest(const float* map, float v) {
    int low = 0, high = 255;
    while (low < high) {
        const int mid = (low + high) / 2;
        if (v > (map[mid] + map[mid + 1]) / 2.0f)
            low = mid + 1;
        else
            high = mid;
    }
    return static_cast<uint8_t>(low);
}

// States in 8 bits: codes into maps, signed of m and unsigned of v, times the scale of their 256 values (arXiv 2110.02861).
// A block of 256 threads a block of values.
extern "C" __global__ void adamw_8bit(float* w, bf16* rounded, int16_t* rest, uint8_t* m_codes, float* m_scales, uint8_t* v_codes,
                                      float* v_scales, const float* m_map, const float* v_map, const float* grad, size_t num,
                                      float beta1, float beta2, float eps, float decay, float rate, float correction,
                                      float grad_scale) {
    __shared__ float maps[2][256];
    __shared__ float of_warps[32];
    const Adam c{beta1, beta2, eps, decay, rate, correction, grad_scale};
    const Weights weights{w, rounded, rest};
    maps[0][threadIdx.x] = m_map[threadIdx.x];
    maps[1][threadIdx.x] = v_map[threadIdx.x];
    __syncthreads();
    const size_t i = static_cast<size_t>(blockIdx.x) * 256 + threadIdx.x;
    float m = 0.0f, v = 0.0f;
    if (i < num) {
        m = maps[0][m_codes[i]] * m_scales[blockIdx.x];
        v = maps[1][v_codes[i]] * v_scales[blockIdx.x];
        weights.write(i, adam(weights.read(i), grad[i], m, v, c));
    }
    const float m_scale = block_max(fabsf(m), of_warps), v_scale = block_max(v, of_warps);
    // below it a scale is as good as 0
    constexpr float LEAST = 1e-38f;
    if (i < num) {
        m_codes[i] = nearest(maps[0], m * (1.0f / fmaxf(m_scale, LEAST)));
        v_codes[i] = nearest(maps[1], v * (1.0f / fmaxf(v_scale, LEAST)));
    }
    // the old scales were read before the barriers of block_max
    if (threadIdx.x == 0) {
        m_scales[blockIdx.x] = m_scale;
        v_scales[blockIdx.x] = v_scale;
    }
}
