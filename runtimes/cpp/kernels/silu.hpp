// x / (1 + e^-x) of 16 values; for sources that are compiled with AVX-512.
#pragma once

#include <immintrin.h>

namespace alize::kernels {

namespace {

// e^x, within 2e-7 of it: 2^n times a polynomial of what is left (Taylor's, of degree 6, over half an octave).
inline __m512 exponential(__m512 x) {
    const __m512 clamped = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0F)), _mm512_set1_ps(-87.0F));
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504F)), 0);
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375F), clamped);  // ln 2 in two parts
    rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4F), rest);
    __m512 sum = _mm512_set1_ps(1.0F / 720);
    for (const float factor : {1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(sum, whole);
}

inline __m512 silu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0F);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

}  // namespace

}  // namespace alize::kernels
