/* SPDX-License-Identifier: MIT */
/* libattend: exact attention, forward and backward, on CPUs and NVIDIA GPUs.
 *
 * This is the only public header, and the manual. The tour below goes from the simplest call to the full one.
 *
 * 1. One call. Tensors are views of your memory; nothing is copied. Q [B,H,Nq,D], K [B,Hkv,Nk,D], V [B,Hkv,Nk,Dv],
 *    out [B,H,Nq,Dv]; head h reads key/value head h / (H/Hkv).
 *
 *        float q[2*8*128*64], k[2*8*128*64], v[2*8*128*64], o[2*8*128*64];   // filled by you
 *        int64_t shape[] = {2, 8, 128, 64};
 *        attend_tensor Q = attend_tensor_of(q, ATTEND_F32, 4, shape), K = attend_tensor_of(k, ATTEND_F32, 4, shape);
 *        attend_tensor V = attend_tensor_of(v, ATTEND_F32, 4, shape), O = attend_tensor_of(o, ATTEND_F32, 4, shape);
 *        attend_options causal = {.flags = ATTEND_CAUSAL};
 *        if (attend(&Q, &K, &V, &causal, &O) != ATTEND_OK) fprintf(stderr, "%s\n", attend_error_message());
 *
 * 2. Every operand. attend_args names all tensors an execution may read or write; those left NULL do not take part.
 *
 *        attend_args args = {.q = &Q, .k = &K, .v = &V, .out = &O, .mask = &padding, .bias = &bias, .lse = &lse};
 *        attend_forward_once(&args, &causal);
 *
 * 3. Training. The forward pass must keep out and lse; the backward pass takes them and d_out. They must be what forward
 *    gave for the same inputs: a kernel may compute them again instead of reading them. (Parts of one long row, computed
 *    apart and merged, have an out and lse each, and get the gradient of the merge through d_out and d_lse.)
 *
 *        args.d_out = &dO, args.d_q = &dQ, args.d_k = &dK, args.d_v = &dV, args.d_bias = &dBias;
 *        attend_backward_once(&args, &causal);
 *
 * 4. Many calls of one shape. A plan checks the arguments, chooses the kernel and sizes the workspace once; executing
 *    it neither plans nor allocates, and one plan serves many threads at a time, each with a workspace of its own.
 *
 *        attend_plan *plan;
 *        attend_plan_create(ATTEND_FORWARD, &args, &options, &plan);      // looks at shapes, types, strides: not at data
 *        size_t bytes = attend_plan_workspace_bytes(plan);
 *        void *workspace = aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT, bytes);
 *        attend_forward(plan, &args, workspace, bytes, NULL);             // same shapes and strides, any data pointers
 *        attend_plan_destroy(plan);
 *
 * 5. Which kernel, and why not another: attend_explain() answers before anything runs.
 *
 * The formulas (docs/semantics.md derives their consequences):
 *
 *     s[i,j] = scale * <q_i, k_j>                       scale: 1/sqrt(D) unless ATTEND_SCALE
 *     s      = softcap * tanh(s / softcap)              if softcap > 0
 *     s     += bias[b,h,i,j]                            -inf means: not allowed
 *     s     += -slope[h] * |i + off - j|                ALiBi
 *     s      = -inf where not allowed
 *     lse_i  = log(sum_j exp(s[i,j]) + exp(sink[h]))    natural logarithm
 *     p[i,j] = exp(s[i,j] - lse_i)
 *     o_i    = sum_j keep(b,h,i,j) * p[i,j] / (1 - dropout) * v_j
 *
 *     off     = kv_len[b] - Nq, or 0 with ATTEND_TOP_LEFT
 *     allowed = (not causal or j <= i + off) and (i + off - left <= j <= i + off + right) and j < kv_len[b] and mask
 *               and bias > -inf
 *
 * A row with nothing allowed gives out = 0 and lse = -inf (with a sink, lse = sink), and zero gradients. What a row may
 * not see never reaches it, NaN and Inf included. The same call gives the same bits on every run, for every number of
 * threads, and whatever else is in the batch.
 *
 * Errors: every function that can fail returns attend_status; attend_error_message() then says which argument, what was
 * expected and what came. On an error nothing was written to any output. The library never prints, exits or aborts.
 *
 * Threads: every function may be called from any thread. A plan is immutable once created.
 *
 * ABI: structs begin with `size`, sizeof the struct as the caller knows it, or 0 for its version-1 size; fields are only
 * ever appended, and zero always means the default.
 */
