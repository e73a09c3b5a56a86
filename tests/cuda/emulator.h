// CUDA's execution model on one CPU core: enough of it to run src/ops/*.cu where there is no GPU.
//
// Blocks run one after the other. The threads of a block are fibers that run until they reach a barrier, a shuffle or a
// matrix instruction; a barrier that some thread never reaches stops the program with a message. EMULATOR_REVERSE=1 runs the
// threads of a block in the opposite order: results that change with it show a missing barrier. Shared memory starts as NaN,
// and asynchronous copies arrive only when they are waited for.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "the emulator switches stacks on x86-64 only"
#endif

#define __global__ __attribute__((used))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared()

struct uint3 {
    unsigned x, y, z;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

// saves the callee's registers and the stack pointer, and goes on with another stack
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace emulator {

enum class State { Ready, AtBlock, AtWarp, Done };

struct Copy {
    void* to;
    unsigned char bytes[16];
};

struct Thread {
    void* stack_pointer = nullptr;
    State state = State::Ready;
    uint3 index{0, 0, 0};
    int lane = 0, warp = 0;
    std::vector<Copy> copying;                // since the last commit
    std::vector<std::vector<Copy>> committed; // oldest first
};

constexpr size_t STACK = 128 * 1024;
constexpr int WARP = 32;

inline Thread* current = nullptr;
inline void* scheduler = nullptr;
inline uint3 block_index{0, 0, 0}, block_size{0, 0, 0}, grid_size{0, 0, 0};
inline std::vector<Thread> threads;
inline std::vector<unsigned char> stacks, dynamic;
inline std::function<void()> body;
// what the lanes of a warp show each other
inline std::vector<std::vector<unsigned char>> exchange;

inline unsigned char* dynamic_shared() {
    auto at = reinterpret_cast<uintptr_t>(dynamic.data());
    return reinterpret_cast<unsigned char*>((at + 1023) / 1024 * 1024);
}

[[noreturn]] inline void stop(const char* what) {
    std::fprintf(stderr, "emulator: block (%u, %u, %u): %s\n", block_index.x, block_index.y, block_index.z, what);
    for (const Thread& t : threads)
        std::fprintf(stderr, "%c", "rbw."[static_cast<int>(t.state)]);
    std::fprintf(stderr, "\n");
    std::abort();
}

inline void wait(State state) {
    current->state = state;
    Thread* self = current;
    emulator_switch(&self->stack_pointer, scheduler);
}

inline void entry() {
    body();
    wait(State::Done);
    std::abort(); // nobody goes on with a thread that is done
}

inline void run_block(unsigned num_threads, uint32_t shared) {
    threads.assign(num_threads, Thread{});
    stacks.resize(num_threads * STACK);
    dynamic.assign(shared + 2048, 0xff);
    exchange.assign((num_threads + WARP - 1) / WARP, std::vector<unsigned char>(WARP * 64));
    for (unsigned i = 0; i < num_threads; i++) {
        Thread& t = threads[i];
        t.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
        t.lane = i % WARP;
        t.warp = i / WARP;
        auto top = reinterpret_cast<uintptr_t>(stacks.data() + (i + 1) * STACK) / 16 * 16;
        auto* stack = reinterpret_cast<void**>(top);
        *--stack = nullptr; // the return address of entry, which never returns
        *--stack = reinterpret_cast<void*>(&entry);
        for (int r = 0; r < 6; r++)
            *--stack = nullptr;
        t.stack_pointer = stack;
    }
    const bool reverse = std::getenv("EMULATOR_REVERSE") != nullptr;
    while (true) {
        bool ran = false;
        for (unsigned n = 0; n < num_threads; n++) {
            Thread& t = threads[reverse ? num_threads - 1 - n : n];
            if (t.state != State::Ready)
                continue;
            ran = true;
            current = &t;
            emulator_switch(&scheduler, t.stack_pointer);
        }
        if (ran)
            continue;
        // nobody can go on: open the barriers that all have reached
        bool opened = false, all_done = true, all_at_block = true;
        for (unsigned first = 0; first < num_threads; first += WARP) {
            bool warp_waits = true, any = false;
            for (unsigned i = first; i < std::min(first + WARP, num_threads); i++) {
                any |= threads[i].state == State::AtWarp;
                warp_waits &= threads[i].state == State::AtWarp;
                all_done &= threads[i].state == State::Done;
                all_at_block &= threads[i].state == State::AtBlock || threads[i].state == State::Done;
            }
            if (any && warp_waits) {
                for (unsigned i = first; i < std::min(first + WARP, num_threads); i++)
                    threads[i].state = State::Ready;
                opened = true;
            }
        }
        if (all_done)
            return;
        if (opened)
            continue;
        if (!all_at_block)
            stop("threads wait at different barriers");
        for (Thread& t : threads)
            if (t.state == State::AtBlock)
                t.state = State::Ready;
    }
}

inline void run(const uint32_t grid[3], const uint32_t block[3], uint32_t shared) {
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    for (block_index.z = 0; block_index.z < grid[2]; block_index.z++)
        for (block_index.y = 0; block_index.y < grid[1]; block_index.y++)
            for (block_index.x = 0; block_index.x < grid[0]; block_index.x++)
                run_block(block[0] * block[1] * block[2], shared);
}

// each lane shows `mine` and reads what the others showed
template <class T, class Read> auto among_warp(const T& mine, Read read) {
    static_assert(sizeof(T) <= 64);
    unsigned char* shown = exchange[current->warp].data();
    std::memcpy(shown + current->lane * sizeof(T), &mine, sizeof(T));
    wait(State::AtWarp);
    auto result = read([=](int lane) {
        T value;
        std::memcpy(&value, shown + lane * sizeof(T), sizeof(T));
        return value;
    });
    wait(State::AtWarp);
    return result;
}

template <auto F> struct Call;
template <class... A, void (*F)(A...)> struct Call<F> {
    static void call(void** args) { with(args, std::index_sequence_for<A...>{}); }
    template <size_t... I> static void with(void** args, std::index_sequence<I...>) {
        F(*static_cast<std::remove_cv_t<A>*>(args[I])...);
    }
};

struct Entry {
    const char* name;
    void (*call)(void**);
};

} // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

inline void __syncthreads() { emulator::wait(emulator::State::AtBlock); }
inline void __syncwarp(unsigned = 0xffffffff) { emulator::wait(emulator::State::AtWarp); }

template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::among_warp(value, [&](auto lane) { return lane(emulator::current->lane ^ mask); });
}
template <class T> T __shfl_sync(unsigned, T value, int from) {
    return emulator::among_warp(value, [&](auto lane) { return lane(from & 31); });
}

