// Devices, contexts, memory, modules, errors.

#define _GNU_SOURCE
#include "standin.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_DEVICES 8
#define MOST_PUSHED 16
#define GUARD 256  // bytes on both sides of an allocation; a multiple of the alignment that CUDA promises

int alive[KINDS];
static int mistakes, calls, initialized;
static CUresult lost;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct Context {
    int device, retained;
} contexts[MOST_DEVICES];
static _Thread_local struct Context *pushed[MOST_PUSHED];
static _Thread_local int depth;

// ---- settings, errors ---------------------------------------------------------------------------

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? strtol(value, NULL, 10) : otherwise;
}

static int devices(void) { return (int)setting("STANDIN_DEVICES", 1); }

void mistake(const char *what) {
    mistakes++;
    fprintf(stderr, "standin: mistake: %s\n", what);
}

CUresult lose(CUresult code) { return lost = code; }

// STANDIN_FAIL=call:n:code,...: the n-th call of that name, from 1, fails; 2 and the codes below 700 pass, the others last.
CUresult injected(const char *call) {
    static struct {
        char name[64];
        int seen;
    } counts[32];
    const char *rule = getenv("STANDIN_FAIL");
    int at = 0;
    if (!rule) return SUCCESS;
    while (at < 31 && counts[at].name[0] && strcmp(counts[at].name, call)) at++;
    snprintf(counts[at].name, sizeof counts[at].name, "%s", call);
    const int seen = ++counts[at].seen;
    for (; rule && *rule; rule = strchr(rule, ','), rule += rule != NULL) {
        char name[64];
        int nth, code;
        if (sscanf(rule, "%63[^:]:%d:%d", name, &nth, &code) == 3 && !strcmp(name, call) && nth == seen)
            return code >= 700 && code != NOT_SUPPORTED && code < 900 ? lose(code) : code;
    }
    return SUCCESS;
}

static CUresult usable(void) {
    if (!initialized) return NOT_INITIALIZED;
    if (!depth) return INVALID_CONTEXT;
    return pushed[depth - 1]->retained ? lost : CONTEXT_IS_DESTROYED;
}

CUresult enter(const char *call) {
    pthread_mutex_lock(&lock);
    calls++;
    const CUresult result = usable();
    return result ? result : injected(call);
}

CUresult leave(CUresult result) {
    pthread_mutex_unlock(&lock);
    return result;
}

void reenter(void) { pthread_mutex_lock(&lock); }

static const struct {
    CUresult code;
    const char *name, *text;
} TEXTS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult words(CUresult code, const char **out, int text) {
    for (size_t at = 0; at < sizeof TEXTS / sizeof *TEXTS; at++)
        if (TEXTS[at].code == code) return *out = text ? TEXTS[at].text : TEXTS[at].name, SUCCESS;
    return *out = NULL, INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult code, const char **out) { return words(code, out, 1); }
CUresult cuGetErrorName(CUresult code, const char **out) { return words(code, out, 0); }

// ---- devices ------------------------------------------------------------------------------------

CUresult cuInit(unsigned flags) {
    const CUresult refused = injected(__func__);
    if (refused || flags) return refused ? refused : INVALID_VALUE;
    if (devices() < 1) return NO_DEVICE;
    initialized = 1;
    return SUCCESS;
}
CUresult cuDriverGetVersion(int *out) { return *out = (int)setting("STANDIN_VERSION", 12040), SUCCESS; }
CUresult cuDeviceGetCount(int *out) { return *out = devices(), initialized ? SUCCESS : NOT_INITIALIZED; }
CUresult cuDeviceGet(int *out, int ordinal) {
    if (!initialized) return NOT_INITIALIZED;
    return ordinal < 0 || ordinal >= devices() ? INVALID_DEVICE : (*out = ordinal, SUCCESS);
}
CUresult cuDeviceGetName(char *out, int bytes, int device) { return snprintf(out, bytes, "Stand-in %d", device), SUCCESS; }
CUresult cuDeviceComputeCapability(int *major, int *minor, int device) {
    const int capability = (int)setting("STANDIN_CAPABILITY", 86);
    return *major = capability / 10, *minor = capability % 10, device < devices() ? SUCCESS : INVALID_DEVICE;
}
CUresult cuDeviceGetAttribute(int *out, int attribute, int device) {
    int major, minor;
    const CUresult result = cuDeviceComputeCapability(&major, &minor, device);
    return *out = attribute == 75 ? major : attribute == 76 ? minor : 0, result;
}
static size_t capacity(void) { return (size_t)setting("STANDIN_MEMORY", 256) << 20; }
CUresult cuDeviceTotalMem_v2(size_t *out, int device) { return *out = capacity(), device < devices() ? SUCCESS : INVALID_DEVICE; }

