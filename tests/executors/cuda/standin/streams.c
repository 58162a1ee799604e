// Streams, events and graphs: queues of work that somebody's wait carries out.

#include "standin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct Event;

struct Work {
    enum { COPY_IN, COPY_OUT, COPY_ACROSS, LAUNCH, CALL, RECORD, WAIT } kind;
    unsigned char *to;
    const unsigned char *from;
    size_t bytes;
    struct Event *event;
    struct Stream *awaited;  // of WAIT: up to `place` of this stream
    uint64_t place;
    void (*call)(void *);
    void *context;
    const struct Function *function;
    unsigned grid[3], block[3];
    unsigned char parameters[PARAMETER_BYTES];
};

struct List {
    struct Work *items;
    size_t count, room;
};

struct Stream {
    struct List queue;
    uint64_t queued, done;  // since it was made; the queue holds the works from `done` on
    struct Graph *recording;
    struct Stream *next;
};

struct Event {
    unsigned flags;
    struct Stream *stream;  // where it was last recorded, NULL never
    uint64_t place;         // that many works of the stream are before the point
    struct Graph *recording;
    struct timespec at;
};

struct Graph {
    struct List works;
    int spoiled;
};

static struct Stream *streams;
static _Thread_local struct Graph *recorded_here;  // thread-local capture: what spoils it is what this thread does

// A stream or event outlives its handle as long as somebody's work names it; the test tool never takes the memory back.
static void destroyed(int kind) { alive[kind]--; }

static struct Work *add(struct List *list) {
    if (list->count == list->room) list->items = realloc(list->items, (list->room = 2 * list->room + 16) * sizeof *list->items);
    struct Work *work = &list->items[list->count++];
    memset(work, 0, sizeof *work);
    return work;
}

static struct Work *queue_on(struct Stream *stream) {
    if (stream->recording) return add(&stream->recording->works);
    stream->queued++;
    return add(&stream->queue);
}

static CUresult run_until(struct Stream *stream, uint64_t place);

// Parameters lie as in a C struct: each at a multiple of its size.
static size_t aligned(size_t at, size_t size) { return (at + size - 1) / size * size; }

static CUresult run_kernel(struct Work *work) {
    const struct Function *function = work->function;
    void *parameters[MOST_PARAMETERS];
    size_t at = 0;
    for (int one = 0; one < function->count; at += function->sizes[one++])
        parameters[one] = work->parameters + (at = aligned(at, function->sizes[one]));
    char reason[256];
    if (!function->launch(function->name, work->grid, work->block, parameters, 0, reason, sizeof reason)) return SUCCESS;
    fprintf(stderr, "standin: %s: %s\n", function->name, reason);
    return lose(LAUNCH_FAILED);
}

// Addresses are looked at when the work is done, as on a device: what was freed under it is an illegal access.
static CUresult carry_out(struct Work *work) {
    CUresult result = injected("execute");
    if (result) return lose(result);
    switch (work->kind) {
        case COPY_IN:
            if (!is_pinned(work->from, work->bytes) || !is_device((CUdeviceptr)work->to, work->bytes)) return lose(ILLEGAL_ADDRESS);
            break;
        case COPY_OUT:
            if (!is_device((CUdeviceptr)work->from, work->bytes) || !is_pinned(work->to, work->bytes)) return lose(ILLEGAL_ADDRESS);
            break;
        case COPY_ACROSS:
            if (!is_device((CUdeviceptr)work->from, work->bytes) || !is_device((CUdeviceptr)work->to, work->bytes)) return lose(ILLEGAL_ADDRESS);
            break;
        case LAUNCH:
            return run_kernel(work);
        case CALL:
            leave(SUCCESS);  // it may wait for Python's lock while another thread that has it waits for this one
            work->call(work->context);
            reenter();
            return SUCCESS;
        case RECORD:
            clock_gettime(CLOCK_MONOTONIC, &work->event->at);
            return SUCCESS;
        case WAIT:
            return run_until(work->awaited, work->place);
    }
    memmove(work->to, work->from, work->bytes);
    return SUCCESS;
}

static CUresult run_until(struct Stream *stream, uint64_t place) {
    while (stream->done < place) {
        struct Work work = stream->queue.items[0];
        memmove(stream->queue.items, stream->queue.items + 1, --stream->queue.count * sizeof work);
        stream->done++;
        const CUresult result = carry_out(&work);
        if (result) return result;
    }
    return SUCCESS;
}

CUresult unsafe_in_capture(void) {
    if (!recorded_here) return SUCCESS;
    recorded_here->spoiled = 1;
    return CAPTURE_UNSUPPORTED;
}

// ---- streams ------------------------------------------------------------------------------------

