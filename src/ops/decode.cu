// Attention of one query a sequence over its cached keys and values, and the cache's own growth.
//
// Letters as in mod.rs: q, o `[B, H, D]`, caches `[S, K, P, D]`; sequence `b` has `lens[b]` positions in slot `slots[b]`. Reading
// the cache is what takes the time: the query heads that share a key/value head are one block's, which reads each key and
// value once, and sequences are split in parts of 128 positions, so that one long sequence is many blocks' work.
//
// A row's result depends on that row only, bit for bit: the parts are the same whatever else is in the batch, each part is
// summed by one block in one order, and the parts of a row are joined in order. A sequence of one part is the same as its
// only part joined.
#include "tiles.cuh"

constexpr int PART = 128; // positions

// A block's share of the batch.
struct Place {
    int heads;         // of this block
    int num_positions; // of its part; none where the sequence ends before it
    size_t row;        // its first head among all rows `[B, H]`
    size_t cached;     // where its first key and value lie
    unsigned part, num_parts;
};

// Grid: key/value heads times tiles of HEADS heads, sequences, parts.
template <int HEADS>
__device__ __forceinline__ Place place_in_batch(const unsigned* slots, const unsigned* lens, unsigned num_heads, unsigned num_kv,
                                                unsigned num_cached, unsigned head_dim) {
    const unsigned group = num_heads / num_kv, kv_head = blockIdx.x % num_kv, first = blockIdx.x / num_kv * HEADS;
    const unsigned sequence = blockIdx.y, position = blockIdx.z * PART, len = min(lens[sequence], num_cached);
    Place place;
    place.heads = min(group - first, static_cast<unsigned>(HEADS));
    place.num_positions = position < len ? min(len - position, static_cast<unsigned>(PART)) : 0;
    place.row = static_cast<size_t>(sequence) * num_heads + kv_head * group + first;
    place.cached = ((static_cast<size_t>(slots[sequence]) * num_kv + kv_head) * num_cached + position) * head_dim;
    place.part = blockIdx.z;
    place.num_parts = gridDim.z;
    return place;
}

// A part leaves of each head the sum of the values times 2^(score log2(e) - largest), which `join` divides by the sum of these
// weights, and as statistics the largest and that sum. Here WIDE values; where there is one part only, the result.
template <class T>
__device__ __forceinline__ void leave(const Place& place, int head, unsigned head_dim, unsigned dim, float (&sum)[WIDE], float total,
                                      float* sums, T* o) {
    const size_t row = place.row + head;
    if (place.num_parts == 1) {
#pragma unroll
        for (int i = 0; i < WIDE; i++)
            sum[i] = sum[i] / total;
        store_wide(o + row * head_dim + dim, sum);
    } else {
        store_wide(sums + (row * place.num_parts + place.part) * head_dim + dim, sum);
    }
}
__device__ __forceinline__ void leave_stats(const Place& place, int head, float largest, float total, float* stats) {
    if (place.num_parts > 1) {
        float* at = stats + ((place.row + head) * place.num_parts + place.part) * 2;
        at[0] = largest;
        at[1] = total;
    }
}

