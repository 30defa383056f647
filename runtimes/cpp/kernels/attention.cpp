#include "attention.hpp"

#include <algorithm>
#include <vector>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "attention_parts.hpp"
#include "linear.hpp"

namespace alize::kernels {

namespace {

constexpr std::size_t kLittle = 1U << 14U;  // multiplications that are not worth waking a thread for
constexpr std::size_t kMuch = kLittle + 1;

// body(i) for i < count, whoever is free takes the next; in place where it is little.
template <typename Body>
void each(std::size_t count, std::size_t work, const Body &body) {
    if (count <= 1 || work <= kLittle || tbb::this_task_arena::max_concurrency() == 1) {
        for (std::size_t i = 0; i < count; ++i) body(i);
        return;
    }
    tbb::this_task_arena::isolate(
        [&] {  // who waits here takes no work of another request, which would use the same scratch
            tbb::parallel_for(
                tbb::blocked_range<std::size_t>(0, count),
                [&](const tbb::blocked_range<std::size_t> &some) {
                    for (std::size_t i = some.begin(); i != some.end(); ++i) body(i);
                },
                tbb::simple_partitioner{});
        });
}

// The keys of one segment that one token sees, for the query heads that share them.
struct Part {
    std::size_t row, token, head, first, last;
};

struct Scratch {
    std::vector<Part> parts;
    std::vector<std::size_t> begins;  // of each token and head, its parts
    std::vector<float> partials;
    HalvedKeys keys;
    Halved queries;
};

// A thread that was given a step; those that help it reach this by reference.
Scratch &scratch() {
    thread_local Scratch mine;
    return mine;
}

struct Step {
    const AttentionForm &form;
    const PagedKeys &cache;
    const StepRows &rows;
    const float *q;
    float *y;

    std::size_t begin(std::size_t row) const { return static_cast<std::size_t>(rows.begins[row]); }
    std::size_t count(std::size_t row) const { return begin(row + 1) - begin(row); }
    std::size_t past(std::size_t row) const { return static_cast<std::size_t>(rows.past[row]); }
    const std::int32_t *blocks(std::size_t row) const { return cache.blocks + rows.block_begins[row]; }
    HeadCache keys(std::size_t row, std::size_t head) const { return {form, cache.keys, blocks(row), head}; }
    HeadCache values(std::size_t row, std::size_t head) const { return {form, cache.values, blocks(row), head}; }
    std::size_t group() const { return form.heads / form.kv_heads; }
    std::size_t place(std::size_t token, std::size_t head) const {  // in q and y, of the first of `group` heads
        return (token * form.heads + head * group()) * form.head_size;
    }
};

void add_parts(const Step &step, std::size_t row, Scratch &mine) {
    for (std::size_t i = 0; i < step.count(row); ++i)
        for (std::size_t head = 0; head < step.form.kv_heads; ++head) {
            const std::size_t stop = step.past(row) + i + 1;
            mine.begins.push_back(mine.parts.size());
            for (std::size_t first = first_seen(step.form, stop - 1); first < stop;) {
                const std::size_t last = std::min(stop, first / kSegment * kSegment + kSegment);
                mine.parts.push_back({row, step.begin(row) + i, head, first, last});
                first = last;
            }
        }
}

void attend_parts(const Step &step, Scratch &mine) {
    if (mine.parts.empty()) return;
    mine.begins.push_back(mine.parts.size());
    const std::size_t size = partial_size(step.form);
    mine.partials.resize(std::max(mine.partials.size(), mine.parts.size() * size));
    std::size_t work = 0;
    for (const Part &part : mine.parts) work += (part.last - part.first) * step.group() * step.form.head_size;
    each(mine.parts.size(), work, [&](std::size_t i) {
        const Part &part = mine.parts[i];
        attend_segment(step.form, step.keys(part.row, part.head), step.values(part.row, part.head),
                       step.q + step.place(part.token, part.head), part.first, part.last,
                       mine.partials.data() + i * size);
    });
    each(mine.begins.size() - 1, mine.parts.size() * size, [&](std::size_t i) {
        const Part &part = mine.parts[mine.begins[i]];
        join_segments(step.form, mine.partials.data() + mine.begins[i] * size, mine.begins[i + 1] - mine.begins[i],
                      step.y + step.place(part.token, part.head));
    });
}

void attend_tiles(const Step &step, std::size_t row, Scratch &mine) {
    const AttentionForm &form = step.form;
    const std::size_t tokens = step.count(row), past = step.past(row), width = form.heads * form.head_size;
    const std::size_t tiles = (tokens + 31) / 32, group = step.group();
    const float *q = step.q + step.begin(row) * width;
    each(mine.queries.reserve(tokens, width), kMuch,
         [&](std::size_t panel) { mine.queries.set(q, tokens, width, panel, panel + 1); });
    for (std::size_t head = 0; head < form.kv_heads; ++head) {  // one by one, so that a long row's keys are few
        mine.keys.reserve(first_seen(form, past), past + tokens, form.head_size);
        const HeadCache keys = step.keys(row, head), values = step.values(row, head);
        each(mine.keys.panels(), kMuch, [&](std::size_t panel) { mine.keys.set(keys, values, panel, panel + 1); });
        each(tiles * group, kMuch, [&](std::size_t i) {
            const std::size_t token = (tiles - 1 - i / group) * 32, its_head = head * group + i % group;
            attend_tile(form, mine.keys, mine.queries, its_head, token, std::min<std::size_t>(32, tokens - token),
                        past + token, step.y + (step.begin(row) + token) * width + its_head * form.head_size);
        });
    }
}

}  // namespace

void attend(const AttentionForm &form, const PagedKeys &cache, const StepRows &rows, float *q, const float *k,
            const float *v, const float *angles, float *y) {
    const Step step{form, cache, rows, q, y};
    const std::size_t width = form.heads * form.head_size, key_width = form.kv_heads * form.head_size;
    for (std::size_t row = 0; row < rows.count; ++row) {
        const std::size_t parts = (step.count(row) + 15) / 16;
        each(parts, step.count(row) * width, [&](std::size_t part) {
            for (std::size_t i = part * 16; i < std::min(part * 16 + 16, step.count(row)); ++i) {
                const std::size_t token = step.begin(row) + i;
                place_token(form, cache, step.blocks(row), step.past(row) + i, q + token * width, k + token * key_width,
                            v + token * key_width, angles + token * 2 * form.head_size);
            }
        });
    }
    Scratch &mine = scratch();
    mine.parts.clear(), mine.begins.clear();
    for (std::size_t row = 0; row < rows.count; ++row)
        if (step.count(row) <= kFewTokens || !can(Arithmetic::halved)) add_parts(step, row, mine);
    attend_parts(step, mine);
    for (std::size_t row = 0; row < rows.count; ++row)
        if (step.count(row) > kFewTokens && can(Arithmetic::halved)) attend_tiles(step, row, mine);
}

}  // namespace alize::kernels
