// Causal attention over packed sequences in bf16, forward and backward, for head dims 64 and 128: FlashAttention-2
// (arXiv 2307.08691) on tensor cores.
//
// Letters as in mod.rs: q, o `[T, H, D]`, k, v `[T, K, D]`, lse and delta `[T, H]`, all contiguous; query head `h` reads
// key/value head `h / (H / K)`. The host cuts each sequence into blocks of 128 tokens and names each block by three numbers:
// the sequence's first token, the token after its last, the block's first token. Blocks run in the order of that list, so
// that the host can put the longest first and the triangle under the diagonal fills the device evenly; the heads of a block
// run next to each other and share what they read through the L2 cache.
//
// A warp owns 16 or 32 whole rows of the block: queries in the forward pass and in that of dq, keys in that of dk and dv. So
// the scores never leave its registers: what the product of two tiles leaves there is, rounded to bf16, the left side of the
// next product. The other side streams through two stages of shared memory, a barrier a tile.
//
// The backward pass has two kernels. One kernel would need 5 products where these need 7 (scores and dP are made twice), but
// each of its blocks holds either the sums of dk and dv or that of dq, and would have to add the other to device memory in
// f32: by atomics, in an order, and so with a result, that changes from run to run, and with `T D` floats of traffic for each
// 128 keys. Here every sum has one owner and one order: the same bits each run.
#include "tiles.cuh"

constexpr int BLOCK = 128; // tokens of a work item

// Writes a warp's sums to rows `row..` of `to`, `stride` values apart, each times its scale (one for `lane / 4`, one for that
// + 8); only the first `num_rows` of the block. They go through a tile whose rows of these numbers nobody else reads, so that
// rows are written whole.
template <int D, int M>
__device__ __forceinline__ void write_rows(const float (&sum)[M][D / 8][4], const float (&scales)[M][2],
                                           unsigned char* shared, int tile, int row, bf16* to, size_t stride, int num_rows) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = place_of<D>(tile, row + 16 * m + 8 * half + lane / 4, n) + lane % 4 * 4;
                *reinterpret_cast<unsigned*>(shared + at) =
                    pack_bf16(sum[m][n][2 * half] * scales[m][half], sum[m][n][2 * half + 1] * scales[m][half]);
            }
    __syncwarp();
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = 0; i < M * 16 * CHUNKS / 32; i++) {
        const int r = row + lane / CHUNKS + i * (32 / CHUNKS), chunk = lane % CHUNKS;
        if (r < num_rows)
            *reinterpret_cast<uint4*>(to + r * stride + chunk * 8) = *reinterpret_cast<uint4*>(shared + place_of<D>(tile, r, chunk));
    }
}

