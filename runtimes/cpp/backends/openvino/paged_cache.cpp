#include "paged_cache.hpp"

#include <algorithm>
#include <cstring>

namespace alize::backends {
namespace {

// Of a tensor whose first dimension is blocks.
size_t block_bytes(const ov::Tensor &tensor) {
    size_t bits = tensor.get_element_type().bitwidth();
    const ov::Shape shape = tensor.get_shape();
    for (size_t axis = 1; axis < shape.size(); axis++) bits *= shape[axis];
    return bits / 8;
}

std::string key_name(size_t layer) { return "key_cache." + std::to_string(layer); }
std::string value_name(size_t layer) { return "value_cache." + std::to_string(layer); }

int64_t tokens_of_a_block(const ov::Tensor &values) { return static_cast<int64_t>(values.get_shape().at(2)); }

}  // namespace

PagedCache::PagedCache(const Empty &empty, Give give, std::vector<size_t> layers, bool hidden)
    : Pool(tokens_of_a_block(empty(value_name(layers.at(0))))),
      layers_(std::move(layers)),
      hidden_(hidden),
      give_(std::move(give)) {
    for (const size_t layer : layers_) {
        for (const std::string &name : {key_name(layer), value_name(layer)}) values_.push_back({name, empty(name)});
    }
    shrink(0);
    if (!hidden_) return;
    reserve(1);
    take();
    for (Values &values : values_) std::memset(values.tensor.data(), 0, block_bytes(values.tensor));
}

void PagedCache::shrink_unused() {
    if (used() == hidden_) shrink(hidden_);
}

void PagedCache::add_indices(const Table &row, int64_t count, std::vector<int32_t> &indices) const {
    const int64_t forgotten = hidden_ ? std::min(row.first() / size, count) : 0;
    indices.insert(indices.end(), static_cast<size_t>(forgotten), 0);
    indices.insert(indices.end(), row.blocks().begin(), row.blocks().begin() + (count - forgotten));
}

void PagedCache::grow(int64_t blocks) {
    for (Values &values : values_) {
        ov::Shape shape = values.tensor.get_shape();
        const size_t kept = std::min(shape[0], static_cast<size_t>(blocks)) * block_bytes(values.tensor);
        shape[0] = static_cast<size_t>(blocks);
        ov::Tensor fresh(values.tensor.get_element_type(), shape);
        if (kept > 0) std::memcpy(fresh.data(), values.tensor.data(), kept);
        give_(values.name, fresh);
        values.tensor = fresh;
    }
}

}  // namespace alize::backends
