/* A stand-in for librknnrt.so with the symbols that rknn_api.py uses. It computes y = a * x + b.

   Written for these tests from the public C interface. A "model" is struct model below; inputs are
   described as NHWC and outputs as NCHW, as the real library does for images.

   Compile-time: ATTR_BYTES  372 or 376, the size of a tensor's description
                 EXACT       1: any other size is refused; 0: larger ones are accepted
                 N_CORES     1: core masks are refused; 3
                 MEM_BYTES   8 or 64, the size of the answer to the memory query */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef ATTR_BYTES
#define ATTR_BYTES 376
#endif
#ifndef EXACT
#define EXACT 0
#endif
#ifndef N_CORES
#define N_CORES 3
#endif
#ifndef MEM_BYTES
#define MEM_BYTES 64
#endif
#define NEWEST_MODEL 5

static const char stamp[] = "librknnrt version: 9.8.7 (stub@2026-01-01T00:00:00)";

struct model {
    char magic[4]; /* RKNS */
    int32_t version;
    float a, b;
    uint32_t n, c, h, w;
    uint32_t failing_mask; /* runs on it are refused; 0xffffffff: none */
    uint32_t base_us, jitter_us;
};

struct context {
    struct model model;
    uint32_t flags, mask, frames;
    int ready, ran;
    float *image; /* NHWC */
};

struct attr {
    uint32_t index, n_dims, dims[16];
    char name[256];
    uint32_t n_elems, size;
    int32_t fmt, type, qnt_type;
    int8_t fl;
    int32_t zp;
    float scale;
    uint32_t w_stride, size_with_stride;
    uint8_t pass_through;
    uint32_t h_stride;
};

struct input {
    uint32_t index;
    void *buf;
    uint32_t size;
    uint8_t pass_through;
    int32_t type, fmt;
};

struct output {
    uint8_t want_float, is_prealloc;
    uint32_t index;
    void *buf;
    uint32_t size;
};

static uint32_t elements(const struct model *m) { return m->n * m->c * m->h * m->w; }

int rknn_init(uint64_t *handle, void *data, uint32_t size, uint32_t flags, void *extend)
{
    struct context *ctx;
    (void)extend;
    if (size < sizeof(struct model) || memcmp(data, "RKNS", 4) != 0) {
        fprintf(stderr, "E RKNN: [00:00:00.000] rknn_init, load model failed!\n");
        return -6;
    }
    ctx = calloc(1, sizeof *ctx);
    memcpy(&ctx->model, data, sizeof ctx->model);
    if (ctx->model.version > NEWEST_MODEL) {
        printf("W RKNN: %s\n", stamp);
        printf("E RKNN: [00:00:00.000] Invalid RKNN model version %d\n", ctx->model.version);
        free(ctx);
        return -1;
    }
    ctx->flags = flags;
    ctx->image = calloc(elements(&ctx->model), sizeof(float));
    *handle = (uint64_t)(uintptr_t)ctx;
    return 0;
}

int rknn_destroy(uint64_t handle)
{
    struct context *ctx = (struct context *)(uintptr_t)handle;
    free(ctx->image);
    free(ctx);
    return 0;
}

static int fits(uint32_t asked, uint32_t mine)
{
    if (EXACT ? asked == mine : asked >= mine)
        return 1;
    fprintf(stderr, "E RKNN: rknn_query, info_len(%u) %s %u!\n", asked, EXACT ? "!=" : "<", mine);
    return 0;
}

static int describe(const struct model *m, int is_input, void *info, uint32_t size)
{
    struct attr attr;
    if (!fits(size, ATTR_BYTES))
        return -5;
    memset(&attr, 0, sizeof attr);
    attr.n_dims = 4;
    attr.dims[0] = m->n;
    attr.dims[1] = is_input ? m->h : m->c;
    attr.dims[2] = is_input ? m->w : m->h;
    attr.dims[3] = is_input ? m->c : m->w;
    strcpy(attr.name, is_input ? "input" : "output-rs");
    attr.n_elems = elements(m);
    attr.size = attr.n_elems * 2;
    attr.fmt = is_input ? 1 : 0;
    attr.type = 1;
    attr.h_stride = 0x5a5a5a5a;
    memcpy(info, &attr, ATTR_BYTES);
    return 0;
}

static char table[4096];

