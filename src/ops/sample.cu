// One token of a row of logits: the steps of generate/sampler.rs, a block of 1,024 threads a row.
//
// Weights exp((x - max) / temperature) are summed as multiples of 2^-40, so that no sum depends on its order; what weighs less
// is never drawn.
#include "kernel.cuh"

typedef unsigned long long u64;

constexpr unsigned THREADS = 1024;
constexpr unsigned BUCKETS = 2048;

// What weight a token weighs; its bits grow with it.
struct Row {
    const float* x;
    unsigned vocab;
    float max, scale;

    __device__ __forceinline__ float weight(unsigned i) const {
        return expf((x[i] - max) * scale);
    }
};

__device__ __forceinline__ u64 mass_of(float weight) {
    return static_cast<u64>(weight * 1099511627776.0f);
}

// Sum of the values of the threads before this one; `total` of all.
__device__ __forceinline__ u64 scan(u64 v, u64* of_warps, u64& total) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 sum = v;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const u64 other = __shfl_up_sync(0xffffffff, sum, distance);
        if (lane >= static_cast<unsigned>(distance))
            sum += other;
    }
    __syncthreads();
    if (lane == 31)
        of_warps[warp] = sum;
    __syncthreads();
    u64 before = 0;
    total = 0;
    for (unsigned i = 0; i < THREADS / 32; i++) {
        if (i < warp)
            before += of_warps[i];
        total += of_warps[i];
    }
    return before + sum - v;
}

// The tokens that stay: all above `bits` in weight, and the first `num_equal` of those that weigh just so.
struct Cut {
    unsigned bits;
    u64 num_equal;
};

struct Histogram {
    u64 masses[BUCKETS];
    unsigned counts[BUCKETS];
    // what the bucket found is, and what lies above it
    unsigned bucket;
    u64 above_count, above_mass;
};

// The cut where, from the largest weight down, `target` tokens (or, `by_mass`, so much mass) are reached; `kept` is the mass.
__device__ Cut find_cut(const Row& row, bool by_mass, u64 target, Histogram& shared, u64& kept) {
    // the parts of a weight's bits, from the top: 12, 11 and 8 of them; 1.0 is 0x3f800000
    const unsigned shifts[4] = {31, 19, 8, 0};
    unsigned prefix = 0;
    u64 above_count = 0, above_mass = 0;
    for (int level = 1; level < 4; level++) {
        for (unsigned i = threadIdx.x; i < BUCKETS; i += THREADS) {
            shared.masses[i] = 0;
            shared.counts[i] = 0;
        }
        __syncthreads();
        const unsigned width = shifts[level - 1] - shifts[level], mask = (1u << width) - 1;
        for (unsigned i = threadIdx.x; i < row.vocab; i += THREADS) {
            const float weight = row.weight(i);
            const unsigned bits = __float_as_uint(weight);
            if (level == 1 || bits >> shifts[level - 1] == prefix) {
                const unsigned bucket = bits >> shifts[level] & mask;
                atomicAdd(&shared.masses[bucket], mass_of(weight));
                atomicAdd(&shared.counts[bucket], 1u);
            }
        }
        __syncthreads();
        // a lane a run of buckets, the highest first
        if (threadIdx.x < 32) {
            constexpr unsigned RUN = BUCKETS / 32;
            const unsigned top = BUCKETS - threadIdx.x * RUN;
            u64 count = 0, mass = 0;
            for (unsigned i = 1; i <= RUN; i++) {
                count += shared.counts[top - i];
                mass += shared.masses[top - i];
            }
            u64 count_before = 0, mass_before = 0, all_counts = 0, all_masses = 0;
            for (int lane = 0; lane < 32; lane++) {
                const u64 c = __shfl_sync(0xffffffff, count, lane), m = __shfl_sync(0xffffffff, mass, lane);
                if (lane < static_cast<int>(threadIdx.x))
                    count_before += c, mass_before += m;
                all_counts += c, all_masses += m;
            }
            const u64 all = by_mass ? above_mass + all_masses : above_count + all_counts;
            // rounding may leave the target a little above all there is: then the last token is the cut
            const u64 wanted = target < all ? target : all;
            u64 before = by_mass ? above_mass + mass_before : above_count + count_before;
            const u64 mine = by_mass ? mass : count;
            if (before < wanted && before + mine >= wanted) {
                u64 counts = above_count + count_before, masses = above_mass + mass_before;
                unsigned at = top;
                while (true) {
                    at--;
                    const u64 next = by_mass ? masses + shared.masses[at] : counts + shared.counts[at];
                    if (next >= wanted)
                        break;
                    counts += shared.counts[at];
                    masses += shared.masses[at];
                }
                shared.bucket = at;
                shared.above_count = counts;
                shared.above_mass = masses;
            }
        }
        __syncthreads();
        prefix = prefix << width | shared.bucket;
        above_count = shared.above_count;
        above_mass = shared.above_mass;
        __syncthreads();
    }
    const u64 one = mass_of(__uint_as_float(prefix));
    u64 num_equal = 1;
    if (!by_mass)
        num_equal = target - above_count;
    else if (one > 0 && target > above_mass)
        num_equal = (target - above_mass + one - 1) / one;
    kept = above_mass + num_equal * one;
    return Cut{prefix, num_equal};
}

