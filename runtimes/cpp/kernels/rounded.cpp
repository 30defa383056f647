#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "avx512.hpp"
#include "silu.hpp"

namespace alize::kernels {

namespace {

constexpr std::size_t kGroup = 32;  // activations that share a scale
constexpr std::size_t kAhead = 4096;

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
    bool by_row;
    __m512i lanes[32];
};

template <int bits>
inline __m512i dot(__m512i weights, const std::int8_t *x, __m512i start) {
    if constexpr (bits == 8) {
        const __m512i shifted = _mm512_xor_si512(weights, _mm512_set1_epi8(static_cast<char>(0x80)));
        return _mm512_dpbusd_epi32(start, shifted, _mm512_load_si512(x));
    } else {
        const __m512i mask = _mm512_set1_epi8(0x0F);
        const __m512i shifted = _mm512_xor_si512(weights, _mm512_set1_epi8(static_cast<char>(0x88)));
        const __m512i even = _mm512_and_si512(shifted, mask);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(shifted, 4), mask);
        return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, even, _mm512_load_si512(x)), odd,
                                   _mm512_load_si512(x + 64));
    }
}

template <int bits, bool by_row, int rows>
inline void row_products(const Form &form, const Rounded &x, std::size_t token, const Matrix &matrix, std::size_t first,
                         float *y) {
    constexpr std::size_t operand = bits == 8 ? 64 : 128;
    const std::int8_t *values = x.values(token);
    const std::int32_t *starts = x.starts(token);
    const float *scales = x.scales(token);
    const std::uint8_t *weights[rows];
    __m512 sums[rows], weight_scales[rows];
    for (int r = 0; r < rows; ++r) {
        weights[r] = matrix.values + (first + static_cast<std::size_t>(r)) * form.row_bytes;
        sums[r] = weight_scales[r] = _mm512_setzero_ps();
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
        const __m512i start = _mm512_load_si512(starts + block * 16);
        const __m512 scale = _mm512_load_ps(scales + block * 16);
        for (int r = 0; r < rows; ++r) {
            _mm_prefetch(reinterpret_cast<const char *>(weights[r] + block * 64 + kAhead), _MM_HINT_T0);
            const __m512i packed = _mm512_maskz_loadu_epi8(mask, weights[r] + block * 64);
            const __m512 product = _mm512_cvtepi32_ps(dot<bits>(packed, values + block * operand, start));
            if constexpr (by_row) {
                sums[r] = _mm512_fmadd_ps(product, scale, sums[r]);
            } else {
                const __m512 both =
                    _mm512_mul_ps(scale, _mm512_permutexvar_ps(form.lanes[block % form.per_scales], weight_scales[r]));
                sums[r] = _mm512_fmadd_ps(product, both, sums[r]);
            }
        }
    }
    for (int r = 0; r < rows; ++r) {
        float sum = _mm512_reduce_add_ps(sums[r]);
        if constexpr (by_row) sum *= _cvtsh_ss(matrix.scale(first + static_cast<std::size_t>(r)));
        y[r] = sum;
    }
}

template <int bits, bool by_row>
void all_rows(const Form &form, const Rounded &x, std::size_t tokens, const Output &output, std::size_t first,
              std::size_t last) {
    std::size_t row = first;
    for (; row + 4 <= last; row += 4)
        for (std::size_t token = 0; token < tokens; ++token)
            row_products<bits, by_row, 4>(form, x, token, output.matrix, row,
                                          output.values + token * output.matrix.rows + row);
    for (; row < last; ++row)
        for (std::size_t token = 0; token < tokens; ++token)
            row_products<bits, by_row, 1>(form, x, token, output.matrix, row,
                                          output.values + token * output.matrix.rows + row);
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