// ---- contexts: the primary one of each device ---------------------------------------------------

CUresult cuDevicePrimaryCtxRetain(struct Context **out, int device) {
    pthread_mutex_lock(&lock);
    const CUresult refused = !initialized ? NOT_INITIALIZED : injected(__func__);
    if (refused) return leave(refused);
    contexts[device].device = device;
    contexts[device].retained++;
    return *out = &contexts[device], leave(SUCCESS);
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    if (!contexts[device].retained) return mistake("a context is released that nobody retains"), leave(INVALID_CONTEXT);
    if (!--contexts[device].retained)
        for (int kind = 0; kind < KINDS; kind++)
            if (alive[kind] && !lost) mistake("the last owner of a context leaves something behind");
    return leave(SUCCESS);
}
CUresult cuCtxPushCurrent_v2(struct Context *context) {
    if (!context || depth == MOST_PUSHED) return INVALID_CONTEXT;
    return pushed[depth++] = context, SUCCESS;
}
CUresult cuCtxPopCurrent_v2(struct Context **out) {
    if (!depth) return INVALID_CONTEXT;
    return *out = pushed[--depth], SUCCESS;
}
CUresult cuCtxGetDevice(int *out) {
    ENTER();
    return *out = pushed[depth - 1]->device, leave(SUCCESS);
}
CUresult cuCtxDetach(struct Context *context) {
    (void)context;
    mistake("cuCtxDetach on a primary context");  // what pycuda calls where its context object is merely dropped
    return INVALID_CONTEXT;
}

// ---- memory -------------------------------------------------------------------------------------

static struct Piece {
    struct Piece *next;
    unsigned char *base;
    size_t bytes;
    int kind;
} *pieces;
static size_t used;

static CUresult allocate(void **out, size_t bytes, int kind) {
    CUresult refused = unsafe_in_capture();
    if (refused || !bytes) return refused ? refused : INVALID_VALUE;
    if (kind == MEMORY && used + bytes > capacity()) return OUT_OF_MEMORY;
    struct Piece *piece = malloc(sizeof *piece);
    *piece = (struct Piece){pieces, aligned_alloc(4096, (2 * GUARD + bytes + 8191) & ~4095ul), bytes, kind};
    memset(piece->base, 0xA5, 2 * GUARD + bytes);  // what nobody wrote shows
    pieces = piece;
    used += kind == MEMORY ? bytes : 0;
    alive[kind]++;
    return *out = piece->base + GUARD, SUCCESS;
}

static CUresult give_back(void *address, int kind) {
    struct Piece **link = &pieces;
    while (*link && ((*link)->base + GUARD != address || (*link)->kind != kind)) link = &(*link)->next;
    struct Piece *piece = *link;
    if (!piece) return mistake("something is freed that was not allocated"), INVALID_VALUE;
    for (size_t at = 0; at < GUARD; at++)
        if (piece->base[at] != 0xA5 || piece->base[GUARD + piece->bytes + at] != 0xA5) return mistake("written past an end"), lose(ILLEGAL_ADDRESS);
    *link = piece->next;
    used -= kind == MEMORY ? piece->bytes : 0;
    alive[kind]--;
    free(piece->base);
    free(piece);
    return SUCCESS;
}

static int is_within(const void *address, size_t bytes, int kind) {
    for (const struct Piece *piece = pieces; piece; piece = piece->next) {
        const unsigned char *from = piece->base + GUARD, *at = address;
        if (piece->kind == kind && at >= from && bytes <= piece->bytes && (size_t)(at - from) <= piece->bytes - bytes) return 1;
    }
    return 0;
}
int is_device(CUdeviceptr address, size_t bytes) { return is_within((void *)address, bytes, MEMORY); }
int is_pinned(const void *address, size_t bytes) { return is_within(address, bytes, PINNED); }

CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
    ENTER();
    return leave(allocate((void **)out, bytes, MEMORY));
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTER();
    return leave(give_back((void *)address, MEMORY));
}
CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    ENTER();
    return leave(flags & ~7u ? INVALID_VALUE : allocate(out, bytes, PINNED));
}
CUresult cuMemFreeHost(void *address) {
    ENTER();
    return leave(give_back(address, PINNED));
}
CUresult cuMemGetInfo_v2(size_t *unused, size_t *total) {
    ENTER();
    return *total = capacity(), *unused = *total - used, leave(SUCCESS);
}

// ---- modules: their kernels are those of the library that STANDIN_KERNELS names (shim.cpp) -------

struct Module {
    size_t bytes;
    char image[];
};

