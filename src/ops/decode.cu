// Attention of one query a sequence over its keys and values in pages, and what is written into them.
//
// Letters as in paged.rs: q, o `[B, H, D]`; a page holds `[L, 2, K, PAGE, D]`, PAGES_A_CHUNK of them lie behind each address of
// `chunks`, and the keys of the layer asked for begin `layer` values after a page does. Sequence `b` has `lens[b]` positions, in
// the pages of row `b` of `pages`, which has room for `num_cached` positions. Reading keys and values is what takes the time: the
// query heads that share a key/value head are one block's, which reads each key and value once, and sequences are split in parts
// of 128 positions, so that one long sequence is many blocks' work.
//
// A row's result depends on that row only, bit for bit: the parts are the same whatever else is in the batch, each part is
// summed by one block in one order, and the parts of a row are joined in order. A sequence of one part is the same as its
// only part joined.
#include "tiles.cuh"

constexpr int PART = 128; // positions
constexpr int PAGE = 64;  // positions, as in paged.rs
constexpr int PAGES_A_CHUNK = 16;

using Chunks = const unsigned long long*; // addresses

template <class T> __device__ __forceinline__ T* page_at(Chunks chunks, unsigned page, size_t page_size) {
    return reinterpret_cast<T*>(chunks[page / PAGES_A_CHUNK]) + page % PAGES_A_CHUNK * page_size;
}

// A block's share of the batch.
template <class T> struct Place {
    int heads;         // of this block
    int num_positions; // of its part; none where the sequence ends before it
    size_t row;        // its first head among all rows `[B, H]`
    const T* keys[2];  // of its first and its other positions
    unsigned values;   // from a key to its value
    unsigned part, num_parts;
};
static_assert(PART == 2 * PAGE);

// Grid: key/value heads times tiles of HEADS heads, sequences, parts.
template <int HEADS, class T>
__device__ __forceinline__ Place<T> place_in_batch(Chunks chunks, const unsigned* pages, const unsigned* lens, size_t page_size,
                                                   size_t layer, unsigned num_heads, unsigned num_kv, unsigned num_cached,
                                                   unsigned head_dim) {
    const unsigned group = num_heads / num_kv, kv_head = blockIdx.x % num_kv, first = blockIdx.x / num_kv * HEADS;
    const unsigned sequence = blockIdx.y, position = blockIdx.z * PART, len = min(lens[sequence], num_cached);
    Place<T> place;
    place.heads = min(group - first, static_cast<unsigned>(HEADS));
    place.num_positions = position < len ? min(len - position, static_cast<unsigned>(PART)) : 0;
    place.row = static_cast<size_t>(sequence) * num_heads + kv_head * group + first;
    place.values = num_kv * PAGE * head_dim;
    place.part = blockIdx.z;
    place.num_parts = gridDim.z;
    if (place.num_positions > 0) {
        const unsigned* page = pages + static_cast<size_t>(sequence) * (num_cached / PAGE) + position / PAGE;
        const size_t head = layer + static_cast<size_t>(kv_head) * PAGE * head_dim;
        place.keys[0] = page_at<const T>(chunks, page[0], page_size) + head;
        // nothing is read of a page that the sequence does not reach
        place.keys[1] = place.num_positions > PAGE ? page_at<const T>(chunks, page[1], page_size) + head : place.keys[0];
    }
    return place;
}

