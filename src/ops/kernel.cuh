// What the kernels share: 16-bit values, sums over a warp, tensor cores, asynchronous copies.
//
// Kernels compute in f32 whatever they read; their names end in the dtype of their tensors. Everything that is not plain C++
// stands here, so that tests/cuda/emulator.h can stand in for it.
#pragma once

#ifdef EMULATOR
#include "emulator.h"
#else

#include <stdint.h>

#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

// Two values to bf16, the nearest, ties to even.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ uint16_t bf16_bits(float f) {
    return static_cast<uint16_t>(pack_bf16(f, 0.0f));
}

// The number that 16 bits are in f16.
__device__ __forceinline__ float half_bits_to_float(uint16_t bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}

// 2^x to 2 units in the last place; results below the normal numbers are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// d += a b, 16 x 8 from 16 x 16 and 16 x 8: in tensor cores, sums in f32.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8 16-bit values from shared memory; lane `8 i + r` names row `r` of matrix `i`.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
__device__ __forceinline__ void ldmatrix_x4_transposed(unsigned (&r)[4], const void* row) {
    unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

// 16 bytes to shared memory, zeros where not `valid`; both addresses are multiples of 16.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
    unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;");
}
// Waits until at most LEFT of the groups that were committed are under way.
template <int LEFT> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT));
}

#endif

struct bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float v) {
    return v;
}
__device__ __forceinline__ float to_float(bf16 v) {
    return __uint_as_float(static_cast<unsigned>(v.bits) << 16);
}
__device__ __forceinline__ void store(float* at, float v) {
    *at = v;
}
__device__ __forceinline__ void store(bf16* at, float v) {
    at->bits = bf16_bits(v);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2)
        v += __shfl_xor_sync(0xffffffff, v, mask);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, mask));
    return v;
}

// Values a thread reads or writes at once: 16 bytes of bf16, 32 of f32.
constexpr int WIDE = 8;

__device__ __forceinline__ void load_wide(const float* at, float (&v)[WIDE]) {
    const float4 a = reinterpret_cast<const float4*>(at)[0], b = reinterpret_cast<const float4*>(at)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void load_wide(const bf16* at, float (&v)[WIDE]) {
    const uint4 packed = *reinterpret_cast<const uint4*>(at);
    const unsigned pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(pairs[i] << 16);
        v[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void store_wide(float* at, const float (&v)[WIDE]) {
    reinterpret_cast<float4*>(at)[0] = float4{v[0], v[1], v[2], v[3]};
    reinterpret_cast<float4*>(at)[1] = float4{v[4], v[5], v[6], v[7]};
}
__device__ __forceinline__ void store_wide(bf16* at, const float (&v)[WIDE]) {
    *reinterpret_cast<uint4*>(at) = uint4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

// Sum over the threads of a block, for thread 0 and all others; `shared` holds a float a warp. The order is fixed.
__device__ __forceinline__ float block_sum(float v, float* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = (blockDim.x + 31) / 32;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0)
        shared[warp] = v;
    __syncthreads();
    v = warp_sum(lane < num_warps ? shared[lane] : 0.0f);
    return v;
}
__device__ __forceinline__ float block_max(float v, float* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = (blockDim.x + 31) / 32;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0)
        shared[warp] = v;
    __syncthreads();
    v = warp_max(lane < num_warps ? shared[lane] : -INFINITY);
    return v;
}
