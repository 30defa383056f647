#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "avx512.hpp"
#include "silu.hpp"
#include "tiles.hpp"

namespace alize::kernels {

namespace {

constexpr std::size_t kRows = 32;    // two tiles of weights
constexpr std::size_t kTokens = 32;  // two tiles of activations

// 32 columns of one row of 8 bits, each of which is a bfloat16 as it is; times the scale where it is a group's.
template <bool by_group>
inline __m512i widened(const std::uint8_t *weights, float scale) {
    const auto part = [&](std::size_t at) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(weights + at));
        const __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        return by_group ? _mm512_mul_ps(values, _mm512_set1_ps(scale)) : values;
    };
    return pairs(part(0), part(16));
}

// What each of the 16 nibbles stands for, as bfloat16, twice.
inline __m512i meanings(float scale) {
    const __m512 nibbles = _mm512_set_ps(-1, -2, -3, -4, -5, -6, -7, -8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 values = _mm512_mul_ps(nibbles, _mm512_set1_ps(scale));
    return pairs(values, values);
}

inline __m512i looked_up(const std::uint8_t *weights, __m512i table) {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(weights)));
    const __m512i both = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    return _mm512_permutexvar_epi16(_mm512_and_si512(both, _mm512_set1_epi32(0x000F000F)), table);
}

// Up to 16 rows as tiles of 32 columns, kStep apart. Scales of whole rows are left out: see `scales_of_rows`.
void widen(const Matrix &matrix, std::size_t first, std::size_t last, std::uint16_t *tiles) {
    const std::size_t steps = matrix.columns / 32, groups = matrix.columns / matrix.group;
    const std::size_t row_bytes = matrix.columns * static_cast<std::size_t>(matrix.bits) / 8;
    for (std::size_t row = first; row < first + 16; ++row) {
        std::uint16_t *place = tiles + (row - first) * 32;
        if (row >= last) {
            for (std::size_t step = 0; step < steps; ++step)
                _mm512_store_si512(place + step * kStep, _mm512_setzero_si512());
            continue;
        }
        const std::uint8_t *weights = matrix.values + row * row_bytes;
        for (std::size_t at = 0; at < row_bytes; at += 64)  // the same row of the tiles after these
            _mm_prefetch(reinterpret_cast<const char *>(weights + kRows * row_bytes + at), _MM_HINT_T1);
        __m512i table = meanings(1.0F);
        float scale = 1.0F;
        for (std::size_t step = 0; step < steps; ++step) {
            if (groups > 1 && step * 32 % matrix.group == 0) {
                scale = _cvtsh_ss(matrix.scale(row * groups + step * 32 / matrix.group));
                if (matrix.bits == 4) table = meanings(scale);
            }
            const std::uint8_t *columns = weights + step * 4 * static_cast<std::size_t>(matrix.bits);
            const __m512i values = matrix.bits == 4 ? looked_up(columns, table)
                                   : groups == 1    ? widened<false>(columns, scale)
                                                    : widened<true>(columns, scale);
            _mm512_store_si512(place + step * kStep, values);
        }
    }
}

// Of up to 16 rows, what their products are to be multiplied with.
void scales_of_rows(const Matrix &matrix, std::size_t first, std::size_t last, float *scales) {
    for (std::size_t row = first; row < first + 16; ++row)
        scales[row - first] = matrix.group == matrix.columns && row < last ? _cvtsh_ss(matrix.scale(row)) : 1.0F;
}

// silu(first * its scales) * (second * its scales) of 16 rows by 16 tokens, as 8 rows of a tile of activations: pairs
// of rows.
inline void gate_tile(const float *first, const float *its_scales, const float *second, const float *their_scales,
                      std::uint16_t *to) {
    const auto row = [&](std::size_t i) {
        const __m512 x = _mm512_mul_ps(_mm512_load_ps(first + i * 16), _mm512_set1_ps(its_scales[i]));
        const __m512 factor = _mm512_mul_ps(_mm512_load_ps(second + i * 16), _mm512_set1_ps(their_scales[i]));
        return _mm512_mul_ps(silu(x), factor);
    };
    for (std::size_t pair = 0; pair < 8; ++pair)
        _mm512_store_si512(to + pair * 32, interleaved(row(2 * pair), row(2 * pair + 1)));
}

