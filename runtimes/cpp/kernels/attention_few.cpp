#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "attention_parts.hpp"
#include "silu.hpp"

namespace alize::kernels {

namespace {

constexpr float kLog2E = 1.44269504F, kLn2 = 0.693147181F;
constexpr std::size_t kLanes = 16;
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

inline __m512 widened(const std::uint16_t *halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves)));
}

inline void narrow(__m512 values, std::uint16_t *halves) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(halves), _mm512_cvtps_ph(values, kNearest));
}

// store(i, values): 16 elements of a head from i on, turned by the angles.
template <typename Store>
inline void turn(const float *x, const float *cosines, std::size_t head_size, const Store &store) {
    const std::size_t half = head_size / 2;
    for (std::size_t i = 0; i < half; i += kLanes) {
        const __m512 one = _mm512_loadu_ps(x + i), other = _mm512_loadu_ps(x + half + i);
        const __m512 cosine = _mm512_loadu_ps(cosines + i), sine = _mm512_loadu_ps(cosines + half + i);
        store(i, _mm512_fmsub_ps(one, cosine, _mm512_mul_ps(other, sine)));
        store(half + i, _mm512_fmadd_ps(other, cosine, _mm512_mul_ps(one, sine)));
    }
}

// The sums of 16 rows of 16.
inline __m512 sums_of_rows(const __m512 *rows) {
    __m512 pairs[8], fours[4];
    for (int i = 0; i < 8; ++i)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                                 _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
    for (int i = 0; i < 4; ++i) {
        const __m512d one = _mm512_castps_pd(pairs[2 * i]), other = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(one, other)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(one, other)));
    }
    const auto folded = [](__m512 one, __m512 other) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(one, other, 0x88), _mm512_shuffle_f32x4(one, other, 0xDD));
    };
    return folded(folded(fours[0], fours[1]), folded(fours[2], fours[3]));
}

// The scores of 16 keys, of which `some` exist.
template <int kHeads>
inline void score(const std::uint16_t *keys, const std::uint16_t *ahead, std::size_t some, std::size_t head_size,
                  const float *q, float (*scores)[kSegment], std::size_t at) {
    __m512 sums[kHeads][kLanes];
    for (std::size_t key = 0; key < kLanes; ++key) {
        const std::uint16_t *its = keys + std::min(key, some - 1) * head_size;
        for (std::size_t i = 0; i < head_size; i += 32)
            _mm_prefetch(reinterpret_cast<const char *>(ahead + key * head_size + i), _MM_HINT_T0);
        __m512 mine[kHeads];
        for (__m512 &sum : mine) sum = _mm512_setzero_ps();
        for (std::size_t i = 0; i < head_size; i += kLanes) {
            const __m512 part = widened(its + i);
            for (int head = 0; head < kHeads; ++head)
                mine[head] = _mm512_fmadd_ps(part, _mm512_loadu_ps(q + static_cast<std::size_t>(head) * head_size + i),
                                             mine[head]);
        }
        for (int head = 0; head < kHeads; ++head) sums[head][key] = mine[head];
    }
    for (int head = 0; head < kHeads; ++head) _mm512_storeu_ps(scores[head] + at, sums_of_rows(sums[head]));
}

// Scores -> weights, in place; those of keys that are not seen are 0. Returns the largest score and the weights' sum.
inline std::pair<float, float> weigh(float *scores, std::size_t first, std::size_t last) {
    const auto seen = [&](std::size_t at) {
        const std::size_t from = first > at ? std::min<std::size_t>(first - at, 16) : 0;
        const std::size_t to = last > at ? std::min<std::size_t>(last - at, 16) : 0;
        return static_cast<__mmask16>(((1U << to) - 1U) & ~((1U << from) - 1U));
    };
    const std::size_t begin = first / kLanes * kLanes;
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (std::size_t at = begin; at < last; at += kLanes)
        most = _mm512_mask_max_ps(most, seen(at), most, _mm512_loadu_ps(scores + at));
    const float largest = _mm512_reduce_max_ps(most);
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t at = begin; at < last; at += kLanes) {
        const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + at), _mm512_set1_ps(largest));
        const __m512 weight = _mm512_maskz_mov_ps(seen(at), exponential(_mm512_mul_ps(below, _mm512_set1_ps(kLn2))));
        _mm512_storeu_ps(scores + at, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    return {largest, _mm512_reduce_add_ps(sum)};
}

