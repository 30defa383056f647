// The stateful graph, as it lies in the artifact: one infer request a session, which holds the session's cache.
#pragma once

#include <vector>

#include <openvino/openvino.hpp>

#include "runner.hpp"
#include "states.hpp"

namespace alize::backends {

// Adds the input `num_logits_to_keep` int64 [1]: the head computes the last so many positions only (0 = all).
void slice_before_head(ov::Model &model);

class StatefulRunner final : public OpenVinoRunner {
public:
    StatefulRunner(ov::InferRequest request, const std::vector<int64_t> &windows, int64_t vocab_size, int64_t experts,
                   int64_t batch);

    void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
              float *logits) override;
    void drop_last(int64_t n) override { caches_.drop_last(n); }
    void evict(int64_t keep) override { caches_.evict(keep); }
    int64_t cached() const override { return caches_.cached(); }
    void reset() override;
    void cancel() override { request_.cancel(); }

private:
    ov::Tensor infer(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t count);

    ov::InferRequest request_;
    const size_t batch_;
    const size_t vocab_size_;
    Caches caches_;
    std::vector<int64_t> positions_, mask_;
    std::vector<int32_t> rows_;
    std::vector<float> no_bias_;  // [E], see warm_up.hpp
    int64_t count_ = 0;
};

}  // namespace alize::backends
