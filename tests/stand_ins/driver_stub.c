/* A libcuda.so.1 that runs on the CPU, so that NVIDIA's own cuda-bindings and cuda-core can be tested without a GPU.
 *
 * Memory is the host's, and kernels are host functions (cuLaunchHostFunc). Where a driver is free to choose, this one
 * chooses what breaks careless code:
 *
 *   - Work is done as late as it may be: when something waits for its stream, and no sooner because another stream
 *     was waited for. Memory that is released under waiting work is gone by then (CUDA_ERROR_ILLEGAL_ADDRESS).
 *   - Pinned memory that changes between the enqueuing of an upload and its execution is counted as a fault.
 *   - Nothing works without a current context, after its release, or where a capture forbids it.
 *
 * The functions whose names begin with stub_ are for the tests: what is alive, which calls were made, and errors to
 * order. Until stub_start is called, cuInit answers as the stub library of the CUDA toolkit does.
 *
 * Built by tests/stand_ins/driver.py with: gcc -shared -fPIC -pthread -Wl,-soname,libcuda.so.1
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, BAD_VALUE = 1, NO_MEMORY = 2, IS_STUB = 34, NO_DEVICE = 100, BAD_DEVICE = 101, NO_CONTEXT = 201,
       BAD_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURING = 900 };
enum { DEVICE_MEMORY, PINNED_MEMORY, STREAM, EVENT, GRAPH, EXECUTABLE, KINDS };
enum { UPLOAD, COPY, FILL, FUNCTION, WAIT, PASS };
enum { GLOBAL, THREAD_LOCAL, RELAXED };

typedef int Status;
typedef uintptr_t Pointer;
struct Stream;

typedef struct { int passed; struct Stream *stream; } Point;

typedef struct {
    int kind, value;
    Pointer to, from;
    size_t size;
    int to_kind, from_kind;        /* which memory they must still be in, -1 for any */
    uint8_t *snapshot;             /* of an upload, when it was enqueued */
    void (*function)(void *), *data;
    Point *point;
} Item;

typedef struct { Item *items; size_t count, room; } Items;

typedef struct Stream { Items queue, recorded; int capturing, alive; pthread_t recorder; Pointer context; } Stream;
typedef struct { Point *point; } Event;
typedef struct { Items items; } Graph;
typedef struct { Pointer handle; size_t size; int kind, device; Pointer context; } Live;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static Live *live;
static size_t live_count, live_room;
static const char **calls;
static size_t call_count, call_room;
static int started, gpus, retained, faults, dead, recorded_elsewhere, failing_status, refused_status;
static long failing_call = -1;
static size_t free_bytes;
static char refused[64];
static Stream legacy, per_thread;
static int primary, other;         /* their addresses are contexts */
static __thread Pointer contexts[64];
static __thread int depth;
static __thread int mode = GLOBAL;

static int same(const char *a, const char *b) { return strcmp(a, b) == 0; }

static void push(Items *items, Item item) {
    if (items->count == items->room) {
        items->room = items->room ? 2 * items->room : 16;
        items->items = realloc(items->items, items->room * sizeof(Item));
    }
    items->items[items->count++] = item;
}

/* What every call begins with: it is noted, and may be told to fail. */
static Status enter(const char *name, int needs_context) {
    pthread_mutex_lock(&lock);
    if (call_count == call_room) {
        call_room = call_room ? 2 * call_room : 1024;
        calls = realloc(calls, call_room * sizeof(char *));
    }
    calls[call_count++] = name;
    if (failing_call == (long)call_count - 1) { failing_call = -1; return failing_status; }
    if (refused_status && same(refused, name)) { Status s = refused_status; refused_status = 0; return s; }
    if (dead) return dead;
    return needs_context && !depth ? NO_CONTEXT : OK;
}

static Status leave(Status status) { pthread_mutex_unlock(&lock); return status; }

#define ENTER(needs_context) \
    Status entered = enter(__func__, needs_context); \
    if (entered) return leave(entered)

/* What is alive. */

static Live *find(Pointer handle, int kind) {
    for (size_t i = 0; i < live_count; i++)
        if (live[i].handle == handle && live[i].kind == kind) return &live[i];
    return NULL;
}

static void keep(Pointer handle, size_t size, int kind) {
    if (live_count == live_room) {
        live_room = live_room ? 2 * live_room : 64;
        live = realloc(live, live_room * sizeof(Live));
    }
    live[live_count++] = (Live){handle, size, kind, 0, (Pointer)&primary};
}

