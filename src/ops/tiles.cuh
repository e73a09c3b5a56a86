// Tiles of bf16 values in shared memory, and products of them in tensor cores: what both kinds of attention are made of.
#pragma once

#include "kernel.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// Tiles: rows of D values in shared memory, in chunks of 16 bytes, at a multiple of 256 bytes. Chunk `c` of row `r` lies at
// `c ^ r % 8`: the same chunk of eight rows that follow each other, which ldmatrix reads at once, lies in different banks.
// Places in tiles are bytes from the start of shared memory.
template <int D> constexpr int ROW = 2 * D; // bytes

template <int D> __device__ __forceinline__ int place_of(int tile, int row, int chunk) {
    return tile + row * ROW<D> + (chunk ^ row % 8) * 16;
}

// The place that a lane names in `ldmatrix` for fragments in the layout of mma_bf16, in the first 16 columns.
// Left side, rows `row..row + 16` of a tile; also right side, whose rows `row..row + 16` are summed over.
template <int D> __device__ __forceinline__ int lane_place(int tile, int row) {
    const int lane = threadIdx.x % 32;
    return place_of<D>(tile, row + lane % 16, lane / 16);
}
// Right side, whose rows `row..row + 16` are the columns of the result.
template <int D> __device__ __forceinline__ int lane_place_transposed(int tile, int row) {
    const int lane = threadIdx.x % 32;
    return place_of<D>(tile, row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// The same, 16 `step` columns further to the right.
__device__ __forceinline__ int at_step(int lane_place, int step) {
    return (lane_place ^ step % 4 * 32) + step / 4 * 128;
}

// ROWS rows, `stride` values apart, to a tile; zeros after the first `num_rows`, of which there is one at least.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void copy_tile(unsigned char* shared, int tile, const bf16* from, size_t stride, int num_rows) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0);
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const int to = place_of<D>(tile, row, chunk);
    from += chunk * 8;
    const bf16* at = from + row * stride;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        const bool valid = row + i * STEP < num_rows;
        copy_async_16(shared + to + i * STEP * ROW<D>, valid ? at : from, valid);
        at += STEP * stride;
    }
}

// Products of a warp's M x 16 rows. Sums: `s[m][n]` is 16 x 8 of them; a lane's four lie in rows `lane / 4` and that + 8,
// in columns `lane % 4 * 2` and that + 1.

template <int M, int N> __device__ __forceinline__ void clear(float (&sum)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[m][n][i] = 0.0f;
}

// s = left right^T, over D; `left` is a lane_place, `right` a lane_place_transposed.
template <int D, int M, int N>
__device__ __forceinline__ void scores(float (&s)[M][N][4], const unsigned char* shared, int left, int right) {
    clear(s);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
            ldmatrix_x4(a[m], shared + at_step(left, k) + 16 * m * ROW<D>);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned b[4];
            ldmatrix_x4(b, shared + at_step(right, k) + 8 * n * ROW<D>);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16(s[m][n], a[m], {b[0], b[1]});
                mma_bf16(s[m][n + 1], a[m], {b[2], b[3]});
            }
        }
    }
}

// 16 columns of sums as the left side of the next product.
template <int M, int N> __device__ __forceinline__ void round_to_left(unsigned (&a)[M][4], const float (&p)[M][N][4], int k) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            a[m][2 * half] = pack_bf16(p[m][2 * k + half][0], p[m][2 * k + half][1]);
            a[m][2 * half + 1] = pack_bf16(p[m][2 * k + half][2], p[m][2 * k + half][3]);
        }
}

// sum += p right, over 16 rows of `right`, a lane_place.
template <int D, int M>
__device__ __forceinline__ void add_product(float (&sum)[M][D / 8][4], const unsigned (&p)[M][4], const unsigned char* shared,
                                            int right) {
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        unsigned b[4];
        ldmatrix_x4_transposed(b, shared + at_step(right, n));
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma_bf16(sum[m][2 * n], p[m], {b[0], b[1]});
            mma_bf16(sum[m][2 * n + 1], p[m], {b[2], b[3]});
        }
    }
}
