// What one thread does of `attend`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention.hpp"
#include "avx512.hpp"

namespace alize::kernels {

constexpr std::size_t kSegment = 128;  // keys that are summed by themselves

// The keys of one row and head, or the values.
struct HeadCache {
    std::uint16_t *data;  // of the first block
    const std::int32_t *blocks;
    std::size_t stride, block, head_size;  // stride: of a block, all heads

    HeadCache(const AttentionForm &form, std::uint16_t *all, const std::int32_t *row_blocks, std::size_t head)
        : data(all + head * form.block * form.head_size),
          blocks(row_blocks),
          stride(form.kv_heads * form.block * form.head_size),
          block(form.block),
          head_size(form.head_size) {}
    std::uint16_t *at(std::size_t position) const {
        return data + static_cast<std::size_t>(blocks[position / block]) * stride + position % block * head_size;
    }
};

// The first position that a token at `position` sees.
inline std::size_t first_seen(const AttentionForm &form, std::size_t position) {
    return form.window > 0 && position >= form.window ? position - form.window + 1 : 0;
}

// Turns a token's query, which is scaled besides so that scores are logarithms to the base of 2, and puts its key and
// value into the cache.
void place_token(const AttentionForm &form, const PagedKeys &cache, const std::int32_t *row_blocks,
                 std::size_t position, float *q, const float *k, const float *v, const float *angles);

// What is known of `heads` query heads after some keys: sums float32 [heads,D] of values times 2^(score - largest),
// `largest` [heads], and the sums of those weights [heads].
inline std::size_t partial_size(const AttentionForm &form) { return form.heads / form.kv_heads * (form.head_size + 2); }

// Of the query heads q [H/K,D] that share these keys, and the keys first..last-1, all of one segment.
void attend_segment(const AttentionForm &form, const HeadCache &keys, const HeadCache &values, const float *q,
                    std::size_t first, std::size_t last, float *partial);

// Partials of a token, in order -> y [H/K,D].
void join_segments(const AttentionForm &form, const float *partials, std::size_t count, float *y);

// Keys and values of one head as bfloat16 in tiles, from a position that is a multiple of 32.
class HalvedKeys {
public:
    void reserve(std::size_t first, std::size_t last, std::size_t head_size);  // positions first..last-1
    std::size_t panels() const { return panels_; }                             // of 32 positions
    void set(const HeadCache &keys, const HeadCache &values, std::size_t first_panel, std::size_t last_panel);
    std::size_t first() const { return first_; }
    const std::uint16_t *keys(std::size_t panel) const { return keys_.get() + panel * steps_ * 1024; }
    const std::uint16_t *values(std::size_t step, std::size_t panel) const {  // 32 of D, from a panel of positions on
        return values_.get() + (step * panels_ + panel) * 1024;
    }

private:
    Aligned<std::uint16_t> keys_, values_;
    std::size_t first_ = 0, last_ = 0, panels_ = 0, steps_ = 0;
};

// Up to 32 tokens of one query head; the first is at `position`. queries: of the whole row, `token` the first's place
// among them; y: of the first token and this head, others a row of all heads apart.
void attend_tile(const AttentionForm &form, const HalvedKeys &cache, const Halved &queries, std::size_t head,
                 std::size_t token, std::size_t count, std::size_t position, float *y);

}  // namespace alize::kernels
