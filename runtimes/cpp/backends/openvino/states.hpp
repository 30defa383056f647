// The cache of an infer request: states [B,K,slots,D], key and value of each layer, rows aligned on the right.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include <openvino/openvino.hpp>

namespace alize::backends {

// The states of some layers: `slots` cached positions, of which the last `filled[b]` are row b's tokens.
class Cache {
public:
    explicit Cache(size_t batch) : filled_(batch, 0) {}
    void add(const ov::VariableState &state) { states_.push_back(state); }

    // The engine has appended `count` positions: lengths[b] of row b, and padding behind them.
    void append(int64_t count, const int64_t *lengths);
    void drop_last(int64_t n);
    void keep_last(int64_t keep);
    void clear();

    int64_t slots() const { return slots_; }
    const std::vector<int64_t> &filled() const { return filled_; }
    bool empty() const { return states_.empty(); }

private:
    // Every state gets `slots` slots: those of row b that begin at first[b], the last filled[b] of them; 0 before.
    void edit(int64_t slots, const std::vector<int64_t> &first);

    std::vector<ov::VariableState> states_;
    std::vector<int64_t> filled_;
    int64_t slots_ = 0;
};

// All layers: those with a window, which forget, and those that see everything, which don't. `attention_mask` is as
// wide as the longest cache; where there are both kinds the graph takes its last columns for the layers with a window.
class Caches {
public:
    Caches(const std::vector<ov::VariableState> &states, const std::vector<int64_t> &windows, size_t batch);

    void append(int64_t count, const int64_t *lengths);
    void drop_last(int64_t n);
    void evict(int64_t keep) { windowed_.keep_last(keep); }
    int64_t cached() const;
    void clear();
    const Cache &longest() const { return full_.empty() ? windowed_ : full_; }

private:
    Cache windowed_, full_;
};

}  // namespace alize::backends
