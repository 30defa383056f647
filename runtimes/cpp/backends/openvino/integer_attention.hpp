// Has alize's own kernels compute whole attentions of a paged graph; see runtimes/openvino_integer_attention.py and
// runtimes/cpp/kernels/integer_attention.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <openvino/openvino.hpp>

#include "alize/backend.h"
#include "kernels.hpp"

namespace alize::backends {

// What the nodes of one graph read besides their inputs. `kept` of it is needed as long as what is compiled of the
// graph.
class AttentionTable {
public:
    explicit AttentionTable(const alize_backend_model &model);

    int64_t address() const { return reinterpret_cast<int64_t>(numbers_.data()); }
    // A cache without blocks.
    ov::Tensor no_blocks() const { return {ov::element::f16, shape_}; }
    // `key_cache.{layer}`, `value_cache.{layer}`
    void set_cache(const std::string &name, const ov::Tensor &cache);
    void set_rows(const std::vector<int32_t> &past, const std::vector<int32_t> &begins,
                  const std::vector<int32_t> &block_begins);
    void set_blocks(size_t layer, const std::vector<int32_t> &blocks);

    Kept kept;

private:
    const ov::Shape shape_;
    std::vector<int64_t> numbers_;
};

// Replaces, in place, the attentions of a paged graph, all or none: null where the kernels do not pay or do not know
// them. Call it before `use_kernels`.
std::unique_ptr<AttentionTable> use_attention(ov::Model &graph, const alize_backend_model &model,
                                              std::string_view processor);

}  // namespace alize::backends
