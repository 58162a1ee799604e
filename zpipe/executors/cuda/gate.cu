// The exit gate on the device: which rows of a batch are sure enough to leave here, and the others' activations, gathered.
//
// It follows zpipe/executors/gate.py step by step (the rules' numbers are that file's): float32, a division by the temperature,
// then distance, exponential, sum. Two passes over a row's logits, not one with an online softmax: the second finds them in the
// cache, and the numbers stay NumPy's but for the last bits of expf, logf and the order of the sum.
//
// Memory of the decisions, 16-byte records, as gate.py beside this reads it:
//     [0]        survivors, first row with logits that are not finite (-1: none), how many of its logits are finite, classes
//     [1 + row]  exited, label, confidence (float32), place among the survivors (-1: exited)
//
// No header is included, so NVRTC of any version compiles this, and so does a C++ compiler within tests/executors/cuda/shim.cpp.
// Compile without fast math: fp16 and int8 have to give the bytes of zpipe/codecs, which takes IEEE division and subnormals.

namespace {

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr int MAX_ROWS = 1024;      // gate.py: MAX_ROWS
constexpr float NEVER_EXIT = 1.0f;  // zpipe/model.py
constexpr float LEAST_EXPONENT = -120.0f;

// Classes that one lane sums up before it adds to the row's sum: of a million classes added one by one the confidence would be off
// by 3e-6, so by 3e-7 (float64's as the truth; NumPy's pairwise sum: 1e-7).
constexpr int STRIP = 32;

enum Rule { MAX_PROBABILITY = 0, ENTROPY = 1, MARGIN = 2 };  // gate.py: RULES

using Size = unsigned long long;

__device__ bool is_finite(float value) { return (__float_as_uint(value) & 0x7fffffffu) < 0x7f800000u; }

// ---- half precision, by its bits: exact, and the same code runs on the host ---------------------

struct Half {
    unsigned short bits;
};

__device__ float as_float(float value) { return value; }

__device__ float as_float(Half half) {
    const unsigned sign = (half.bits & 0x8000u) << 16, rest = half.bits & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    const float magnitude = __uint_as_float(rest << 13) * __uint_as_float(0x77800000u);  // 2^112, which is right for subnormals, too
    return __uint_as_float(sign | __float_as_uint(magnitude));
}

// To the nearest, halves to even; beyond 65504 infinity; of a NaN the upper bits, as NumPy has it.
__device__ unsigned as_half(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
    unsigned rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) {
        rest = 0x7c00u | (rest >> 13 & 0x3ffu);
        return sign | (rest == 0x7c00u ? 0x7c01u : rest);
    }
    if (rest >= 0x47800000u) return sign | 0x7c00u;  // 65536
    if (rest < 0x38800000u)                           // 2^-14: 0.5 has the last place of half's subnormals
        return sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u);
    rest += 0xfffu + (rest >> 13 & 1u);
    return sign | (rest - 0x38000000u) >> 13;
}

// ---- decide -------------------------------------------------------------------------------------

struct Row {
    int exited;
    int label;
    float confidence;
    int finite;  // logits that are, where not all are (or not all over the temperature); else -1
};

// The arg max, the first of equals; it begins as the label of a row of minus infinities. A NaN is neither greater nor equal, so it
// counts as one of these.
struct Best {
    float value;
    int label;

    __device__ void merge(float other, int its_label) {
        if (other > value || (other == value && its_label < label)) {
            value = other;
            label = its_label;
        }
    }
};

__device__ float sum_of_warp(float value) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL, value, apart);
    return value;
}

__device__ int sum_of_warp(int value) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL, value, apart);
    return value;
}

