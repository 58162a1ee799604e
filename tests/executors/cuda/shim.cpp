// Runs the kernels of gate.cu on the host: what CUDA brings along, a scheduler of its threads, and a way in for ctypes.
//
// Every CUDA thread is a fiber. A warp runs lane by lane up to its next shuffle or ballot, where all lanes must arrive together; a
// block runs warp by warp up to its next barrier. So the order is the least kind one there is: a warp sees of the others nothing
// that no barrier ordered before it, and shared memory begins as garbage. `order` picks who goes first. A lane or a thread that is
// missed where the others wait, an address that does not fit its type and a kernel that does not exist end the launch with an error.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

// ---- the language ----------------------------------------------------------------------------------

#define __device__
#define __global__
#define __launch_bounds__(...)
// Not within a template: GCC leaves its statics where they are.
#define __shared__ static __attribute__((section("shared_memory")))

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};

static int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

template <typename To, typename From>
static To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "another size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static unsigned __float_as_uint(float value) { return bits_of<unsigned>(value); }
static int __float_as_int(float value) { return bits_of<int>(value); }
static float __uint_as_float(unsigned value) { return bits_of<float>(value); }
static int __popc(unsigned value) { return __builtin_popcount(value); }
static int __ffs(int value) { return __builtin_ffs(value); }

// ---- fibers ----------------------------------------------------------------------------------------

namespace shim {

constexpr unsigned LANES = 32, MOST_THREADS = 1024, STACK_BYTES = 64 * 1024;

enum State { READY, AT_WARP, AT_BARRIER, DONE };

struct Fiber {
    jmp_buf here;
    std::unique_ptr<char[]> stack;
    uint3 thread;
    State state = DONE;
    bool begun = false;
    int site = 0;        // line of the collective it waits at
    unsigned given = 0;  // what it brought there
    unsigned taken[LANES] = {};
};

static std::vector<Fiber> fibers;
static Fiber* current;
static jmp_buf scheduler;
static std::function<void()> body;

// A jump saves no signal mask, so it takes nanoseconds where swapcontext takes a system call.
static void leave() {
    if (_setjmp(current->here) == 0) _longjmp(scheduler, 1);
}

static void live() {
    for (;;) {  // one kernel after the other
        body();
        current->state = DONE;
        leave();
    }
}

static void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.thread;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    fiber.stack.reset(new char[STACK_BYTES]);
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    setcontext(&context);
}

// Waits for the lanes of the warp, and gives what each of them brought.
static const unsigned* exchange(unsigned mask, unsigned given, int site) {
    current->state = AT_WARP;
    current->site = site;
    current->given = given;
    if (mask != 0xffffffffu) current->site = -1;  // gate.cu asks all lanes, always
    leave();
    return current->taken;
}

static void barrier(int site) {
    current->state = AT_BARRIER;
    current->site = site;
    leave();
}

// Swaps about who goes first: 0 as they are, 1 from the end, else somehow.
static void arrange(std::vector<Fiber*>& some, unsigned order) {
    if (order == 1) std::reverse(some.begin(), some.end());
    for (size_t at = some.size(); order > 1 && at > 1; --at) {
        order = order * 1664525u + 1013904223u;
        std::swap(some[at - 1], some[(order >> 8) % at]);
    }
}

// Until the warp waits at a barrier or is done.
static void run_warp(std::vector<Fiber*>& lanes) {
    for (;;) {
        for (Fiber* lane : lanes)
            if (lane->state == READY) resume(*lane);
        const Fiber& one = *lanes[0];
        for (Fiber* lane : lanes)
            if (lane->state != one.state || (one.state != DONE && lane->site != one.site))
                throw std::runtime_error("lanes of a warp part before the collective in line " +
                                         std::to_string(std::max(one.site, lane->site)));
        if (one.state != AT_WARP) return;
        if (one.site < 0) throw std::runtime_error("a collective of less than a warp");
        for (Fiber* lane : lanes) {
            for (Fiber* other : lanes) lane->taken[other->thread.x % LANES] = other->given;
            lane->state = READY;
        }
    }
}

extern "C" char __start_shared_memory, __stop_shared_memory;