// o = softmax(scale q k^T) v and lse = ln of the sum of exp of the scores, with a running maximum (section 3.1). `scale` is
// positive. 128 threads, `H x items` blocks; shared memory: Q, two stages of K and V.
template <int D, int KEYS>
__device__ __forceinline__ void forward(const bf16* q, const bf16* k, const bf16* v, const unsigned* items, bf16* o, float* lse,
                                        unsigned num_heads, unsigned num_kv, float scale) {
    constexpr int M = 2, THREADS = BLOCK / M / 16 * 32, N = KEYS / 8;
    DYNAMIC_SHARED(shared);
    constexpr int STAGE = KEYS * ROW<D>, TILE_Q = 0, TILES_K = BLOCK * ROW<D>, TILES_V = TILES_K + 2 * STAGE;
    const unsigned* item = items + 3 * blockIdx.y;
    const unsigned start = item[0], end = item[1], first = item[2];
    const unsigned head = blockIdx.x, kv_head = head / (num_heads / num_kv);
    const size_t q_stride = static_cast<size_t>(num_heads) * D, kv_stride = static_cast<size_t>(num_kv) * D;
    const size_t q_at = first * q_stride + head * D, kv_at = start * kv_stride + kv_head * D;
    const int num_rows = min(end - first, static_cast<unsigned>(BLOCK)), num_keys = first - start + num_rows;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * M;
    // the warp's first query, counted from the start of the sequence as keys are
    const int first_query = first - start + row;

    copy_tile<D, BLOCK, THREADS>(shared, TILE_Q, q + q_at, q_stride, num_rows);
    copy_tile<D, KEYS, THREADS>(shared, TILES_K, k + kv_at, kv_stride, num_keys);
    copy_tile<D, KEYS, THREADS>(shared, TILES_V, v + kv_at, kv_stride, num_keys);
    copy_async_commit();

    const float scale_log2 = scale * LOG2_E;
    float sum[M][D / 8][4], largest[M][2], total[M][2]; // a lane's part of each row's total
    clear(sum);
#pragma unroll
    for (int m = 0; m < M; m++)
        largest[m][0] = largest[m][1] = -INFINITY, total[m][0] = total[m][1] = 0.0f;

    for (int tile = 0; tile < num_keys; tile += KEYS) {
        copy_async_wait<0>();
        __syncthreads();
        const int next = tile + KEYS, stage = tile / KEYS % 2 * STAGE;
        if (next < num_keys) {
            const size_t at = kv_at + next * kv_stride;
            copy_tile<D, KEYS, THREADS>(shared, TILES_K + STAGE - stage, k + at, kv_stride, num_keys - next);
            copy_tile<D, KEYS, THREADS>(shared, TILES_V + STAGE - stage, v + at, kv_stride, num_keys - next);
            copy_async_commit();
        }
        if (tile > first_query + 16 * M - 1)
            continue; // all of it comes after this warp's queries
        float s[M][N][4];
        scores<D>(s, shared, lane_place<D>(TILE_Q, row), lane_place_transposed<D>(TILES_K + stage, 0));
        // what comes after a query, which keys after the end of the sequence do too
        if (tile + KEYS - 1 > first_query) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (tile + 8 * n + lane % 4 * 2 + i % 2 > first_query + 16 * m + lane / 4 + i / 2 * 8)
                            s[m][n][i] = -INFINITY;
        }
        // Every query sees key 0, which the first tile holds: the maximum is finite from there on. What was summed is
        // scaled only where the maximum has grown by more than 2^8: sums of values up to that lose nothing in f32.
        float most[M][2];
        bool grown = false;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float x = largest[m][half];
#pragma unroll
                for (int n = 0; n < N; n++)
                    x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
                x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
                most[m][half] = x;
                grown |= (x - largest[m][half]) * scale_log2 > 8.0f;
            }
        if (__any_sync(0xffffffff, grown)) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float shrink = exp2_fast((largest[m][half] - most[m][half]) * scale_log2);
                    largest[m][half] = most[m][half];
                    total[m][half] *= shrink;
#pragma unroll
                    for (int n = 0; n < D / 8; n++) {
                        sum[m][n][2 * half] *= shrink;
                        sum[m][n][2 * half + 1] *= shrink;
                    }
                }
        }
        // exponentials of the next 16 keys are made while the tensor cores work on these
#pragma unroll
        for (int step = 0; step < N / 2; step++) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 2 * step; n < 2 * step + 2; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        s[m][n][i] = exp2_fast((s[m][n][i] - largest[m][i / 2]) * scale_log2);
                        total[m][i / 2] += s[m][n][i];
                    }
            unsigned p[M][4];
            round_to_left(p, s, step);
            add_product<D>(sum, p, shared, lane_place<D>(TILES_V + stage, 16 * step));
        }
    }

    // what is needed here only is read again: the loop leaves no register free
    const unsigned first_row = item[2], rows_left = min(item[1] - first_row, static_cast<unsigned>(BLOCK));
    float scales[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float all = total[m][half];
            all += __shfl_xor_sync(0xffffffff, all, 1);
            all += __shfl_xor_sync(0xffffffff, all, 2);
            scales[m][half] = 1.0f / all;
            const unsigned r = row + 16 * m + 8 * half + lane / 4;
            if (lane % 4 == 0 && r < rows_left)
                lse[static_cast<size_t>(first_row + r) * num_heads + head] = largest[m][half] * scale + logf(all);
        }
    write_rows<D>(sum, scales, shared, TILE_Q, row, o + first_row * q_stride + head * D, q_stride, rows_left);
}

// delta = sum(do * o) of each row of D values. 256 threads, 256 / (D / 8) rows a block.
template <int D> __device__ __forceinline__ void row_delta(const bf16* o, const bf16* d_o, float* delta, unsigned num_rows) {
    constexpr int LANES = D / WIDE;
    const size_t row = static_cast<size_t>(blockIdx.x) * (256 / LANES) + threadIdx.x / LANES;
    const size_t at = min(row, static_cast<size_t>(num_rows) - 1) * D + threadIdx.x % LANES * WIDE;
    float a[WIDE], b[WIDE], sum = 0.0f;
    load_wide(o + at, a);
    load_wide(d_o + at, b);
#pragma unroll
    for (int i = 0; i < WIDE; i++)
        sum += a[i] * b[i];
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, mask);
    if (threadIdx.x % LANES == 0 && row < num_rows)
        delta[row] = sum;
}