// The weighted sums of values first..last-1 (positions `from` + those), of kVectors times 16 elements.
template <int kHeads, int kVectors>
inline void mix(const HeadCache &values, std::size_t from, std::size_t first, std::size_t last, std::size_t element,
                const float (*weights)[kSegment], float *sums) {
    __m512 all[kHeads][kVectors];
    for (auto &head : all)
        for (__m512 &part : head) part = _mm512_setzero_ps();
    for (std::size_t key = first; key < last;) {
        const std::size_t stop = std::min(last, (from + key) / values.block * values.block + values.block - from);
        const std::uint16_t *its = values.at(from + key) + element;
        const std::uint16_t *ahead = values.at(stop < last ? from + stop : from + key) + element;
        for (; key < stop; ++key, its += values.head_size, ahead += values.head_size) {
            for (int part = 0; part < kVectors; part += 2)
                _mm_prefetch(reinterpret_cast<const char *>(ahead + part * kLanes), _MM_HINT_T0);
            for (int part = 0; part < kVectors; ++part) {
                const __m512 value = widened(its + static_cast<std::size_t>(part) * kLanes);
                for (int head = 0; head < kHeads; ++head)
                    all[head][part] = _mm512_fmadd_ps(_mm512_set1_ps(weights[head][key]), value, all[head][part]);
            }
        }
    }
    for (int head = 0; head < kHeads; ++head)
        for (int part = 0; part < kVectors; ++part)
            _mm512_storeu_ps(sums + static_cast<std::size_t>(head) * values.head_size + element +
                                 static_cast<std::size_t>(part) * kLanes,
                             all[head][part]);
}

template <int kHeads>
void attend_heads(const HeadCache &keys, const HeadCache &values, const float *q, std::size_t first, std::size_t last,
                  float *sums, float *largest, float *weights) {
    alignas(64) float scores[kHeads][kSegment];
    const std::size_t from = first / kSegment * kSegment;
    for (std::size_t at = first / kLanes * kLanes; at < last; at += kLanes)
        score<kHeads>(keys.at(at), keys.at(at + 32 < last ? at + 32 : at), std::min(kLanes, last - at), keys.head_size,
                      q, scores, at - from);
    for (int head = 0; head < kHeads; ++head)
        std::tie(largest[head], weights[head]) = weigh(scores[head], first - from, last - from);
    std::size_t element = 0;
    for (; element + 64 <= keys.head_size; element += 64)
        mix<kHeads, 4>(values, from, first - from, last - from, element, scores, sums);
    for (; element < keys.head_size; element += 32)
        mix<kHeads, 2>(values, from, first - from, last - from, element, scores, sums);
}

}  // namespace

void place_token(const AttentionForm &form, const PagedKeys &cache, const std::int32_t *row_blocks,
                 std::size_t position, float *q, const float *k, const float *v, const float *angles) {
    const __m512 scale = _mm512_set1_ps(form.scale * kLog2E);
    for (std::size_t head = 0; head < form.heads; ++head) {
        float *its = q + head * form.head_size;
        turn(its, angles, form.head_size,
             [&](std::size_t i, __m512 values) { _mm512_storeu_ps(its + i, _mm512_mul_ps(values, scale)); });
    }
    for (std::size_t head = 0; head < form.kv_heads; ++head) {
        std::uint16_t *key = HeadCache(form, cache.keys, row_blocks, head).at(position);
        turn(k + head * form.head_size, angles + form.head_size, form.head_size,
             [&](std::size_t i, __m512 values) { narrow(values, key + i); });
        std::uint16_t *value = HeadCache(form, cache.values, row_blocks, head).at(position);
        for (std::size_t i = 0; i < form.head_size; i += kLanes)
            narrow(_mm512_loadu_ps(v + head * form.head_size + i), value + i);
    }
}

void attend_segment(const AttentionForm &form, const HeadCache &keys, const HeadCache &values, const float *q,
                    std::size_t first, std::size_t last, float *partial) {
    const std::size_t group = form.heads / form.kv_heads;
    float *largest = partial + group * form.head_size, *weights = largest + group;
    for (std::size_t head = 0; head < group;) {
        const float *its = q + head * form.head_size;
        float *sums = partial + head * form.head_size;
        const std::size_t some = std::min<std::size_t>(group - head, 4);
        const auto attend_some = some == 1   ? attend_heads<1>
                                 : some == 2 ? attend_heads<2>
                                 : some == 3 ? attend_heads<3>
                                             : attend_heads<4>;
        attend_some(keys, values, its, first, last, sums, largest + head, weights + head);
        head += some;
    }
}

void join_segments(const AttentionForm &form, const float *partials, std::size_t count, float *y) {
    const std::size_t group = form.heads / form.kv_heads, size = partial_size(form);
    for (std::size_t head = 0; head < group; ++head) {
        const float *largest = partials + group * form.head_size + head, *weights = largest + group;
        float most = *largest, all = 0;
        for (std::size_t part = 0; part < count; ++part) most = std::max(most, largest[part * size]);
        for (std::size_t part = 0; part < count; ++part)
            all += weights[part * size] * std::exp2(largest[part * size] - most);
        for (std::size_t i = 0; i < form.head_size; i += kLanes) {
            __m512 sum = _mm512_setzero_ps();
            for (std::size_t part = 0; part < count; ++part)
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(partials + part * size + head * form.head_size + i),
                                      _mm512_set1_ps(std::exp2(largest[part * size] - most) / all), sum);
            _mm512_storeu_ps(y + head * form.head_size + i, sum);
        }
    }
}

}  // namespace alize::kernels
