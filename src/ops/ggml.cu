// GGML's blocks, q8_0 and q4_k, back to values (ggml.rs).
#include "kernel.cuh"

__device__ __forceinline__ float code_of(unsigned pair, int high) {
    return static_cast<float>(static_cast<int8_t>(pair >> 8 * high));
}

// A thread a quarter of a block, which begins at an even address only.
template <class T> __device__ __forceinline__ void q8_0(const uint8_t* blocks, T* w, size_t num) {
    const size_t thread = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread * WIDE >= num)
        return;
    const uint16_t* block = reinterpret_cast<const uint16_t*>(blocks + thread / 4 * 34);
    const uint16_t* codes = block + 1 + thread % 4 * (WIDE / 2);
    const float d = half_bits_to_float(block[0]);
    float v[WIDE];
#pragma unroll
    for (int i = 0; i < WIDE; i++)
        v[i] = d * code_of(codes[i / 2], i % 2);
    store_wide(w + thread * WIDE, v);
}
extern "C" __global__ void dequantise_q8_0_f32(const uint8_t* blocks, float* w, size_t num) {
    q8_0(blocks, w, num);
}
extern "C" __global__ void dequantise_q8_0_bf16(const uint8_t* blocks, bf16* w, size_t num) {
    q8_0(blocks, w, num);
}

// 6 bits of scale and of min of the j-th group of 32 values: see scale_and_min in ggml.rs.
__device__ __forceinline__ void scale_and_min(uint4 head, int j, float& scale, float& min) {
    const float d = half_bits_to_float(static_cast<uint16_t>(head.x)), dmin = half_bits_to_float(static_cast<uint16_t>(head.x >> 16));
    const int shift = 8 * (j % 4);
    const unsigned a = head.y >> shift & 0xff, b = head.z >> shift & 0xff, c = head.w >> shift & 0xff;
    scale = d * static_cast<float>(j < 4 ? a & 63 : (c & 15) | a >> 6 << 4);
    min = dmin * static_cast<float>(j < 4 ? b & 63 : c >> 4 | b >> 6 << 4);
}

// A thread 8 bytes of codes: in their low halves 8 values of a group, in the high ones those of the next group.
template <class T> __device__ __forceinline__ void q4_k(const uint8_t* blocks, T* w, size_t num) {
    const size_t thread = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread * 2 * WIDE >= num)
        return;
    const uint8_t* block = blocks + thread / 16 * 144;
    const int pair = thread % 16 / 4, part = thread % 4;
    const uint4 head = *reinterpret_cast<const uint4*>(block);
    const uint2 codes = *reinterpret_cast<const uint2*>(block + 16 + 32 * pair + WIDE * part);
    T* at = w + thread / 16 * 256 + 64 * pair + WIDE * part;
#pragma unroll
    for (int high = 0; high < 2; high++) {
        float scale, min, v[WIDE];
        scale_and_min(head, 2 * pair + high, scale, min);
#pragma unroll
        for (int i = 0; i < WIDE; i++) {
            const unsigned code = (i < 4 ? codes.x : codes.y) >> (8 * (i % 4) + 4 * high) & 15;
            v[i] = scale * static_cast<float>(code) - min;
        }
        store_wide(at + 32 * high, v);
    }
}
extern "C" __global__ void dequantise_q4_k_f32(const uint8_t* blocks, float* w, size_t num) {
    q4_k(blocks, w, num);
}
extern "C" __global__ void dequantise_q4_k_bf16(const uint8_t* blocks, bf16* w, size_t num) {
    q4_k(blocks, w, num);
}