CUresult cuStreamCreate(struct Stream **out, unsigned flags) {
    ENTER();
    if (flags & ~1u) return leave(INVALID_VALUE);
    if (!(flags & 1)) mistake("a stream that waits for the default stream");
    struct Stream *stream = calloc(1, sizeof *stream);
    stream->next = streams;
    streams = stream;
    return alive[STREAMS]++, *out = stream, leave(SUCCESS);
}
CUresult cuStreamDestroy_v2(struct Stream *stream) {
    ENTER();
    if (stream->done < stream->queued) mistake("a stream is destroyed with work queued");
    return destroyed(STREAMS), leave(run_until(stream, stream->queued));
}
CUresult cuStreamSynchronize(struct Stream *stream) {
    ENTER();
    if (stream->recording) return leave(unsafe_in_capture());
    return leave(run_until(stream, stream->queued));
}
CUresult cuStreamQuery(struct Stream *stream) {
    ENTER();
    if (stream->recording) return leave(unsafe_in_capture());
    const CUresult result = run_until(stream, stream->done + (stream->done < stream->queued));
    return leave(result ? result : stream->done < stream->queued ? NOT_READY : SUCCESS);
}
CUresult cuCtxSynchronize(void) {
    ENTER();
    CUresult result = unsafe_in_capture();
    for (struct Stream *stream = streams; stream && !result; stream = stream->next) result = run_until(stream, stream->queued);
    return leave(result);
}

// ---- events -------------------------------------------------------------------------------------

