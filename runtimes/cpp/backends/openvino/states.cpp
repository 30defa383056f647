#include "states.hpp"

#include <algorithm>
#include <cstring>

namespace alize::backends {
namespace {

size_t at(int64_t value) { return static_cast<size_t>(value); }

// Of a state's name, which the lowering made: past_key_values.{i}.keypresent.{i}.key
size_t layer_of(const std::string &name) {
    const size_t dot = name.find('.');
    if (dot == std::string::npos) throw std::runtime_error("state " + name + " is of no layer");
    return std::stoul(name.substr(dot + 1));
}

}  // namespace

void Cache::append(int64_t count, const int64_t *lengths) {
    bool padded = false;
    std::vector<int64_t> first(filled_.size());
    for (size_t b = 0; b < filled_.size(); b++) {
        filled_[b] += lengths[b];
        padded |= lengths[b] < count;
        first[b] = slots_ + lengths[b] - filled_[b];  // its padding is behind
    }
    slots_ += count;
    // Moves each row right over its padding and drops the slots that are padding in every row.
    if (padded) edit(*std::max_element(filled_.begin(), filled_.end()), first);
}

void Cache::drop_last(int64_t n) {
    std::vector<int64_t> first(filled_.size());
    for (size_t b = 0; b < filled_.size(); b++) first[b] = slots_ - filled_[b], filled_[b] -= n;
    edit(slots_ - n, first);
}

void Cache::keep_last(int64_t keep) {
    if (slots_ <= keep) return;
    std::vector<int64_t> first(filled_.size());
    for (size_t b = 0; b < filled_.size(); b++) {
        filled_[b] = std::min(filled_[b], keep);
        first[b] = slots_ - filled_[b];
    }
    edit(keep, first);
}

void Cache::clear() {
    std::fill(filled_.begin(), filled_.end(), 0);
    slots_ = 0;
}

void Cache::edit(int64_t slots, const std::vector<int64_t> &first) {
    for (ov::VariableState &state : states_) {
        const ov::Tensor old = state.get_state();
        const ov::Shape shape = old.get_shape();  // [B,K,slots,D]
        ov::Tensor fresh(old.get_element_type(), {shape[0], shape[1], at(slots), shape[3]});
        const size_t slot = shape[3] * old.get_element_type().size();
        const auto *from = static_cast<const char *>(old.data());
        auto *to = static_cast<char *>(fresh.data());
        for (size_t b = 0; b < shape[0]; b++) {
            const size_t filled = at(filled_[b]), blank = at(slots) - filled;
            for (size_t head = b * shape[1]; head < (b + 1) * shape[1]; head++) {
                char *row = to + head * at(slots) * slot;
                std::memset(row, 0, blank * slot);
                std::memcpy(row + blank * slot, from + (head * shape[2] + at(first[b])) * slot, filled * slot);
            }
        }
        state.set_state(fresh);
    }
    slots_ = slots;
}

Caches::Caches(const std::vector<ov::VariableState> &states, const std::vector<int64_t> &windows, size_t batch)
    : windowed_(batch), full_(batch) {
    for (const ov::VariableState &state : states)
        (windows.at(layer_of(state.get_name())) > 0 ? windowed_ : full_).add(state);
}

void Caches::append(int64_t count, const int64_t *lengths) {
    for (Cache *cache : {&windowed_, &full_}) {
        if (!cache->empty()) cache->append(count, lengths);
    }
}

void Caches::drop_last(int64_t n) {
    for (Cache *cache : {&windowed_, &full_}) {
        if (!cache->empty()) cache->drop_last(n);
    }
}

int64_t Caches::cached() const {
    const auto &filled = (windowed_.empty() ? full_ : windowed_).filled();
    return *std::max_element(filled.begin(), filled.end());
}

void Caches::clear() {
    windowed_.clear();
    full_.clear();
}

}  // namespace alize::backends