static Status drop(Pointer handle, int kind) {
    Live *found = find(handle, kind);
    if (!found) return BAD_HANDLE;
    memmove(found, found + 1, (char *)(live + live_count) - (char *)(found + 1));
    live_count--;
    return OK;
}

static Live *memory_at(Pointer address, size_t size, int kind) {
    for (size_t i = 0; i < live_count; i++)
        if (live[i].kind <= PINNED_MEMORY && (kind < 0 || live[i].kind == kind) && live[i].handle <= address
            && address + size <= live[i].handle + live[i].size)
            return &live[i];
    return NULL;
}

static Stream *stream_of(Stream *handle) {
    if (handle == NULL || handle == (Stream *)1) return &legacy;
    if (handle == (Stream *)2) return &per_thread;
    return find((Pointer)handle, STREAM) ? handle : NULL;
}

/* Streams do their work here, and nowhere else. */

static Status work_off(Stream *stream, Point *until);

static Status do_item(Item *item) {
    switch (item->kind) {
    case WAIT: return item->point->passed ? OK : work_off(item->point->stream, item->point);
    case PASS: item->point->passed = 1; return OK;
    case FUNCTION: item->function(item->data); return dead;
    }
    if (item->to_kind >= 0 && !memory_at(item->to, item->size, item->to_kind)) return ILLEGAL_ADDRESS;
    if (item->kind == FILL) { memset((void *)item->to, item->value, item->size); return OK; }
    if (item->from_kind >= 0 && !memory_at(item->from, item->size, item->from_kind)) return ILLEGAL_ADDRESS;
    memmove((void *)item->to, (void *)item->from, item->size);
    if (item->snapshot) {
        faults += memcmp((void *)item->to, item->snapshot, item->size) != 0;
        free(item->snapshot);
        item->snapshot = NULL;
    }
    return OK;
}

static Status work_off(Stream *stream, Point *until) {
    while (stream->queue.count && !(until && until->passed) && !dead) {
        Item item = stream->queue.items[0];
        stream->queue.count--;
        memmove(stream->queue.items, stream->queue.items + 1, stream->queue.count * sizeof(Item));
        Status status = do_item(&item);
        if (status) dead = status;
    }
    return dead;
}

static void begin(Stream *stream, Item item) {
    if (item.kind == UPLOAD && memory_at(item.from, item.size, PINNED_MEMORY)) {
        item.snapshot = malloc(item.size);
        memcpy(item.snapshot, (void *)item.from, item.size);
    }
    push(&stream->queue, item);
}

static Status enqueue(Stream *handle, Item item) {
    Stream *stream = stream_of(handle);
    if (!stream) return BAD_HANDLE;
    if (stream->capturing) push(&stream->recorded, item);
    else begin(stream, item);
    return OK;
}

/* Whether this thread captures, or must not disturb another thread that does. */
static int forbidden(void) {
    if (recorded_elsewhere && mode < THREAD_LOCAL) return 1;
    for (size_t i = 0; i < live_count; i++)
        if (live[i].kind == STREAM && ((Stream *)live[i].handle)->capturing && mode < RELAXED
            && pthread_equal(((Stream *)live[i].handle)->recorder, pthread_self()))
            return 1;
    return 0;
}

/* Devices and contexts. */

Status cuInit(unsigned flags) {
    ENTER(0);
    return leave(!started ? IS_STUB : gpus ? OK : NO_DEVICE);
}
Status cuDriverGetVersion(int *version) { *version = 13000; return OK; }
Status cuDeviceGetCount(int *count) { ENTER(0); *count = gpus; return leave(OK); }
Status cuDeviceGet(int *device, int index) {
    ENTER(0);
    *device = index;
    return leave(index < gpus ? OK : BAD_DEVICE);
}
Status cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "NVIDIA H200"); return OK; }
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : 0;  /* compute capability 9.0 */
    return OK;
}
Status cuDevicePrimaryCtxRetain(Pointer *context, int device) {
    ENTER(0);
    *context = (Pointer)&primary;
    retained++;
    return leave(OK);
}
Status cuDevicePrimaryCtxRelease(int device) { ENTER(0); retained--; return leave(OK); }
Status cuCtxPushCurrent(Pointer context) {
    ENTER(0);
    if (!retained) return leave(NO_CONTEXT);
    contexts[depth++] = context;
    return leave(OK);
}
Status cuCtxPopCurrent(Pointer *context) {
    ENTER(1);
    *context = contexts[--depth];
    return leave(OK);
}
Status cuCtxGetCurrent(Pointer *context) { *context = depth ? contexts[depth - 1] : 0; return OK; }
Status cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : NO_CONTEXT; }
Status cuGetErrorName(Status status, const char **name) {
    *name = status == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : status == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? OK : BAD_VALUE;
}
Status cuGetErrorString(Status status, const char **text) {
    *text = status == NO_MEMORY || status == ILLEGAL_ADDRESS ? "as the driver says it" : NULL;
    return *text ? OK : BAD_VALUE;
}

