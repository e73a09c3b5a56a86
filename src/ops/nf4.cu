// 4-bit NormalFloat with double quantisation, back to values (nf4.rs).
#include "kernel.cuh"

// A thread a byte, which is two values; blocks of 64 values share a scale, 256 scales share one of theirs.
template <class T>
__device__ __forceinline__ void dequantise(const uint8_t* codes, const uint8_t* scale_codes, const float* scales,
                                           const float* values, const float* scale_map, float offset, T* w, size_t num) {
    const size_t byte = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (2 * byte >= num)
        return;
    const size_t block = byte / 32;
    const float scale = scale_map[scale_codes[block]] * scales[block / 256] + offset;
    const uint8_t pair = codes[byte];
    store(w + 2 * byte, values[pair >> 4] * scale);
    if (2 * byte + 1 < num)
        store(w + 2 * byte + 1, values[pair & 15] * scale);
}
extern "C" __global__ void dequantise_nf4_f32(const uint8_t* codes, const uint8_t* scale_codes, const float* scales,
                                              const float* values, const float* scale_map, float offset, float* w, size_t num) {
    dequantise(codes, scale_codes, scales, values, scale_map, offset, w, num);
}
extern "C" __global__ void dequantise_nf4_bf16(const uint8_t* codes, const uint8_t* scale_codes, const float* scales,
                                               const float* values, const float* scale_map, float offset, bf16* w, size_t num) {
    dequantise(codes, scale_codes, scales, values, scale_map, offset, w, num);
}