// dq = scale dS k with P = exp(scale q k^T - lse), dP = do v^T, dS = P (dP - delta). 128 threads, `H x items` blocks; shared
// memory: Q, dO, two stages of K and V.
template <int D, int KEYS>
__device__ __forceinline__ void backward_q(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                           const float* delta, const unsigned* items, bf16* dq, unsigned num_heads,
                                           unsigned num_kv, float scale) {
    // keys of which a warp holds scores at a time: registers are what is short
    constexpr int M = 2, THREADS = BLOCK / M / 16 * 32, HELD = 32, N = HELD / 8;
    DYNAMIC_SHARED(shared);
    constexpr int STAGE = KEYS * ROW<D>, TILE_Q = 0, TILE_DO = BLOCK * ROW<D>, TILES_K = 2 * TILE_DO;
    constexpr int TILES_V = TILES_K + 2 * STAGE;
    const unsigned* item = items + 3 * blockIdx.y;
    const unsigned start = item[0], end = item[1], first = item[2];
    const unsigned head = blockIdx.x, kv_head = head / (num_heads / num_kv);
    const size_t q_stride = static_cast<size_t>(num_heads) * D, kv_stride = static_cast<size_t>(num_kv) * D;
    const size_t q_at = first * q_stride + head * D, kv_at = start * kv_stride + kv_head * D;
    const int num_rows = min(end - first, static_cast<unsigned>(BLOCK)), num_keys = first - start + num_rows;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * M;
    const int first_query = first - start + row;

    copy_tile<D, BLOCK, THREADS>(shared, TILE_Q, q + q_at, q_stride, num_rows);
    copy_tile<D, BLOCK, THREADS>(shared, TILE_DO, d_o + q_at, q_stride, num_rows);
    copy_tile<D, KEYS, THREADS>(shared, TILES_K, k + kv_at, kv_stride, num_keys);
    copy_tile<D, KEYS, THREADS>(shared, TILES_V, v + kv_at, kv_stride, num_keys);
    copy_async_commit();

    const float scale_log2 = scale * LOG2_E;
    float sum[M][D / 8][4], lse_log2[M][2], deltas[M][2];
    clear(sum);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row + 16 * m + 8 * half + lane / 4;
            const size_t at = static_cast<size_t>(first + min(r, num_rows - 1)) * num_heads + head;
            lse_log2[m][half] = lse[at] * LOG2_E;
            deltas[m][half] = delta[at];
        }

    for (int tile = 0; tile < num_keys; tile += KEYS) {
        copy_async_wait<0>();
        __syncthreads();
        const int next = tile + KEYS, stage = tile / KEYS % 2 * STAGE;
        if (next < num_keys) {
            const size_t at = kv_at + next * kv_stride;
            copy_tile<D, KEYS, THREADS>(shared, TILES_K + STAGE - stage, k + at, kv_stride, num_keys - next);
            copy_tile<D, KEYS, THREADS>(shared, TILES_V + STAGE - stage, v + at, kv_stride, num_keys - next);
            copy_async_commit();
        }
#pragma unroll
        for (int held = 0; held < KEYS; held += HELD) {
            const int key = tile + held;
            if (key > first_query + 16 * M - 1)
                continue;
            float p[M][N][4], dp[M][N][4];
            scores<D>(p, shared, lane_place<D>(TILE_Q, row), lane_place_transposed<D>(TILES_K + stage, held));
            scores<D>(dp, shared, lane_place<D>(TILE_DO, row), lane_place_transposed<D>(TILES_V + stage, held));
            const bool masked = key + HELD - 1 > first_query;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float prob = exp2_fast(p[m][n][i] * scale_log2 - lse_log2[m][i / 2]);
                        if (masked && key + 8 * n + lane % 4 * 2 + i % 2 > first_query + 16 * m + lane / 4 + i / 2 * 8)
                            prob = 0.0f;
                        p[m][n][i] = prob * (dp[m][n][i] - deltas[m][i / 2]);
                    }
#pragma unroll
            for (int step = 0; step < N / 2; step++) {
                unsigned ds[M][4];
                round_to_left(ds, p, step);
                add_product<D>(sum, ds, shared, lane_place<D>(TILES_K + stage, held + 16 * step));
            }
        }
    }
    float scales[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
        scales[m][0] = scales[m][1] = scale;
    write_rows<D>(sum, scales, shared, TILE_Q, row, dq + q_at, q_stride, num_rows);
}