/* Memory. */

static Status allocate(Pointer *address, size_t size, int kind) {
    if (forbidden()) return CAPTURING;
    if (!size) return BAD_VALUE;
    if (kind == DEVICE_MEMORY && size > free_bytes) return NO_MEMORY;
    void *block = aligned_alloc(256, (size + 255) / 256 * 256);
    memset(block, 0xcd, size);
    *address = (Pointer)block;
    keep(*address, size, kind);
    return OK;
}
static Status release(Pointer address, int kind) {
    Status status = drop(address, kind);
    if (!status) free((void *)address);
    return status;
}
Status cuMemAlloc(Pointer *address, size_t size) { ENTER(1); return leave(allocate(address, size, DEVICE_MEMORY)); }
Status cuMemHostAlloc(Pointer *address, size_t size, unsigned flags) {
    ENTER(1);
    return leave(allocate(address, size, PINNED_MEMORY));
}
Status cuMemFree(Pointer address) {
    ENTER(1);
    return leave(forbidden() ? CAPTURING : release(address, DEVICE_MEMORY));
}
Status cuMemFreeHost(Pointer address) { ENTER(1); return leave(release(address, PINNED_MEMORY)); }
Status cuMemGetInfo(size_t *available, size_t *total) { *available = *total = free_bytes; return OK; }
Status cuThreadExchangeStreamCaptureMode(int *wanted) {
    ENTER(0);
    int before = mode;
    mode = *wanted;
    *wanted = before;
    return leave(OK);
}
static Status attribute_of(void *value, int attribute, Pointer address) {
    Live *found = memory_at(address, 1, DEVICE_MEMORY);
    if (!found) return BAD_VALUE;
    if (attribute == 1) *(Pointer *)value = found->context;       /* CU_POINTER_ATTRIBUTE_CONTEXT */
    else if (attribute == 9) *(int *)value = found->device;       /* CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL */
    else if (attribute == 2) *(unsigned *)value = 2;              /* CU_POINTER_ATTRIBUTE_MEMORY_TYPE: device */
    else if (attribute == 8) *(unsigned *)value = 0;              /* CU_POINTER_ATTRIBUTE_IS_MANAGED */
    else return BAD_VALUE;
    return OK;
}
Status cuPointerGetAttribute(void *value, int attribute, Pointer address) {
    ENTER(1);
    return leave(attribute_of(value, attribute, address));
}
Status cuPointerGetAttributes(unsigned count, int *attributes, void **values, Pointer address) {
    ENTER(1);
    for (unsigned i = 0; i < count; i++) attribute_of(values[i], attributes[i], address);
    return leave(OK);
}
Status cuMemcpyHtoDAsync(Pointer to, Pointer host, size_t size, Stream *stream) {
    ENTER(1);
    return leave(enqueue(stream, (Item){.kind = UPLOAD, .to = to, .from = host, .size = size,
                                        .to_kind = DEVICE_MEMORY, .from_kind = PINNED_MEMORY}));
}
Status cuMemcpyDtoHAsync(Pointer host, Pointer from, size_t size, Stream *stream) {
    ENTER(1);
    return leave(enqueue(stream, (Item){.kind = COPY, .to = host, .from = from, .size = size,
                                        .to_kind = PINNED_MEMORY, .from_kind = DEVICE_MEMORY}));
}
Status cuMemcpyDtoDAsync(Pointer to, Pointer from, size_t size, Stream *stream) {
    ENTER(1);
    return leave(enqueue(stream, (Item){.kind = COPY, .to = to, .from = from, .size = size,
                                        .to_kind = DEVICE_MEMORY, .from_kind = DEVICE_MEMORY}));
}
Status cuMemsetD8Async(Pointer to, unsigned char value, size_t size, Stream *stream) {
    ENTER(1);
    return leave(enqueue(stream, (Item){.kind = FILL, .value = value, .to = to, .size = size,
                                        .to_kind = DEVICE_MEMORY}));
}
Status cuLaunchHostFunc(Stream *stream, void (*function)(void *), void *data) {
    ENTER(1);
    return leave(enqueue(stream, (Item){.kind = FUNCTION, .function = function, .data = data}));
}