// A cubin is ELF for machine 190, with the capability in its flags: the lowest byte, one further up since ABI 8 (CUDA 12.8 or so).
static CUresult check_cubin(const unsigned char *image) {
    uint32_t flags;
    int major, minor;
    memcpy(&flags, image + 48, 4);
    const int capability = image[8] >= 8 ? flags >> 8 & 0xff : flags & 0xff;
    cuDeviceComputeCapability(&major, &minor, 0);
    if (image[18] != 190) return INVALID_IMAGE;
    return capability / 10 == major && capability % 10 <= minor ? SUCCESS : NO_BINARY_FOR_GPU;
}

// PTX may be as new as the driver: 9.0 came with CUDA 13.0, 8.0 with 12.0, 7.0 with 11.0; within a major version one each.
static CUresult check_ptx(const char *image, char *log, size_t room) {
    int version, major, minor, capability;
    const char *stated = strstr(image, ".version"), *target = strstr(image, ".target sm_");
    if (!stated || !target || sscanf(stated, ".version %d.%d", &major, &minor) != 2) return INVALID_IMAGE;
    cuDriverGetVersion(&version);
    if (10 * major + minor > 10 * (version / 1000 - 4) + version % 1000 / 10) {
        snprintf(log, room, "ptxas application ptx input, line 9; fatal   : Unsupported .version %d.%d\nptxas fatal   : aborted", major, minor);
        return UNSUPPORTED_PTX_VERSION;
    }
    sscanf(target, ".target sm_%d", &capability);
    cuDeviceComputeCapability(&major, &minor, 0);
    return capability <= 10 * major + minor ? SUCCESS : NO_BINARY_FOR_GPU;
}

CUresult cuModuleLoadDataEx(struct Module **out, const void *image, unsigned count, int *options, void **values) {
    ENTER();
    char log[256] = "", *buffer = NULL;
    size_t room = 0, bytes = strlen(image) + 1;
    CUresult result = unsafe_in_capture();
    if (result) return leave(result);
    if (!memcmp(image, "\177ELF", 4)) {
        uint64_t sections;
        uint16_t size, number;
        memcpy(&sections, (char *)image + 40, 8);
        memcpy(&size, (char *)image + 58, 2);
        memcpy(&number, (char *)image + 60, 2);
        bytes = sections + (size_t)size * number;
        result = check_cubin(image);
    } else {
        result = check_ptx(image, log, sizeof log);
    }
    for (unsigned at = 0; at < count; at++) {  // CU_JIT_INFO_LOG_BUFFER 3 and its size 4, CU_JIT_ERROR_LOG_BUFFER 5 and its size 6
        if (options[at] == 5) buffer = values[at];
        if (options[at] == 6) room = (size_t)values[at];
    }
    if (buffer) snprintf(buffer, room, "%s", log);
    for (unsigned at = 0; at < count; at++)
        if (options[at] == 4 || options[at] == 6) values[at] = (void *)(options[at] == 6 ? strlen(log) : 0);
    if (result) return leave(result);
    *out = malloc(sizeof **out + bytes);
    (*out)->bytes = bytes;
    memcpy((*out)->image, image, bytes);
    return alive[MODULES]++, leave(SUCCESS);
}
CUresult cuModuleUnload(struct Module *module) {
    ENTER();
    free(module);
    return alive[MODULES]--, leave(SUCCESS);
}

// Functions live as long as the process: few, and a queue may still name one.
CUresult cuModuleGetFunction(struct Function **out, struct Module *module, const char *name) {
    ENTER();
    const char *path = getenv("STANDIN_KERNELS");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library || !memmem(module->image, module->bytes, name, strlen(name) + 1 - (module->image[0] != 0x7f))) return leave(NOT_FOUND);
    int (*parameters)(const char *, size_t *, int) = (int (*)(const char *, size_t *, int))dlsym(library, "shim_parameters");
    struct Function *function = calloc(1, sizeof *function);
    function->count = parameters(name, function->sizes, MOST_PARAMETERS);
    function->launch = (Launch)dlsym(library, "shim_launch");
    snprintf(function->name, sizeof function->name, "%s", name);
    return *out = function, leave(function->count < 0 ? NOT_FOUND : SUCCESS);
}
CUresult cuFuncSetBlockShape(struct Function *function, int x, int y, int z) {
    ENTER();
    return leave(function && x > 0 && y > 0 && z > 0 ? SUCCESS : INVALID_VALUE);
}

// ---- for the tests ------------------------------------------------------------------------------

// What is alive, how many mistakes were made, how often the primary context is retained, how deep this thread's stack is.
void standin_report(char *out, size_t room) {
    snprintf(out, room, "memory %d, pinned %d, streams %d, events %d, modules %d, graphs %d, mistakes %d, retained %d, pushed %d",
             alive[MEMORY], alive[PINNED], alive[STREAMS], alive[EVENTS], alive[MODULES], alive[GRAPHS], mistakes,
             contexts[0].retained, depth);
}
int standin_calls(void) { return calls; }