// Tensor cores, bf16. The heads are the rows of a product that has 16 of them; a warp takes 32 positions. All of the part is
// on its way before the first product. 128 threads; shared memory: Q, K, V, statistics.
template <int D>
__device__ __forceinline__ void attend_in_tiles(const bf16* q, const bf16* keys, const bf16* values, const unsigned* slots,
                                                const unsigned* lens, float* sums, float* stats, bf16* o, unsigned num_heads,
                                                unsigned num_kv, unsigned num_cached, float scale) {
    constexpr int HEADS = 16, WARPS = 4, OWN = PART / WARPS, N = OWN / 8;
    constexpr int TILE_Q = 0, TILE_K = HEADS * ROW<D>, TILE_V = TILE_K + PART * ROW<D>, STATS = TILE_V + PART * ROW<D>;
    DYNAMIC_SHARED(shared);
    float* largest_of = reinterpret_cast<float*>(shared + STATS); // [WARPS, HEADS]
    float* total_of = largest_of + WARPS * HEADS;                 // [WARPS, HEADS]
    const Place place = place_in_batch<HEADS>(slots, lens, num_heads, num_kv, num_cached, D);
    if (place.num_positions == 0)
        return;
    copy_tile<D, HEADS, 128>(shared, TILE_Q, q + place.row * D, D, place.heads);
    copy_tile<D, PART, 128>(shared, TILE_K, keys + place.cached, D, place.num_positions);
    copy_async_commit();
    copy_tile<D, PART, 128>(shared, TILE_V, values + place.cached, D, place.num_positions);
    copy_async_commit();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float scale_log2 = scale * LOG2_E;

    copy_async_wait<1>();
    __syncthreads();
    float s[1][N][4];
    scores<D>(s, shared, lane_place<D>(TILE_Q, 0), lane_place_transposed<D>(TILE_K, warp * OWN));
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool cached = warp * OWN + 8 * n + lane % 4 * 2 + i % 2 < place.num_positions;
            s[0][n][i] = cached ? s[0][n][i] * scale_log2 : -INFINITY;
            largest[i / 2] = fmaxf(largest[i / 2], s[0][n][i]);
        }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffff, largest[half], 1));
        largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffff, largest[half], 2));
        if (lane % 4 == 0)
            largest_of[warp * HEADS + lane / 4 + 8 * half] = largest[half];
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            largest[half] = fmaxf(largest[half], largest_of[w * HEADS + lane / 4 + 8 * half]);
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[0][n][i] = exp2_fast(s[0][n][i] - largest[half]);
                total += s[0][n][i];
            }
        total += __shfl_xor_sync(0xffffffff, total, 1);
        total += __shfl_xor_sync(0xffffffff, total, 2);
        if (lane % 4 == 0)
            total_of[warp * HEADS + lane / 4 + 8 * half] = total;
    }

    copy_async_wait<0>();
    __syncthreads();
    float sum[1][D / 8][4];
    clear(sum);
#pragma unroll
    for (int step = 0; step < N / 2; step++) {
        unsigned p[1][4];
        round_to_left(p, s, step);
        add_product<D>(sum, p, shared, lane_place<D>(TILE_V, warp * OWN + 16 * step));
    }
    // the warps' sums, where the keys were: [WARPS, HEADS, D]
    float* sum_of = reinterpret_cast<float*>(shared + TILE_K);
    static_assert(WARPS * HEADS * 4 <= PART * 2);
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *reinterpret_cast<float2*>(sum_of + (warp * HEADS + lane / 4 + 8 * half) * D + 8 * n + lane % 4 * 2) =
                float2{sum[0][n][2 * half], sum[0][n][2 * half + 1]};
    __syncthreads();
    for (int i = threadIdx.x; i < place.heads * (D / WIDE); i += 128) {
        const int head = i / (D / WIDE), dim = i % (D / WIDE) * WIDE;
        float all[WIDE], more[WIDE], total = total_of[head], most = largest_of[head];
        load_wide(sum_of + head * D + dim, all);
#pragma unroll
        for (int w = 1; w < WARPS; w++) {
            load_wide(sum_of + (w * HEADS + head) * D + dim, more);
#pragma unroll
            for (int j = 0; j < WIDE; j++)
                all[j] += more[j];
            total += total_of[w * HEADS + head];
            most = fmaxf(most, largest_of[w * HEADS + head]);
        }
        leave(place, head, D, dim, all, total, sums, o);
        if (dim == 0)
            leave_stats(place, head, most, total, stats);
    }
}

