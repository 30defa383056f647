#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns2")  // GCC 12's order of the loads in `products` made a token a quarter slower
#endif

#include <immintrin.h>

#include <algorithm>

#include "avx512.hpp"
#include "silu.hpp"

namespace alize::kernels {

namespace {

constexpr std::size_t kGroup = 32;     // activations that share a scale
constexpr int kRows = 4, kTokens = 4;  // multiplied together: 16 sums in registers
constexpr std::size_t kAhead = 16384;  // bytes; nearer, and in the first-level cache, long rows came at half the speed

// One group: its 8-bit values in order, and the scale.
float round_group(const float *x, std::int8_t *values) {
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const float scale = largest / 127.0F;
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0F / largest : 0.0F);
    const auto rounded = [&](__m512 part) {
        return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(part, inverse)));
    };
    _mm_storeu_si128(reinterpret_cast<__m128i *>(values), rounded(low));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(values + 16), rounded(high));
    return scale;
}

// Which of 16 scales each of 16 lanes of block `number` needs, where a lane holds `width` columns.
__m512i scale_of_lanes(std::size_t number, std::size_t width, std::size_t group) {
    alignas(64) std::int32_t lanes[16];
    for (std::size_t lane = 0; lane < 16; ++lane)
        lanes[lane] = static_cast<std::int32_t>((number * 16 + lane) * width / group % 16);
    return _mm512_load_si512(lanes);
}

struct Form {
    std::size_t row_bytes, groups, per_scales;  // per_scales: blocks that 16 scales are enough for
    std::size_t ahead;  // of what is multiplied, memory is fetched, in the order in which it lies
    bool by_row;
    __m512i lanes[32];
};

// 64 bytes of a row as operands of dot products, which take them as if they had no sign.
template <int bits>
struct Unpacked {
    explicit Unpacked(__m512i weights) {
        if constexpr (bits == 8) {
            even = _mm512_xor_si512(weights, _mm512_set1_epi8(static_cast<char>(0x80)));
        } else {
            const __m512i mask = _mm512_set1_epi8(0x0F);
            const __m512i shifted = _mm512_xor_si512(weights, _mm512_set1_epi8(static_cast<char>(0x88)));
            even = _mm512_and_si512(shifted, mask);
            odd = _mm512_and_si512(_mm512_srli_epi16(shifted, 4), mask);
        }
    }
    __m512i dot(const std::int8_t *x, __m512i start) const {
        const __m512i sums = _mm512_dpbusd_epi32(start, even, _mm512_load_si512(x));
        if constexpr (bits == 8) return sums;
        return _mm512_dpbusd_epi32(sums, odd, _mm512_load_si512(x + 64));
    }
    __m512i even, odd;
};

// Some rows by some tokens. However many there are, each sum is taken in the same order.
template <int bits, bool by_row, int rows, int tokens>
void products(const Form &form, const Rounded &x, std::size_t token, const Output &output, std::size_t first) {
    constexpr std::size_t operand = bits == 8 ? 64 : 128;
    const Matrix &matrix = output.matrix;
    const std::uint8_t *weights[rows];
    __m512 sums[rows][tokens], weight_scales[rows];
    for (int r = 0; r < rows; ++r) {
        weights[r] = matrix.values + (first + static_cast<std::size_t>(r)) * form.row_bytes;
        weight_scales[r] = _mm512_setzero_ps();
        for (int t = 0; t < tokens; ++t) sums[r][t] = _mm512_setzero_ps();
    }
    const std::int8_t *values[tokens];
    const std::int32_t *starts[tokens];
    const float *scales[tokens];
    for (int t = 0; t < tokens; ++t) {
        values[t] = x.values(token + t);
        starts[t] = x.starts(token + t);
        scales[t] = x.scales(token + t);
    }
    std::size_t known = 0;  // the block from which other scales are needed
    for (std::size_t block = 0; block < x.blocks; ++block) {
        const std::size_t left = form.row_bytes - block * 64;
        const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        if constexpr (!by_row) {
            if (block == known) {
                const std::size_t group = block / form.per_scales * 16;
                const std::size_t some = std::min<std::size_t>(form.groups - group, 16);
                const auto chosen = static_cast<__mmask16>((1U << some) - 1U);
                for (int r = 0; r < rows; ++r)
                    weight_scales[r] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(
                        chosen, matrix.scales + (first + static_cast<std::size_t>(r)) * form.groups + group));
                known += form.per_scales;
            }
        }
        __m512i start[tokens];
        __m512 scale[tokens];
        for (int t = 0; t < tokens; ++t) {
            start[t] = _mm512_load_si512(starts[t] + block * 16);
            scale[t] = _mm512_load_ps(scales[t] + block * 16);
        }
        const char *ahead = reinterpret_cast<const char *>(weights[0]) + form.ahead + block * 64 * rows;
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            _mm_prefetch(ahead + r * 64, _MM_HINT_T1);
            const Unpacked<bits> unpacked(_mm512_maskz_loadu_epi8(mask, weights[r] + block * 64));
#pragma GCC unroll 4
            for (int t = 0; t < tokens; ++t) {
                const __m512 product = _mm512_cvtepi32_ps(unpacked.dot(values[t] + block * operand, start[t]));
                if constexpr (by_row) {
                    sums[r][t] = _mm512_fmadd_ps(product, scale[t], sums[r][t]);
                } else {
                    const __m512 both = _mm512_mul_ps(
                        scale[t], _mm512_permutexvar_ps(form.lanes[block % form.per_scales], weight_scales[r]));
                    sums[r][t] = _mm512_fmadd_ps(product, both, sums[r][t]);
                }
            }
        }
    }
    for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t t = 0; t < tokens; ++t) {
            float sum = _mm512_reduce_add_ps(sums[r][t]);
            if constexpr (by_row) sum *= _cvtsh_ss(matrix.scale(first + r));
            output.values[(token + t) * matrix.rows + first + r] = sum;
        }
}