#ifndef ATTEND_H
#define ATTEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define ATTEND_API
#else
#define ATTEND_API __attribute__((visibility("default")))
#endif

/* The dropout functions may be called from CUDA kernels too. */
#if defined(__CUDACC__)
#define ATTEND_INLINE static __host__ __device__ inline
#else
#define ATTEND_INLINE static inline
#endif

#define ATTEND_VERSION_MAJOR 0
#define ATTEND_VERSION_MINOR 1
#define ATTEND_VERSION_PATCH 0

/* ---- Status ---------------------------------------------------------------------------------------------------- */

typedef enum attend_status {
  ATTEND_OK = 0,
  ATTEND_ERROR_NULL = 1,          /* a required pointer is NULL */
  ATTEND_ERROR_SHAPE = 2,         /* rank, size or stride does not fit, or overflows */
  ATTEND_ERROR_TYPE = 3,          /* element type not accepted for this argument */
  ATTEND_ERROR_DEVICE = 4,        /* device not known, not present, or tensors on different devices */
  ATTEND_ERROR_OPTION = 5,        /* an option is out of range, or two contradict each other */
  ATTEND_ERROR_OVERLAP = 6,       /* an output shares elements with another argument or with itself */
  ATTEND_ERROR_INDEX = 7,         /* offsets not ascending, kv_len or block table out of range */
  ATTEND_ERROR_ALIGNMENT = 8,     /* a pointer is not aligned to its element, or not as the plan assumed */
  ATTEND_ERROR_WORKSPACE = 9,     /* workspace NULL or smaller than the plan needs */
  ATTEND_ERROR_NO_BACKEND = 10,   /* nothing in the allowed set can serve; the message has every candidate's reason */
  ATTEND_ERROR_OUT_OF_MEMORY = 11,
  ATTEND_ERROR_CUDA = 12          /* the driver refused; the message has its words */
} attend_status;

/* "ATTEND_ERROR_SHAPE" and so on; a static string, never NULL. */
ATTEND_API const char *attend_status_name(attend_status status);

/* What went wrong in the last call of this thread that failed; a thread-local string, valid until the thread's next
 * failing call, "" if none failed yet. */
ATTEND_API const char *attend_error_message(void);

/* "0.1.0": the version of the library that is running. */
ATTEND_API const char *attend_version(void);

/* ---- Tensors --------------------------------------------------------------------------------------------------- */

/* The three types below are binary-compatible with DLPack 1.x's DLDevice, DLDataType and DLTensor. */

typedef struct attend_device {
  int32_t type; /* ATTEND_CPU, ATTEND_CUDA: DLPack's codes. CUDA_HOST and CUDA_MANAGED memory counts as CPU and CUDA. */
  int32_t id;   /* which GPU; 0 on the CPU */
} attend_device;

enum { ATTEND_CPU = 1, ATTEND_CUDA = 2, ATTEND_CUDA_HOST = 3, ATTEND_CUDA_MANAGED = 13 };

typedef struct attend_dtype {
  uint8_t code; /* 0 signed, 1 unsigned, 2 float, 4 bfloat, 6 bool */
  uint8_t bits;
  uint16_t lanes; /* always 1 */
} attend_dtype;

