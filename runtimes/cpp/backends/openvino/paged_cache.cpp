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

ov::Tensor without_blocks(const ov::CompiledModel &compiled, const std::string &name) {
    const auto input = compiled.input(name);
    ov::Shape shape = {0};
    const ov::PartialShape wanted = input.get_partial_shape();
    for (size_t axis = 1; axis < wanted.size(); axis++)
        shape.push_back(static_cast<size_t>(wanted[static_cast<std::ptrdiff_t>(axis)].get_length()));
    return {input.get_element_type(), shape};
}

std::string key_name(size_t layer) { return "key_cache." + std::to_string(layer); }
std::string value_name(size_t layer) { return "value_cache." + std::to_string(layer); }

int64_t tokens_of_a_block(const ov::CompiledModel &compiled, size_t layer) {
    return compiled.input(value_name(layer)).get_partial_shape()[2].get_length();
}

}  // namespace

PagedCache::PagedCache(const ov::CompiledModel &compiled, const ov::InferRequest &request, std::vector<size_t> layers,
                       bool hidden)
    : Pool(tokens_of_a_block(compiled, layers.at(0))), layers_(std::move(layers)), hidden_(hidden), request_(request) {
    for (const size_t layer : layers_) {
        for (const std::string &name : {key_name(layer), value_name(layer)})
            values_.push_back({name, without_blocks(compiled, name)});
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
        request_.set_tensor(values.name, fresh);
        values.tensor = fresh;
    }
}

}  // namespace alize::backends