// A part leaves of each head the sum of the values times 2^(score log2(e) - largest), which `join` divides by the sum of these
// weights, and as statistics the largest and that sum. Here WIDE values; where there is one part only, the result.
template <class T>
__device__ __forceinline__ void leave(const Place<T>& place, int head, unsigned head_dim, unsigned dim, float (&sum)[WIDE],
                                      float total, float* sums, T* o) {
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
template <class T>
__device__ __forceinline__ void leave_stats(const Place<T>& place, int head, float largest, float total, float* stats) {
    if (place.num_parts > 1) {
        float* at = stats + ((place.row + head) * place.num_parts + place.part) * 2;
        at[0] = largest;
        at[1] = total;
    }
}

// Tensor cores, bf16. The heads are the rows of a product that has 16 of them; a warp takes 32 positions. All of the part is
// on its way before the first product. 128 threads; shared memory: Q, K, V, statistics.
template <int D>
__device__ __forceinline__ void attend_in_tiles(const bf16* q, Chunks chunks, const unsigned* pages, const unsigned* lens,
                                                float* sums, float* stats, bf16* o, size_t page_size, size_t layer,
                                                unsigned num_heads, unsigned num_kv, unsigned num_cached, float scale) {
    constexpr int HEADS = 16, WARPS = 4, OWN = PART / WARPS, N = OWN / 8;
    constexpr int TILE_Q = 0, TILE_K = HEADS * ROW<D>, TILE_V = TILE_K + PART * ROW<D>, STATS = TILE_V + PART * ROW<D>;
    DYNAMIC_SHARED(shared);
    float* largest_of = reinterpret_cast<float*>(shared + STATS); // [WARPS, HEADS]
    float* total_of = largest_of + WARPS * HEADS;                 // [WARPS, HEADS]
    const auto place = place_in_batch<HEADS, bf16>(chunks, pages, lens, page_size, layer, num_heads, num_kv, num_cached, D);
    if (place.num_positions == 0)
        return;
    copy_tile<D, HEADS, 128>(shared, TILE_Q, q + place.row * D, D, place.heads);
#pragma unroll
    for (int i = 0; i < PART / PAGE; i++)
        copy_tile<D, PAGE, 128>(shared, TILE_K + i * PAGE * ROW<D>, place.keys[i], D, place.num_positions - i * PAGE);
    copy_async_commit();
#pragma unroll
    for (int i = 0; i < PART / PAGE; i++)
        copy_tile<D, PAGE, 128>(shared, TILE_V + i * PAGE * ROW<D>, place.keys[i] + place.values, D,
                                place.num_positions - i * PAGE);
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
__device__ __forceinline__ void attend(const T* q, Chunks chunks, const unsigned* pages, const unsigned* lens, float* sums,
                                       float* stats, T* o, size_t page_size, size_t layer, unsigned num_heads, unsigned num_kv,
                                       unsigned num_cached, int head_dim, float scale) {
    DYNAMIC_SHARED(shared);
    const auto place = place_in_batch<HEADS, T>(chunks, pages, lens, page_size, layer, num_heads, num_kv, num_cached, head_dim);
    if (place.num_positions == 0)
        return;
    float* queries = reinterpret_cast<float*>(shared); // [HEADS, D], times scale log2(e)
    float* probs = queries + HEADS * head_dim;          // [HEADS, PART]
    float* total_of = probs + HEADS * PART;             // [HEADS]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wides = head_dim / WIDE;
    const float scale_log2 = scale * LOG2_E;
    for (int i = threadIdx.x; i < HEADS * head_dim; i += 128)
        queries[i] = i / head_dim < place.heads ? to_float(q[place.row * head_dim + i]) * scale_log2 : 0.0f;
    __syncthreads();

    // four lanes a key, eight keys a warp
#pragma unroll 1
    for (int first = 0; first < PART; first += PAGE) {
        const T* keys = first == 0 ? place.keys[0] : place.keys[1];
        const int last = max(min(place.num_positions - first, PAGE), 1) - 1;
#pragma unroll 2
        for (int position = threadIdx.x / 4; position < PAGE; position += 32) {
            const T* key = keys + min(position, last) * head_dim;
            float s[HEADS] = {};
#pragma unroll 4
            for (int wide = lane % 4; wide < wides; wide += 4) {
                float x[WIDE], y[WIDE];
                load_wide(key + wide * WIDE, x);
#pragma unroll
                for (int head = 0; head < HEADS; head++) {
                    load_wide(queries + head * head_dim + wide * WIDE, y);
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
                    probs[head * PART + first + position] = first + position < place.num_positions ? s[head] : -INFINITY;
            }
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
    const int rows = 128 / wides, wide = threadIdx.x % wides, row = threadIdx.x / wides;
    float sum[HEADS][WIDE] = {};
    if (row < rows)
#pragma unroll 1
        for (int first = 0; first < place.num_positions; first += PAGE) {
            const T* values = (first == 0 ? place.keys[0] : place.keys[1]) + place.values + wide * WIDE;
            const int num = min(place.num_positions - first, PAGE);
#pragma unroll 4
            for (int position = row; position < num; position += rows) {
                float x[WIDE];
                load_wide(values + position * head_dim, x);
#pragma unroll
                for (int head = 0; head < HEADS; head++) {
                    const float p = probs[head * PART + first + position];
#pragma unroll
                    for (int i = 0; i < WIDE; i++)
                        sum[head][i] += p * x[i];
                }
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
            load_wide(sum_of + (head * 128 + wide) * WIDE, all);
            for (int r = 1; r < rows; r++) {
                load_wide(sum_of + (head * 128 + r * wides + wide) * WIDE, more);
#pragma unroll
                for (int i = 0; i < WIDE; i++)
                    all[i] += more[i];
            }
            leave(place, head, head_dim, wide * WIDE, all, totals[head], sums, o);
        }
}

template <class T>
__device__ __forceinline__ void attend_any(const T* q, Chunks chunks, const unsigned* pages, const unsigned* lens, float* sums,
                                           float* stats, T* o, size_t page_size, size_t layer, unsigned num_heads,
                                           unsigned num_kv, unsigned num_cached, unsigned head_dim, float scale) {
    const unsigned group = num_heads / num_kv;
    if (group == 1)
        attend<T, 1>(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, head_dim, scale);
    else if (group == 2)
        attend<T, 2>(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, head_dim, scale);
    else if (group <= 4)
        attend<T, 4>(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, head_dim, scale);
    else
        attend<T, 8>(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, head_dim, scale);
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

// Keys and values of a layer to position `places[t] % PAGE` of page `places[t] / PAGE`, WIDE values of each a thread.
// k, v: `[T, K, D]`.
template <class T>
__device__ __forceinline__ void append(Chunks chunks, const T* k, const T* v, const unsigned* places, size_t page_size, size_t layer,
                                       unsigned num_tokens, unsigned num_kv, unsigned head_dim) {
    const unsigned wides = head_dim / WIDE;
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(num_tokens) * num_kv * wides)
        return;
    const size_t row = i / wides;
    const unsigned place = places[row / num_kv], kv_head = row % num_kv;
    T* key = page_at<T>(chunks, place / PAGE, page_size) + layer + (static_cast<size_t>(kv_head) * PAGE + place % PAGE) * head_dim +
             i % wides * WIDE;
    float values[WIDE];
    load_wide(k + i * WIDE, values);
    store_wide(key, values);
    load_wide(v + i * WIDE, values);
    store_wide(key + static_cast<size_t>(num_kv) * PAGE * head_dim, values);
}

extern "C" __global__ void __launch_bounds__(128)
    decode_attention_bf16_d64(const bf16* q, Chunks chunks, const unsigned* pages, const unsigned* lens, float* sums, float* stats,
                              bf16* o, size_t page_size, size_t layer, unsigned num_heads, unsigned num_kv,
                              unsigned num_cached, unsigned, float scale) {
    attend_in_tiles<64>(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    decode_attention_bf16_d128(const bf16* q, Chunks chunks, const unsigned* pages, const unsigned* lens, float* sums, float* stats,
                               bf16* o, size_t page_size, size_t layer, unsigned num_heads, unsigned num_kv,
                               unsigned num_cached, unsigned, float scale) {
    attend_in_tiles<128>(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    decode_attention_bf16(const bf16* q, Chunks chunks, const unsigned* pages, const unsigned* lens, float* sums, float* stats,
                          bf16* o, size_t page_size, size_t layer, unsigned num_heads, unsigned num_kv,
                          unsigned num_cached, unsigned head_dim, float scale) {
    attend_any(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, head_dim, scale);
}
extern "C" __global__ void __launch_bounds__(128)
    decode_attention_f32(const float* q, Chunks chunks, const unsigned* pages, const unsigned* lens, float* sums, float* stats,
                         float* o, size_t page_size, size_t layer, unsigned num_heads, unsigned num_kv,
                         unsigned num_cached, unsigned head_dim, float scale) {
    attend_any(q, chunks, pages, lens, sums, stats, o, page_size, layer, num_heads, num_kv, num_cached, head_dim, scale);
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
    decode_append_bf16(Chunks chunks, const bf16* k, const bf16* v, const unsigned* places, size_t page_size, size_t layer,
                       unsigned num_tokens, unsigned num_kv, unsigned head_dim) {
    append(chunks, k, v, places, page_size, layer, num_tokens, num_kv, head_dim);
}
extern "C" __global__ void __launch_bounds__(256)
    decode_append_f32(Chunks chunks, const float* k, const float* v, const unsigned* places, size_t page_size, size_t layer,
                      unsigned num_tokens, unsigned num_kv, unsigned head_dim) {
    append(chunks, k, v, places, page_size, layer, num_tokens, num_kv, head_dim);
}