typedef struct attend_tensor {
  void *data;           /* on tensor.device; may be NULL if a size is zero. Inputs are never written. */
  attend_device device;
  int32_t ndim;
  attend_dtype dtype;
  int64_t *shape;       /* [ndim], owned by the caller, read during the call only (a plan keeps a copy) */
  int64_t *strides;     /* [ndim] in elements, any sign, 0 broadcasts an input; NULL is compact, last dimension fastest */
  uint64_t byte_offset; /* added to data */
} attend_tensor;

static const attend_dtype ATTEND_F32 = {2, 32, 1};
static const attend_dtype ATTEND_F16 = {2, 16, 1};
static const attend_dtype ATTEND_BF16 = {4, 16, 1};
static const attend_dtype ATTEND_F64 = {2, 64, 1};
static const attend_dtype ATTEND_BOOL = {6, 8, 1};
static const attend_dtype ATTEND_I32 = {0, 32, 1};
static const attend_dtype ATTEND_I64 = {0, 64, 1};

/* A compact CPU tensor over your memory. `shape` must outlive the tensor. */
static inline attend_tensor attend_tensor_of(const void *data, attend_dtype dtype, int32_t ndim, const int64_t *shape) {
  attend_tensor t;
  t.data = (void *)(uintptr_t)data;
  t.device.type = ATTEND_CPU;
  t.device.id = 0;
  t.ndim = ndim;
  t.dtype = dtype;
  t.shape = (int64_t *)(uintptr_t)shape;
  t.strides = NULL;
  t.byte_offset = 0;
  return t;
}

/* The same with strides in elements: [B,N,H,D] memory is shape {B,H,N,D}, strides {N*H*D, D, H*D, 1}. */
static inline attend_tensor attend_tensor_strided(const void *data, attend_dtype dtype, int32_t ndim,
                                                  const int64_t *shape, const int64_t *strides) {
  attend_tensor t = attend_tensor_of(data, dtype, ndim, shape);
  t.strides = (int64_t *)(uintptr_t)strides;
  return t;
}

/* Where dlpack.h was included first, its tensors are cast, and the layouts proved to agree. */
#if defined(DLPACK_VERSION) || defined(DLPACK_MAJOR_VERSION)
static inline const attend_tensor *attend_from_dlpack(const DLTensor *t) { return (const attend_tensor *)(const void *)t; }
#if defined(__cplusplus)
#define ATTEND_PROVE_(c) static_assert(c, "attend_tensor and DLTensor differ")
#else
#define ATTEND_PROVE_(c) _Static_assert(c, "attend_tensor and DLTensor differ")
#endif
ATTEND_PROVE_(sizeof(attend_tensor) == sizeof(DLTensor));
ATTEND_PROVE_(offsetof(attend_tensor, data) == offsetof(DLTensor, data));
ATTEND_PROVE_(offsetof(attend_tensor, device) == offsetof(DLTensor, device));
ATTEND_PROVE_(offsetof(attend_tensor, ndim) == offsetof(DLTensor, ndim));
ATTEND_PROVE_(offsetof(attend_tensor, dtype) == offsetof(DLTensor, dtype));
ATTEND_PROVE_(offsetof(attend_tensor, shape) == offsetof(DLTensor, shape));
ATTEND_PROVE_(offsetof(attend_tensor, strides) == offsetof(DLTensor, strides));
ATTEND_PROVE_(offsetof(attend_tensor, byte_offset) == offsetof(DLTensor, byte_offset));
#endif

/* ---- Arguments of one execution -------------------------------------------------------------------------------- */

