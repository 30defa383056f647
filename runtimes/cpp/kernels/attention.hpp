// Causal attention over a paged cache of float16, with the rotary embedding before it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace alize::kernels {

// Query head h reads the keys of head h * kv_heads / heads. A window of 0 sees all; block: the tokens of a block.
struct AttentionForm {
    std::size_t heads, kv_heads, head_size, window, block;
    float scale;
};

// One layer's: float16 [n,K,block,D] each. blocks: the rows' tables, one behind another.
struct PagedKeys {
    std::uint16_t *keys, *values;
    const std::int32_t *blocks;
};

// The rows of a step: row i's new tokens are begins[i]..begins[i + 1] and behind past[i] cached ones; its blocks begin
// at block_begins[i]. A row may have none, and may share blocks with others.
struct StepRows {
    std::size_t count;
    const std::int32_t *past, *begins, *block_begins;
    std::size_t tokens() const { return static_cast<std::size_t>(begins[count]); }
};

constexpr std::size_t kFewTokens = 32;  // of a row: up to so many are attended to in float32, more in bfloat16

// q float32 [T,H,D], changed; k, v float32 [T,K,D]; angles float32 [T,4,D/2]: the query's cosines and sines, the
// key's. Writes keys and values into the cache before any is read; y float32 [T,H,D]. D is a multiple of 32.
//
// Of rows of few tokens a token gives the same bits alone as among others, whichever blocks hold its keys.
void attend(const AttentionForm &form, const PagedKeys &cache, const StepRows &rows, float *q, const float *k,
            const float *v, const float *angles, float *y);

}  // namespace alize::kernels
