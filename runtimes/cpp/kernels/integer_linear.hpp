// The operator that has the kernels compute products of a graph, for OpenVINO.
#pragma once

#include <cstdint>
#include <memory>
#include <openvino/op/op.hpp>
#include <string>
#include <vector>

#include "linear.hpp"

namespace alize::kernels {

// What six numbers a matrix say: the addresses of its values and scales, rows, columns, group, bits.
std::vector<Matrix> matrices_of(const std::vector<std::int64_t> &numbers);

// How so many tokens are multiplied here, where `rounded_tokens` may be rounded.
Arithmetic choose(std::size_t tokens, std::int64_t rounded_tokens);

// Of one input x float32 [...,K]; the matrices are of signed integers, with the same bits:
//
//     apart: x W0^T, x W1^T, ..., an output float32 [...,N] each, of the same K and group
//
//     gated: silu(x W0^T) * (x W1^T), of two matrices of the same size
//
//     mlp: (silu(x W0^T) * (x W1^T)) W2^T, of three
//
// A matrix is no input but an address, six numbers in `matrices` (values, scales, rows, columns, group, bits): the
// engine infers a node's shapes anew at every run, which takes longer the more inputs there are, and longer than a
// small product itself. So a graph with it lives in one process, and whoever makes it keeps the memory.
class IntegerLinear : public ov::op::Op {
public:
    OPENVINO_OP("IntegerLinear", "alize")

    IntegerLinear() = default;
    IntegerLinear(const ov::Output<ov::Node> &x, std::string form, std::vector<std::int64_t> matrices,
                  std::int64_t rounded_tokens);

    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override;
    bool visit_attributes(ov::AttributeVisitor &visitor) override;
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override;

private:
    std::vector<Matrix> matrices() const;

    std::string form_ = "apart";
    std::vector<std::int64_t> matrices_;
    std::int64_t rounded_tokens_ = 0;  // up to so many tokens are multiplied with activations in 8 bits
};

}  // namespace alize::kernels