/* Streams and events. */

Status cuStreamCreate(Stream **stream, unsigned flags) {
    ENTER(1);
    *stream = calloc(1, sizeof(Stream));
    (*stream)->context = (Pointer)&primary;
    keep((Pointer)*stream, 0, STREAM);
    return leave(OK);
}
Status cuStreamDestroy(Stream *stream) {
    ENTER(1);
    if (!find((Pointer)stream, STREAM)) return leave(BAD_HANDLE);
    work_off(stream, NULL);  /* its work still goes on */
    return leave(drop((Pointer)stream, STREAM));  /* the structure stays: events may point to it */
}
Status cuStreamSynchronize(Stream *handle) {
    ENTER(1);
    Stream *stream = stream_of(handle);
    return leave(!stream ? BAD_HANDLE : stream->capturing ? CAPTURING : work_off(stream, NULL));
}
Status cuStreamIsCapturing(Stream *handle, int *status) {
    ENTER(1);
    Stream *stream = stream_of(handle);
    if (stream) *status = stream->capturing;
    return leave(stream ? OK : BAD_HANDLE);
}
Status cuStreamGetCtx(Stream *handle, Pointer *context) {
    ENTER(1);
    Stream *stream = stream_of(handle);
    if (stream) *context = stream->context ? stream->context : (Pointer)&primary;
    return leave(stream ? OK : BAD_HANDLE);
}
Status cuEventCreate(Event **event, unsigned flags) {
    ENTER(1);
    *event = calloc(1, sizeof(Event));
    keep((Pointer)*event, 0, EVENT);
    return leave(OK);
}
Status cuEventDestroy(Event *event) { ENTER(1); return leave(drop((Pointer)event, EVENT)); }
Status cuEventRecord(Event *event, Stream *handle) {
    ENTER(1);
    Stream *stream = stream_of(handle);
    if (!stream || !find((Pointer)event, EVENT)) return leave(BAD_HANDLE);
    if (stream->capturing) return leave(CAPTURING);
    event->point = calloc(1, sizeof(Point));
    event->point->stream = stream;
    push(&stream->queue, (Item){.kind = PASS, .point = event->point});
    return leave(OK);
}
Status cuStreamWaitEvent(Stream *handle, Event *event, unsigned flags) {
    ENTER(1);
    Stream *stream = stream_of(handle);
    if (!stream || !find((Pointer)event, EVENT)) return leave(BAD_HANDLE);
    if (stream->capturing) return leave(CAPTURING);
    if (event->point) push(&stream->queue, (Item){.kind = WAIT, .point = event->point});
    return leave(OK);
}
Status cuEventQuery(Event *event) {
    ENTER(1);
    if (!find((Pointer)event, EVENT)) return leave(BAD_HANDLE);
    return leave(!event->point || event->point->passed ? OK : NOT_READY);
}
Status cuEventSynchronize(Event *event) {
    ENTER(1);
    if (!find((Pointer)event, EVENT)) return leave(BAD_HANDLE);
    return leave(event->point && !event->point->passed ? work_off(event->point->stream, event->point) : OK);
}

/* Captured graphs. */

