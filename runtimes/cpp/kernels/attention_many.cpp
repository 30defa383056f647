#include <immintrin.h>

#include <algorithm>

#include "attention_parts.hpp"
#include "tiles.hpp"

namespace alize::kernels {

namespace {

constexpr std::size_t kPanel = 32;  // positions
constexpr std::size_t kPanels = 4;  // whose scores are there at once
constexpr float kHidden = -1e30F;   // finite: a difference of two is none of infinities

// 2^x for x <= 0, within 8e-5 of it: weights become bfloat16.
inline __m512 power(__m512 x) {
    const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 sum = _mm512_set1_ps(0.07802443F);
    for (const float factor : {0.22606729F, 0.69583349F, 0.99992522F})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(sum, x);
}

// 32 tokens, as two columns of tiles: of each what is known so far, lane by lane.
struct Columns {
    __m512i position[2];  // int32
    __m512 most[2], weights[2];
};

// Scores of keys that a token does not see become kHidden. sums: as `multiply_tiles` leaves them, of keys from
// `position` on.
inline void hide(const AttentionForm &form, const Columns &columns, std::size_t position, float (*sums)[256]) {
    const __m512i window = _mm512_set1_epi32(static_cast<std::int32_t>(form.window));
    for (std::size_t tile = 0; tile < 4; ++tile)
        for (std::size_t row = 0; row < 16; ++row) {
            const __m512i key = _mm512_set1_epi32(static_cast<std::int32_t>(position + tile % 2 * 16 + row));
            const __m512i back = _mm512_sub_epi32(columns.position[tile / 2], key);
            __mmask16 seen = _mm512_cmpge_epi32_mask(back, _mm512_setzero_si512());
            if (form.window > 0) seen &= _mm512_cmplt_epi32_mask(back, window);
            float *scores = sums[tile] + row * 16;
            _mm512_store_ps(scores, _mm512_mask_mov_ps(_mm512_set1_ps(kHidden), seen, _mm512_load_ps(scores)));
        }
}

// Scores of `panels` panels -> weights as tiles of tokens, one a panel. Returns what the sums before are worth now.
inline __m512 weigh(Columns &columns, std::size_t half, const float (*sums)[4][256], std::size_t panels,
                    std::uint16_t *tiles) {
    const __m512 before = columns.most[half];
    __m512 most[4] = {before, before, before, before};
    for (std::size_t panel = 0; panel < panels; ++panel)
        for (std::size_t tile = 2 * half; tile < 2 * half + 2; ++tile)
            for (std::size_t row = 0; row < 16; ++row)
                most[row % 4] = _mm512_max_ps(most[row % 4], _mm512_load_ps(sums[panel][tile] + row * 16));
    const __m512 now = _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
    __m512 all[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::size_t panel = 0; panel < panels; ++panel)
        for (std::size_t pair = 0; pair < 16; ++pair) {
            const float *scores = sums[panel][2 * half + pair / 8] + pair % 8 * 32;
            const __m512 one = power(_mm512_sub_ps(_mm512_load_ps(scores), now));
            const __m512 other = power(_mm512_sub_ps(_mm512_load_ps(scores + 16), now));
            all[0] = _mm512_add_ps(all[0], one);
            all[1] = _mm512_add_ps(all[1], other);
            _mm512_store_si512(tiles + panel * 512 + pair * 32, interleaved(one, other));
        }
    const __m512 worth = power(_mm512_sub_ps(before, now));
    columns.most[half] = now;
    columns.weights[half] = _mm512_fmadd_ps(columns.weights[half], worth, _mm512_add_ps(all[0], all[1]));
    return worth;
}

inline void add(const float (*sums)[256], const __m512 *worth, float (*to)[256]) {
    for (std::size_t tile = 0; tile < 4; ++tile)
        for (std::size_t i = 0; i < 256; i += 16)
            _mm512_store_ps(to[tile] + i, _mm512_fmadd_ps(_mm512_load_ps(to[tile] + i), worth[tile / 2],
                                                          _mm512_load_ps(sums[tile] + i)));
}

inline __m512 widened(const std::uint16_t *halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves)));
}

}  // namespace

