// A stand-in for libcuda on a machine without a GPU: a test tool that lets the real pycuda run, and no more than that.
//
// Device memory is memory of the host. A stream does nothing until somebody waits for it, so that a missing wait shows as stale
// bytes on every run instead of now and then. What a real driver forbids is refused with the code it would give, or counted as a
// mistake where a real one would let it pass today and crash tomorrow. __init__.py here lists its settings.

#pragma once

#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

// What is alive, by kind; `standin_report` prints it.
enum { MEMORY, PINNED, STREAMS, EVENTS, MODULES, GRAPHS, KINDS };
extern int alive[KINDS];

// A call that needs an initialized driver and a current context that works: `ENTER` returns where it may not go on. Every call
// holds one lock, a waiting one, too: the stand-in does its work in the thread that waits.
CUresult enter(const char *call);
CUresult leave(CUresult result);
void reenter(void);
#define ENTER()                              \
    do {                                     \
        CUresult refused = enter(__func__);  \
        if (refused) return leave(refused);  \
    } while (0)

// Makes every later call fail with this, as an error on the device does.
CUresult lose(CUresult code);
CUresult injected(const char *call);
void mistake(const char *what);

// What was allocated: the whole range has to lie in one piece that is not freed yet.
int is_device(CUdeviceptr address, size_t bytes);
int is_pinned(const void *address, size_t bytes);

// 900 where this thread is recording a graph and the call would break it; the recording is spoiled then.
CUresult unsafe_in_capture(void);

// A kernel compiled for the host, as ../shim.cpp gives it.
#define MOST_PARAMETERS 16
#define PARAMETER_BYTES 512
typedef int (*Launch)(const char *name, const unsigned *grid, const unsigned *block, void **parameters, unsigned order, char *reason,
                      size_t room);
struct Function {
    char name[64];
    Launch launch;
    size_t sizes[MOST_PARAMETERS];
    int count;
};