/* T is the element type of q: f32, f16, bf16 or f64; k, v, out, d_out, d_q, d_k, d_v have it too. L is f32, or f64 when
 * T is f64. Index tensors are i32 or i64. All tensors are on one device. Outputs may interleave with inputs (packed
 * QKV) as long as no element is shared.
 *
 * Three forms of batch:
 *   dense   q [B,H,Nq,D]   k [B,Hkv,Nk,D]   v [B,Hkv,Nk,Dv]   or k [B,Nk,D], v [B,Nk,Dv]: one head for all
 *   ragged  q [Tq,H,D]     k [Tk,Hkv,D]     v [Tk,Hkv,Dv]     with q_offsets and k_offsets: sequence b owns the rows
 *                                                             offsets[b] .. offsets[b+1]-1 of the first dimension
 *   paged   q dense or ragged (q_offsets only); k [blocks,Hkv,block_size,D], v [blocks,Hkv,block_size,Dv], block_table
 *           and kv_len: key j of sequence b is row j % block_size of block block_table[b, j / block_size]. Forward only.
 * `out` and the gradients have the shape of what they belong to. In ragged batches "Nq" and "Nk" below mean
 * attend_options.max_q_len and max_k_len (paged: Nk = block_table columns * block_size); i and j count within the
 * sequence, and b is the sequence's number. */
typedef struct attend_args {
  size_t size; /* sizeof(attend_args), or 0 */

  const attend_tensor *q, *k, *v; /* T; required */
  const attend_tensor *out;       /* T; output of forward, input of backward */

  /* Optional inputs. */
  const attend_tensor *mask;         /* bool, true = attend: [B,Nk] key padding, or rank 4 broadcasting to [B,H,Nq,Nk] */
  const attend_tensor *bias;         /* T or f32, rank 4 broadcasting to [B,H,Nq,Nk], added to the scores */
  const attend_tensor *alibi_slopes; /* f32 [H] or [B,H] */
  const attend_tensor *sink;         /* T or L, [H]: a score that takes part in the softmax and has no value */
  const attend_tensor *kv_len;       /* index [B]: keys j >= kv_len[b] do not exist; 0 <= kv_len[b] <= Nk */
  const attend_tensor *q_offsets;    /* index [B+1], from 0 to Tq, ascending */
  const attend_tensor *k_offsets;    /* index [B+1], from 0 to Tk, ascending */
  const attend_tensor *block_table;  /* index [B, columns]; entries beyond kv_len[b] are never read */

  /* Optional outputs of forward. */
  const attend_tensor *lse;    /* L, [B,H,Nq] or ragged [H,Tq]; required input of backward */
  const attend_tensor *probs;  /* T or L, [B,H,Nq,Nk]: p, before dropout. Math and reference back-ends. */
  const attend_tensor *scores; /* T or L, [B,H,Nq,Nk]: s at attend_options.scores_stage. Math and reference back-ends.
                                * Where i or j is beyond the sequence's length: probs 0, scores -inf. */

  /* Inputs and outputs of backward. d_out is required; each gradient is optional, at least one is given. */
  const attend_tensor *d_out;  /* T */
  const attend_tensor *d_lse;  /* L, shape of lse: gradient that arrives through lse */
  const attend_tensor *d_q;    /* T */
  const attend_tensor *d_k;    /* T, shape of k: summed over the heads that share it */
  const attend_tensor *d_v;    /* T */
  const attend_tensor *d_bias; /* type and shape of bias, summed over what was broadcast */
  const attend_tensor *d_sink; /* type and shape of sink */

  /* Dropout draws are a function of these, b, h, i and j alone: see attend_dropout_keep. */
  uint64_t dropout_seed, dropout_offset;
} attend_args;

/* ---- Options --------------------------------------------------------------------------------------------------- */

enum {                         /* attend_options.flags */
  ATTEND_CAUSAL = 1 << 0,      /* key j is visible to query i only if j <= i + off */
  ATTEND_TOP_LEFT = 1 << 1,    /* off = 0 for causal, window and ALiBi, instead of the bottom-right kv_len[b] - Nq */
  ATTEND_WINDOW = 1 << 2,      /* window_left and window_right are given */
  ATTEND_SCALE = 1 << 3,       /* scale is given */
  ATTEND_ACCUMULATE = 1 << 4   /* backward adds to d_q, d_k, d_v, d_bias, d_sink instead of overwriting them */
};