static int detail(const struct context *ctx, void *info)
{
    uint64_t answer[2] = {0, 0};
    if (ctx->flags & 8) {
        snprintf(table, sizeof table,
                 "D RKNN: [00:00:00.000] Network Layer Information Table\n"
                 "D RKNN: [00:00:00.000] ID   OpType  DataType Target InputShape OutputShape "
                 "Cycles(DDR/NPU/Total) Time(us) MacUsage(%%) WorkLoad(0/1/2) RW(KB) FullName\n"
                 "D RKNN: [00:00:00.000] 1 InputOperator FLOAT16 CPU \\ (1,3,8,8) 0/0/0 4 \\ "
                 "0.0%%/0.0%%/0.0%% 0 InputOperator:input\n"
                 "2 Mul FLOAT16 NPU (1,3,8,8),(1) (1,3,8,8) 10/20/20 %u 3.1 1/0/0 4 Mul:scale\n"
                 "3 Add FLOAT16 CPU (1,3,8,8),(1) (1,3,8,8) 0/0/0 %u 0/0/0 4 Add:shift\n"
                 "4 OutputOperator FLOAT16 CPU (1,3,8,8) \\ 0/0/0 2 \\ 0/0/0 0 "
                 "OutputOperator:output\n"
                 "Total Operator Elapsed Per Frame Time(us): 126\n",
                 90 + ctx->frames % 3, 30u);
        answer[0] = (uint64_t)(uintptr_t)table;
        answer[1] = strlen(table);
    }
    memcpy(info, answer, sizeof answer);
    return 0;
}

int rknn_query(uint64_t handle, int command, void *info, uint32_t size)
{
    struct context *ctx = (struct context *)(uintptr_t)handle;
    const struct model *m = &ctx->model;
    uint32_t numbers[2] = {1, 1}, memory[16] = {1000, 2000, 3000};
    char versions[512] = {0};
    int64_t run_us = m->base_us + m->jitter_us * (ctx->frames % 5);
    switch (command) {
    case 0:
        if (!fits(size, 8))
            return -5;
        memcpy(info, numbers, 8);
        return 0;
    case 1:
    case 2:
        return describe(m, command == 1, info, size);
    case 3:
        return fits(size, 16) ? detail(ctx, info) : -5;
    case 4:
        if (!fits(size, 8) || !ctx->ran)
            return -5;
        memcpy(info, &run_us, 8);
        return 0;
    case 5:
        if (!fits(size, 512))
            return -5;
        strcpy(versions, "9.8.7 (stub)");
        strcpy(versions + 256, "0.9.1");
        memcpy(info, versions, 512);
        return 0;
    case 6:
        if (!fits(size, MEM_BYTES))
            return -5;
        memcpy(info, memory, MEM_BYTES);
        return 0;
    }
    return -5;
}

int rknn_set_core_mask(uint64_t handle, int mask)
{
    struct context *ctx = (struct context *)(uintptr_t)handle;
    if (N_CORES == 1 || (mask > 7 && mask != 0xffff))
        return -5;
    ctx->mask = (uint32_t)mask;
    return 0;
}

int rknn_inputs_set(uint64_t handle, uint32_t n, struct input *inputs)
{
    struct context *ctx = (struct context *)(uintptr_t)handle;
    if (n != 1 || inputs[0].type != 0 || inputs[0].fmt != 1 || inputs[0].pass_through ||
        inputs[0].size != elements(&ctx->model) * 4)
        return -8;
    memcpy(ctx->image, inputs[0].buf, inputs[0].size);
    ctx->ready = 1;
    return 0;
}

int rknn_run(uint64_t handle, void *extend)
{
    struct context *ctx = (struct context *)(uintptr_t)handle;
    (void)extend;
    if (!ctx->ready)
        return -8;
    if (ctx->mask == ctx->model.failing_mask) {
        fprintf(stderr, "E RKNN: failed to submit!, core mask %u\n", ctx->mask);
        return -1;
    }
    ctx->frames++;
    return 0;
}

int rknn_outputs_get(uint64_t handle, uint32_t n, struct output *outputs, void *extend)
{
    struct context *ctx = (struct context *)(uintptr_t)handle;
    const struct model *m = &ctx->model;
    float *target = outputs[0].buf;
    uint32_t b, c, y, x, at = 0;
    (void)extend;
    if (n != 1 || !outputs[0].want_float || !outputs[0].is_prealloc ||
        outputs[0].size != elements(m) * 4)
        return -9;
    for (b = 0; b < m->n; b++)
        for (c = 0; c < m->c; c++)
            for (y = 0; y < m->h; y++)
                for (x = 0; x < m->w; x++)
                    target[at++] =
                        m->a * ctx->image[((b * m->h + y) * m->w + x) * m->c + c] + m->b;
    ctx->ran = 1;
    return 0;
}

int rknn_outputs_release(uint64_t handle, uint32_t n, struct output *outputs)
{
    (void)handle;
    (void)n;
    (void)outputs;
    return 0;
}
