/* A TeleChat on a CPU, its weights in int8, float32 or bfloat16: products, attention over the cache, and the steps of a
 * whole network.
 *
 * Two entries run the network (`prefill`, `decode`), one a single linear (`int8_linear`). All threads of a step
 * share one OpenMP region; every function below it works on a part: rows of the prompt, or panels of the outputs.
 *
 * Layouts
 *   int8 weights   [outputs/16][inputs/4][16][4], "panels": 64 bytes hold 4 inputs of 16 outputs, what one dot product
 *                  instruction takes. A panel is read front to back, so weights stream from memory.
 *   float weights  [outputs][inputs], as on disk, float32 or bfloat16.
 *   key cache      [layer][head][position/16][head_dim][16]: 16 positions are the lanes of a vector.
 *   value cache    [layer][head][position][head_dim]. Both in float32, or in float16, which `append` rounds to and attention
 *                  widens where it reads.
 *   in bfloat16    keys [layer][head][position/16][head_dim/2][16][2], values [layer][head][position/2][head_dim][2]: pairs of
 *                  what a product sums over, as an instruction takes them. Attention rounds queries and weights to pairs, too.
 *
 * Integer sums are exact. A bfloat16 linear rounds its input to bfloat16 and sums in float; all between the linears is
 * float32, whatever the weights. Float steps round as the torch path does (no contraction of a*b+c, division by the input
 * scale); only the order of long sums differs, so results are equal to float rounding.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
/* AMX: tiles of 16 rows of 64 bytes. gcc knows them together with AVX-512. */
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define TILES 0
#endif

#define LANES 16     /* outputs of a panel, positions of a key block */
#define CHUNK 48     /* rows of the prompt that pass through a block together: their activations stay in the L2 cache */
#define WIDE_CHUNK 192 /* the same where weights are float: four times as large, they are worth reading less often */
#define SLICE 768    /* inputs of a float linear that are summed in one go */
#define TILED 8      /* rows from which a linear is multiplied in tiles of the processor, where it has them */
#define AHEAD 16384  /* bytes by which a float weight that is read for one row is fetched before it is needed, in the order of memory: its rows are short */
#define BLOCK 64     /* positions, or outputs, that a tile of four vectors covers */
#define SCORE_ROWS 24 /* queries of a prompt whose scores are held together */
#define PART 128     /* positions of the cache that make one item of work in a decode step */
#define VALUES 256   /* positions of the values that are read again from the cache by all rows of a tile */
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef float half __attribute__((vector_size(32), aligned(4), may_alias));
typedef float quarter __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));

/* Activations are bytes `x_q + SHIFT`: VNNI multiplies unsigned by signed bytes. What the shift adds to a sum,
 * SHIFT times the sum of the weights, is taken off in the packed bias. */
/* A panel's 16 sums are held in SUMS registers, `sums4`, and joined at the end; `bytes4` is 4 inputs as the products take them. */
#if defined(__AVX512VNNI__)
#define ISA "avx512_vnni"
#define SHIFT 128
#define SUMS 1
typedef vi sums4;
typedef __m512i bytes4, weights4;
INLINE bytes4 spread(int32_t x) { return _mm512_set1_epi32(x); }
INLINE weights4 panel_part(const int8_t *panel, int i) { return _mm512_loadu_si512(panel + 64 * i); }
INLINE sums4 dot4(sums4 sum, weights4 w, bytes4 x) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, x, w); }
#elif defined(__AVXVNNI__)
#define ISA "avx_vnni"
#define SHIFT 128
#define SUMS 2
typedef __m256i sums4, bytes4, weights4;
INLINE bytes4 spread(int32_t x) { return _mm256_set1_epi32(x); }
INLINE weights4 panel_part(const int8_t *panel, int i) { return _mm256_loadu_si256((const __m256i *)(panel + 32 * i)); }
INLINE sums4 dot4(sums4 sum, weights4 w, bytes4 x) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
#elif defined(__AVX2__)
#define ISA "avx2"
#define SHIFT 0
#define SUMS 4 /* of pairs of inputs, each output's two beside each other */
typedef __m256i sums4, bytes4, weights4;
/* vpmaddubsw saturates at 16 bits and would not be exact; the bytes are widened first. */
INLINE bytes4 spread(int32_t x) { return _mm256_cvtepi8_epi16(_mm_set1_epi32(x)); }
INLINE weights4 panel_part(const int8_t *panel, int i) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(panel + 16 * i))); }
INLINE sums4 dot4(sums4 sum, weights4 w, bytes4 x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
#elif defined(__ARM_FEATURE_DOTPROD)
#define ISA "neon_dotprod"
#define SHIFT 0
#define SUMS 4
typedef int32x4_t sums4;
typedef int8x16_t bytes4, weights4;
INLINE bytes4 spread(int32_t x) { return vreinterpretq_s8_s32(vdupq_n_s32(x)); }
INLINE weights4 panel_part(const int8_t *panel, int i) { return vld1q_s8(panel + 16 * i); }
INLINE sums4 dot4(sums4 sum, weights4 w, bytes4 x) { return vdotq_s32(sum, w, x); }
#else
#define ISA "plain C"
#define SHIFT 0
#define SUMS 1
typedef vi sums4;
typedef int32_t bytes4;
typedef const int8_t *weights4;
INLINE bytes4 spread(int32_t x) { return x; }
INLINE weights4 panel_part(const int8_t *panel, int i) { return panel + 64 * i; }
INLINE sums4 dot4(sums4 sum, weights4 w, bytes4 x) {
    const int8_t *v = (const int8_t *)&x;
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < 4; j++) sum[i] += w[4 * i + j] * v[j];
    return sum;
}
#endif

INLINE vi joined(const sums4 *sum) {
    vi all;
#if defined(__AVX2__) && SUMS == 4
    for (int i = 0; i < 2; i++) {
        const __m256i both = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[2 * i], sum[2 * i + 1]), 0xD8);
        memcpy((char *)&all + 32 * i, &both, 32);
    }
#else
    memcpy(&all, sum, sizeof(all));
#endif
    return all;
}

/* What one register holds of a vector of 16 lanes: all of it, a half or a quarter. Tiles are written in these, since the
 * compiler keeps a vector that no register holds in memory. */
#if defined(__AVX512F__)
typedef vf piece;
typedef vu pair_piece; /* pairs of bfloat16 */
typedef vh narrow_piece;
#elif defined(__FMA__)
typedef half piece;
typedef uint32_t pair_piece __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t narrow_piece __attribute__((vector_size(16), aligned(2), may_alias));
#else
typedef quarter piece;
typedef uint32_t pair_piece __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint16_t narrow_piece __attribute__((vector_size(8), aligned(2), may_alias));
#endif
#define WIDTH ((int)(sizeof(piece) / 4))
#define PIECES (LANES / WIDTH)

/* a * b + c in one rounding: for long sums, whose order differs from torch's anyway. */
INLINE piece fused(piece a, piece b, piece c) {
#if defined(__AVX512F__)
    return (piece)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (piece)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (piece)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* sum + both bfloat16 products of each lane. Elsewhere they are widened: exact products, rounded sums, as in hardware. */
INLINE piece dot2(piece sum, pair_piece weights, pair_piece x) {
#if defined(__AVX512BF16__)
    return (piece)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)x);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return (piece)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)weights, (bfloat16x8_t)x);
#else
    const pair_piece upper = 0xffff0000u - (pair_piece){0};
    return fused((piece)(weights & upper), (piece)(x & upper), fused((piece)(weights << 16), (piece)(x << 16), sum));
#endif
}

/* What a row of floats is stored in. Linears know the first two, and call the second one `bfloat16`. */
enum { FLOAT32, BFLOAT16, FLOAT16 };
static int float_bytes(int type) { return type == FLOAT32 ? 4 : 2; }

/* float16 to float32, exact: infinity and NaN stay, denormals too. */
INLINE float from_float16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits = rest >= 0x7c00 ? rest << 13 | 0x7f800000u : (rest << 13) + ((127 - 15) << 23);
    float value;
    if (rest < 0x400) { /* in units of 2^-24 */
        value = (float)rest * 5.9604644775390625e-8f;
        memcpy(&bits, &value, 4);
    }
    if (rest > 0x7c00) bits |= 0x400000; /* a NaN becomes a quiet one, as in hardware */
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest float16, half to even; beyond its range infinity, NaN stays NaN. */
INLINE uint16_t to_float16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x1ff));
    if (bits >= 0x47800000) return sign | 0x7c00;           /* from 2^16 on */
    if (bits < 0x38800000) {                                /* below 2^-14: adding 0.5 leaves units of 2^-24 */
        float value;
        memcpy(&value, &bits, 4);
        value += 0.5f;
        memcpy(&bits, &value, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits - ((127 - 15) << 23) + 0xfff + (bits >> 13 & 1)) >> 13));
}

/* A piece of a row in float32, bfloat16 or float16. */
INLINE piece wide(const void *row, int64_t k, int type) {
    if (type == FLOAT32) return *(const piece *)((const float *)row + k);
    if (type == FLOAT16) {
        const uint16_t *halves = (const uint16_t *)row + k;
#if defined(__AVX512F__)
        return (piece)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
#elif defined(__F16C__) && defined(__FMA__)
        return (piece)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
#elif defined(__aarch64__)
        return (piece)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
#else
        piece found;
        for (int i = 0; i < WIDTH; i++) ((float *)&found)[i] = from_float16(halves[i]);
        return found;
#endif
    }
#if defined(__AVX2__) && !defined(__AVX512F__) && defined(__FMA__) /* gcc widens half a vector at a time */
    return (piece)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)((const uint16_t *)row + k))), 16);
#else
    return (piece)(__builtin_convertvector(*(const narrow_piece *)((const uint16_t *)row + k), pair_piece) << 16);
#endif
}

INLINE float wide_one(const void *row, int64_t k, int type) {
    if (type == FLOAT32) return ((const float *)row)[k];
    if (type == FLOAT16) return from_float16(((const uint16_t *)row)[k]);
    const uint32_t bits = (uint32_t)((const uint16_t *)row)[k] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest bfloat16, half to even; NaN stays NaN. */
INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7fc0);
}

/* A piece to float16, as `to_float16` rounds. */
INLINE void store_float16(uint16_t *halves, piece x) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)halves, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__FMA__)
    _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
#else
    for (int i = 0; i < WIDTH; i++) halves[i] = to_float16(((const float *)&x)[i]);
#endif
}

/* x[count] into a row of this type. */
static void store(const float *x, int count, int type, void *row) {
    uint16_t *halves = row;
    int i = 0;
    if (type == FLOAT32) memcpy(row, x, count * sizeof(float));
    else if (type == BFLOAT16)
        for (; i < count; i++) halves[i] = to_bfloat16(x[i]);
    else {
        for (; i + WIDTH <= count; i += WIDTH) store_float16(halves + i, *(const piece *)(x + i));
        for (; i < count; i++) halves[i] = to_float16(x[i]);
    }
}

/* Else the compiler loads a vector again for every product, and loads, not products, take the time. */
#if defined(__AVX512F__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__AVX2__)
#define IN_REGISTER(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#define IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

INLINE piece all(float x) { return x - (piece){0}; }

