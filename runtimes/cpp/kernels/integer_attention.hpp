// The operator that has the kernels compute an attention with its projections, for OpenVINO.
#pragma once

#include <cstdint>
#include <memory>
#include <openvino/op/op.hpp>
#include <vector>

#include "attention.hpp"
#include "linear.hpp"

namespace alize::kernels {

// Of x float32 [T,...,E] and angles float32 [T,...,2*D] (see `attend`): attend(x Wq^T, x Wk^T, x Wv^T) Wo^T, float32
// [T,...,N].
//
// matrices: those four, as IntegerLinear has them.   sizes: query heads, key/value heads, D, window, and which layer
// of the step's it is.   step_table: the address of what does not go through the graph, as its inputs would cost time
// again: int64 numbers that whoever runs the graph sets before each step, so that one step runs at a time. They are
//
//     tokens of a block, rows, and the addresses of past, begins and block_begins (see StepRows)
//     of each layer: the addresses of keys, values and blocks (see PagedKeys)
class IntegerAttention : public ov::op::Op {
public:
    OPENVINO_OP("IntegerAttention", "alize")

    static constexpr std::size_t kStepNumbers = 5, kLayerNumbers = 3;

    IntegerAttention() = default;
    IntegerAttention(const ov::Output<ov::Node> &x, const ov::Output<ov::Node> &angles,
                     std::vector<std::int64_t> matrices, std::vector<std::int64_t> sizes, float scale,
                     std::int64_t step, std::int64_t rounded_tokens);

    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override;
    bool visit_attributes(ov::AttributeVisitor &visitor) override;
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override;

private:
    std::vector<std::int64_t> matrices_, sizes_;
    float scale_ = 1;
    std::int64_t step_ = 0, rounded_tokens_ = 0;
};

}  // namespace alize::kernels
