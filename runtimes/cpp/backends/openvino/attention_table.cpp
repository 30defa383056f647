#include "integer_attention.hpp"

namespace alize::backends {
namespace {

constexpr int64_t kBlock = 32;                         // tokens
constexpr size_t kStepNumbers = 5, kLayerNumbers = 3;  // as IntegerAttention has them

template <typename T>
int64_t address_of(const T *data) {
    return reinterpret_cast<int64_t>(data);
}

}  // namespace

AttentionTable::AttentionTable(const alize_backend_model &model)
    : shape_{0, static_cast<size_t>(model.key_value_heads), kBlock, static_cast<size_t>(model.head_size)},
      numbers_(kStepNumbers + kLayerNumbers * static_cast<size_t>(model.layers)) {
    numbers_[0] = kBlock;
}

void AttentionTable::set_cache(const std::string &name, const ov::Tensor &cache) {
    const size_t dot = name.find('.'), layer = std::stoul(name.substr(dot + 1));
    const size_t place = name.compare(0, dot, "value_cache") == 0 ? 1 : 0;
    numbers_[kStepNumbers + kLayerNumbers * layer + place] = address_of(cache.data());
}

void AttentionTable::set_rows(const std::vector<int32_t> &past, const std::vector<int32_t> &begins,
                              const std::vector<int32_t> &block_begins) {
    numbers_[1] = static_cast<int64_t>(past.size());
    numbers_[2] = address_of(past.data());
    numbers_[3] = address_of(begins.data());
    numbers_[4] = address_of(block_begins.data());
}

void AttentionTable::set_blocks(size_t layer, const std::vector<int32_t> &blocks) {
    numbers_[kStepNumbers + kLayerNumbers * layer + 2] = address_of(blocks.data());
}

}  // namespace alize::backends
