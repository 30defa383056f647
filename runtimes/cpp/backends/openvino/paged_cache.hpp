// The keys and values of some layers in blocks: tensors [blocks,K,...] as the compiled graph wants them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

#include "block_tables.hpp"

namespace alize::backends {

class PagedCache final : public Pool {
public:
    // A tensor by its name, `key_cache.{layer}` or `value_cache.{layer}`.
    using Give = std::function<void(const std::string &, const ov::Tensor &)>;
    using Empty = std::function<ov::Tensor(const std::string &)>;

    // `empty`: one without blocks.   `give`: takes one when it has grown.   `hidden`: block 0 is for what a window
    // hides, and holds zeros.
    PagedCache(const Empty &empty, Give give, std::vector<size_t> layers, bool hidden);

    // Gives the memory back where no table has a block.
    void shrink_unused();
    // Adds the first `count` blocks of one row; what was forgotten is named where it is hidden.
    void add_indices(const Table &row, int64_t count, std::vector<int32_t> &indices) const;

    const std::vector<size_t> &layers() const { return layers_; }

private:
    struct Values {
        std::string name;
        ov::Tensor tensor;
    };
    void grow(int64_t blocks) override;

    const std::vector<size_t> layers_;
    const bool hidden_;
    const Give give_;
    std::vector<Values> values_;
};

}  // namespace alize::backends
