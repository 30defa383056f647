// Tiles of bfloat16 and what is between them and rows of floats; for sources that are compiled with AMX.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace alize::kernels {

namespace {

constexpr std::size_t kStep = 1024;  // bfloat16 values of two tiles

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};
};

inline void configure() {
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

// The same in pairs: a float of the first beside one of the second.
inline __m512i interleaved(__m512 first, __m512 second) {
    alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), pairs(first, second));
}

// The products of two tiles of weights, 1 KB apart, with two of tokens: tiles 0 and 1 of the first's, 2 and 3 of the
// second's.
inline void multiply_tiles(const std::uint16_t *weights, const std::uint16_t *tokens, const std::uint16_t *more_tokens,
                           std::size_t steps, float (*sums)[256]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::size_t step = 0; step < steps; ++step) {
        _tile_loadd(4, weights + step * kStep, 64);
        _tile_loadd(5, weights + step * kStep + 512, 64);
        _tile_loadd(6, tokens + step * 512, 64);
        _tile_loadd(7, more_tokens + step * 512, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

// 16 rows of weights by 16 tokens, times the rows' scales, to tokens by rows of weights.
inline void transpose(const float *from, const float *scales, float *to, std::size_t stride, std::size_t tokens,
                      std::size_t rows) {
    __m512 r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_mul_ps(_mm512_load_ps(from + i * 16), _mm512_set1_ps(scales[i]));
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

// The same of 16 tokens by 16 pairs of columns, in place of a float each.
inline void transpose_pairs(const std::uint32_t (*from)[16], std::uint16_t *to) {
    alignas(64) static constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    transpose(reinterpret_cast<const float *>(from), kOnes, reinterpret_cast<float *>(to), 16, 16, 16);
}

}  // namespace

}  // namespace alize::kernels