// One warp decides one row; every lane returns the same. All lanes take part in every shuffle.
template <typename Logit>
__device__ Row decide_row(const Logit* __restrict__ logits, int classes, int rule, float temperature, float log_classes, int lane) {
    Best best = {-__uint_as_float(0x7f800000u), 0};
    int finite = 0;
#pragma unroll 4
    for (int at = lane; at < classes; at += WARP) {
        const float raw = as_float(logits[at]);
        finite += is_finite(raw);
        best.merge(raw, at);
    }
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        const float value = __shfl_xor_sync(ALL, best.value, apart);
        const int label = __shfl_xor_sync(ALL, best.label, apart);
        best.merge(value, label);
    }

    // Rule 1. A division by a positive number keeps the order, so the largest over the temperature is the largest of all quotients.
    const float largest = best.value / temperature;
    float total = 0.0f, weighted = 0.0f, first = 0.0f, second = 0.0f;
    int bad = 0;
    for (int strip = lane; strip < classes; strip += WARP * STRIP) {
        const int end = min(classes, strip + WARP * STRIP);
        float strip_total = 0.0f, strip_weighted = 0.0f;
#pragma unroll 4
        for (int at = strip; at < end; at += WARP) {
            const float scaled = as_float(logits[at]) / temperature;
            const float distance = scaled - largest;
            const float exponential = expf(distance);
            bad |= !is_finite(scaled);
            strip_total += exponential;
            strip_weighted += exponential * fmaxf(distance, LEAST_EXPONENT);
            second = fmaxf(second, fminf(first, exponential));
            first = fmaxf(first, exponential);
        }
        total += strip_total;
        weighted += strip_weighted;
    }

    // Rule 4. From here on all lanes take the same branch.
    if (__ballot_sync(ALL, bad)) return {0, best.label, 0.0f, sum_of_warp(finite)};

    // Rule 2.
    total = sum_of_warp(total);
    float confidence = 1.0f;  // of the entropy of one class, which leaves no doubt
    if (rule == MAX_PROBABILITY) {
        confidence = 1.0f / total;
    } else if (rule == MARGIN) {
        for (int apart = WARP / 2; apart > 0; apart /= 2) {
            const float its_first = __shfl_xor_sync(ALL, first, apart), its_second = __shfl_xor_sync(ALL, second, apart);
            second = fmaxf(fmaxf(second, its_second), fminf(first, its_first));
            first = fmaxf(first, its_first);
        }
        confidence = (1.0f - second) / total;
    } else if (classes > 1) {
        const float certainty = 1.0f - (logf(total) - sum_of_warp(weighted) / total) / log_classes;
        confidence = fminf(fmaxf(certainty, 0.0f), 1.0f);
    }
    return {0, best.label, confidence, -1};
}

// One block, of any whole number of warps: a warp decides every so many rows, then the first warp numbers the survivors in order.
// `decided` is shared memory for MAX_ROWS.
template <typename Logit>
__device__ void decide(const Logit* logits, const float* thresholds, int rows, int classes, int rule, float temperature,
                       float log_classes, int last, int4* decisions, Row* decided) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int row = warp; row < rows; row += warps) {
        const Logit* its_logits = logits + (Size)row * classes;
        Row its = decide_row(its_logits, classes, rule, temperature, log_classes, lane);
        if (lane == 0) {
            if (last) {  // rule 3; of a bad row there the header tells, and the host fails the batch
                its.exited = 1;
            } else {
                const float threshold = thresholds[row];
                its.exited = its.finite < 0 && its.confidence >= threshold && threshold < NEVER_EXIT;
            }
            decided[row] = its;
        }
    }
    __syncthreads();
    if (warp > 0) return;
    int survivors = 0, first_bad = -1;
    for (int from = 0; from < rows; from += WARP) {
        const int row = from + lane;
        const Row its = row < rows ? decided[row] : Row{1, 0, 0.0f, -1};
        const unsigned staying = __ballot_sync(ALL, !its.exited), bad = __ballot_sync(ALL, its.finite >= 0);
        const int place = survivors + __popc(staying & ((1u << lane) - 1u));
        if (row < rows)
            decisions[1 + row] = make_int4(its.exited, its.label, __float_as_int(its.confidence), its.exited ? -1 : place);
        survivors += __popc(staying);
        if (first_bad < 0 && bad) first_bad = from + __ffs(bad) - 1;
    }
    if (lane == 0) decisions[0] = make_int4(survivors, first_bad, first_bad < 0 ? 0 : decided[first_bad].finite, classes);
}

// ---- gather: grid (parts of a row, rows) --------------------------------------------------------

// Where this block's row goes, or -1. Launched for the whole batch before anyone knows how many stay: the others return at once.
__device__ int place_of_row(const int4* decisions) { return decisions[1 + blockIdx.y].w; }

template <typename Word>
__device__ void put(Word* to, Word word) {
    *to = word;
}

__device__ void put(unsigned short* to, float value) { *to = (unsigned short)as_half(value); }

__device__ void put(unsigned* to, float2 pair) { *to = as_half(pair.x) | as_half(pair.y) << 16; }