enum {                             /* attend_options.backends: a set */
  ATTEND_BACKEND_FLASH = 1 << 0,     /* the fast kernels */
  ATTEND_BACKEND_EFFICIENT = 1 << 1, /* tiled, memory O(N), takes every option */
  ATTEND_BACKEND_MATH = 1 << 2,      /* materialises the scores; can return them */
  ATTEND_BACKEND_REFERENCE = 1 << 3, /* the formulas in f64, one element at a time: slow, the oracle of the tests. CPU. */
  ATTEND_BACKEND_ALL = 7             /* the default; the reference runs only where it is named */
};

typedef enum attend_stage { /* which scores args.scores receives */
  ATTEND_SCORES_RAW = 0,    /* scale * <q, k> */
  ATTEND_SCORES_SOFTCAP = 1,
  ATTEND_SCORES_MASKED = 2 /* after softcap, bias, ALiBi and everything that is not allowed: what the softmax sees */
} attend_stage;

typedef enum attend_log_level { ATTEND_LOG_INFO = 0, ATTEND_LOG_WARNING = 1 } attend_log_level;

/* Callbacks that replace the library's own services; NULL members keep the library's. All must be thread-safe. */
typedef struct attend_hooks {
  size_t size; /* sizeof(attend_hooks), or 0 */
  void *user;  /* passed to each */

  /* Memory for plans, and for the workspaces of the *_once functions; NULL on failure. alignment is a power of two. */
  void *(*allocate)(void *user, size_t bytes, size_t alignment);
  void (*release)(void *user, void *memory, size_t bytes);

  /* Run task(context, i) once for every i in [0, count), in any order, on any threads, and return when all are done.
   * count is at most the number of threads of the plan. Results do not depend on how this is done. */
  void (*parallel_for)(void *user, int count, void (*task)(void *context, int index), void *context);

  /* Notices, such as which hardware was found; each at most once per process. */
  void (*log)(void *user, attend_log_level level, const char *message);
} attend_hooks;

/* All zeros is the default. */
typedef struct attend_options {
  size_t size;    /* sizeof(attend_options), or 0 */
  uint32_t flags; /* ATTEND_CAUSAL | ... */
  uint32_t backends;          /* the set allowed; 0 = ATTEND_BACKEND_ALL. Nothing outside the set is ever used. */
  const char *kernel;         /* only the kernel of this name (attend_kernel); NULL = any */
  double scale;               /* with ATTEND_SCALE; finite */
  double softcap;             /* > 0 enables; finite */
  double dropout;             /* probability to drop, in [0, 1) */
  int64_t window_left, window_right; /* with ATTEND_WINDOW: >= 0, or -1 for unbounded */
  int64_t max_q_len, max_k_len;      /* ragged: upper bounds on a sequence's length; 0 = Tq, Tk */
  attend_stage scores_stage;
  int threads;               /* CPU: at most this many; 0 = all this process may use */
  const attend_hooks *hooks; /* copied into the plan; NULL = the library's own */
} attend_options;

/* ---- Attention in one call ------------------------------------------------------------------------------------- */

/* out = attention(q, k, v). options may be NULL. CUDA tensors: enqueued on the default stream and waited for. */
ATTEND_API attend_status attend(const attend_tensor *q, const attend_tensor *k, const attend_tensor *v,
                                const attend_options *options, const attend_tensor *out);

/* The same with every operand: plan, workspace, execution. Ragged lengths are read from the offsets where max_q_len or
 * max_k_len is 0 and the tensors are on the CPU. */
ATTEND_API attend_status attend_forward_once(const attend_args *args, const attend_options *options);
ATTEND_API attend_status attend_backward_once(const attend_args *args, const attend_options *options);