/* The sum of the lanes, pair_piece on pair_piece. */
INLINE float lane_sum(vf x) {
    const half a = ((half *)&x)[0] + ((half *)&x)[1];
    const quarter b = ((quarter *)&a)[0] + ((quarter *)&a)[1];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

typedef struct {
    const void *weight;       /* int8 panels, or float or bfloat16 [outputs][inputs] */
    const void *bias;         /* static int8: int32 [outputs], less SHIFT times the row sums. Else float [outputs] or NULL */
    const float *deq_scale;   /* [outputs]; NULL for a float linear. Of a dynamic one the scale of the weight */
    const int32_t *shift;     /* [outputs], of a dynamic int8 linear, which scales each row: less SHIFT times the row sums */
    float input_scale, input_offset;
    int32_t inputs, outputs;
    int32_t bfloat16;         /* of a float linear: what the weight is */
} linear;

typedef struct {
    const float *weight, *bias; /* [hidden]; bias NULL where no channel was shifted */
} norm;

/* The orthogonal matrix base x Hadamard's of order 2^power: what an online rotation turns the input of down_proj by. */
typedef struct {
    const float *base;        /* [order][order]; NULL where order is 1 */
    int32_t order, power;     /* order 0: nothing is turned */
} rotation;

typedef struct {
    norm input_norm, post_norm;
    linear query, key_value, dense, gate, up, down;
} block;

typedef struct {
    int32_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab, residual_after_norm;
    float epsilon;
    rotation products;        /* of the ffn channels that down reads */
    const block *blocks;
    linear embedding;         /* float [vocab][hidden], a table */
    norm embedding_norm, final_norm; /* embedding_norm.weight NULL where there is none */
    const float *cos, *sin;   /* [positions][head_dim] */
    linear head;              /* float */
    linear screen;            /* int8 copy of the head, deq_scale its weight scale; weight NULL: none */
    const float *screen_error, *head_norm; /* [vocab]: Euclidean norm of (row - its int8 copy), and of the row */
    int32_t cache_type;       /* of keys and values: FLOAT32, BFLOAT16 or FLOAT16 */
} network;

typedef struct {
    void *keys, *values;      /* of the type that the network names */
    int64_t capacity;         /* positions, a multiple of BLOCK */
} cache;

/* Rows of tokens that go through the network together: prompts one behind the other, or one token of each sequence. */
typedef struct {
    int32_t sequences, rows;
    const cache *caches;                /* [sequences] */
    const int64_t *tokens;              /* [rows] */
    const int32_t *sequence, *position; /* [rows]: the cache that a row belongs to, and its place there */
    const int32_t *last;                /* [sequences]: the last row */
} batch;

#if TILES
static int tiles; /* whether the system lets this process use them */
__attribute__((constructor)) static void ask_for_tiles(void) {
    const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    tiles = syscall(SYS_arch_prctl, request, tile_data) == 0;
}
const char *isa(void) { return tiles ? ISA ", amx" : ISA; }
#else
static const int tiles = 0;
const char *isa(void) { return ISA; }
#endif
int activation_shift(void) { return SHIFT; }

/* ---- tiles: some rows of the left operand times some vectors of the right one, held in registers ---- */

/* Of the 32 registers of AVX-512 a tile takes 6 x 4. Elsewhere a vector is two registers of 16, or four of 32: tiles are
 * narrow, but for a single row, which streams its right operand. The integer sums of AVX2 take four of 16. */
#if defined(__AVX512F__)
#define NARROW 0
#define DOT_ROWS 6
#define DOT_COLUMNS 4
#define DOT_BLOCK BLOCK
#else
#define NARROW 1
#define DOT_ROWS 3
#define DOT_COLUMNS 2
#define DOT_BLOCK 16 /* outputs whose slices stay in the L1 cache: a narrow tile reads them oftener */
#endif
#define FLOAT_ROWS 6
#define FLOAT_STREAM 4 /* vectors of a single row */
#if SUMS == 4 && defined(__AVX2__)
#define INT_ROWS 3
#define INT_STREAM 2
#else
#define INT_ROWS 6
#define INT_STREAM 4
#endif

/* sums[rows][vectors] += x[rows][4 * groups] . panels */
INLINE void int8_tile(int rows, int vectors, const uint8_t *x, int64_t stride, const int8_t *panels, int groups, vi *sums) {
    sums4 sum[6][4][SUMS] = {{{{0}}}};
    for (int k = 0; k < groups; k++) {
        weights4 w[4][SUMS];
        for (int v = 0; v < vectors; v++)
            for (int i = 0; i < SUMS; i++) w[v][i] = panel_part(panels + ((int64_t)v * groups + k) * 64, i);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * stride + 4 * k, 4);
            const bytes4 row = spread(four);
            for (int v = 0; v < vectors; v++)
                for (int i = 0; i < SUMS; i++) sum[r][v][i] = dot4(sum[r][v][i], w[v][i], row);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r * 4 + v] = joined(sum[r][v]);
}

/* out[rows][16 * vectors] (+)= the sums of a tile of floats. */
INLINE void put_tile(int rows, int vectors, piece sum[6][4][PIECES], float *out, int64_t out_stride, int add) {
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            for (int i = 0; i < PIECES; i++) {
                piece *target = (piece *)(out + r * out_stride + v * LANES + i * WIDTH);
                if (add) sum[r][v][i] += *target;
                *target = sum[r][v][i];
            }
}

/* out[rows][16 * vectors] (+)= x[rows][steps] . right, whose vector v of step k stands at v * across + k * along, from `first` on. */
INLINE void float_tile(int rows, int vectors, const float *x, int64_t stride, const void *right, int64_t first, int64_t across,
                       int64_t along, int steps, float *out, int64_t out_stride, int add, int type) {
    piece sum[6][4][PIECES] = {{{{0}}}};
    for (int k = 0; k < steps; k++) {
        piece w[4][PIECES];
        for (int v = 0; v < vectors; v++)
            for (int i = 0; i < PIECES; i++) w[v][i] = wide(right, first + v * across + k * along + i * WIDTH, type);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                for (int i = 0; i < PIECES; i++) sum[r][v][i] = fused(all(x[r * stride + k]), w[v][i], sum[r][v][i]);
    }
    put_tile(rows, vectors, sum, out, out_stride, add);
}

/* Two steps of `pair_tile`; `kept`: the halves of each right pair that count. */
INLINE void pair_step(int rows, int vectors, const uint16_t *x, int64_t stride, const uint16_t *right, int64_t across, uint32_t kept, piece sum[6][4][PIECES]) {
    pair_piece w[4][PIECES];
    for (int v = 0; v < vectors; v++)
        for (int i = 0; i < PIECES; i++) w[v][i] = *(const pair_piece *)(right + v * across + 2 * i * WIDTH) & kept;
    for (int r = 0; r < rows; r++) {
        uint32_t two;
        memcpy(&two, x + r * stride, 4);
        const pair_piece row = two - (pair_piece){0};
        for (int v = 0; v < vectors; v++)
            for (int i = 0; i < PIECES; i++) sum[r][v][i] = dot2(sum[r][v][i], w[v][i], row);
    }
}

/* `float_tile` of bfloat16 on both sides, pairs of steps side by side: of the right operand vector v of the pair k stands at
 * v * across + k * along. Where `steps` is odd, the pair of the last one counts half: nobody has written the other one yet. */
INLINE void pair_tile(int rows, int vectors, const uint16_t *x, int64_t stride, const uint16_t *right, int64_t across, int64_t along, int steps,
                      float *out, int64_t out_stride, int add) {
    piece sum[6][4][PIECES] = {{{{0}}}};
    int k = 0;
    for (; k < steps / 2; k++) pair_step(rows, vectors, x + 2 * k, stride, right + k * along, across, 0xffffffffu, sum);
    if (steps % 2) pair_step(rows, vectors, x + 2 * k, stride, right + k * along, across, 0xffffu, sum);
    put_tile(rows, vectors, sum, out, out_stride, add);
}

