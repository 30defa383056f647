#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "avx512.hpp"

namespace alize::kernels {

namespace {

constexpr std::size_t kRows = 32;    // two tiles of weights
constexpr std::size_t kTokens = 32;  // two tiles of activations

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};
};

void configure() {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}

inline __m512i pairs(__m512 low, __m512 high) {  // 32 bfloat16, in order
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// 32 columns of one row. Where the whole row has one scale it is left out, so that the integers are exact.
template <int bits>
inline __m512i widened(const std::uint8_t *weights, float scale) {
    __m512i low, high;
    if constexpr (bits == 8) {
        low = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(weights)));
        high = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(weights + 16)));
    } else {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(weights));
        const __m128i mask = _mm_set1_epi8(0x0F), sign = _mm_set1_epi8(8);
        const auto whole = [&](__m128i nibbles) { return _mm_sub_epi8(_mm_xor_si128(nibbles, sign), sign); };
        const __m128i even = whole(_mm_and_si128(packed, mask)),
                      odd = whole(_mm_and_si128(_mm_srli_epi16(packed, 4), mask));
        low = _mm512_cvtepi8_epi32(_mm_unpacklo_epi8(even, odd));
        high = _mm512_cvtepi8_epi32(_mm_unpackhi_epi8(even, odd));
    }
    const __m512 factor = _mm512_set1_ps(scale);
    return pairs(_mm512_mul_ps(_mm512_cvtepi32_ps(low), factor), _mm512_mul_ps(_mm512_cvtepi32_ps(high), factor));
}

// `count` rows as tiles: [step][half][16 rows][32 columns].
template <int bits>
void widen(const Matrix &matrix, std::size_t first, std::size_t count, std::uint16_t *panel) {
    const std::size_t steps = matrix.columns / 32, groups = matrix.columns / matrix.group;
    for (std::size_t row = 0; row < kRows; ++row) {
        std::uint16_t *place = panel + row / 16 * 512 + row % 16 * 32;
        if (row >= count) {
            for (std::size_t step = 0; step < steps; ++step)
                _mm512_store_si512(place + step * 1024, _mm512_setzero_si512());
            continue;
        }
        const std::uint8_t *weights = matrix.values + (first + row) * matrix.columns * bits / 8;
        const std::uint16_t *scales = matrix.scales + (first + row) * groups;
        for (std::size_t step = 0; step < steps; ++step) {
            const float scale = groups == 1 ? 1.0F : _cvtsh_ss(scales[step * 32 / matrix.group]);
            _mm512_store_si512(place + step * 1024, widened<bits>(weights + step * 4 * bits, scale));
        }
    }
}

inline void transpose(const float *from, float *to, std::size_t stride, std::size_t tokens, std::size_t rows) {
    // 16 x 16: rows of weights by tokens, to tokens by rows of weights
    __m512 r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_load_ps(from + i * 16);
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        const auto low = [&](int a, int b) {
            return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[a]), _mm512_castps_pd(t[b])));
        };
        const auto high = [&](int a, int b) {
            return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[a]), _mm512_castps_pd(t[b])));
        };
        r[4 * i] = low(4 * i, 4 * i + 2);
        r[4 * i + 1] = high(4 * i, 4 * i + 2);
        r[4 * i + 2] = low(4 * i + 1, 4 * i + 3);
        r[4 * i + 3] = high(4 * i + 1, 4 * i + 3);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
    }
    const auto mask = static_cast<__mmask16>((1U << rows) - 1U);
    for (std::size_t i = 0; i < 8; ++i) {
        if (i < tokens) _mm512_mask_storeu_ps(to + i * stride, mask, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
        if (i + 8 < tokens)
            _mm512_mask_storeu_ps(to + (i + 8) * stride, mask, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD));
    }
}

}  // namespace

bool allow_amx() {
    static const bool allowed = [] {
        constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: arch/x86 of Linux
        return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
               __builtin_cpu_supports("avx512bf16") && syscall(SYS_arch_prctl, request, tile_data) == 0;
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
    std::uint16_t *values = values_.get();
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
            transpose(reinterpret_cast<const float *>(rows),
                      reinterpret_cast<float *>(values + (panel * steps_ + step) * 512), 16, 16, 16);
        }
}

void multiply_halved(const Halved &x, std::size_t tokens, const Output &output, std::size_t first, std::size_t last) {
    thread_local Aligned<std::uint16_t> scratch;
    const Matrix &matrix = output.matrix;
    const std::size_t steps = matrix.columns / 32;
    const bool by_row = matrix.group == matrix.columns;
    std::uint16_t *panel = scratch.reserve(steps * 1024);
    alignas(64) float sums[4][256];
    configure();
    for (std::size_t row = first; row < last; row += kRows) {
        const std::size_t count = std::min(kRows, last - row);
        matrix.bits == 8 ? widen<8>(matrix, row, count, panel) : widen<4>(matrix, row, count, panel);
        for (std::size_t token = 0; token < tokens; token += kTokens) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (std::size_t step = 0; step < steps; ++step) {
                _tile_loadd(4, panel + step * 1024, 64);
                _tile_loadd(5, panel + step * 1024 + 512, 64);
                _tile_loadd(6, x.tile(token / 16, step), 64);
                _tile_loadd(7, x.tile(token / 16 + 1, step), 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            _tile_stored(2, sums[2], 64);
            _tile_stored(3, sums[3], 64);
            for (std::size_t part = 0; part < 4; ++part) {
                const std::size_t its_row = row + part % 2 * 16, its_token = token + part / 2 * 16;
                if (its_row >= last || its_token >= tokens) continue;
                const std::size_t its_rows = std::min<std::size_t>(16, last - its_row);
                if (by_row)
                    for (std::size_t i = 0; i < its_rows; ++i) {
                        const __m512 scale = _mm512_set1_ps(_cvtsh_ss(matrix.scales[its_row + i]));
                        _mm512_store_ps(sums[part] + i * 16, _mm512_mul_ps(_mm512_load_ps(sums[part] + i * 16), scale));
                    }
                transpose(sums[part], output.values + its_token * matrix.rows + its_row, matrix.rows,
                          std::min<std::size_t>(16, tokens - its_token), its_rows);
            }
        }
    }
    _tile_release();
}

}  // namespace alize::kernels