template <int bits, bool by_row, int rows>
void some_rows(const Form &form, const Rounded &x, std::size_t tokens, const Output &output, std::size_t first) {
    std::size_t token = 0;
    for (; token + kTokens <= tokens; token += kTokens)
        products<bits, by_row, rows, kTokens>(form, x, token, output, first);
    for (; token < tokens; ++token) products<bits, by_row, rows, 1>(form, x, token, output, first);
}

template <int bits, bool by_row>
void all_rows(const Form &form, const Rounded &x, std::size_t tokens, const Output &output, std::size_t first,
              std::size_t last) {
    std::size_t row = first;
    for (; row + kRows <= last; row += kRows) some_rows<bits, by_row, kRows>(form, x, tokens, output, row);
    for (; row < last; ++row) some_rows<bits, by_row, 1>(form, x, tokens, output, row);
}

}  // namespace

void gate_rows(float *values, const float *factors, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 16) {
        const auto mask = static_cast<__mmask16>(count - i >= 16 ? 0xFFFFU : (1U << (count - i)) - 1U);
        const __m512 gated = silu(_mm512_maskz_loadu_ps(mask, values + i));
        _mm512_mask_storeu_ps(values + i, mask, _mm512_mul_ps(gated, _mm512_maskz_loadu_ps(mask, factors + i)));
    }
}

void Rounded::reserve(std::size_t tokens, std::size_t columns, int bits) {
    const std::size_t operand = bits == 8 ? 64 : 128;
    blocks = (columns + operand - 1) / operand;
    operands = blocks * operand;
    values_.reserve(tokens * operands);
    starts_.reserve(tokens * blocks * 16);
    scales_.reserve(tokens * blocks * 16);
}

void Rounded::set(const float *x, std::size_t columns, int bits, std::size_t first, std::size_t last) {
    thread_local Aligned<std::int8_t> ordered;
    const std::size_t width = bits == 8 ? 4 : 8;
    for (std::size_t token = first; token < last; ++token) {
        std::int8_t *mine = values_.get() + token * operands;
        std::int8_t *in_order = bits == 8 ? mine : ordered.reserve(operands);
        std::int32_t *starts = starts_.get() + token * blocks * 16;
        float *scales = scales_.get() + token * blocks * 16;
        std::fill(in_order + columns, in_order + operands, std::int8_t{0});
        std::fill(scales, scales + blocks * 16, 0.0F);
        for (std::size_t column = 0; column < columns; column += kGroup) {
            const float scale = round_group(x + token * columns + column, in_order + column);
            std::fill_n(scales + column / width, kGroup / width, scale);
        }
        const __m512i ones = _mm512_set1_epi8(1);
        for (std::size_t block = 0; block < blocks; ++block) {
            __m512i sums = _mm512_setzero_si512();
            if (bits == 8) {
                sums = _mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(mine + block * 64));
                sums = _mm512_slli_epi32(sums, 7);
            } else {
                const __m512i low = _mm512_load_si512(in_order + block * 128),
                              high = _mm512_load_si512(in_order + block * 128 + 64);
                const auto even = [](__m512i both) { return _mm512_cvtepi16_epi8(both); };
                const auto odd = [](__m512i both) { return _mm512_cvtepi16_epi8(_mm512_srli_epi16(both, 8)); };
                const __m512i evens = _mm512_inserti64x4(_mm512_castsi256_si512(even(low)), even(high), 1);
                const __m512i odds = _mm512_inserti64x4(_mm512_castsi256_si512(odd(low)), odd(high), 1);
                _mm512_store_si512(mine + block * 128, evens);
                _mm512_store_si512(mine + block * 128 + 64, odds);
                sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums, ones, evens), ones, odds);
                sums = _mm512_slli_epi32(sums, 3);
            }
            _mm512_store_si512(starts + block * 16, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
        }
    }
}

void multiply_rounded(const Rounded &x, std::size_t tokens, const Output &output, std::size_t first, std::size_t last) {
    const Matrix &matrix = output.matrix;
    const std::size_t width = matrix.bits == 8 ? 4 : 8;
    Form form{};
    form.row_bytes = matrix.columns * static_cast<std::size_t>(matrix.bits) / 8;
    form.groups = matrix.columns / matrix.group;
    const std::size_t together = kRows * form.row_bytes;
    form.ahead = (kAhead + together - 1) / together * together;
    form.by_row = form.groups == 1;
    form.per_scales =
        std::max<std::size_t>(matrix.group / width, 1);  // 16 groups of group / width lanes, of 16 lanes a block
    if (!form.by_row)
        for (std::size_t block = 0; block < std::min<std::size_t>(form.per_scales, 32); ++block)
            form.lanes[block] = scale_of_lanes(block, width, matrix.group);
    if (matrix.bits == 8)
        form.by_row ? all_rows<8, true>(form, x, tokens, output, first, last)
                    : all_rows<8, false>(form, x, tokens, output, first, last);
    else
        form.by_row ? all_rows<4, true>(form, x, tokens, output, first, last)
                    : all_rows<4, false>(form, x, tokens, output, first, last);
}

}  // namespace alize::kernels