// Leaf 7 of CPUID, EDX: bit 22 is AMX-BF16, bit 24 AMX-TILE. Clang 14's __builtin_cpu_supports has no word for them.
bool has_tiles() {
    constexpr unsigned both = 1U << 22U | 1U << 24U;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & both) == both;
}

}  // namespace

bool allow_amx() {
    static const bool allowed = [] {
        constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: arch/x86 of Linux
        return has_tiles() && __builtin_cpu_supports("avx512bf16") && syscall(SYS_arch_prctl, request, tile_data) == 0;
    }();
    return allowed;
}

std::size_t Halved::reserve(std::size_t tokens, std::size_t columns) {
    steps_ = columns / 32;
    const std::size_t panels = (tokens + kTokens - 1) / kTokens * 2;
    values_.reserve(panels * steps_ * 512);
    return panels;
}

void Halved::set(const float *x, std::size_t tokens, std::size_t columns, std::size_t first, std::size_t last) {
    for (std::size_t panel = first; panel < last; ++panel)
        for (std::size_t step = 0; step < steps_; ++step) {
            alignas(64) std::uint32_t rows[16][16];  // token, pair of columns
            for (std::size_t i = 0; i < 16; ++i) {
                const std::size_t token = panel * 16 + i;
                __m512i row = _mm512_setzero_si512();
                if (token < tokens) {
                    const float *place = x + token * columns + step * 32;
                    row = pairs(_mm512_loadu_ps(place), _mm512_loadu_ps(place + 16));
                }
                _mm512_store_si512(rows[i], row);
            }
            transpose_pairs(rows, tile(panel, step));
        }
}

void multiply_halved(const Halved &x, std::size_t tokens, const Output &output, std::size_t first, std::size_t last) {
    thread_local Aligned<std::uint16_t> scratch;
    const Matrix &matrix = output.matrix;
    const std::size_t steps = matrix.columns / 32;
    std::uint16_t *panel = scratch.reserve(steps * kStep);
    alignas(64) float sums[4][256], scales[2][16];
    configure();
    for (std::size_t row = first; row < last; row += kRows) {
        for (std::size_t half = 0; half < 2; ++half) {
            widen(matrix, row + half * 16, last, panel + half * 512);
            scales_of_rows(matrix, row + half * 16, last, scales[half]);
        }
        for (std::size_t token = 0; token < tokens; token += kTokens) {
            multiply_tiles(panel, x.tile(token / 16, 0), x.tile(token / 16 + 1, 0), steps, sums);
            for (std::size_t part = 0; part < 4; ++part) {
                const std::size_t its_row = row + part % 2 * 16, its_token = token + part / 2 * 16;
                if (its_row >= last || its_token >= tokens) continue;
                transpose(sums[part], scales[part % 2], output.values + its_token * matrix.rows + its_row, matrix.rows,
                          std::min<std::size_t>(16, tokens - its_token), std::min<std::size_t>(16, last - its_row));
            }
        }
    }
    _tile_release();
}

void multiply_gated_halved(const Halved &x, std::size_t tokens, const Matrix &one, const Matrix &other, Halved &y,
                           std::size_t first, std::size_t last) {
    thread_local Aligned<std::uint16_t> scratch;
    const std::size_t steps = one.columns / 32;
    std::uint16_t *panel = scratch.reserve(steps * kStep);
    alignas(64) float sums[4][256], scales[2][16];
    configure();
    for (std::size_t row = first; row < last; row += 16) {
        widen(one, row, last, panel);
        widen(other, row, last, panel + 512);
        scales_of_rows(one, row, last, scales[0]);
        scales_of_rows(other, row, last, scales[1]);
        for (std::size_t token = 0; token < tokens; token += kTokens) {
            multiply_tiles(panel, x.tile(token / 16, 0), x.tile(token / 16 + 1, 0), steps, sums);
            for (std::size_t half = 0; half < 2; ++half)
                gate_tile(sums[2 * half], scales[0], sums[2 * half + 1], scales[1],
                          y.tile(token / 16 + half, row / 32) + row % 32 / 16 * 256);
        }
    }
    _tile_release();
}

}  // namespace alize::kernels