static void run_block(unsigned order) {
    memset(&__start_shared_memory, 0xa5, &__stop_shared_memory - &__start_shared_memory);
    std::vector<std::vector<Fiber*>> warps;
    unsigned count = 0;
    for (unsigned y = 0; y < blockDim.y; ++y)
        for (unsigned x = 0; x < blockDim.x; ++x, ++count) {
            if (count % LANES == 0) warps.emplace_back();
            fibers[count].thread = {x, y, 0};
            fibers[count].state = READY;
            warps.back().push_back(&fibers[count]);
        }
    std::vector<Fiber*> leaders;  // stand for their warps while these are put in order
    for (auto& warp : warps) leaders.push_back(warp[0]);
    arrange(leaders, order);
    for (auto& warp : warps) arrange(warp, order);
    for (;;) {
        for (Fiber* leader : leaders) run_warp(warps[(leader - &fibers[0]) / LANES]);
        const Fiber& one = *leaders[0];
        for (Fiber* leader : leaders)
            if (leader->state != one.state || (one.state != DONE && leader->site != one.site))
                throw std::runtime_error("warps of a block part before the barrier in line " +
                                         std::to_string(std::max(one.site, leader->site)));
        if (one.state == DONE) return;
        for (unsigned at = 0; at < count; ++at) fibers[at].state = READY;
    }
}

static void run_grid(unsigned order) {
    const unsigned threads = blockDim.x * blockDim.y;
    if (threads == 0 || threads > MOST_THREADS || blockDim.x % LANES || blockDim.z != 1 || gridDim.z != 1)
        throw std::runtime_error("a block of other than 1..32 whole warps");
    if (gridDim.x == 0 || gridDim.y == 0 || gridDim.y > 65535) throw std::runtime_error("a grid that no device takes");
    if (fibers.empty()) fibers = std::vector<Fiber>(MOST_THREADS);
    const unsigned blocks = gridDim.x * gridDim.y;
    for (unsigned at = 0; at < blocks; ++at) {
        const unsigned block = order == 0 ? at : blocks - 1 - at;
        blockIdx = {block % gridDim.x, block / gridDim.x, 0};
        run_block(order);
    }
}

template <typename T>
T argument(const void* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <typename T>
void check(T*& address) {
    if ((uintptr_t)address % alignof(T)) throw std::runtime_error("an address that is no multiple of " + std::to_string(alignof(T)));
}

template <typename T>
void check(T&) {}

struct Kernel {
    std::vector<size_t> sizes;
    std::function<void(void**, unsigned)> launch;
};

template <typename... T, size_t... at>
Kernel kernel(void (*function)(T...), std::index_sequence<at...>) {
    return {{sizeof(T)...}, [function](void** arguments, unsigned order) {
                std::tuple<T...> values(argument<T>(arguments[at])...);
                (void)std::initializer_list<int>{(check(std::get<at>(values)), 0)...};
                body = [function, values] { function(std::get<at>(values)...); };
                run_grid(order);
            }};
}

template <typename... T>
Kernel kernel(void (*function)(T...)) {
    return kernel(function, std::index_sequence_for<T...>());
}

}  // namespace shim

#define __shfl_xor_sync(mask, value, apart) \
    bits_of<decltype(value + 0)>(shim::exchange(mask, bits_of<unsigned>(value), __LINE__)[(threadIdx.x % shim::LANES) ^ (apart)])
#define __syncthreads() shim::barrier(__LINE__)

static unsigned ballot(unsigned mask, bool mine, int site) {
    const unsigned* votes = shim::exchange(mask, mine, site);
    unsigned all = 0;
    for (unsigned lane = 0; lane < shim::LANES; ++lane) all |= votes[lane] << lane;
    return all;
}
#define __ballot_sync(mask, mine) ballot(mask, mine, __LINE__)

#include SOURCE

// ---- the way in ------------------------------------------------------------------------------------

#define KERNEL(name) {#name, shim::kernel(name)}
static const std::map<std::string, shim::Kernel> kernels = {
    KERNEL(zpipe_decide_float32), KERNEL(zpipe_decide_float16), KERNEL(zpipe_gather_16),     KERNEL(zpipe_gather_4),   KERNEL(zpipe_gather_2),
    KERNEL(zpipe_gather_1),       KERNEL(zpipe_gather_fp16_2),  KERNEL(zpipe_gather_fp16), KERNEL(zpipe_gather_int8),
};

// How many parameters the kernel takes, and their sizes; -1 if there is none of this name.
extern "C" int shim_parameters(const char* name, size_t* sizes, int most) {
    const auto found = kernels.find(name);
    if (found == kernels.end()) return -1;
    const auto& all = found->second.sizes;
    for (int at = 0; at < most && at < (int)all.size(); ++at) sizes[at] = all[at];
    return (int)all.size();
}

// Runs a kernel to its end; 0, or 1 and the reason as text.
extern "C" int shim_launch(const char* name, const unsigned* grid, const unsigned* block, void** arguments, unsigned order, char* reason,
                           size_t most) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    try {
        kernels.at(name).launch(arguments, order);
        return 0;
    } catch (const std::exception& error) {
        snprintf(reason, most, "%s", error.what());
        shim::fibers.clear();  // some stand amidst the kernel
        return 1;
    }
}