// Without tensor cores, for f32 and for all head dims: multiples of 8 up to 256. 128 threads; shared memory, in floats:
// HEADS times the larger of `D + PART + 2` and 128 WIDE.
template <class T, int HEADS>
__device__ __forceinline__ void attend(const T* q, const T* keys, const T* values, const unsigned* slots, const unsigned* lens,
                                       float* sums, float* stats, T* o, unsigned num_heads, unsigned num_kv, unsigned num_cached,
                                       int head_dim, float scale) {
    DYNAMIC_SHARED(shared);
    const Place place = place_in_batch<HEADS>(slots, lens, num_heads, num_kv, num_cached, head_dim);
    if (place.num_positions == 0)
        return;
    float* queries = reinterpret_cast<float*>(shared); // [HEADS, D], times scale log2(e)
    float* probs = queries + HEADS * head_dim;          // [HEADS, PART]
    float* total_of = probs + HEADS * PART;             // [HEADS]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunks = head_dim / WIDE;
    const float scale_log2 = scale * LOG2_E;
    for (int i = threadIdx.x; i < HEADS * head_dim; i += 128)
        queries[i] = i / head_dim < place.heads ? to_float(q[place.row * head_dim + i]) * scale_log2 : 0.0f;
    __syncthreads();

    // four lanes a key, eight keys a warp
#pragma unroll 2
    for (int position = threadIdx.x / 4; position < PART; position += 32) {
        const T* key = keys + place.cached + static_cast<size_t>(min(position, place.num_positions - 1)) * head_dim;
        float s[HEADS] = {};
#pragma unroll 4
        for (int chunk = lane % 4; chunk < chunks; chunk += 4) {
            float x[WIDE], y[WIDE];
            load_wide(key + chunk * WIDE, x);
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
                load_wide(queries + head * head_dim + chunk * WIDE, y);
#pragma unroll
                for (int i = 0; i < WIDE; i++)
                    s[head] += x[i] * y[i];
            }
        }
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
            s[head] += __shfl_xor_sync(0xffffffff, s[head], 1);
            s[head] += __shfl_xor_sync(0xffffffff, s[head], 2);
            if (lane % 4 == head % 4)
                probs[head * PART + position] = position < place.num_positions ? s[head] : -INFINITY;
        }
    }
    __syncthreads();

    for (int head = warp; head < place.heads; head += 4) {
        float largest = -INFINITY, total = 0.0f;
        for (int i = lane; i < PART; i += 32)
            largest = fmaxf(largest, probs[head * PART + i]);
        largest = warp_max(largest);
        for (int i = lane; i < PART; i += 32) {
            const float p = exp2_fast(probs[head * PART + i] - largest);
            probs[head * PART + i] = p;
            total += p;
        }
        total = warp_sum(total);
        if (lane == 0) {
            total_of[head] = total;
            leave_stats(place, head, largest, total, stats);
        }
    }
    __syncthreads();

    // a thread has WIDE dims of every so many positions
    const int rows = 128 / chunks, chunk = threadIdx.x % chunks, row = threadIdx.x / chunks;
    float sum[HEADS][WIDE] = {};
    if (row < rows)
#pragma unroll 4
        for (int position = row; position < place.num_positions; position += rows) {
            float x[WIDE];
            load_wide(values + place.cached + static_cast<size_t>(position) * head_dim + chunk * WIDE, x);
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
                const float p = probs[head * PART + position];
#pragma unroll
                for (int i = 0; i < WIDE; i++)
                    sum[head][i] += p * x[i];
            }
        }
    float totals[HEADS];
#pragma unroll
    for (int head = 0; head < HEADS; head++)
        totals[head] = total_of[head];
    __syncthreads();
    float* sum_of = reinterpret_cast<float*>(shared); // [HEADS, 128, WIDE], over what was read
#pragma unroll
    for (int head = 0; head < HEADS; head++)
        store_wide(sum_of + (head * 128 + threadIdx.x) * WIDE, sum[head]);
    __syncthreads();
#pragma unroll
    for (int head = 0; head < HEADS; head++)
        if (head < place.heads && row == head % rows) {
            float all[WIDE], more[WIDE];
            load_wide(sum_of + (head * 128 + chunk) * WIDE, all);
            for (int r = 1; r < rows; r++) {
                load_wide(sum_of + (head * 128 + r * chunks + chunk) * WIDE, more);
#pragma unroll
                for (int i = 0; i < WIDE; i++)
                    all[i] += more[i];
            }
            leave(place, head, head_dim, chunk * WIDE, all, totals[head], sums, o);
        }
}

template <class T>
__device__ __forceinline__ void attend_any(const T* q, const T* keys, const T* values, const unsigned* slots, const unsigned* lens,
                                           float* sums, float* stats, T* o, unsigned num_heads, unsigned num_kv,
                                           unsigned num_cached, unsigned head_dim, float scale) {
    const unsigned group = num_heads / num_kv;
    if (group == 1)
        attend<T, 1>(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, head_dim, scale);
    else if (group == 2)
        attend<T, 2>(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, head_dim, scale);
    else if (group <= 4)
        attend<T, 4>(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, head_dim, scale);
    else
        attend<T, 8>(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, head_dim, scale);
}