// `words` of a row, each as it is or encoded. Not aliased, so that a thread's loads go out together.
template <typename In, typename Out>
__device__ void gather(const In* __restrict__ activation, const int4* __restrict__ decisions, Out* __restrict__ out, Size words) {
    const int place = place_of_row(decisions);
    if (place < 0) return;
    const In* __restrict__ from = activation + blockIdx.y * words;
    Out* __restrict__ to = out + place * words;
    const Size step = (Size)gridDim.x * blockDim.x;
#pragma unroll 4
    for (Size at = (Size)blockIdx.x * blockDim.x + threadIdx.x; at < words; at += step) put(to + at, from[at]);
}

}  // namespace

// ---- the kernels --------------------------------------------------------------------------------

#define DECIDE(name, Logit)                                                                                                \
    extern "C" __global__ void __launch_bounds__(1024, 1)                                                                  \
        name(const Logit* __restrict__ logits, const float* __restrict__ thresholds, int rows, int classes, int rule,      \
             float temperature, float log_classes, int last, int4* __restrict__ decisions) {                               \
        __shared__ Row decided[MAX_ROWS];                                                                                  \
        decide(logits, thresholds, rows, classes, rule, temperature, log_classes, last, decisions, decided);               \
    }

#define GATHER(name, In, Out)                                                                                              \
    extern "C" __global__ void name(const In* __restrict__ activation, const int4* __restrict__ decisions,                 \
                                    Out* __restrict__ out, Size words) {                                                   \
        gather(activation, decisions, out, words);                                                                         \
    }

DECIDE(zpipe_decide_float32, float)
DECIDE(zpipe_decide_float16, Half)

GATHER(zpipe_gather_16, int4, int4)
GATHER(zpipe_gather_4, int, int)
GATHER(zpipe_gather_2, short, short)
GATHER(zpipe_gather_1, char, char)

// zpipe/codecs/fp16.py: float32 values as halves, one by one or two to a word of the output.
GATHER(zpipe_gather_fp16, float, unsigned short)
GATHER(zpipe_gather_fp16_2, float2, unsigned)

// zpipe/codecs/int8.py: a bfloat16 scale per channel, then a byte per value. Block (threads of one channel, a multiple of a warp;
// channels): the threads of a channel find its peak together, then quantise it.
extern "C" __global__ void zpipe_gather_int8(const float* __restrict__ activation, const int4* __restrict__ decisions,
                                             unsigned char* __restrict__ out, int channels, int values) {
    __shared__ unsigned peaks[1024 / WARP];
    const int place = place_of_row(decisions);
    if (place < 0) return;  // the whole block
    const int channel = blockIdx.x * blockDim.y + threadIdx.y, mine = channel < channels ? values : 0;
    const Size row_values = (Size)channels * values;
    const float* from = activation + blockIdx.y * row_values + (Size)channel * values;
    unsigned char* coded_row = out + place * (2ull * channels + row_values);
    unsigned char* to = coded_row + 2ull * channels + (Size)channel * values;

    // Magnitudes compare as their bits do, infinity above all numbers and NaN above infinity.
    unsigned peak = 0;
#pragma unroll 4
    for (int at = threadIdx.x; at < mine; at += blockDim.x) peak = max(peak, __float_as_uint(from[at]) & 0x7fffffffu);
    for (int apart = WARP / 2; apart > 0; apart /= 2) peak = max(peak, __shfl_xor_sync(ALL, peak, apart));
    const int warps = blockDim.x / WARP;
    if (threadIdx.x % WARP == 0) peaks[threadIdx.y * warps + threadIdx.x / WARP] = peak;
    __syncthreads();
    for (int warp = 0; warp < warps; ++warp) peak = max(peak, peaks[threadIdx.y * warps + warp]);

    const unsigned bits = __float_as_uint(__uint_as_float(peak) / 127.0f);
    const unsigned coded = peak > 0x7f800000u ? 0x7fc0u : (bits + 0xffffu) >> 16;  // rounded up, so that nothing is clipped
    const float scale = coded ? __uint_as_float(coded << 16) : 1.0f;               // a channel of zeros
    if (threadIdx.x == 0 && channel < channels) {
        coded_row[2 * channel] = (unsigned char)coded;
        coded_row[2 * channel + 1] = (unsigned char)(coded >> 8);
    }
#pragma unroll 4
    for (int at = threadIdx.x; at < mine; at += blockDim.x) {
        const float steps = rintf(from[at] / scale);
        to[at] = (unsigned char)(signed char)(steps == steps ? (int)steps : 0);  // NaN: as processors convert it for NumPy
    }
}