/* ---- Plans ----------------------------------------------------------------------------------------------------- */

typedef enum attend_direction { ATTEND_FORWARD = 0, ATTEND_BACKWARD = 1 } attend_direction;

typedef struct attend_plan attend_plan;

/* Check args and options, choose a kernel, size the workspace. Looks at types, shapes, strides, devices and at which
 * tensors are present; never at data. *plan is NULL on failure; otherwise free it with attend_plan_destroy. */
ATTEND_API attend_status attend_plan_create(attend_direction direction, const attend_args *args,
                                            const attend_options *options, attend_plan **plan);
ATTEND_API void attend_plan_destroy(attend_plan *plan); /* NULL is allowed */

/* Bytes of workspace one execution needs, on the tensors' device, aligned to ATTEND_WORKSPACE_ALIGNMENT. May be 0. */
ATTEND_API size_t attend_plan_workspace_bytes(const attend_plan *plan);
enum { ATTEND_WORKSPACE_ALIGNMENT = 256 };

/* Execute. args has the shapes, strides, types and devices the plan was made for, and data of its own; data pointers are
 * aligned as then. The workspace belongs to this execution until it ends; its content does not matter.
 * stream: a CUstream for CUDA tensors (NULL = the default stream; work is enqueued and not waited for), ignored on the
 * CPU. Index tensors on the CPU are validated; on a GPU they are clamped to safe values when used (attend_check_indices
 * validates them). */
ATTEND_API attend_status attend_forward(const attend_plan *plan, const attend_args *args, void *workspace,
                                        size_t workspace_bytes, void *stream);
ATTEND_API attend_status attend_backward(const attend_plan *plan, const attend_args *args, void *workspace,
                                         size_t workspace_bytes, void *stream);

/* Validate q_offsets, k_offsets, kv_len and block_table. On a GPU: waits for the stream and copies them to the host. */
ATTEND_API attend_status attend_check_indices(const attend_plan *plan, const attend_args *args, void *stream);

/* ---- Explain --------------------------------------------------------------------------------------------------- */

enum { ATTEND_NAME_SIZE = 64, ATTEND_REASON_SIZE = 192, ATTEND_MAX_CANDIDATES = 32 };

typedef struct attend_candidate {
  char kernel[ATTEND_NAME_SIZE];
  char reason[ATTEND_REASON_SIZE]; /* why it was passed over; or, chosen beside `kernel`, for which sequences */
  uint32_t backend;
  int32_t chosen;
} attend_candidate;

typedef struct attend_explanation {
  size_t size; /* sizeof(attend_explanation), or 0; set by the caller */
  attend_status status;          /* what attend_plan_create returns for this call */
  uint32_t backend;              /* ATTEND_BACKEND_...; 0 if none can serve */
  char kernel[ATTEND_NAME_SIZE]; /* e.g. "forward_f32_tiled_avx512"; that of the longest sequences, where the lengths
                                  * are each sequence's own: other candidates may be chosen for shorter ones */
  int64_t tile_q, tile_k;        /* rows of Q and of K that the kernel works on at a time */
  int64_t splits;                /* parts the keys are divided into (decode), or 1 */
  int64_t threads;               /* CPU threads, or CUDA blocks */
  uint64_t workspace_bytes;
  uint64_t alignment;            /* of data pointers that the kernel was chosen for, bytes */
  int64_t candidate_count;
  attend_candidate candidates[ATTEND_MAX_CANDIDATES]; /* fastest first */
} attend_explanation;

/* What attend_plan_create would choose, and why each other was passed over. Returns an error, with the explanation
 * untouched, only if args or options are wrong; a call that nothing can serve is explained (status NO_BACKEND). */
ATTEND_API attend_status attend_explain(attend_direction direction, const attend_args *args,
                                        const attend_options *options, attend_explanation *explanation);

/* ---- What this machine has ------------------------------------------------------------------------------------- */