void HalvedKeys::reserve(std::size_t first, std::size_t last, std::size_t head_size) {
    first_ = first / kPanel * kPanel;
    last_ = last;
    panels_ = (last - first_ + kPanel - 1) / kPanel;
    steps_ = head_size / 32;
    keys_.reserve(panels_ * steps_ * kStep);
    values_.reserve(panels_ * steps_ * kStep);
}

void HalvedKeys::set(const HeadCache &keys, const HeadCache &values, std::size_t first_panel, std::size_t last_panel) {
    for (std::size_t panel = first_panel; panel < last_panel; ++panel) {
        const std::size_t position = first_ + panel * kPanel;
        const std::size_t some = std::min(kPanel, last_ - position);
        const auto part = [&](const HeadCache &cache, std::size_t i, std::size_t element) {
            return i < some ? widened(cache.at(position + i) + element) : _mm512_setzero_ps();
        };
        for (std::size_t step = 0; step < steps_; ++step) {
            std::uint16_t *to = keys_.get() + (panel * steps_ + step) * kStep;
            for (std::size_t i = 0; i < kPanel; ++i)
                _mm512_store_si512(to + i * 32, pairs(part(keys, i, step * 32), part(keys, i, step * 32 + 16)));
            to = values_.get() + (step * panels_ + panel) * kStep;
            for (std::size_t half = 0; half < 2; ++half) {
                alignas(64) std::uint32_t rows[16][16];  // pair of positions, element
                for (std::size_t pair = 0; pair < 16; ++pair)
                    _mm512_store_si512(rows[pair], interleaved(part(values, 2 * pair, step * 32 + half * 16),
                                                               part(values, 2 * pair + 1, step * 32 + half * 16)));
                transpose_pairs(rows, to + half * 512);
            }
        }
    }
}

void attend_tile(const AttentionForm &form, const HalvedKeys &cache, const Halved &queries, std::size_t head,
                 std::size_t token, std::size_t count, std::size_t position, float *y) {
    thread_local Aligned<float> scratch;
    const std::size_t steps = form.head_size / 32, last = position + count - 1;
    auto *sums = reinterpret_cast<float(*)[256]>(scratch.reserve(steps * 1024));
    std::fill_n(scratch.get(), steps * 1024, 0.0F);
    alignas(64) float scores[kPanels][4][256], product[4][256];
    alignas(64) std::uint16_t weights[2][kPanels * 512];
    Columns columns;
    for (std::size_t half = 0; half < 2; ++half) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        columns.position[half] =
            _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<std::int32_t>(position + half * 16)));
        columns.most[half] = _mm512_set1_ps(kHidden);
        columns.weights[half] = _mm512_setzero_ps();
    }
    configure();
    const std::size_t stop = (last - cache.first()) / kPanel + 1;
    for (std::size_t panel = (first_seen(form, position) - cache.first()) / kPanel; panel < stop;) {
        const std::size_t some = std::min(kPanels, stop - panel);
        for (std::size_t i = 0; i < some; ++i) {
            multiply_tiles(cache.keys(panel + i), queries.tile(token / 16, head * steps),
                           queries.tile(token / 16 + 1, head * steps), steps, scores[i]);
            const std::size_t key = cache.first() + (panel + i) * kPanel;
            if (key + kPanel - 1 > position || key < first_seen(form, last)) hide(form, columns, key, scores[i]);
        }
        __m512 worth[2];
        for (std::size_t half = 0; half < 2; ++half) worth[half] = weigh(columns, half, scores, some, weights[half]);
        for (std::size_t step = 0; step < steps; ++step) {
            multiply_tiles(cache.values(step, panel), weights[0], weights[1], some, product);
            add(product, worth, sums + step * 4);
        }
        panel += some;
    }
    _tile_release();
    for (std::size_t half = 0; half < 2 && half * 16 < count; ++half) {
        const __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0F), columns.weights[half]);
        alignas(64) static constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
        for (std::size_t tile = 0; tile < 2 * steps; ++tile) {
            float *its = sums[tile / 2 * 4 + half * 2 + tile % 2];
            for (std::size_t i = 0; i < 256; i += 16)
                _mm512_store_ps(its + i, _mm512_mul_ps(_mm512_load_ps(its + i), share));
            transpose(its, kOnes, y + half * 16 * form.heads * form.head_size + tile * 16, form.heads * form.head_size,
                      std::min<std::size_t>(16, count - half * 16), 16);
        }
    }
}

}  // namespace alize::kernels