CUresult cuEventCreate(struct Event **out, unsigned flags) {
    ENTER();
    if (flags & ~7u) return leave(INVALID_VALUE);
    *out = calloc(1, sizeof **out);
    return (*out)->flags = flags, alive[EVENTS]++, leave(SUCCESS);
}
CUresult cuEventDestroy_v2(struct Event *event) {
    ENTER();
    (void)event;
    return destroyed(EVENTS), leave(SUCCESS);
}
CUresult cuEventRecord(struct Event *event, struct Stream *stream) {
    ENTER();
    if (!stream) return mistake("an event on the default stream"), leave(INVALID_VALUE);
    struct Work *work = queue_on(stream);
    work->kind = RECORD;
    work->event = event;
    event->stream = stream;
    event->place = stream->queued;
    event->recording = stream->recording;
    return leave(SUCCESS);
}
CUresult cuStreamWaitEvent(struct Stream *stream, struct Event *event, unsigned flags) {
    ENTER();
    if (flags) return leave(INVALID_VALUE);
    if (!event->stream) return leave(SUCCESS);  // never recorded: nothing to wait for
    if (event->recording != stream->recording) return mistake("a wait across the border of a graph"), leave(CAPTURE_UNSUPPORTED);
    if (event->recording) return leave(SUCCESS);  // one recording is in the order it was made
    struct Work *work = queue_on(stream);
    work->kind = WAIT;
    work->awaited = event->stream;
    work->place = event->place;
    return leave(SUCCESS);
}
CUresult cuEventSynchronize(struct Event *event) {
    ENTER();
    if (event->recording) return leave(unsafe_in_capture());
    return leave(event->stream ? run_until(event->stream, event->place) : SUCCESS);
}
CUresult cuEventQuery(struct Event *event) {
    ENTER();
    if (event->recording) return leave(unsafe_in_capture());
    if (!event->stream || event->stream->done >= event->place) return leave(SUCCESS);
    const CUresult result = run_until(event->stream, event->stream->done + 1);  // each look lets the device do one more work
    return leave(result ? result : NOT_READY);
}
CUresult cuEventElapsedTime_v2(float *milliseconds, struct Event *start, struct Event *end) {
    ENTER();
    if ((start->flags | end->flags) & 2 || !start->stream || !end->stream) return leave(INVALID_HANDLE);
    if (start->stream->done < start->place || end->stream->done < end->place) return leave(NOT_READY);
    *milliseconds = 1e3f * (float)(end->at.tv_sec - start->at.tv_sec) + 1e-6f * (float)(end->at.tv_nsec - start->at.tv_nsec);
    return leave(SUCCESS);
}
CUresult cuEventElapsedTime(float *milliseconds, struct Event *start, struct Event *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

// ---- work ---------------------------------------------------------------------------------------

static CUresult copy(int kind, const void *to, const void *from, size_t bytes, struct Stream *stream) {
    if (!stream) return mistake("a copy on the default stream"), INVALID_VALUE;
    struct Work *work = queue_on(stream);
    work->kind = kind;
    work->to = (unsigned char *)to;
    work->from = from;
    work->bytes = bytes;
    return SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, struct Stream *stream) {
    ENTER();
    if (!is_pinned(from, bytes)) return mistake("a copy from memory that is not page-locked"), leave(INVALID_VALUE);
    return leave(is_device(to, bytes) ? copy(COPY_IN, (void *)to, from, bytes, stream) : INVALID_VALUE);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, struct Stream *stream) {
    ENTER();
    if (!is_pinned(to, bytes)) return mistake("a copy to memory that is not page-locked"), leave(INVALID_VALUE);
    return leave(is_device(from, bytes) ? copy(COPY_OUT, to, (void *)from, bytes, stream) : INVALID_VALUE);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, struct Stream *stream) {
    ENTER();
    const int fits = is_device(to, bytes) && is_device(from, bytes);
    return leave(fits ? copy(COPY_ACROSS, (void *)to, (void *)from, bytes, stream) : INVALID_VALUE);
}

// Parameters come as pointers to each, or as one buffer (CU_LAUNCH_PARAM_BUFFER_POINTER 1, its size 2), as pycuda sends them.
CUresult cuLaunchKernel(const struct Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, struct Stream *stream, void **parameters, void **extra) {
    ENTER();
    if (!stream || !function) return mistake("a launch without stream or function"), leave(INVALID_VALUE);
    const int fits = gx && gx <= 0x7fffffffu && gy && gy <= 65535 && gz && gz <= 65535 && (uint64_t)bx * by * bz - 1 < 1024;
    if (!fits || shared > 48 << 10 || !parameters == !extra) return leave(INVALID_VALUE);
    unsigned char copied[PARAMETER_BYTES] = {0};
    size_t bytes = 0, given = 0;
    for (int one = 0; one < function->count; bytes += function->sizes[one++]) {
        bytes = aligned(bytes, function->sizes[one]);
        if (parameters) memcpy(copied + bytes, parameters[one], function->sizes[one]);
    }
    for (; extra && *extra; extra += 2) {
        if ((uintptr_t)*extra == 2) given = *(size_t *)extra[1];
        if ((uintptr_t)*extra == 1) memcpy(copied, extra[1], bytes);
    }
    if (!parameters && given != bytes) return mistake("a launch with other parameters than the kernel's"), leave(INVALID_VALUE);
    struct Work *work = queue_on(stream);
    work->kind = LAUNCH;
    work->function = function;
    memcpy(work->grid, (unsigned[]){gx, gy, gz}, sizeof work->grid);
    memcpy(work->block, (unsigned[]){bx, by, bz}, sizeof work->block);
    memcpy(work->parameters, copied, bytes);
    return leave(SUCCESS);
}

// What tests call an engine: a function of the host as a work of the stream.
CUresult cuLaunchHostFunc(struct Stream *stream, void (*call)(void *), void *context) {
    ENTER();
    struct Work *work = queue_on(stream);
    work->kind = CALL;
    work->call = call;
    work->context = context;
    return leave(SUCCESS);
}

// ---- graphs -------------------------------------------------------------------------------------

CUresult cuStreamBeginCapture_v2(struct Stream *stream, int mode) {
    ENTER();
    if (!stream || stream->recording || mode != 1) return leave(INVALID_VALUE);
    stream->recording = recorded_here = calloc(1, sizeof(struct Graph));
    return alive[GRAPHS]++, leave(SUCCESS);
}
CUresult cuStreamEndCapture(struct Stream *stream, struct Graph **out) {
    ENTER();
    struct Graph *graph = stream->recording;
    if (!graph || graph != recorded_here) return leave(INVALID_VALUE);
    stream->recording = recorded_here = NULL;
    if (!graph->spoiled) return *out = graph, leave(SUCCESS);
    return destroyed(GRAPHS), *out = NULL, leave(CAPTURE_INVALIDATED);
}
CUresult cuGraphInstantiateWithFlags(struct Graph **out, struct Graph *graph, unsigned long long flags) {
    ENTER();
    if (flags) return leave(INVALID_VALUE);
    *out = malloc(sizeof **out);
    **out = (struct Graph){{malloc((graph->works.count + 1) * sizeof *graph->works.items), graph->works.count, graph->works.count}, 0};
    memcpy((*out)->works.items, graph->works.items, graph->works.count * sizeof *graph->works.items);
    return alive[GRAPHS]++, leave(SUCCESS);
}
static CUresult destroy(struct Graph *graph) {
    ENTER();
    free(graph->works.items);
    free(graph);
    return destroyed(GRAPHS), leave(SUCCESS);
}
CUresult cuGraphDestroy(struct Graph *graph) { return destroy(graph); }
CUresult cuGraphExecDestroy(struct Graph *graph) { return destroy(graph); }
CUresult cuGraphLaunch(struct Graph *graph, struct Stream *stream) {
    ENTER();
    for (size_t at = 0; at < graph->works.count; at++) *queue_on(stream) = graph->works.items[at];
    return leave(SUCCESS);
}