Status cuStreamBeginCapture(Stream *handle, int capture_mode) {
    ENTER(1);
    Stream *stream = stream_of(handle);
    if (!stream || stream == &legacy || stream->capturing) return leave(CAPTURING);
    stream->capturing = 1;
    stream->recorder = pthread_self();
    stream->recorded = (Items){0};
    return leave(OK);
}
Status cuStreamEndCapture(Stream *handle, Graph **graph) {
    Status entered = enter(__func__, 1);
    Stream *stream = stream_of(handle);
    int capturing = stream && stream->capturing;
    if (stream) stream->capturing = 0;  /* also after an error, as a driver ends a capture that was invalidated */
    if (entered || !capturing) return leave(entered ? entered : BAD_VALUE);
    *graph = calloc(1, sizeof(Graph));
    (*graph)->items = stream->recorded;
    keep((Pointer)*graph, 0, GRAPH);
    return leave(OK);
}
Status cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    ENTER(1);
    if (!find((Pointer)graph, GRAPH)) return leave(BAD_HANDLE);
    *executable = calloc(1, sizeof(Graph));
    for (size_t i = 0; i < graph->items.count; i++) push(&(*executable)->items, graph->items.items[i]);
    keep((Pointer)*executable, 0, EXECUTABLE);
    return leave(OK);
}
Status cuGraphLaunch(Graph *executable, Stream *handle) {
    ENTER(1);
    Stream *stream = stream_of(handle);
    if (!stream || !find((Pointer)executable, EXECUTABLE)) return leave(BAD_HANDLE);
    if (stream->capturing) return leave(CAPTURING);
    for (size_t i = 0; i < executable->items.count; i++) begin(stream, executable->items.items[i]);
    return leave(OK);
}
Status cuGraphDestroy(Graph *graph) { ENTER(1); return leave(drop((Pointer)graph, GRAPH)); }
Status cuGraphExecDestroy(Graph *executable) { ENTER(1); return leave(drop((Pointer)executable, EXECUTABLE)); }

/* How cuda-bindings find all of these. */

Status cuGetProcAddress(const char *name, void **function, int version, uint64_t flags, int *found) {
    char versioned[128];
    snprintf(versioned, sizeof versioned, "%s_v2", name);
    *function = dlsym(RTLD_DEFAULT, name);
    Dl_info mine, theirs;
    if (*function && dladdr((void *)cuGetProcAddress, &mine) && dladdr(*function, &theirs)
        && mine.dli_fbase != theirs.dli_fbase)
        *function = NULL;
    if (found) *found = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
Status cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
    return cuGetProcAddress(name, function, version, flags, found);
}

/* For the tests. */

void stub_start(int count) {
    pthread_mutex_lock(&lock);
    started = 1;
    gpus = count;
    dead = faults = retained = recorded_elsewhere = refused_status = 0;
    failing_call = -1;
    free_bytes = (size_t)1 << 40;
    live_count = call_count = 0;
    depth = 0;
    mode = GLOBAL;
    legacy = per_thread = (Stream){0};
    pthread_mutex_unlock(&lock);
}
void stub_stop(void) { started = 0; }
void stub_fail_call(long index, Status status) { failing_call = index; failing_status = status; }
int stub_is_failing(void) { return failing_call >= 0; }
void stub_refuse(const char *name, Status status) {
    snprintf(refused, sizeof refused, "%s", name);
    refused_status = status;
}
void stub_set_dead(Status status) { dead = status; }
int stub_dead(void) { return dead; }
int stub_faults(void) { return faults; }
int stub_retained(void) { return retained; }
void stub_set_gpus(int count) { gpus = count; }
void stub_set_free_bytes(size_t bytes) { free_bytes = bytes; }
void stub_set_recorded_elsewhere(int yes) { recorded_elsewhere = yes; }
size_t stub_call_count(void) { return call_count; }
const char *stub_call(size_t index) { return calls[index]; }
size_t stub_live_count(void) { return live_count; }
int stub_live_kind(size_t index) { return live[index].kind; }
Pointer stub_live_handle(size_t index) { return live[index].handle; }
size_t stub_live_size(size_t index) { return live[index].size; }
int stub_holds(Pointer address, size_t size, int kind) {
    pthread_mutex_lock(&lock);
    int found = memory_at(address, size, kind) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}
int stub_waiting(void) {  /* items in all streams */
    size_t waiting = legacy.queue.count + per_thread.queue.count;
    for (size_t i = 0; i < live_count; i++)
        if (live[i].kind == STREAM) waiting += ((Stream *)live[i].handle)->queue.count;
    return (int)waiting;
}
int stub_capturing(Stream *stream) { return stream_of(stream)->capturing; }
void stub_to_other_context(Pointer handle) {  /* memory or a stream */
    Live *memory = memory_at(handle, 1, DEVICE_MEMORY);
    if (memory) memory->context = (Pointer)&other;
    else ((Stream *)handle)->context = (Pointer)&other;
}
void stub_to_other_gpu(Pointer address) { memory_at(address, 1, DEVICE_MEMORY)->device = 1; }
