// The operator that reads rows of a table of integers where they lie, for OpenVINO: an embedding.
#pragma once

#include <cstdint>
#include <memory>
#include <openvino/op/op.hpp>
#include <vector>

#include "linear.hpp"

namespace alize::kernels {

// Of ids int32 or int64 [...], each in 0 .. rows-1: float32 [...,columns], the rows times their scales. `table` is one
// matrix of 8 bits with a scale a row, as the six numbers that IntegerLinear has for each of its matrices.
class IntegerRows : public ov::op::Op {
public:
    OPENVINO_OP("IntegerRows", "alize")

    IntegerRows() = default;
    IntegerRows(const ov::Output<ov::Node> &ids, std::vector<std::int64_t> table);

    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override;
    bool visit_attributes(ov::AttributeVisitor &visitor) override;
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override;

private:
    std::vector<std::int64_t> table_;
};

}  // namespace alize::kernels