__device__ __forceinline__ Cut narrower(Cut a, Cut b) {
    if (a.bits != b.bits)
        return a.bits > b.bits ? a : b;
    return a.num_equal < b.num_equal ? a : b;
}

// out[row] = {token, bits of its log-probability, bits of that at the temperature of the draw, 1}, or a 0 at the end where the
// row is no distribution. `scale` is 1 / temperature, 0 for the most probable token; `top_k` 0, `top_p` 1 and `min_p` 0 leave
// all in play; `us` are the uniform numbers of the draws.
extern "C" __global__ void sample_f32(const float* logits, unsigned vocab, float scale, unsigned top_k, double top_p, float min_p,
                                      const double* us, unsigned* out) {
    __shared__ Histogram histogram;
    __shared__ u64 of_warps[THREADS / 32];
    __shared__ float of_warps_f32[THREADS / 32];
    Row row{logits + static_cast<size_t>(blockIdx.x) * vocab, vocab, 0.0f, scale};
    out += 4 * blockIdx.x;

    float max = -INFINITY, bad = 0.0f;
    for (unsigned i = threadIdx.x; i < vocab; i += THREADS) {
        const float v = row.x[i];
        max = fmaxf(max, v);
        if (!(v < INFINITY))
            bad = 1.0f;
    }
    row.max = block_max(max, of_warps_f32);
    if (block_max(bad, of_warps_f32) > 0.0f || row.max == -INFINITY) {
        if (threadIdx.x == 0)
            out[3] = 0;
        return;
    }
    // at temperature 1, and at that of the draw
    float sum = 0.0f, scaled_sum = 0.0f;
    for (unsigned i = threadIdx.x; i < vocab; i += THREADS) {
        sum += expf(row.x[i] - row.max);
        scaled_sum += row.weight(i);
    }
    sum = block_sum(sum, of_warps_f32);
    scaled_sum = block_sum(scaled_sum, of_warps_f32);
    auto answer = [&](unsigned token) {
        const float distance = row.x[token] - row.max;
        out[0] = token;
        out[1] = __float_as_uint(distance - logf(sum));
        out[2] = __float_as_uint(scale == 0.0f ? 0.0f : distance * scale - logf(scaled_sum));
        out[3] = 1;
    };

    // threads take runs of tokens from here on: what is drawn goes by the order of ids
    const unsigned run = (vocab + THREADS - 1) / THREADS;
    const unsigned first = min(threadIdx.x * run, vocab), end = min(first + run, vocab);
    u64 total;
    if (scale == 0.0f) {
        unsigned best = vocab;
        for (unsigned i = first; i < end && best == vocab; i++)
            if (row.x[i] == row.max)
                best = i;
        const u64 before = scan(best < vocab ? 1 : 0, of_warps, total);
        if (best < vocab && before == 0)
            answer(best);
        return;
    }
    Cut cut{0, ~0ull};
    u64 kept = 0;
    for (unsigned i = first; i < end; i++)
        kept += mass_of(row.weight(i));
    scan(kept, of_warps, total);
    if (top_k > 0 && top_k < vocab)
        cut = find_cut(row, false, top_k, histogram, total);
    if (top_p < 1.0) {
        const u64 target = static_cast<u64>(top_p * static_cast<double>(total));
        cut = narrower(cut, find_cut(row, true, target > 0 ? target : 1, histogram, kept));
    }
    if (min_p > 0.0f)
        cut = narrower(cut, Cut{__float_as_uint(min_p), ~0ull});

    u64 num_equal = 0;
    for (unsigned i = first; i < end; i++)
        num_equal += __float_as_uint(row.weight(i)) == cut.bits;
    const u64 equal_before = scan(num_equal, of_warps, total);
    const u64 may_stay = cut.num_equal > equal_before ? cut.num_equal - equal_before : 0;
    // calls `each(token, mass)` for what stays in play of this thread's run, until it returns true
    auto in_play = [&](auto each) {
        u64 equal = 0;
        for (unsigned i = first; i < end; i++) {
            const float weight = row.weight(i);
            const unsigned bits = __float_as_uint(weight);
            if (bits > cut.bits || (bits == cut.bits && equal++ < may_stay))
                if (each(i, mass_of(weight)))
                    return;
        }
    };
    u64 mine = 0;
    in_play([&](unsigned, u64 mass) {
        mine += mass;
        return false;
    });
    const u64 before = scan(mine, of_warps, total);
    const u64 target = static_cast<u64>(us[blockIdx.x] * static_cast<double>(total));
    if (before <= target && target < before + mine) {
        u64 running = before;
        in_play([&](unsigned token, u64 mass) {
            running += mass;
            if (running <= target)
                return false;
            answer(token);
            return true;
        });
    }
}