typedef struct attend_kernel {
  size_t size; /* sizeof(attend_kernel), or 0; set by the caller */
  char name[ATTEND_NAME_SIZE];
  char reason[ATTEND_REASON_SIZE]; /* why it cannot be used here; "" if it can */
  uint32_t backend;
  int32_t device;    /* ATTEND_CPU or ATTEND_CUDA */
  int32_t direction; /* attend_direction */
  int32_t usable;    /* on this machine */
  attend_dtype dtype;
} attend_kernel;

/* Kernel number `index` of those compiled in: ATTEND_OK, or ATTEND_ERROR_INDEX past the last. */
ATTEND_API attend_status attend_kernel_at(int64_t index, attend_kernel *kernel);

/* The CPU's features that matter here ("avx2 fma f16c avx512f avx512bf16"), after the cap ATTEND_CPU in the environment
 * (scalar, avx2, avx512, avx512bf16, amx, neon). A static string. */
ATTEND_API const char *attend_cpu_features(void);

/* Threads that options.threads = 0 means. */
ATTEND_API int attend_cpu_threads(void);

typedef struct attend_gpu {
  size_t size; /* sizeof(attend_gpu), or 0; set by the caller */
  char name[ATTEND_NAME_SIZE];
  char reason[ATTEND_REASON_SIZE]; /* why it cannot be used; "" if it can */
  int32_t major, minor;            /* compute capability */
  int32_t multiprocessors;
  uint64_t memory_bytes;
  char image[ATTEND_NAME_SIZE]; /* which embedded image serves it: "sm_90a", "ptx sm_75" */
} attend_gpu;

/* GPU number `index`: ATTEND_OK, ATTEND_ERROR_INDEX past the last (also when there is no driver: then the message says
 * why), ATTEND_ERROR_CUDA. */
ATTEND_API attend_status attend_gpu_at(int64_t index, attend_gpu *gpu);

/* ---- Dropout --------------------------------------------------------------------------------------------------- */

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). */
ATTEND_INLINE void attend_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/* The threshold of a dropout probability: an element is kept iff its 16-bit draw is >= this. Kept probabilities are
 * scaled by 65536 / (65536 - threshold); at 65536 (dropout > 1 - 2^-17) nothing is kept. */
ATTEND_INLINE uint32_t attend_dropout_threshold(double dropout) { return (uint32_t)(dropout * 65536.0 + 0.5); }

/* The 16-bit draw of element (b, h, i, j): one Philox block serves the eight columns j of equal (j >> 5, (j >> 1) & 3),
 * which is how the columns of a tensor-core fragment lie. */
ATTEND_INLINE uint32_t attend_dropout_draw(uint64_t seed, uint64_t offset, uint32_t b, uint32_t h, uint64_t i,
                                           uint64_t j) {
  uint32_t counter[4] = {(uint32_t)offset, (uint32_t)(offset >> 32), b, h};
  uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, word[4];
  attend_philox(counter, key, word);
  uint32_t row_key[2] = {word[0], word[1]};
  uint64_t c = 4 * (j >> 5) + ((j >> 1) & 3);
  uint32_t column[4] = {(uint32_t)c, (uint32_t)(c >> 32), (uint32_t)i, (uint32_t)(i >> 32)};
  attend_philox(column, row_key, word);
  return (word[(j >> 3) & 3] >> (16 * (j & 1))) & 0xFFFFu;
}

/* keep(b,h,i,j) of the formulas. Every back-end, tile size, thread count and device drops the same elements. */
ATTEND_INLINE int attend_dropout_keep(uint64_t seed, uint64_t offset, double dropout, uint32_t b, uint32_t h, uint64_t i,
                                      uint64_t j) {
  return attend_dropout_draw(seed, offset, b, h, i, j) >= attend_dropout_threshold(dropout);
}

#ifdef __cplusplus
}
#endif
#endif