// The parts of each row. Grid: heads, sequences; D / WIDE threads.
template <class T>
__device__ __forceinline__ void join(const float* sums, const float* stats, const unsigned* lens, T* o, unsigned num_heads,
                                     unsigned num_cached, unsigned num_parts, unsigned head_dim) {
    const size_t row = static_cast<size_t>(blockIdx.y) * num_heads + blockIdx.x;
    const unsigned parts = (min(lens[blockIdx.y], num_cached) + PART - 1) / PART, dim = threadIdx.x * WIDE;
    stats += row * num_parts * 2;
    sums += row * num_parts * head_dim + dim;
    float largest = stats[0];
    for (unsigned part = 1; part < parts; part++)
        largest = fmaxf(largest, stats[2 * part]);
    float weight = exp2_fast(stats[0] - largest), total = stats[1] * weight, sum[WIDE], more[WIDE];
    load_wide(sums, sum);
#pragma unroll
    for (int i = 0; i < WIDE; i++)
        sum[i] *= weight;
#pragma unroll 4
    for (unsigned part = 1; part < parts; part++) {
        weight = exp2_fast(stats[2 * part] - largest);
        total += stats[2 * part + 1] * weight;
        load_wide(sums + static_cast<size_t>(part) * head_dim, more);
#pragma unroll
        for (int i = 0; i < WIDE; i++)
            sum[i] += more[i] * weight;
    }
#pragma unroll
    for (int i = 0; i < WIDE; i++)
        sum[i] = sum[i] / total;
    store_wide(o + row * head_dim + dim, sum);
}

// cache[slots[t], :, positions[t], :] = x[t], WIDE values a thread. x: `[T, K, D]`.
template <class T>
__device__ __forceinline__ void append(T* cache, const T* x, const unsigned* slots, const unsigned* positions, unsigned num_tokens,
                                       unsigned num_kv, unsigned num_cached, unsigned head_dim) {
    const unsigned chunks = head_dim / WIDE;
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(num_tokens) * num_kv * chunks)
        return;
    const size_t row = i / chunks, token = row / num_kv;
    const size_t at = ((slots[token] * static_cast<size_t>(num_kv) + row % num_kv) * num_cached + positions[token]) * head_dim;
    float values[WIDE];
    load_wide(x + i * WIDE, values);
    store_wide(cache + at + i % chunks * WIDE, values);
}

extern "C" __global__ void __launch_bounds__(128)
    decode_attention_bf16_d64(const bf16* q, const bf16* keys, const bf16* values, const unsigned* slots, const unsigned* lens,
                              float* sums, float* stats, bf16* o, unsigned num_heads, unsigned num_kv, unsigned num_cached,
                              unsigned, float scale) {
    attend_in_tiles<64>(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    decode_attention_bf16_d128(const bf16* q, const bf16* keys, const bf16* values, const unsigned* slots, const unsigned* lens,
                               float* sums, float* stats, bf16* o, unsigned num_heads, unsigned num_kv, unsigned num_cached,
                               unsigned, float scale) {
    attend_in_tiles<128>(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    decode_attention_bf16(const bf16* q, const bf16* keys, const bf16* values, const unsigned* slots, const unsigned* lens,
                          float* sums, float* stats, bf16* o, unsigned num_heads, unsigned num_kv, unsigned num_cached,
                          unsigned head_dim, float scale) {
    attend_any(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, head_dim, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    decode_attention_f32(const float* q, const float* keys, const float* values, const unsigned* slots, const unsigned* lens,
                         float* sums, float* stats, float* o, unsigned num_heads, unsigned num_kv, unsigned num_cached,
                         unsigned head_dim, float scale) {
    attend_any(q, keys, values, slots, lens, sums, stats, o, num_heads, num_kv, num_cached, head_dim, scale);
}

extern "C" __global__ void __launch_bounds__(32)
    decode_join_bf16(const float* sums, const float* stats, const unsigned* lens, bf16* o, unsigned num_heads, unsigned num_cached,
                     unsigned num_parts, unsigned head_dim) {
    join(sums, stats, lens, o, num_heads, num_cached, num_parts, head_dim);
}
extern "C" __global__ void __launch_bounds__(32)
    decode_join_f32(const float* sums, const float* stats, const unsigned* lens, float* o, unsigned num_heads, unsigned num_cached,
                    unsigned num_parts, unsigned head_dim) {
    join(sums, stats, lens, o, num_heads, num_cached, num_parts, head_dim);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_append_bf16(bf16* cache, const bf16* x, const unsigned* slots, const unsigned* positions, unsigned num_tokens,
                       unsigned num_kv, unsigned num_cached, unsigned head_dim) {
    append(cache, x, slots, positions, num_tokens, num_kv, num_cached, head_dim);
}
extern "C" __global__ void __launch_bounds__(256)
    decode_append_f32(float* cache, const float* x, const unsigned* slots, const unsigned* positions, unsigned num_tokens,
                      unsigned num_kv, unsigned num_cached, unsigned head_dim) {
    append(cache, x, slots, positions, num_tokens, num_kv, num_cached, head_dim);
}