// dv = P^T do and dk = scale dS^T q of a block of keys, over the queries of all heads that read them. A warp holds P^T and
// dS^T: rows are keys. `BLOCK / M / 16` warps, `K x items` blocks; shared memory: K, V, two stages of Q, dO, lse and delta.
template <int D, int M, int QUERIES, int HELD>
__device__ __forceinline__ void backward_kv(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                            const float* delta, const unsigned* items, bf16* dk, bf16* dv, unsigned num_heads,
                                            unsigned num_kv, float scale) {
    constexpr int THREADS = BLOCK / M / 16 * 32, N = HELD / 8;
    DYNAMIC_SHARED(shared);
    constexpr int STAGE = QUERIES * ROW<D>, TILE_K = 0, TILE_V = BLOCK * ROW<D>, TILES_Q = 2 * TILE_V;
    constexpr int TILES_DO = TILES_Q + 2 * STAGE;
    float* rows_of = reinterpret_cast<float*>(shared + TILES_DO + 2 * STAGE); // [2, (lse / ln 2, delta), QUERIES]
    const unsigned* item = items + 3 * blockIdx.y;
    const unsigned end = item[1], first = item[2];
    const unsigned group = num_heads / num_kv, kv_head = blockIdx.x;
    const size_t q_stride = static_cast<size_t>(num_heads) * D, kv_stride = static_cast<size_t>(num_kv) * D;
    const size_t kv_at = first * kv_stride + kv_head * D;
    // keys of the block, and queries that see any of them, both counted from the block's first token
    const unsigned num_rows = min(end - first, static_cast<unsigned>(BLOCK)), num_queries = end - first;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * M;
    const unsigned tiles_of_head = (num_queries + QUERIES - 1) / QUERIES, num_tiles = group * tiles_of_head;

    // lse and delta of the next tile: threads up to QUERIES read the one, as many after them the other
    float of_row = 0.0f;
    auto copy_queries = [&](unsigned tile) {
        const unsigned head = kv_head * group + tile / tiles_of_head, query = tile % tiles_of_head * QUERIES;
        const size_t at = (first + query) * q_stride + head * D;
        copy_tile<D, QUERIES, THREADS>(shared, TILES_Q + tile % 2 * STAGE, q + at, q_stride, num_queries - query);
        copy_tile<D, QUERIES, THREADS>(shared, TILES_DO + tile % 2 * STAGE, d_o + at, q_stride, num_queries - query);
        copy_async_commit();
        const unsigned r = query + threadIdx.x % QUERIES;
        if (threadIdx.x < 2 * QUERIES) {
            const size_t row_at = static_cast<size_t>(first + min(r, num_queries - 1)) * num_heads + head;
            of_row = threadIdx.x < QUERIES ? lse[row_at] * LOG2_E : delta[row_at];
            if (r >= num_queries) // P = exp2(-inf) = 0
                of_row = threadIdx.x < QUERIES ? INFINITY : 0.0f;
        }
    };
    auto store_rows = [&](unsigned tile) {
        if (threadIdx.x < 2 * QUERIES)
            rows_of[tile % 2 * 2 * QUERIES + threadIdx.x] = of_row;
    };
    copy_tile<D, BLOCK, THREADS>(shared, TILE_K, k + kv_at, kv_stride, num_rows);
    copy_tile<D, BLOCK, THREADS>(shared, TILE_V, v + kv_at, kv_stride, num_rows);
    copy_queries(0);
    store_rows(0);

    const float scale_log2 = scale * LOG2_E;
    float sum_k[M][D / 8][4], sum_v[M][D / 8][4];
    clear(sum_k);
    clear(sum_v);
    for (unsigned tile = 0; tile < num_tiles; tile++) {
        copy_async_wait<0>();
        __syncthreads();
        if (tile + 1 < num_tiles)
            copy_queries(tile + 1);
        const int stage = tile % 2 * STAGE;
        const float* lse_log2 = rows_of + tile % 2 * 2 * QUERIES;
        const float* deltas = lse_log2 + QUERIES;
#pragma unroll
        for (int held = 0; held < QUERIES; held += HELD) {
            const int query = tile % tiles_of_head * QUERIES + held;
            if (row > query + HELD - 1)
                continue; // all of these come before the warp's keys
            float p[M][N][4], dp[M][N][4];
            scores<D>(p, shared, lane_place<D>(TILE_K, row), lane_place_transposed<D>(TILES_Q + stage, held));
            const bool masked = row + 16 * M - 1 > query;
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 l = *reinterpret_cast<const float2*>(lse_log2 + held + 8 * n + lane % 4 * 2);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        p[m][n][i] = exp2_fast(p[m][n][i] * scale_log2 - (i % 2 ? l.y : l.x));
                        if (masked && row + 16 * m + lane / 4 + i / 2 * 8 > query + 8 * n + lane % 4 * 2 + i % 2)
                            p[m][n][i] = 0.0f;
                    }
            }
            scores<D>(dp, shared, lane_place<D>(TILE_V, row), lane_place_transposed<D>(TILES_DO + stage, held));
            unsigned a[M][4];
#pragma unroll
            for (int step = 0; step < N / 2; step++) {
                round_to_left(a, p, step);
                add_product<D>(sum_v, a, shared, lane_place<D>(TILES_DO + stage, held + 16 * step));
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 d = *reinterpret_cast<const float2*>(deltas + held + 8 * n + lane % 4 * 2);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        p[m][n][i] *= dp[m][n][i] - (i % 2 ? d.y : d.x);
            }
#pragma unroll
            for (int step = 0; step < N / 2; step++) {
                round_to_left(a, p, step);
                add_product<D>(sum_k, a, shared, lane_place<D>(TILES_Q + stage, held + 16 * step));
            }
        }
        if (tile + 1 < num_tiles)
            store_rows(tile + 1);
    }
    float scales[M][2], ones[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        scales[m][0] = scales[m][1] = scale;
        ones[m][0] = ones[m][1] = 1.0f;
    }
    // read again: the loop leaves no register free
    const unsigned first_row = item[2], rows_left = min(item[1] - first_row, static_cast<unsigned>(BLOCK));
    const size_t at = first_row * kv_stride + kv_head * D;
    write_rows<D>(sum_k, scales, shared, TILE_K, row, dk + at, kv_stride, rows_left);
    write_rows<D>(sum_v, ones, shared, TILE_V, row, dv + at, kv_stride, rows_left);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    attention_forward_bf16_d64(const bf16* q, const bf16* k, const bf16* v, const unsigned* items, bf16* o, float* lse,
                               unsigned num_heads, unsigned num_kv, float scale) {
    forward<64, 64>(q, k, v, items, o, lse, num_heads, num_kv, scale);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_forward_bf16_d128(const bf16* q, const bf16* k, const bf16* v, const unsigned* items, bf16* o, float* lse,
                                unsigned num_heads, unsigned num_kv, float scale) {
    forward<128, 64>(q, k, v, items, o, lse, num_heads, num_kv, scale);
}

extern "C" __global__ void __launch_bounds__(256)
    attention_delta_bf16_d64(const bf16* o, const bf16* d_o, float* delta, unsigned num_rows) {
    row_delta<64>(o, d_o, delta, num_rows);
}
extern "C" __global__ void __launch_bounds__(256)
    attention_delta_bf16_d128(const bf16* o, const bf16* d_o, float* delta, unsigned num_rows) {
    row_delta<128>(o, d_o, delta, num_rows);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    attention_backward_q_bf16_d64(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                  const float* delta, const unsigned* items, bf16* dq, unsigned num_heads, unsigned num_kv,
                                  float scale) {
    backward_q<64, 64>(q, k, v, d_o, lse, delta, items, dq, num_heads, num_kv, scale);
}
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_backward_q_bf16_d128(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                   const float* delta, const unsigned* items, bf16* dq, unsigned num_heads, unsigned num_kv,
                                   float scale) {
    backward_q<128, 32>(q, k, v, d_o, lse, delta, items, dq, num_heads, num_kv, scale);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    attention_backward_kv_bf16_d64(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                   const float* delta, const unsigned* items, bf16* dk, bf16* dv, unsigned num_heads,
                                   unsigned num_kv, float scale) {
    backward_kv<64, 2, 64, 32>(q, k, v, d_o, lse, delta, items, dk, dv, num_heads, num_kv, scale);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    attention_backward_kv_bf16_d128(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                    const float* delta, const unsigned* items, bf16* dk, bf16* dv, unsigned num_heads,
                                    unsigned num_kv, float scale) {
    backward_kv<128, 1, 64, 64>(q, k, v, d_o, lse, delta, items, dk, dv, num_heads, num_kv, scale);
}
// for devices with less than 130 KiB of shared memory a block
extern "C" __global__ void __launch_bounds__(256, 1)
    attention_backward_kv_small_bf16_d128(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse,
                                          const float* delta, const unsigned* items, bf16* dk, bf16* dv, unsigned num_heads,
                                          unsigned num_kv, float scale) {
    backward_kv<128, 1, 32, 32>(q, k, v, d_o, lse, delta, items, dk, dv, num_heads, num_kv, scale);
}
