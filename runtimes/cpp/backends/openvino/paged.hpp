// OpenVINO on a CPU with a paged cache: every session of an engine keeps its keys and values in blocks of one pool, and
// they take turns at one infer request; see runtimes/openvino_paged.py.
#pragma once

#include <atomic>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

#include "alize/backend.h"
#include "integer_attention.hpp"
#include "paged_cache.hpp"
#include "runner.hpp"

namespace alize::backends {

class PagedEngine;

// The tables of B rows, one in each of the engine's caches. Any thread, one at a time, except `cancel`.
class PagedRunner final : public OpenVinoRunner {
public:
    PagedRunner(PagedEngine &engine, int64_t batch);
    ~PagedRunner() override;  // the last one gives the memory back

    void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
              float *logits) override;
    void drop_last(int64_t n) override;
    void evict(int64_t keep) override;  // whole blocks are forgotten: a few more positions than asked for are kept
    int64_t cached() const override;
    void reset() override;
    void cancel() override;

private:
    friend class PagedEngine;
    void clear();

    PagedEngine &engine_;
    std::vector<std::vector<Table>> rows_;  // [B], of each the tables by the engine's caches
    std::atomic<bool> cancelled_ = false;
};

class PagedEngine {
public:
    // `compiled`: of a graph that `page` has changed.   `attention`: of `use_attention`, may be null.
    PagedEngine(ov::CompiledModel &compiled, const alize_backend_model &model, AttentionTable *attention);
    PagedEngine(const PagedEngine &) = delete;
    PagedEngine &operator=(const PagedEngine &) = delete;

    // Runs a token, so that the engine packs its weights; every expert once, see warm_up.hpp.
    void warm_up(const alize_backend_model &model);
    // Those of the layers without a window first, where there are both kinds.
    const std::deque<PagedCache> &caches() const { return caches_; }

private:
    friend class PagedRunner;
    class Turn;

    // What one row is given: the first token's position, and where the logits of its last `wanted` tokens go.
    struct RowStep {
        std::vector<Table> *tables;
        const int64_t *tokens;
        int64_t count, position, wanted;
        float *logits;
    };
    void run(const std::vector<RowStep> &steps);
    void make_room(const std::vector<RowStep> &steps);
    void gather(const std::vector<RowStep> &steps);
    void add_row(const std::vector<Table> &tables, int64_t past, int64_t count);
    void add_idle_rows();
    void feed();
    void feed_attention();
    void answer(const std::vector<RowStep> &steps);

    ov::InferRequest request_;
    AttentionTable *const attention_;  // null where attention is the engine's
    const size_t vocab_size_;
    const bool windowed_;
    const size_t rows_at_least_;  // of one token each, see add_idle_rows
    std::deque<PagedCache> caches_;
    std::vector<std::string>
        index_names_;                   // of the inputs that take a cache's blocks, by layer where there are two caches
    std::vector<size_t> index_caches_;  // of each, which cache's
    std::vector<float> expert_bias_;    // [E], see warm_up.hpp

    std::mutex turn_;  // held by the runner that is inside
    std::mutex inside_mutex_;
    const PagedRunner *inside_ = nullptr;  // under inside_mutex_: whom a cancellation of the request hits

    // What a step feeds.
    std::vector<int64_t> tokens_, positions_, logits_index_;
    std::vector<int32_t> past_, begins_, block_begins_;
    std::vector<std::vector<int32_t>> blocks_;  // by cache
    int32_t longest_ = 0;
};

}  // namespace alize::backends