inline int __any_sync(unsigned, bool value) {
    return emulator::among_warp(value, [&](auto lane) {
        bool any = false;
        for (int i = 0; i < emulator::WARP; i++)
            any |= lane(i);
        return any;
    });
}
template <class T> T __shfl_up_sync(unsigned, T value, int distance) {
    const int from = emulator::current->lane - distance;
    return emulator::among_warp(value, [&](auto lane) { return from < 0 ? value : lane(from); });
}

template <class T> T atomicAdd(T* at, T value) {
    T old = *at;
    *at += value;
    return old;
}

inline float __uint_as_float(unsigned bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline unsigned __float_as_uint(float f) {
    unsigned bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline float __expf(float x) { return std::exp(x); }
inline float exp2_fast(float x) { return std::exp2(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

// The nearest bf16, ties to even.
inline uint16_t bf16_bits(float f) {
    unsigned bits = __float_as_uint(f);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline unsigned pack_bf16(float low, float high) { return bf16_bits(low) | static_cast<unsigned>(bf16_bits(high)) << 16; }

// The number that 16 bits are in f16.
inline float half_bits_to_float(uint16_t bits) {
    const int exponent = bits >> 10 & 31;
    const float mantissa = bits & 1023;
    float size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    if (exponent == 31)
        size = mantissa ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
}

// d += a b, 16 x 8 from 16 x 16 and 16 x 8 (PTX ISA, mma.m16n8k16, layout of the fragments)
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    struct Shown {
        unsigned a[4], b[2];
    } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    auto half = [](unsigned pair, int which) { return __uint_as_float(which ? pair & 0xffff0000 : pair << 16); };
    const int group = emulator::current->lane / 4, in_group = emulator::current->lane % 4;
    auto sums = emulator::among_warp(mine, [&](auto lane) {
        struct {
            float v[4];
        } sum{};
        Shown rows[4], columns[2][4];
        for (int j = 0; j < 4; j++) {
            rows[j] = lane(group * 4 + j);
            columns[0][j] = lane((2 * in_group) * 4 + j);
            columns[1][j] = lane((2 * in_group + 1) * 4 + j);
        }
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 16; k++) {
                float left = half(rows[k % 8 / 2].a[i / 2 + 2 * (k / 8)], k % 2);
                float right = half(columns[i % 2][k % 8 / 2].b[k / 8], k % 2);
                sum.v[i] += left * right;
            }
        return sum;
    });
    for (int i = 0; i < 4; i++)
        d[i] += sums.v[i];
}

template <bool TRANSPOSED> void emulate_ldmatrix(unsigned (&r)[4], const void* row) {
    const int lane_id = emulator::current->lane;
    auto read = emulator::among_warp(row, [&](auto lane) {
        struct {
            unsigned v[4];
        } out{};
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 2; j++) {
                int at_row = TRANSPOSED ? lane_id % 4 * 2 + j : lane_id / 4;
                int at_column = TRANSPOSED ? lane_id / 4 : lane_id % 4 * 2 + j;
                uint16_t value;
                std::memcpy(&value, static_cast<const uint16_t*>(lane(i * 8 + at_row)) + at_column, 2);
                out.v[i] |= static_cast<unsigned>(value) << (16 * j);
            }
        return out;
    });
    for (int i = 0; i < 4; i++)
        r[i] = read.v[i];
}
inline void ldmatrix_x4(unsigned (&r)[4], const void* row) { emulate_ldmatrix<false>(r, row); }
inline void ldmatrix_x4_transposed(unsigned (&r)[4], const void* row) { emulate_ldmatrix<true>(r, row); }

// 16 bytes to shared memory, zeros where not `valid`
inline void copy_async_16(void* to, const void* from, bool valid) {
    emulator::Copy copy{to, {}};
    if (valid)
        std::memcpy(copy.bytes, from, 16);
    emulator::current->copying.push_back(copy);
}
inline void copy_async_commit() {
    auto* self = emulator::current;
    self->committed.push_back(std::move(self->copying));
    self->copying.clear();
}
template <int LEFT> void copy_async_wait() {
    auto& committed = emulator::current->committed;
    while (committed.size() > LEFT) {
        for (const auto& copy : committed.front())
            std::memcpy(copy.to, copy.bytes, 16);
        committed.erase(committed.begin());
    }
}
