#include "integer_attention.hpp"

#include <algorithm>
#include <utility>

#include "integer_linear.hpp"

namespace alize::kernels {

namespace {

std::size_t size(std::int64_t number) { return static_cast<std::size_t>(number); }

// Products of one input, those of the same form together.
void multiply_each(Arithmetic arithmetic, const float *x, std::size_t tokens, std::vector<Output> outputs) {
    while (!outputs.empty()) {
        const Matrix &one = outputs.front().matrix;
        const auto alike = [&, bits = one.bits, group = one.group](const Output &output) {
            return output.matrix.bits == bits && output.matrix.group == group;
        };
        const auto others = std::stable_partition(outputs.begin(), outputs.end(), alike);
        multiply(arithmetic, x, tokens, {outputs.begin(), others});
        outputs.erase(outputs.begin(), others);
    }
}

float *reserve(std::vector<float> &values, std::size_t count) {
    values.resize(std::max(values.size(), count));
    return values.data();
}

}  // namespace

IntegerAttention::IntegerAttention(const ov::Output<ov::Node> &x, const ov::Output<ov::Node> &angles,
                                   std::vector<std::int64_t> matrices, std::vector<std::int64_t> sizes, float scale,
                                   std::int64_t step, std::int64_t rounded_tokens)
    : Op({x, angles}),
      matrices_(std::move(matrices)),
      sizes_(std::move(sizes)),
      scale_(scale),
      step_(step),
      rounded_tokens_(rounded_tokens) {
    constructor_validate_and_infer_types();
}

void IntegerAttention::validate_and_infer_types() {
    const std::vector<Matrix> all = matrices_of(matrices_);
    OPENVINO_ASSERT(all.size() == 4 && sizes_.size() == 5, all.size(), " matrices and ", sizes_.size(), " sizes");
    ov::PartialShape shape = get_input_partial_shape(0);
    *shape.rbegin() = ov::Dimension(static_cast<std::int64_t>(all.back().rows));
    set_output_type(0, ov::element::f32, shape);
}

std::shared_ptr<ov::Node> IntegerAttention::clone_with_new_inputs(const ov::OutputVector &inputs) const {
    return std::make_shared<IntegerAttention>(inputs.at(0), inputs.at(1), matrices_, sizes_, scale_, step_,
                                              rounded_tokens_);
}

bool IntegerAttention::visit_attributes(ov::AttributeVisitor &visitor) {
    visitor.on_attribute("matrices", matrices_);
    visitor.on_attribute("sizes", sizes_);
    visitor.on_attribute("scale", scale_);
    visitor.on_attribute("step_table", step_);
    visitor.on_attribute("rounded_tokens", rounded_tokens_);
    return true;
}

bool IntegerAttention::evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const {
    thread_local std::vector<float> queries, keys, values, mixed;
    const std::vector<Matrix> all = matrices_of(matrices_);
    const auto *numbers = reinterpret_cast<const std::int64_t *>(step_);
    const std::int64_t *layer = numbers + kStepNumbers + size(sizes_[4]) * kLayerNumbers;
    const auto list = [](std::int64_t address) { return reinterpret_cast<const std::int32_t *>(address); };
    const auto cache = [](std::int64_t address) { return reinterpret_cast<std::uint16_t *>(address); };
    const AttentionForm form{size(sizes_[0]), size(sizes_[1]),  size(sizes_[2]),
                             size(sizes_[3]), size(numbers[0]), scale_};
    const StepRows rows{size(numbers[1]), list(numbers[2]), list(numbers[3]), list(numbers[4])};
    ov::Shape shape = inputs[0].get_shape();
    const std::size_t tokens = inputs[0].get_size() / shape.back();
    shape.back() = all[3].rows;
    outputs[0].set_shape(shape);
    OPENVINO_ASSERT(tokens == rows.tokens(), tokens, " tokens in rows of ", rows.tokens());
    const Arithmetic arithmetic = choose(tokens, rounded_tokens_);
    float *q = reserve(queries, tokens * all[0].rows), *k = reserve(keys, tokens * all[1].rows);
    float *v = reserve(values, tokens * all[2].rows), *y = reserve(mixed, tokens * all[3].columns);
    multiply_each(arithmetic, inputs[0].data<float>(), tokens, {{all[0], q}, {all[1], k}, {all[2], v}});
    attend(form, {cache(layer[0]), cache(layer[1]), list(layer[2])}, rows, q, k, v, inputs[1].data<float>(), y);
    multiply(arithmetic, y, tokens, {{all[3], outputs[0].data<float>()}});
    return true;
}

}  // namespace alize::kernels
