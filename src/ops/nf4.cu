// 4-bit NormalFloat with double quantisation, back to values (nf4.rs).
#include "kernel.cuh"

// A thread 4 bytes, which are 8 values; blocks of 64 values share a scale, 256 scales share one of theirs. Codes fill whole
// blocks, values end where the matrix does.
template <class T>
__device__ __forceinline__ void dequantise(const uint8_t* codes, const uint8_t* scale_codes, const float* scales,
                                           const float* values, const float* scale_map, float offset, T* w, size_t num) {
    __shared__ float table[16];
    if (threadIdx.x < 16)
        table[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    const size_t thread = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, first = thread * WIDE;
    if (first >= num)
        return;
    const size_t block = first / 64;
    const float scale = scale_map[scale_codes[block]] * scales[block / 256] + offset;
    const unsigned packed = reinterpret_cast<const unsigned*>(codes)[thread];
    float v[WIDE];
    // the first of a byte is in its high half
#pragma unroll
    for (int i = 0; i < WIDE; i++)
        v[i] = table[packed >> (8 * (i / 2) + 4 * (1 - i % 2)) & 15] * scale;
    if (first + WIDE <= num) {
        store_wide(w + first, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < WIDE; i++)
        if (first + i < num)
            store(w + first + i, v[i]);
}
extern "C" __global__ void dequantise_nf4_f32(const uint8_t* codes, const uint8_t* scale_codes, const float* scales,
                                              const float* values, const float* scale_map, float offset, float* w, size_t num) {
    dequantise(codes, scale_codes, scales, values, scale_map, offset, w, num);
}
extern "C" __global__ void dequantise_nf4_bf16(const uint8_t* codes, const uint8_t* scale_codes, const float* scales,
                                               const float* values, const float* scale_map, float offset, bf16* w, size_t num) {
    dequantise(codes, scale_codes, scales, values, scale_map, offset, w, num);
}