/* out[rows][columns] (+)= x . weight rows + bias: dot products along the memory of both. The weight may be bfloat16. */
INLINE void dot_tile(int rows, int columns, const float *x, int64_t stride, const void *weight, int64_t weight_stride, int inputs,
                     const float *bias, float *out, int64_t out_stride, int add, int bfloat16) {
    piece sum[6][4][PIECES] = {{{{0}}}};
    int k = 0;
    for (; k + LANES <= inputs; k += LANES) {
        if (rows == 1)
            for (int c = 0; c < columns; c++)
                __builtin_prefetch((const char *)weight + AHEAD + ((int64_t)k * columns + c * LANES) * (bfloat16 ? 2 : 4));
        for (int i = 0; i < PIECES; i++) {
            piece w[4];
            for (int c = 0; c < columns; c++) {
                w[c] = wide(weight, c * weight_stride + k + i * WIDTH, bfloat16);
                if (NARROW && rows > 1) IN_REGISTER(w[c]);
            }
            for (int r = 0; r < rows; r++) {
                piece row = *(const piece *)(x + r * stride + k + i * WIDTH);
                IN_REGISTER(row);
                for (int c = 0; c < columns; c++) sum[r][c][i] = fused(row, w[c], sum[r][c][i]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            vf lanes;
            memcpy(&lanes, sum[r][c], sizeof(lanes));
            float total = lane_sum(lanes), *target = out + r * out_stride + c;
            for (int i = k; i < inputs; i++) total += x[r * stride + i] * wide_one(weight, c * weight_stride + i, bfloat16);
            if (bias) total += bias[c];
            *target = add ? *target + total : total;
        }
}

/* The same of bfloat16 rows on both sides. */
INLINE void half_tile(int rows, int columns, const uint16_t *x, int64_t stride, const uint16_t *weight, int64_t weight_stride, int inputs,
                      const float *bias, float *out, int64_t out_stride, int add) {
    piece sum[6][4][PIECES] = {{{{0}}}};
    int k = 0;
    for (; k + 2 * LANES <= inputs; k += 2 * LANES) {
        if (rows == 1)
            for (int c = 0; c < columns; c++)
                __builtin_prefetch((const char *)weight + AHEAD + ((int64_t)k * columns + c * 2 * LANES) * 2);
        for (int i = 0; i < PIECES; i++) {
            pair_piece w[4];
            for (int c = 0; c < columns; c++) {
                w[c] = *(const pair_piece *)(weight + c * weight_stride + k + 2 * i * WIDTH);
                if (NARROW && rows > 1) IN_REGISTER(w[c]);
            }
            for (int r = 0; r < rows; r++) {
                pair_piece row = *(const pair_piece *)(x + r * stride + k + 2 * i * WIDTH);
                IN_REGISTER(row);
                for (int c = 0; c < columns; c++) sum[r][c][i] = dot2(sum[r][c][i], w[c], row);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            vf lanes;
            memcpy(&lanes, sum[r][c], sizeof(lanes));
            float total = lane_sum(lanes), *target = out + r * out_stride + c;
            for (int i = k; i < inputs; i++) total += wide_one(x, r * stride + i, 1) * wide_one(weight, c * weight_stride + i, 1);
            if (bias) total += bias[c];
            *target = add ? *target + total : total;
        }
}

/* Calls `tile` with its number of rows and vectors as constants, so that each variant keeps its sums in registers: `rows` that
 * are left, by sixes or threes as `most` says, and the `vectors` that `tile_vectors` gives for all rows of a call, a single one
 * streaming `stream` of them. `EACH_DOT` counts columns, as `dot_columns` does. */
#define EACH_ROWS(most, rows, vectors, tile)                          \
    do {                                                              \
        if ((most) == 6 && (rows) >= 6) tile(6, vectors);             \
        else if ((rows) >= 3) tile(3, vectors);                       \
        else if ((rows) == 2) tile(2, vectors);                       \
        else tile(1, vectors);                                        \
    } while (0)
#if NARROW
#define EACH_TILE(most, stream, rows, vectors, tile)                  \
    do {                                                              \
        if ((vectors) == (stream)) tile(1, stream);                   \
        else EACH_ROWS(most, rows, 1, tile);                          \
    } while (0)
#define EACH_DOT(rows, columns, tile)                                 \
    do {                                                              \
        if ((columns) == 4) tile(1, 4);                               \
        else if ((columns) == 2) EACH_ROWS(DOT_ROWS, rows, 2, tile);  \
        else EACH_ROWS(DOT_ROWS, rows, 1, tile);                      \
    } while (0)
#else
#define EACH_TILE(most, stream, rows, vectors, tile)                  \
    do {                                                              \
        if ((vectors) == 4) EACH_ROWS(most, rows, 4, tile);           \
        else EACH_ROWS(most, rows, 1, tile);                          \
    } while (0)
#define EACH_DOT(rows, columns, tile) EACH_TILE(DOT_ROWS, 4, rows, columns, tile)
#endif
static int tile_rows(int most, int rows) { return rows >= most ? most : rows >= 3 ? 3 : rows; }
/* Of the vectors that are left, those of the next tile of a call on so many rows. */
static int tile_vectors(int stream, int rows, int left) {
    const int vectors = rows == 1 ? stream : NARROW ? 1 : 4;
    return left >= vectors ? vectors : 1;
}
static int dot_columns(int rows, int left) {
    const int columns = rows == 1 ? 4 : DOT_COLUMNS;
    return left >= columns ? columns : 1;
}

/* ---- linears ---- */

static int panels_of(int outputs) { return (outputs + LANES - 1) / LANES; }
static int padded(int inputs) { return (inputs + 3) / 4 * 4; }

/* The input rows of a linear as it multiplies them, besides floats: an int8 linear bytes [rows][padded], a dynamic one
 * with scales [rows], a bfloat16 one halves [rows][inputs], or in tiles. */
typedef struct { uint8_t *bytes; float *scales; uint16_t *halves; } narrow;

static narrow narrow_rows(narrow n, int64_t rows, int inputs) {
    return (narrow){n.bytes + rows * padded(inputs), n.scales + rows, n.halves ? n.halves + rows * inputs : NULL};
}

/* Whether a bfloat16 linear takes its rows in tiles: [rows/16][inputs/32][16 pairs of inputs][16 rows]. */
static int in_tiles(const linear *l, int rows) { return TILES && tiles && l->bfloat16 && rows >= TILED && l->inputs % 32 == 0; }

/* clamp(round(x / scale) + offset, -128, 127) + SHIFT, half to even; the bytes up to the next multiple of 4 meet
 * weights that are zero. Adding and taking off 1.5 * 2^23 rounds; beyond 2^20 all values end at the same bound. */
static void quantize(const float *x, int count, float scale, float offset, uint8_t *bytes) {
    const float round = 12582912.0f, far = 1048576.0f;
    for (int i = 0; i < count; i++) {
        float value = x[i] / scale;
        value = value < -far ? -far : value;
        value = value > far ? far : value;
        value = ((value + round) - round) + offset;
        value = value < -128.0f ? -128.0f : value;
        value = value > 127.0f ? 127.0f : value;
        bytes[i] = (uint8_t)((int32_t)value + SHIFT);
    }
    for (int i = count; i < padded(count); i++) bytes[i] = 0;
}

#if TILES
/* Shapes of the tiles: 0 to 3 sums, 4 and 5 the left operand, 6 and 7 the right one. `top` and `low`: rows of the left one. */
static void shape_tiles(int top, int low) {
    struct __attribute__((packed)) { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    const int rows[8] = {top, top, low, low, top, low, LANES, LANES};
    for (int i = 0; i < 8; i++)
        if (rows[i]) shape.rows[i] = (uint8_t)rows[i], shape.bytes[i] = 64;
    _tile_loadconfig(&shape);
}

/* sums[4] of 16 x 16: left rows (top, then low ones behind `left_next`) times both right operands (the second one `right_next` behind). */
#define MULTIPLY_TILES(product, steps, left, left_stride, left_step, left_next, right, right_step, right_next, low, both)          \
    do {                                                                                                                          \
        _tile_zero(0);                                                                                                            \
        if (both) _tile_zero(1);                                                                                                  \
        if (low) _tile_zero(2);                                                                                                   \
        if ((low) && (both)) _tile_zero(3);                                                                                       \
        for (int k = 0; k < (steps); k++) {                                                                                       \
            _tile_loadd(4, (left) + k * (left_step), left_stride);                                                                \
            _tile_loadd(6, (right) + k * (right_step), 64);                                                                       \
            product(0, 4, 6);                                                                                                     \
            if (both) _tile_loadd(7, (right) + k * (right_step) + (right_next), 64);                                              \
            if (both) product(1, 4, 7);                                                                                           \
            if (low) _tile_loadd(5, (left) + k * (left_step) + (left_next), left_stride);                                         \
            if (low) product(2, 5, 6);                                                                                            \
            if ((low) && (both)) product(3, 5, 7);                                                                                \
        }                                                                                                                         \
        _tile_stored(0, sums[0], 64);                                                                                             \
        if (both) _tile_stored(1, sums[1], 64);                                                                                   \
        if (low) _tile_stored(2, sums[2], 64);                                                                                    \
        if ((low) && (both)) _tile_stored(3, sums[3], 64);                                                                        \
    } while (0)

/* Rows become columns: 16 vectors of 16 lanes. */
static void transpose(__m512 v[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]), t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            v[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 16; i += 8) {
            t[i + j] = _mm512_shuffle_f32x4(v[i + j], v[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_f32x4(v[i + j], v[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        v[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
        v[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
    }
}

/* bfloat16 of x[rows][count], which stand from `first` on in rows of `inputs`, in tiles; all multiples of 32 but the rows. */
static void tile_inputs(const float *x, int64_t stride, int rows, int first, int count, int inputs, uint16_t *halves) {
    for (int r = 0; r < rows; r += LANES)
        for (int k = 0; k < count; k += 32) {
            __m512 pairs[LANES];
            for (int i = 0; i < LANES; i++) {
                const float *row = x + (r + i) * stride + k;
                pairs[i] = r + i < rows ? (__m512)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + LANES), _mm512_loadu_ps(row)) : _mm512_setzero_ps();
            }
            transpose(pairs);
            memcpy(halves + ((int64_t)r * inputs + (int64_t)(first + k) * LANES), pairs, sizeof(pairs));
        }
}
#else
static void tile_inputs(const float *x, int64_t stride, int rows, int first, int count, int inputs, uint16_t *halves) {
    (void)x, (void)stride, (void)rows, (void)first, (void)count, (void)inputs, (void)halves; /* `in_tiles` is never true */
}
#endif

/* A whole row by its own largest value, symmetrically: clamp(round(x / scale), -127, 127) + SHIFT with scale = max / 127. The
 * scale of a row that is not finite is not finite either. */
static float quantize_row(const float *x, int count, uint8_t *bytes) {
    const float round = 12582912.0f;
    float most = 0, odd = 0;
    for (int i = 0; i < count; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        odd += x[i] * 0.0f; /* NaN of NaN and infinity */
    }
    const float scale = most / 127.0f + odd, divisor = scale > 0 ? scale : 1.0f;
    for (int i = 0; i < count; i++) {
        float value = (x[i] / divisor + round) - round;
        value = value < -127.0f ? -127.0f : value;
        value = value > 127.0f ? 127.0f : value;
        bytes[i] = (uint8_t)((value == value ? (int32_t)value : 0) + SHIFT);
    }
    for (int i = count; i < padded(count); i++) bytes[i] = 0;
    return scale;
}

/* The floats x[rows][count], which are the inputs from `first` on of `l`, into the form that it multiplies, `together`
 * rows at a time. */
static void narrow_inputs(const linear *l, const float *x, int64_t stride, int rows, int first, int count, int together, narrow n) {
    if (l->shift) /* whole rows only */
        for (int r = 0; r < rows; r++) n.scales[r] = quantize_row(x + r * stride, count, n.bytes + (int64_t)r * padded(l->inputs));
    else if (l->deq_scale)
        for (int r = 0; r < rows; r++)
            quantize(x + r * stride, count, l->input_scale, l->input_offset, n.bytes + (int64_t)r * padded(l->inputs) + first);
    else if (in_tiles(l, together))
        tile_inputs(x, stride, rows, first, count, l->inputs, n.halves);
    else if (l->bfloat16)
        for (int r = 0; r < rows; r++) {
            uint16_t *halves = n.halves + (int64_t)r * l->inputs + first;
            for (int i = 0; i < count; i++) halves[i] = to_bfloat16(x[r * stride + i]);
        }
}

static void narrow_input(const linear *l, const float *x, int rows, int together, narrow n) {
    narrow_inputs(l, x, l->inputs, rows, 0, l->inputs, together, n);
}

/* A dynamic linear rounds after each factor, and the bias last, as torch does. */
static void scale_dynamic(const linear *l, vi sum, int first, float row_scale, float *out) {
    const float *scale = l->deq_scale + first, *bias = l->bias ? (const float *)l->bias + first : NULL;
    const int32_t *lanes = (const int32_t *)&sum;
    for (int i = 0; i < MIN(LANES, l->outputs - first); i++) {
        out[i] = (float)(lanes[i] + l->shift[first + i]) * row_scale * scale[i];
        if (bias) out[i] += bias[i];
    }
}

static void scale_panel(const linear *l, vi sum, int first, float row_scale, float *out) {
    if (l->shift) {
        scale_dynamic(l, sum, first, row_scale, out);
        return;
    }
    const int32_t *bias = (const int32_t *)l->bias + first;
    const float *scale = l->deq_scale + first;
    if (first + LANES <= l->outputs)
        *(vf *)out = __builtin_convertvector(sum + *(const vi *)bias, vf) * *(const vf *)scale;
    else
        for (int i = 0; first + i < l->outputs; i++) out[i] = (float)(sum[i] + bias[i]) * scale[i];
}

#if TILES
/* `int8_panels` in tiles: panels stand in memory as the right operand. Inputs behind the last 64 are added one by one. */
static void int8_tiles(const linear *l, narrow n, int rows, int begin, int end, float *out, int64_t stride, int origin) {
    const int groups = padded(l->inputs) / 4, steps = groups / LANES;
    int32_t sums[4][LANES][LANES] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r += 2 * LANES) {
        const int top = MIN(LANES, rows - r), low = MIN(LANES, rows - r - top);
        const uint8_t *x = n.bytes + (int64_t)r * groups * 4;
        shape_tiles(top, low);
        for (int p = begin; p < end; p += 2) {
            const int both = p + 1 < end;
            const int8_t *panels = (const int8_t *)l->weight + (int64_t)p * groups * 64;
            MULTIPLY_TILES(_tile_dpbusd, steps, x, groups * 4, 64, LANES * groups * 4, panels, LANES * 64, groups * 64, low, both);
            for (int i = 0; i < top + low; i++)
                for (int v = 0; v <= both; v++) {
                    vi sum = *(const vi *)sums[i / LANES * 2 + v][i % LANES];
                    for (int k = steps * LANES; k < groups; k++) {
                        int32_t four;
                        memcpy(&four, x + (int64_t)i * groups * 4 + 4 * k, 4);
                        sum = dot4(sum, panel_part(panels + ((int64_t)v * groups + k) * 64, 0), spread(four));
                    }
                    scale_panel(l, sum, (p + v) * LANES, n.scales[r + i], out + (r + i) * stride + (p + v) * LANES - origin);
                }
        }
    }
    _tile_release();
}

/* A bfloat16 linear in tiles: weights as they lie in memory are the left operand, so the sums are [outputs][rows]. */
static void half_tiles(const linear *l, const uint16_t *halves, int rows, int begin, int end, float *out, int64_t stride, int origin) {
    const int last = MIN(end * LANES, l->outputs);
    float sums[4][LANES][LANES] __attribute__((aligned(64)));
    for (int n = begin * LANES; n < last; n += 2 * LANES) {
        const int top = MIN(LANES, last - n), low = MIN(LANES, last - n - top);
        const char *weight = (const char *)((const uint16_t *)l->weight + (int64_t)n * l->inputs);
        shape_tiles(top, low);
        for (int r = 0; r < rows; r += 2 * LANES) {
            const int both = r + LANES < rows;
            const char *x = (const char *)(halves + (int64_t)r * l->inputs);
            MULTIPLY_TILES(_tile_dpbf16ps, l->inputs / 32, weight, 2 * l->inputs, 64, 2 * LANES * l->inputs, x, LANES * 64, 2 * LANES * l->inputs, low, both);
            for (int part = 0; part < 4; part++) {
                const int outputs = part < 2 ? top : low, first = n + part / 2 * LANES, row = r + part % 2 * LANES;
                if (outputs <= 0 || row >= rows) continue;
                transpose((__m512 *)sums[part]);
                for (int i = 0; i < MIN(LANES, rows - row); i++)
                    for (int j = 0; j < outputs; j++)
                        out[(row + i) * stride + first + j - origin] = sums[part][i][j] + (l->bias ? ((const float *)l->bias)[first + j] : 0.0f);
            }
        }
    }
    _tile_release();
}
#endif

/* out[rows][.] of the panels begin .. end; output n of a row stands at out[n - origin]. */
static void int8_panels(const linear *l, narrow n, int rows, int begin, int end, float *out, int64_t stride, int origin) {
    const int groups = padded(l->inputs) / 4;
    vi sums[6 * 4];
#if TILES
    if (tiles && rows >= TILED) {
        int8_tiles(l, n, rows, begin, end, out, stride, origin);
        return;
    }
#endif
    for (int p = begin, vectors; p < end; p += vectors) {
        vectors = tile_vectors(INT_STREAM, rows, end - p);
        const int8_t *panels = (const int8_t *)l->weight + (int64_t)p * groups * 64;
        for (int r = 0; r < rows; r += tile_rows(INT_ROWS, rows - r)) {
            const uint8_t *x = n.bytes + (int64_t)r * groups * 4;
#define TILE(R, V) int8_tile(R, V, x, groups * 4, panels, groups, sums)
            EACH_TILE(INT_ROWS, INT_STREAM, rows - r, vectors, TILE);
#undef TILE
            for (int i = 0; i < tile_rows(INT_ROWS, rows - r); i++)
                for (int v = 0; v < vectors; v++)
                    scale_panel(l, sums[i * 4 + v], (p + v) * LANES, n.scales[r + i], out + (r + i) * stride + (p + v) * LANES - origin);
        }
    }
}

/* Weight k of output n of a float linear. */
static const void *weight_at(const linear *l, int64_t n, int k) {
    return (const char *)l->weight + (n * l->inputs + k) * (l->bfloat16 ? 2 : 4);
}

/* The inputs in slices, summed one after the other whatever the rows: those of a tile stay in the L1 cache, the slice of
 * DOT_BLOCK outputs in the L2 cache for all rows. Few rows read the weight front to back. */
#define EACH_SLICE(tile)                                                                                       \
    do {                                                                                                       \
        const int last = MIN(end * LANES, l->outputs), width = rows > 6 ? DOT_BLOCK : 4;                       \
        for (int block = begin * LANES; block < last; block += width)                                          \
            for (int k = 0; k < l->inputs; k += SLICE)                                                         \
                for (int r = 0; r < rows; r += tile_rows(DOT_ROWS, rows - r))                                  \
                    for (int n = block, columns; n < MIN(block + width, last); n += columns) {                 \
                        const int count = MIN(SLICE, l->inputs - k);                                           \
                        const float *bias = k || !l->bias ? NULL : (const float *)l->bias + n;                 \
                        columns = dot_columns(rows, last - n);                                                 \
                        EACH_DOT(rows - r, columns, tile);                                                     \
                    }                                                                                          \
    } while (0)

/* Float inputs; a bfloat16 weight is widened. */
static void float_panels(const linear *l, const float *x, int64_t x_stride, int rows, int begin, int end, float *out, int64_t stride, int origin) {
#define TILE(R, V) dot_tile(R, V, x + r * x_stride + k, x_stride, weight_at(l, n, k), l->inputs, count, bias, out + r * stride + n - origin, stride, k > 0, TYPE)
    if (l->bfloat16) {
#define TYPE BFLOAT16
        EACH_SLICE(TILE);
#undef TYPE
    } else {
#define TYPE FLOAT32
        EACH_SLICE(TILE);
#undef TYPE
    }
#undef TILE
}

/* bfloat16 inputs, [rows][inputs]. */
static void half_panels(const linear *l, const uint16_t *halves, int rows, int begin, int end, float *out, int64_t stride, int origin) {
#if TILES
    if (in_tiles(l, rows)) {
        half_tiles(l, halves, rows, begin, end, out, stride, origin);
        return;
    }
#endif
#define TILE(R, V) half_tile(R, V, halves + (int64_t)r * l->inputs + k, l->inputs, weight_at(l, n, k), l->inputs, count, bias, out + r * stride + n - origin, stride, k > 0)
    EACH_SLICE(TILE);
#undef TILE
}

/* Output n of a float linear for one row, as `float_panels` gives it. */
static float float_output(const linear *l, const float *x, int n) {
    float out = 0;
    for (int k = 0; k < l->inputs; k += SLICE) {
        const int count = MIN(SLICE, l->inputs - k);
        if (l->bfloat16) dot_tile(1, 1, x + k, 0, weight_at(l, n, k), 0, count, NULL, &out, 0, k > 0, 1);
        else dot_tile(1, 1, x + k, 0, weight_at(l, n, k), 0, count, NULL, &out, 0, k > 0, 0);
    }
    return out;
}

/* Outputs of the panels begin .. end of a linear, from the floats of its input or what `narrow_input` made of them. */
static void apply(const linear *l, const float *x, int64_t x_stride, narrow n, int rows, int begin, int end, float *out, int64_t stride, int origin) {
    if (l->deq_scale) int8_panels(l, n, rows, begin, end, out, stride, origin);
    else if (l->bfloat16) half_panels(l, n.halves, rows, begin, end, out, stride, origin);
    else float_panels(l, x, x_stride, rows, begin, end, out, stride, origin);
}

typedef struct { int begin, end; } range;

/* The part of 0 .. count that thread `me` of `team` works on, cut at multiples of `unit`. */
static range share(int count, int unit, int me, int team) {
    int64_t units = (count + unit - 1) / unit;
    return (range){MIN(count, (int)(units * me / team) * unit), MIN(count, (int)(units * (me + 1) / team) * unit)};
}

/* ---- elementwise steps ---- */

/* a * b + c, in one rounding where that is an instruction. */
INLINE float muladd(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* exp within the range of normal floats, to about 2e-7 relative: 2^n times a polynomial (Cephes' expf). */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = muladd(x, 1.44269504f, 12582912.0f) - 12582912.0f;
    float r = muladd(n, 2.12194440e-4f, muladd(n, -0.693359375f, x));
    float p = 1.9875691500e-4f;
    p = muladd(p, r, 1.3981999507e-3f);
    p = muladd(p, r, 8.3334519073e-3f);
    p = muladd(p, r, 4.1665795894e-2f);
    p = muladd(p, r, 1.6666665459e-1f);
    p = muladd(p, r, 5.0000001201e-1f);
    p = muladd(p, r * r, r) + 1.0f;
    uint32_t bits = ((uint32_t)(int32_t)n + 127) << 23; /* unsigned: of NaN the shift is undefined else */
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* The sum in double: nearer to any order of a float sum than two orders are to each other. Lanes are summed one by
 * one, so that the order does not depend on how the compiler treats this or that call. */
static void rms_norm(const norm *n, const float *x, int size, float epsilon, float *out) {
    double lanes[LANES] = {0}, sum = 0;
    for (int i = 0; i + LANES <= size; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += (double)x[i + j] * x[i + j];
    for (int i = size / LANES * LANES; i < size; i++) sum += (double)x[i] * x[i];
    for (int j = 0; j < LANES; j++) sum += lanes[j];
    const float root = 1.0f / sqrtf((float)(sum / size) + epsilon);
    for (int i = 0; i < size; i++) out[i] = n->weight[i] * (x[i] * root);
    if (n->bias)
        for (int i = 0; i < size; i++) out[i] += n->bias[i];
}

/* Rotary embedding of one head, halves split as in GPT-NeoX. `x` and `out` may be the same. */
static void rotate(const float *x, const float *cos, const float *sin, int dim, float *out) {
    const int half = dim / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        out[i] = a * cos[i] + -b * sin[i];
        out[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* out[order][width] = base^T . x[order][width] */
static void turn_base(const rotation *t, const float *x, int width, float *out) {
    for (int i = 0; i < t->order; i++)
        for (int c = 0; c < width; c += LANES) {
            piece sum[PIECES] = {{0}};
            for (int j = 0; j < t->order; j++)
                for (int k = 0; k < PIECES; k++)
                    sum[k] = fused(all(t->base[(int64_t)j * t->order + i]), *(const piece *)(x + (int64_t)j * width + c + k * WIDTH), sum[k]);
            for (int k = 0; k < PIECES; k++) *(piece *)(out + (int64_t)i * width + c + k * WIDTH) = sum[k];
        }
}

/* x[width] times Hadamard's matrix of order `width`, a multiple of LANES: sums and differences of vectors, then `inner`,
 * the matrix of order LANES, inside each. */
static void turn_vectors(float *x, int width, float inner[LANES][LANES]) {
    for (int half = LANES; half < width; half *= 2)
        for (int first = 0; first < width; first += 2 * half)
            for (int i = first; i < first + half; i += WIDTH) {
                const piece a = *(const piece *)(x + i), b = *(const piece *)(x + i + half);
                *(piece *)(x + i) = a + b;
                *(piece *)(x + i + half) = a - b;
            }
    for (int first = 0; first < width; first += LANES) {
        piece sum[PIECES] = {{0}};
        for (int i = 0; i < LANES; i++)
            for (int k = 0; k < PIECES; k++) sum[k] = fused(all(x[first + i]), *(const piece *)(inner[i] + k * WIDTH), sum[k]);
        for (int k = 0; k < PIECES; k++) *(piece *)(x + first + k * WIDTH) = sum[k];
    }
}

/* The same steps one by one, for sizes that no vectors fill. */
static void turn_plainly(const rotation *t, const float *x, int width, float scale, float *out) {
    for (int i = 0; i < t->order; i++)
        for (int c = 0; c < width; c++) {
            float sum = t->base ? 0 : x[c];
            for (int j = 0; t->base && j < t->order; j++) sum += t->base[(int64_t)j * t->order + i] * x[(int64_t)j * width + c];
            out[(int64_t)i * width + c] = sum * scale;
        }
    for (int half = 1; half < width; half *= 2)
        for (int i = 0; i < t->order * width; i++)
            if (!(i & half)) {
                const float a = out[i], b = out[i + half];
                out[i] = a + b;
                out[i + half] = a - b;
            }
}

/* out = x turned, a row of order << power channels; not in place. */
static void turn_row(const rotation *t, const float *x, float *out) {
    const int width = 1 << t->power;
    const float scale = 1.0f / sqrtf((float)width);
    if (width % LANES) {
        turn_plainly(t, x, width, scale, out);
        return;
    }
    if (t->base) turn_base(t, x, width, out);
    else memcpy(out, x, width * sizeof(float));
    float inner[LANES][LANES];
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) inner[i][j] = __builtin_popcount(i & j) & 1 ? -scale : scale;
    for (int i = 0; i < t->order; i++) turn_vectors(out + (int64_t)i * width, width, inner);
}

/* Rows of ffn channels turned in place; `room` is for one. */
static void turn_products(const network *m, float *act, int rows, float *room) {
    for (int r = 0; r < rows; r++) {
        memcpy(room, act + (int64_t)r * m->ffn, m->ffn * sizeof(float));
        turn_row(&m->products, room, act + (int64_t)r * m->ffn);
    }
}

/* Whether the input of down is made of whole rows of products: to turn them, or to find the scale of each. */
static int whole_rows(const network *m, const block *b) { return m->products.order || b->down.shift; }

/* silu(gate) * up for these panels, in the form that `down` reads; floats where that one needs whole rows. */
static void gated(const network *m, const block *b, const float *x, narrow n, int rows, range panels, narrow wide, float *act) {
    float gate[WIDE_CHUNK * BLOCK], up[WIDE_CHUNK * BLOCK];
    for (int p = panels.begin; p < panels.end; p += 4) {
        const int end = MIN(p + 4, panels.end), first = p * LANES, count = MIN(end * LANES, m->ffn) - first;
        apply(&b->gate, x, m->hidden, n, rows, p, end, gate, BLOCK, first);
        apply(&b->up, x, m->hidden, n, rows, p, end, up, BLOCK, first);
        for (int r = 0; r < rows; r++) {
            float *g = gate + r * BLOCK, *u = up + r * BLOCK;
#pragma omp simd
            for (int i = 0; i < count; i++) g[i] = g[i] / (1.0f + exponential(-g[i])) * u[i];
            if (whole_rows(m, b) || (!b->down.deq_scale && !b->down.bfloat16)) memcpy(act + (int64_t)r * m->ffn + first, g, count * sizeof(float));
        }
        if (!whole_rows(m, b)) narrow_inputs(&b->down, gate, BLOCK, rows, first, count, rows, wide);
    }
}

/* ---- attention ---- */

static char *slot(const network *m, void *slots, const cache *c, int layer, int head) {
    return (char *)slots + ((int64_t)layer * m->kv_heads + head) * c->capacity * m->head_dim * float_bytes(m->cache_type);
}
static void *keys_of(const network *m, const cache *c, int layer, int head) { return slot(m, c->keys, c, layer, head); }
static void *values_of(const network *m, const cache *c, int layer, int head) { return slot(m, c->values, c, layer, head); }

/* A key into its lane of a key block. */
static void put_key(void *keys, int position, const float *key, int dim, int type) {
    const int64_t lane = (int64_t)(position / LANES) * LANES * dim + position % LANES;
    if (type == FLOAT32) {
        for (int i = 0; i < dim; i++) ((float *)keys)[lane + i * LANES] = key[i];
        return;
    }
    uint16_t halves[dim];
    store(key, dim, type, halves);
    if (type == FLOAT16)
        for (int i = 0; i < dim; i++) ((uint16_t *)keys)[lane + i * LANES] = halves[i];
    else
        for (int i = 0; i < dim; i++) ((uint16_t *)keys)[lane + position % LANES + i / 2 * 2 * LANES + i % 2] = halves[i];
}

/* A value into its place, `values [position][dim]` or pairs of positions. */
static void put_value(void *values, int position, const float *value, int dim, int type) {
    if (type != BFLOAT16) {
        store(value, dim, type, (char *)values + (int64_t)position * dim * float_bytes(type));
        return;
    }
    uint16_t *pairs = (uint16_t *)values + (int64_t)(position / 2) * 2 * dim + position % 2;
    for (int i = 0; i < dim; i++) pairs[2 * i] = to_bfloat16(value[i]);
}

/* Rotates the key of one position and head, out of `key_value [kv_heads][2][head_dim]`; it and its value go into the cache. */
static void append(const network *m, const cache *c, int layer, int position, int head, const float *key_value) {
    const int dim = m->head_dim;
    float key[dim];
    rotate(key_value + head * 2 * dim, m->cos + (int64_t)position * dim, m->sin + (int64_t)position * dim, dim, key);
    put_key(keys_of(m, c, layer, head), position, key, dim, m->cache_type);
    put_value(values_of(m, c, layer, head), position, key_value + (head * 2 + 1) * dim, dim, m->cache_type);
}

/* exp(score * scale - maximum) in place for the first `count` scores, zero up to `width`; gives the sum. */
static float softmax_terms(float *scores, int count, int width, float scale, float *maximum) {
    float most = -INFINITY;
    vf sum = {0};
#pragma omp simd reduction(max : most)
    for (int i = 0; i < count; i++) most = scores[i] > most ? scores[i] : most;
    most *= scale;
    for (int i = 0; i < width; i += LANES) {
#pragma omp simd
        for (int j = 0; j < LANES; j++) scores[i + j] = exponential(muladd(scores[i + j], scale, -most));
        for (int j = MAX(count - i, 0); j < LANES; j++) scores[i + j] = 0;
        sum += *(vf *)(scores + i);
    }
    *maximum = most;
    return lane_sum(sum);
}

/* x[count], a multiple of LANES, to bfloat16 in the first half of its own memory. A NaN may become another number: the sum of
 * the terms is NaN then, too. */
static void round_terms(float *x, int count) {
    for (int i = 0; i < count; i += LANES) {
        const vu bits = *(const vu *)(x + i);
        *(vh *)((uint16_t *)(void *)x + i) = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, vh);
    }
}

/* scores[rows][width] = query . keys from position `begin` on; `halves` is the query in bfloat16, for keys that are. */
INLINE void score(int dim, const float *query, int64_t stride, const uint16_t *halves, int rows, const void *keys, int begin, int width, float *scores, int type) {
    const int vectors = tile_vectors(FLOAT_STREAM, rows, 4);
    for (int t = 0; t < width; t += vectors * LANES)
        for (int r = 0; r < rows; r += tile_rows(FLOAT_ROWS, rows - r)) {
            const int64_t first = (int64_t)(begin + t) * dim;
            float *out = scores + (int64_t)r * width + t;
#define TILE(R, V) float_tile(R, V, query + r * stride, stride, keys, first, LANES * dim, LANES, dim, out, width, 0, type)
#define PAIRS(R, V) pair_tile(R, V, halves + r * dim, dim, (const uint16_t *)keys + first, LANES * dim, 2 * LANES, dim, out, width, 0)
            if (type == BFLOAT16) EACH_TILE(FLOAT_ROWS, FLOAT_STREAM, rows - r, vectors, PAIRS);
            else EACH_TILE(FLOAT_ROWS, FLOAT_STREAM, rows - r, vectors, TILE);
#undef TILE
#undef PAIRS
        }
}

/* out[rows][dim] += terms . `count` values from position `first` on. The terms of a row, which stand `width` floats apart,
 * are those from `skip` on; for values in bfloat16 they have been rounded. */
INLINE void add_values(int dim, const float *terms, int width, int skip, int rows, const void *values, int first, int count, float *out, int64_t out_stride, int type) {
    for (int r = 0; r < rows; r += tile_rows(FLOAT_ROWS, rows - r))
        for (int v = 0, vectors; v < dim; v += vectors * LANES) {
            const float *row = terms + (int64_t)r * width;
            vectors = tile_vectors(FLOAT_STREAM, rows, (dim - v) / LANES);
#define TILE(R, V) float_tile(R, V, row + skip, width, values, (int64_t)first * dim + v, LANES, dim, count, out + r * out_stride + v, out_stride, 1, type)
#define PAIRS(R, V)                                                                                                                       \
    pair_tile(R, V, (const uint16_t *)(const void *)row + skip, 2 * (int64_t)width, (const uint16_t *)values + (int64_t)first * dim + 2 * v, \
              2 * LANES, 2 * dim, count, out + r * out_stride + v, out_stride, 1)
            if (type == BFLOAT16) EACH_TILE(FLOAT_ROWS, FLOAT_STREAM, rows - r, vectors, PAIRS);
            else EACH_TILE(FLOAT_ROWS, FLOAT_STREAM, rows - r, vectors, TILE);
#undef TILE
#undef PAIRS
        }
}

/* out[rows][dim] = terms . values over the positions begin .. end, not yet divided by sums[rows]. Row r sees the
 * positions below first_end + r * causal. `begin` is a multiple of BLOCK. */
INLINE void attend_to(int dim, const float *query, int64_t stride, int rows, const void *keys, const void *values, int begin,
                      int first_end, int causal, float *scores, float *out, int64_t out_stride, float *maxima, float *sums, int type) {
    const int end = first_end + (rows - 1) * causal, width = (end - begin + BLOCK - 1) / BLOCK * BLOCK;
    uint16_t halves[type == BFLOAT16 ? rows * dim : 1];
    if (type == BFLOAT16)
        for (int r = 0; r < rows; r++) store(query + r * stride, dim, BFLOAT16, halves + r * dim);
    score(dim, query, stride, halves, rows, keys, begin, width, scores, type);
    for (int r = 0; r < rows; r++) {
        float *terms = scores + (int64_t)r * width;
        sums[r] = softmax_terms(terms, first_end + r * causal - begin, width, 1.0f / sqrtf(dim), maxima + r);
        if (type == BFLOAT16) round_terms(terms, width);
        memset(out + r * out_stride, 0, dim * sizeof(float));
    }
    for (int t = 0; t < end - begin; t += VALUES)
        add_values(dim, scores, width, t, rows, values, begin + t, MIN(VALUES, end - begin - t), out, out_stride, type);
}

/* The same with the type of keys and values as a constant. */
static void attend(int type, int dim, const float *query, int64_t stride, int rows, const void *keys, const void *values, int begin,
                   int first_end, int causal, float *scores, float *out, int64_t out_stride, float *maxima, float *sums) {
#define ATTEND(type) attend_to(dim, query, stride, rows, keys, values, begin, first_end, causal, scores, out, out_stride, maxima, sums, type)
    if (type == FLOAT16) ATTEND(FLOAT16);
    else if (type == BFLOAT16) ATTEND(BFLOAT16);
    else ATTEND(FLOAT32);
#undef ATTEND
}

/* One query: the positions in parts of PART, whatever the number of threads, so that the sums are always the same. */
static int parts_of(int positions) { return (positions + PART - 1) / PART; }

/* out[dim] from the parts, whose records stand `stride` apart. */
static void join_parts(int dim, int parts, const float *partial, const float *maxima, const float *sums, int stride, float *out) {
    float most = -INFINITY, sum = 0;
    for (int i = 0; i < parts; i++) most = MAX(most, maxima[i * stride]);
    memset(out, 0, dim * sizeof(float));
    for (int i = 0; i < parts; i++) {
        const float weight = exponential(maxima[i * stride] - most);
        sum += weight * sums[i * stride];
        for (int j = 0; j < dim; j++) out[j] += weight * partial[(int64_t)i * stride * dim + j];
    }
    for (int j = 0; j < dim; j++) out[j] /= sum;
}

/* The queries of a prompt from `first` on, of one head: out[rows][dim]. */
static void attend_prompt(int type, int dim, const float *query, int64_t stride, int first, int rows, const void *keys, const void *values,
                          float *scores, float *out, int64_t out_stride) {
    float maxima[SCORE_ROWS], sums[SCORE_ROWS];
    for (int start = 0; start < rows; start += SCORE_ROWS) {
        const int count = MIN(SCORE_ROWS, rows - start);
        float *target = out + start * out_stride;
        attend(type, dim, query + start * stride, stride, count, keys, values, 0, first + start + 1, 1, scores, target, out_stride, maxima, sums);
        for (int r = 0; r < count; r++)
            for (int i = 0; i < dim; i++) target[r * out_stride + i] /= sums[r];
    }
}

/* ---- the head ---- */

typedef struct { float value; int32_t id; } choice;

static choice better(choice a, choice b) { return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a; }

/* Two rows of signed bytes, high and low, with x = step * (128 * high + low); gives step. */
static float split_bytes(const float *x, int size, uint8_t *bytes, float *error) {
    float most = 0;
    double squares = 0;
    for (int i = 0; i < size; i++) most = MAX(most, fabsf(x[i]));
    const float step = most > 0 ? most / 16383.0f : 1.0f;
    for (int i = 0; i < size; i++) {
        int32_t value = (int32_t)lrintf(x[i] / step);
        double miss = (double)x[i] - (double)step * value;
        squares += miss * miss;
        bytes[i] = (uint8_t)((value >> 7) + SHIFT);
        bytes[padded(size) + i] = (uint8_t)((value & 127) + SHIFT);
    }
    *error = (float)sqrt(squares);
    return step;
}

/* A row that is screened: the step of its bytes, its norm, and what a logit may miss for each unit of the head's norm. */
typedef struct { float step, size, rest; } screened;

static screened screen_row(const network *m, const float *x, uint8_t *bytes) {
    float error;
    double squares = 0;
    for (int i = 0; i < m->hidden; i++) squares += (double)x[i] * x[i];
    const float size = (float)sqrt(squares), step = split_bytes(x, m->hidden, bytes, &error);
    return (screened){step, size, error + size * (m->hidden / LANES + 32) * 1.2e-7f};
}

/* What the threads of a step share at its end, for each row. */
typedef struct {
    float *logits, *slack;  /* [rows][vocab] */
    uint8_t *bytes;         /* [rows][2][hidden, padded] */
    screened *rows;
    float *lower;           /* [rows][team] */
    choice *best;           /* [rows][team] */
} head_space;

/* Approximate logits of the int8 copy for this thread's panels, and the largest lower bound of each row's true ones. The
 * bounds are Cauchy-Schwarz on what the copy and the bytes miss, and the rounding of a float sum on top. */
static void screen_logits(const network *m, const head_space *s, int rows, range panels, float *lower, int team) {
    const linear *l = &m->screen;
    const int groups = padded(l->inputs) / 4;
    vi sums[2 * 4];
    for (int r = 0; r < rows; r++) lower[r * team] = -INFINITY;
    for (int p = panels.begin, vectors; p < panels.end; p += vectors) {
        vectors = tile_vectors(INT_STREAM, 2, panels.end - p);
        const int8_t *weight = (const int8_t *)l->weight + (int64_t)p * groups * 64;
        const int first = p * LANES, count = MIN(vectors * LANES, m->vocab - first);
        for (int r = 0; r < rows; r++) {
            const uint8_t *bytes = s->bytes + (int64_t)r * groups * 8;
            const screened x = s->rows[r];
#define TILE(R, V) int8_tile(2, V, bytes, groups * 4, weight, groups, sums)
            if (!NARROW && vectors == 4) TILE(2, 4);
            else TILE(2, 1);
#undef TILE
            const int32_t *high = (const int32_t *)sums, *low = (const int32_t *)(sums + 4), *bias = (const int32_t *)l->bias + first;
            float *logits = s->logits + (int64_t)r * m->vocab + first, *slack = s->slack + (int64_t)r * m->vocab + first, most = lower[r * team];
#pragma omp simd reduction(max : most)
            for (int i = 0; i < count; i++) {
                float value = ((float)(high[i] + bias[i]) * 128.0f + (float)(low[i] + bias[i])) * (x.step * l->deq_scale[first + i]);
                float bound = m->screen_error[first + i] * x.size + m->head_norm[first + i] * x.rest;
                logits[i] = value;
                slack[i] = bound;
                most = value - bound > most ? value - bound : most;
            }
            lower[r * team] = most;
        }
    }
}

/* The best logit among this thread's rows of the head that `threshold` leaves in question, each computed in full. */
static choice best_of(const network *m, const float *x, range panels, const float *logits, const float *slack, float threshold) {
    choice best = {-INFINITY, m->vocab};
    for (int n = panels.begin * LANES; n < MIN(panels.end * LANES, m->vocab); n++)
        if (!(logits[n] + slack[n] < threshold)) {
            const choice row = {float_output(&m->head, x, n), n};
            best = better(best, row);
        }
    return best;
}

static choice largest(const network *m, range panels, const float *logits) {
    choice best = {-INFINITY, m->vocab};
    for (int n = panels.begin * LANES; n < MIN(panels.end * LANES, m->vocab); n++) best = better(best, (choice){logits[n], n});
    return best;
}

/* ids[rows] of the largest logits of the hidden states x[rows][hidden], -1 where none is a number; with `full` all logits
 * are computed. Called by the whole team, whose threads have met since x was written. */
static void choose(const network *m, const float *x, int rows, const head_space *s, int full, int32_t *ids) {
    const int me = omp_get_thread_num(), team = omp_get_num_threads();
    const range panels = share(panels_of(m->vocab), 1, me, team), own = share(rows, 1, me, team);
    const int all = full || !m->screen.weight;
    if (all) float_panels(&m->head, x, m->hidden, rows, panels.begin, panels.end, s->logits, m->vocab, 0);
    else {
        for (int r = own.begin; r < own.end; r++)
            s->rows[r] = screen_row(m, x + (int64_t)r * m->hidden, s->bytes + (int64_t)r * 2 * padded(m->hidden));
#pragma omp barrier
        screen_logits(m, s, rows, panels, s->lower + me, team);
#pragma omp barrier
    }
    for (int r = 0; r < rows; r++) {
        const float *logits = s->logits + (int64_t)r * m->vocab, *slack = s->slack + (int64_t)r * m->vocab;
        float threshold = -INFINITY;
        for (int i = 0; i < team && !all; i++) threshold = MAX(threshold, s->lower[r * team + i]);
        s->best[r * team + me] = all ? largest(m, panels, logits) : best_of(m, x + (int64_t)r * m->hidden, panels, logits, slack, threshold);
    }
#pragma omp barrier
    for (int r = own.begin; r < own.end; r++) {
        choice best = s->best[r * team];
        for (int i = 1; i < team; i++) best = better(best, s->best[r * team + i]);
        ids[r] = best.id < m->vocab ? best.id : -1;
    }
}

/* ---- scratch memory: one block that the caller owns ---- */

/* Sizes of a call: `positions` of the longest sequence at its end, `parts` of all caches together. */
typedef struct { int32_t sequences, rows, positions, parts, threads; } extent;

typedef struct {
    int chunk;                           /* rows of a prompt that a thread works on at a time */
    extent size;
    float *x, *query, *key_value, *last; /* [rows][hidden] twice; [sequences] of key_value's outputs, and of hidden */
    int32_t *first_part;                 /* [sequences + 1]: in one row of parts, where those of a sequence begin */
    float *partial, *maxima, *sums;      /* attention of single tokens: [parts][hidden], [parts][heads] twice */
    float *normed, *mixed, *y, *act, *turned, *scores; /* from here on a part for each thread */
    narrow hidden, wide;                 /* of inputs of the size of hidden, and of ffn */
    head_space head;
} space;

/* A thread's part of a `space`. */
typedef struct {
    float *normed, *mixed, *y, *act, *turned, *scores;
    narrow hidden, wide;
} worker;

static void *take(char **next, int64_t count, int64_t size) {
    char *start = *next;
    *next += (count * size + 63) / 64 * 64;
    return start;
}

static int64_t score_count(const network *m, const space *s) {
    return (int64_t)MAX(SCORE_ROWS, m->heads / m->kv_heads) * (s->size.positions + BLOCK) / LANES * LANES;
}

/* Rows that a thread has room for: whole tiles. */
static int narrow_room(int chunk) { return (chunk + LANES - 1) / LANES * LANES; }

static narrow take_narrow(char **next, int64_t rows, int inputs) {
    uint8_t *bytes = take(next, rows * padded(inputs), 1);
    float *scales = take(next, rows, sizeof(float));
    return (narrow){bytes, scales, take(next, rows * inputs, sizeof(uint16_t))};
}

static space plan(const network *m, extent e, char **next) {
    const int most = e.threads * (m->blocks->gate.deq_scale ? CHUNK : WIDE_CHUNK);
    const int turns = e.threads * ((e.rows + most - 1) / most);
    space s = {.chunk = (e.rows + turns - 1) / turns, .size = e};
    const int64_t rows = (int64_t)e.threads * s.chunk, size = sizeof(float), key_value = 2 * m->kv_heads * m->head_dim;
    s.x = take(next, (int64_t)e.rows * m->hidden, size);
    s.query = take(next, (int64_t)e.rows * m->hidden, size);
    s.key_value = take(next, e.sequences * key_value, size);
    s.last = take(next, (int64_t)e.sequences * m->hidden, size);
    s.first_part = take(next, e.sequences + 1, sizeof(int32_t));
    s.partial = take(next, (int64_t)e.parts * m->hidden, size);
    s.maxima = take(next, (int64_t)e.parts * m->heads, size);
    s.sums = take(next, (int64_t)e.parts * m->heads, size);
    s.normed = take(next, rows * m->hidden, size);
    s.mixed = take(next, rows * m->hidden, size);
    s.y = take(next, rows * MAX(key_value, m->hidden), size);
    s.act = take(next, rows * m->ffn, size);
    s.turned = take(next, (int64_t)e.threads * m->ffn, size);
    s.scores = take(next, e.threads * score_count(m, &s), size);
    s.hidden = take_narrow(next, (int64_t)e.threads * narrow_room(s.chunk), m->hidden);
    s.wide = take_narrow(next, (int64_t)e.threads * narrow_room(s.chunk), m->ffn);
    s.head.slack = take(next, (int64_t)e.sequences * m->vocab, size);
    s.head.bytes = take(next, (int64_t)e.sequences * 2 * padded(m->hidden), 1);
    s.head.rows = take(next, e.sequences, sizeof(screened));
    s.head.lower = take(next, (int64_t)e.sequences * e.threads, size);
    s.head.best = take(next, (int64_t)e.sequences * e.threads, sizeof(choice));
    return s;
}

/* What the caller cuts by: rows of a decode step at most, and positions of a part. */
int32_t step_rows(void) { return CHUNK; }
int32_t part_positions(void) { return PART; }

/* Bytes of scratch for a call of this extent. */
int64_t scratch_bytes(const network *m, const extent *e) {
    char *start = NULL;
    plan(m, *e, &start);
    return (int64_t)(intptr_t)start;
}

static worker part_of(const network *m, const space *s, int me) {
    const int64_t first = (int64_t)me * s->chunk, room = (int64_t)me * narrow_room(s->chunk);
    const int64_t widest = MAX(2 * m->kv_heads * m->head_dim, m->hidden);
    return (worker){s->normed + first * m->hidden, s->mixed + first * m->hidden, s->y + first * widest, s->act + first * m->ffn,
                    s->turned + (int64_t)me * m->ffn, s->scores + me * score_count(m, s), narrow_rows(s->hidden, room, m->hidden), narrow_rows(s->wide, room, m->ffn)};
}

/* ---- prompts: threads share out their rows ---- */

static void embed(const network *m, int64_t token, float *x) {
    const linear *table = &m->embedding;
    if (table->bfloat16)
        for (int i = 0; i < m->hidden; i++) x[i] = wide_one(table->weight, token * m->hidden + i, 1);
    else
        memcpy(x, weight_at(table, token, 0), m->hidden * sizeof(float));
    if (m->embedding_norm.weight) rms_norm(&m->embedding_norm, x, m->hidden, m->epsilon, x);
}

static void norm_rows(const network *m, const norm *n, const float *x, int rows, float *out) {
    for (int r = 0; r < rows; r++) rms_norm(n, x + (int64_t)r * m->hidden, m->hidden, m->epsilon, out + (int64_t)r * m->hidden);
}

static void apply_all(const linear *l, const float *x, narrow n, int rows, float *out) {
    apply(l, x, l->inputs, n, rows, 0, panels_of(l->outputs), out, l->outputs, 0);
}

/* What both linears of a pair read: where both are int8 they have the same input scale and offset, or none. */
static void narrow_pair(const linear *a, const linear *b, const float *x, int rows, int together, narrow n) {
    narrow_input(a, x, rows, together, n);
    if (!a->deq_scale != !b->deq_scale) narrow_input(b, x, rows, together, n);
}

/* Queries of the rows first .. end, and their keys and values into the caches. */
static void project(const network *m, const batch *t, int layer, const space *s, const worker *w, int first, int end) {
    const block *b = m->blocks + layer;
    const int rows = end - first, dim = m->head_dim;
    float *query = s->query + (int64_t)first * m->hidden;
    norm_rows(m, &b->input_norm, s->x + (int64_t)first * m->hidden, rows, w->normed);
    narrow_pair(&b->query, &b->key_value, w->normed, rows, rows, w->hidden);
    apply_all(&b->query, w->normed, w->hidden, rows, query);
    apply_all(&b->key_value, w->normed, w->hidden, rows, w->y);
    for (int r = 0; r < rows; r++) {
        const int position = t->position[first + r];
        const int64_t angle = (int64_t)position * dim;
        for (int h = 0; h < m->heads; h++) {
            float *head = query + (int64_t)r * m->hidden + h * dim;
            rotate(head, m->cos + angle, m->sin + angle, dim, head);
        }
        const float *key_value = w->y + (int64_t)r * b->key_value.outputs;
        for (int h = 0; h < m->kv_heads; h++) append(m, t->caches + t->sequence[first + r], layer, position, h, key_value);
    }
}

/* Attention of the rows first .. end, sequence by sequence. */
static void attend_rows(const network *m, const batch *t, int layer, const space *s, const worker *w, int first, int end) {
    const int dim = m->head_dim, group = m->heads / m->kv_heads;
    for (int start = first, stop; start < end; start = stop) {
        const cache *c = t->caches + t->sequence[start];
        for (stop = start + 1; stop < end && t->sequence[stop] == t->sequence[start];) stop++;
        for (int h = 0; h < m->heads; h++)
            attend_prompt(m->cache_type, dim, s->query + (int64_t)start * m->hidden + h * dim, m->hidden, t->position[start], stop - start, keys_of(m, c, layer, h / group),
                          values_of(m, c, layer, h / group), w->scores, w->mixed + (int64_t)(start - first) * m->hidden + h * dim, m->hidden);
    }
}

static void add_rows(const network *m, const float *y, const float *base, int rows, float *x) {
    for (int64_t i = 0; i < (int64_t)rows * m->hidden; i++) x[i] = y[i] + base[i];
}

/* What follows on the queries, for the rows first .. end: attention, dense, feed-forward. */
static void finish(const network *m, const batch *t, int layer, const space *s, const worker *w, int first, int end) {
    const block *b = m->blocks + layer;
    const int rows = end - first;
    float *x = s->x + (int64_t)first * m->hidden;
    const float *base = m->residual_after_norm ? w->normed : x;
    if (m->residual_after_norm) norm_rows(m, &b->input_norm, x, rows, w->normed);
    attend_rows(m, t, layer, s, w, first, end);
    narrow_input(&b->dense, w->mixed, rows, rows, w->hidden);
    apply_all(&b->dense, w->mixed, w->hidden, rows, w->y);
    add_rows(m, w->y, base, rows, x);
    norm_rows(m, &b->post_norm, x, rows, w->normed);
    narrow_pair(&b->gate, &b->up, w->normed, rows, rows, w->hidden);
    gated(m, b, w->normed, w->hidden, rows, (range){0, panels_of(m->ffn)}, w->wide, w->act);
    if (m->products.order) turn_products(m, w->act, rows, w->turned);
    if (whole_rows(m, b)) narrow_input(&b->down, w->act, rows, rows, w->wide);
    apply_all(&b->down, w->act, w->wide, rows, w->y);
    add_rows(m, w->y, base, rows, x);
}

/* Runs whole prompts into empty caches; gives ids[sequences] of the largest logits behind their last rows. With `full`,
 * `logits [sequences][vocab]` holds all logits, else approximate ones. With `states [rows][hidden]` it gives all states
 * behind the final norm instead, and no ids. */
void prefill(const network *m, const batch *t, int32_t full, float *logits, float *states, int32_t *ids, char *scratch, const extent *e) {
    space s = plan(m, *e, &scratch);
    const int chunks = (t->rows + s.chunk - 1) / s.chunk;
    s.head.logits = logits;
#pragma omp parallel num_threads(e->threads)
    {
        const worker w = part_of(m, &s, omp_get_thread_num());
#pragma omp for
        for (int i = 0; i < t->rows; i++) embed(m, t->tokens[i], s.x + (int64_t)i * m->hidden);
        for (int layer = 0; layer < m->layers; layer++) {
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < chunks; i++) project(m, t, layer, &s, &w, i * s.chunk, MIN((i + 1) * s.chunk, t->rows));
            if (states || layer < m->layers - 1) {
#pragma omp for schedule(dynamic, 1)
                for (int i = chunks - 1; i >= 0; i--) finish(m, t, layer, &s, &w, i * s.chunk, MIN((i + 1) * s.chunk, t->rows));
            } else { /* of the last block only the last rows are read */
#pragma omp for schedule(dynamic, 1)
                for (int i = 0; i < t->sequences; i++) finish(m, t, layer, &s, &w, t->last[i], t->last[i] + 1);
            }
        }
        if (states) {
#pragma omp for
            for (int i = 0; i < t->rows; i++) norm_rows(m, &m->final_norm, s.x + (int64_t)i * m->hidden, 1, states + (int64_t)i * m->hidden);
        } else {
#pragma omp for
            for (int i = 0; i < t->sequences; i++) norm_rows(m, &m->final_norm, s.x + (int64_t)t->last[i] * m->hidden, 1, s.last + (int64_t)i * m->hidden);
            choose(m, s.last, t->sequences, &s.head, full, ids);
        }
    }
}

/* ---- one token of each sequence: threads share out the panels of each linear, and the positions of the caches ---- */

/* The rows that a thread norms, narrows and joins. A single row every thread does for itself: that costs less than a
 * barrier. Tiles of bfloat16 are not cut. */
static range own_rows(const network *m, int rows) {
    return rows == 1 ? (range){0, 1} : share(rows, m->embedding.bfloat16 ? LANES : 1, omp_get_thread_num(), omp_get_num_threads());
}

static void apply_share(const linear *l, const float *x, narrow n, int rows, float *out) {
    const range part = share(panels_of(l->outputs), 1, omp_get_thread_num(), omp_get_num_threads());
    apply(l, x, l->inputs, n, rows, part.begin, part.end, out, l->outputs, 0);
}

/* x = base + linear(input), this thread's outputs; `base` is x itself, or the normed x of some models. */
static void add_share(const linear *l, const float *input, narrow n, int rows, const float *base, float *y, float *x) {
    const range part = share(panels_of(l->outputs), 1, omp_get_thread_num(), omp_get_num_threads());
    apply(l, input, l->inputs, n, rows, part.begin, part.end, y, l->outputs, 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = r * l->outputs + part.begin * LANES; i < r * l->outputs + MIN(part.end * LANES, l->outputs); i++) x[i] = y[i] + base[i];
}

/* Attention over this thread's parts of the caches; `query` is scratch. */
static void attend_share(const network *m, const batch *t, int layer, const space *s, float *query, float *scores) {
    const int dim = m->head_dim, group = m->heads / m->kv_heads;
    const range items = share(m->kv_heads * s->first_part[t->rows], 1, omp_get_thread_num(), omp_get_num_threads());
    for (int i = items.begin, row = 0; i < items.end; i++) {
        const int part = i / m->kv_heads, head = i % m->kv_heads, first = head * group;
        while (part >= s->first_part[row + 1]) row++;
        const cache *c = t->caches + t->sequence[row];
        const int position = t->position[row], begin = (part - s->first_part[row]) * PART, end = MIN(begin + PART, position + 1);
        const int64_t record = (int64_t)part * m->heads + first, angle = (int64_t)position * dim;
        for (int h = 0; h < group; h++)
            rotate(s->query + (int64_t)row * m->hidden + (first + h) * dim, m->cos + angle, m->sin + angle, dim, query + h * dim);
        if (end == position + 1) append(m, c, layer, position, head, s->key_value + (int64_t)row * 2 * m->kv_heads * dim);
        attend(m->cache_type, dim, query, dim, group, keys_of(m, c, layer, head), values_of(m, c, layer, head), begin, end, 0, scores,
               s->partial + record * dim, dim, s->maxima + record, s->sums + record);
    }
}

static void join_row(const network *m, const space *s, int row, float *mixed) {
    const int64_t record = (int64_t)s->first_part[row] * m->heads;
    for (int h = 0; h < m->heads; h++)
        join_parts(m->head_dim, s->first_part[row + 1] - s->first_part[row], s->partial + (record + h) * m->head_dim, s->maxima + record + h,
                   s->sums + record + h, m->heads, mixed + h * m->head_dim);
}

/* Where the time of a step goes, by the first thread's clock; `seconds` is NULL where nobody asks. */
enum { NORMS, LINEARS, ATTENTION, WAITING, HEAD };
typedef struct { double *seconds, last; } watch;

static void lap(watch *w, int phase) {
    if (!w->seconds) return;
    const double now = omp_get_wtime();
    w->seconds[phase] += now - w->last;
    w->last = now;
}

static void meet(watch *time) {
#pragma omp barrier
    lap(time, WAITING);
}

/* The norm of this thread's rows, for a pair of linears that all threads then share out. */
static void norm_share(const network *m, const norm *n, const linear *a, const linear *b, const space *s, const worker *w, int rows, watch *time) {
    const range own = own_rows(m, rows);
    const int64_t first = (int64_t)own.begin * m->hidden;
    norm_rows(m, n, s->x + first, own.end - own.begin, w->normed + first);
    narrow_pair(a, b, w->normed + first, own.end - own.begin, rows, narrow_rows(w->hidden, own.begin, m->hidden));
    lap(time, NORMS);
    if (rows > 1) meet(time);
}

/* The products that down reads: turned, where it reads them so, this thread's rows of them or a copy of a single one. */
static const float *turned_share(const network *m, const space *s, const worker *mine, int rows) {
    const range own = own_rows(m, rows);
    if (!m->products.order) return s->act;
    if (rows == 1) {
        turn_row(&m->products, s->act, mine->turned);
        return mine->turned;
    }
    turn_products(m, s->act + (int64_t)own.begin * m->ffn, own.end - own.begin, mine->turned);
    return s->act;
}

/* `w`: of a single row this thread's own, else the first one's, for all rows; `mine`: scratch of this thread. */
static void decode_block(const network *m, const batch *t, int layer, const space *s, const worker *w, const worker *mine, watch *time) {
    const block *b = m->blocks + layer;
    const float *base = m->residual_after_norm ? w->normed : s->x;
    const range own = own_rows(m, t->rows);
    norm_share(m, &b->input_norm, &b->query, &b->key_value, s, w, t->rows, time);
    apply_share(&b->query, w->normed, w->hidden, t->rows, s->query);
    apply_share(&b->key_value, w->normed, w->hidden, t->rows, s->key_value);
    lap(time, LINEARS);
    meet(time);
    attend_share(m, t, layer, s, mine->mixed, mine->scores);
    lap(time, ATTENTION);
    meet(time);
    for (int r = own.begin; r < own.end; r++) join_row(m, s, r, w->mixed + (int64_t)r * m->hidden);
    lap(time, ATTENTION);
    narrow_input(&b->dense, w->mixed + (int64_t)own.begin * m->hidden, own.end - own.begin, t->rows, narrow_rows(w->hidden, own.begin, m->hidden));
    lap(time, NORMS);
    if (t->rows > 1) meet(time);
    add_share(&b->dense, w->mixed, w->hidden, t->rows, base, s->y, s->x);
    lap(time, LINEARS);
    meet(time);
    norm_share(m, &b->post_norm, &b->gate, &b->up, s, w, t->rows, time);
    gated(m, b, w->normed, w->hidden, t->rows, share(panels_of(m->ffn), 1, omp_get_thread_num(), omp_get_num_threads()), s->wide, s->act);
    lap(time, LINEARS);
    meet(time);
    const float *products = s->act;
    if (whole_rows(m, b)) {
        products = turned_share(m, s, mine, t->rows);
        narrow_input(&b->down, products + (int64_t)own.begin * m->ffn, own.end - own.begin, t->rows, narrow_rows(w->wide, own.begin, m->ffn));
        lap(time, NORMS);
        if (t->rows > 1) meet(time);
    }
    add_share(&b->down, products, whole_rows(m, b) ? w->wide : s->wide, t->rows, base, s->y, s->x);
    lap(time, LINEARS);
    meet(time);
}

/* Runs a token of each sequence, at most CHUNK, behind those in its cache; the rest as in `prefill`. Adds to `seconds [5]` if given. */
void decode(const network *m, const batch *t, int32_t full, float *logits, int32_t *ids, char *scratch, const extent *e, double *seconds) {
    space s = plan(m, *e, &scratch);
    s.head.logits = logits;
    s.first_part[0] = 0;
    for (int r = 0; r < t->rows; r++) {
        s.first_part[r + 1] = s.first_part[r] + parts_of(t->position[r] + 1);
        embed(m, t->tokens[r], s.x + (int64_t)r * m->hidden);
    }
#pragma omp parallel num_threads(e->threads)
    {
        const int me = omp_get_thread_num();
        const worker mine = part_of(m, &s, me), all = part_of(m, &s, 0);
        const range own = own_rows(m, t->rows);
        watch time = {me == 0 ? seconds : NULL, omp_get_wtime()};
        for (int layer = 0; layer < m->layers; layer++) decode_block(m, t, layer, &s, t->rows > 1 ? &all : &mine, &mine, &time);
        if (t->rows > 1 || me == 0) norm_rows(m, &m->final_norm, s.x + (int64_t)own.begin * m->hidden, own.end - own.begin, s.last + (int64_t)own.begin * m->hidden);
        lap(&time, NORMS);
        meet(&time);
        choose(m, s.last, t->rows, &s.head, full, ids);
        lap(&time, HEAD);
    }
}

/* ---- the same steps one by one, for the network's modules: bit for bit what the calls above do ---- */

/* out[rows][outputs] = linear(x[rows][inputs]); `bytes [rows][inputs, padded to 4]` and `scales [rows]` for an int8 linear,
 * and for a bfloat16 one `halves [rows, padded to 16][inputs]`, are scratch. Threads share out the rows or, of few, the outputs. */
void linear_rows(const linear *l, const float *x, int32_t rows, uint8_t *bytes, float *scales, uint16_t *halves, float *out, int32_t threads) {
    const narrow n = {bytes, scales, halves};
    const int by_rows = rows >= 6 * threads;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const range part = by_rows ? share(rows, l->bfloat16 ? LANES : 1, me, team) : (range){0, rows};
        const range panels = by_rows ? (range){0, panels_of(l->outputs)} : share(panels_of(l->outputs), 1, me, team);
        for (int r = part.begin; r < part.end; r += CHUNK) {
            const int count = MIN(CHUNK, part.end - r);
            const narrow own = narrow_rows(n, r, l->inputs);
            const float *row = x + (int64_t)r * l->inputs;
            if (by_rows) narrow_input(l, row, count, count, own);
            else {
#pragma omp single
                narrow_input(l, row, count, count, own);
            }
            apply(l, row, l->inputs, own, count, panels.begin, panels.end, out + (int64_t)r * l->outputs, l->outputs, 0);
        }
    }
}

void rms_norm_rows(const float *x, const float *weight, int64_t rows, int32_t size, float epsilon, float *out, int32_t threads) {
    const norm n = {weight, NULL};
#pragma omp parallel for num_threads(threads) if (rows > 1)
    for (int64_t r = 0; r < rows; r++) rms_norm(&n, x + r * size, size, epsilon, out + r * size);
}

void silu_product(const float *gate, const float *up, int64_t count, float *out, int32_t threads) {
#pragma omp parallel for simd num_threads(threads) if (count > 1 << 14)
    for (int64_t i = 0; i < count; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

void turn_rows(const rotation *t, const float *x, int64_t rows, float *out, int32_t threads) {
    const int64_t size = (int64_t)t->order << t->power;
#pragma omp parallel for num_threads(threads) if (rows > 1)
    for (int64_t r = 0; r < rows; r++) turn_row(t, x + r * size, out + r * size);
}

typedef struct {
    int32_t batch, heads, kv_heads, queries, positions, dim;
    int64_t query[3], key[3], value[3]; /* strides of batch, head and position; the values' last one is dim */
} attention_shape;

/* Floats of scratch that `attention` needs for each thread. */
int64_t attention_scratch(const attention_shape *a) {
    const int64_t room = (a->positions + BLOCK) / BLOCK * BLOCK + BLOCK;
    return (room * (a->dim + SCORE_ROWS) + parts_of(a->positions) * (a->dim + 2)) / LANES * LANES + LANES;
}

static void attend_one(const attention_shape *a, const float *query, const float *keys, const float *values, float *scores, float *out) {
    const int parts = parts_of(a->positions);
    float *maxima = scores + PART, *sums = maxima + parts, *partial = sums + parts;
    for (int p = 0; p < parts; p++)
        attend(FLOAT32, a->dim, query, 0, 1, keys, values, p * PART, MIN((p + 1) * PART, a->positions), 0, scores, partial + (int64_t)p * a->dim, 0, maxima + p, sums + p);
    join_parts(a->dim, parts, partial, maxima, sums, 1, out);
}

/* out[batch][queries][heads][dim]: attention of the last `queries` of the positions, 1 or all of them, causal. */
void attention(const attention_shape *a, const float *query, const float *key, const float *value, float *scratch, float *out, int32_t threads) {
    const int64_t each = attention_scratch(a), row = (int64_t)a->heads * a->dim;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int item = 0; item < a->batch * a->heads; item++) {
        const int b = item / a->heads, h = item % a->heads;
        float *keys = scratch + omp_get_thread_num() * each, *scores = keys + (int64_t)(a->positions + BLOCK) / BLOCK * BLOCK * a->dim;
        const int shared = h / (a->heads / a->kv_heads);
        const float *q = query + b * a->query[0] + h * a->query[1], *k = key + b * a->key[0] + shared * a->key[1];
        const float *values = value + b * a->value[0] + shared * a->value[1];
        float *target = out + b * a->queries * row + (int64_t)h * a->dim;
        for (int t = 0; t < a->positions; t++) put_key(keys, t, k + t * a->key[2], a->dim, FLOAT32);
        if (a->queries == 1) attend_one(a, q, keys, values, scores, target);
        else attend_prompt(FLOAT32, a->dim, q, a->query[2], 0, a->queries, keys, values, scores, target, row);
    }
}

/* ---- how floats are stored, for tests: the fast form beside the plain one ---- */

/* out[count], a multiple of LANES, from a row of this type. */
void widen_row(const void *row, int64_t count, int32_t type, int32_t plain, float *out) {
    for (int64_t k = 0; k < count; k += plain ? 1 : WIDTH) {
        if (plain) out[k] = wide_one(row, k, type);
        else if (type == FLOAT16) *(piece *)(out + k) = wide(row, k, FLOAT16);
        else *(piece *)(out + k) = wide(row, k, BFLOAT16);
    }
}

void store_row(const float *x, int64_t count, int32_t type, int32_t plain, uint16_t *row) {
    for (int64_t k = 0; k < count && plain; k++) row[k] = type == FLOAT16 ? to_float16(x[k]) : to_bfloat16(x[k]);
    if (!plain) store(x, (int)count, type, row);
}
