#include "integer_linear.hpp"

#include <utility>

namespace alize::kernels {

namespace {

constexpr std::size_t kNumbers = 6;

}  // namespace

Arithmetic choose(std::size_t tokens, std::int64_t rounded_tokens) {
    if (!can(Arithmetic::rounded)) return Arithmetic::reference;
    const bool few = static_cast<std::int64_t>(tokens) <= rounded_tokens;
    return few || !can(Arithmetic::halved) ? Arithmetic::rounded : Arithmetic::halved;
}

IntegerLinear::IntegerLinear(const ov::Output<ov::Node> &x, std::string form, std::vector<std::int64_t> matrices,
                             std::int64_t rounded_tokens)
    : Op({x}), form_(std::move(form)), matrices_(std::move(matrices)), rounded_tokens_(rounded_tokens) {
    constructor_validate_and_infer_types();
}

void IntegerLinear::validate_and_infer_types() {
    const std::vector<Matrix> all = matrices();
    const std::size_t wanted = form_ == "gated" ? 2 : form_ == "mlp" ? 3 : 0;
    OPENVINO_ASSERT(!all.empty() && (form_ == "apart" || all.size() == wanted), form_, " of ", all.size(), " matrices");
    const auto set = [&](std::size_t index, std::size_t rows) {
        ov::PartialShape shape = get_input_partial_shape(0);
        *shape.rbegin() = ov::Dimension(static_cast<std::int64_t>(rows));
        set_output_type(index, ov::element::f32, shape);
    };
    if (form_ != "apart") return set(0, all.back().rows);
    for (std::size_t i = 0; i < all.size(); ++i) set(i, all[i].rows);
}

std::shared_ptr<ov::Node> IntegerLinear::clone_with_new_inputs(const ov::OutputVector &inputs) const {
    return std::make_shared<IntegerLinear>(inputs.at(0), form_, matrices_, rounded_tokens_);
}

bool IntegerLinear::visit_attributes(ov::AttributeVisitor &visitor) {
    visitor.on_attribute("form", form_);
    visitor.on_attribute("matrices", matrices_);
    visitor.on_attribute("rounded_tokens", rounded_tokens_);
    return true;
}

bool IntegerLinear::evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const {
    const std::vector<Matrix> all = matrices();
    const ov::Shape shape = inputs[0].get_shape();
    const std::size_t tokens = inputs[0].get_size() / shape.back();
    const float *x = inputs[0].data<float>();
    const auto place = [&](std::size_t index, std::size_t rows) {
        ov::Shape its = shape;
        its.back() = rows;
        outputs[index].set_shape(its);
        return outputs[index].data<float>();
    };
    const Arithmetic arithmetic = choose(tokens, rounded_tokens_);
    if (form_ == "apart") {
        std::vector<Output> products;
        for (std::size_t i = 0; i < all.size(); ++i) products.push_back({all[i], place(i, all[i].rows)});
        if (tokens > 0) multiply(arithmetic, x, tokens, products);
    } else if (form_ == "gated") {
        float *y = place(0, all[0].rows);
        if (tokens > 0) multiply_gated(arithmetic, x, tokens, all[0], all[1], y);
    } else {
        float *y = place(0, all[2].rows);
        if (tokens > 0) multiply_mlp(arithmetic, x, tokens, all[0], all[1], all[2], y);
    }
    return true;
}

std::vector<Matrix> IntegerLinear::matrices() const { return matrices_of(matrices_); }

std::vector<Matrix> matrices_of(const std::vector<std::int64_t> &numbers) {
    OPENVINO_ASSERT(numbers.size() % kNumbers == 0, "six numbers a matrix, not ", numbers.size(), " in all");
    std::vector<Matrix> all;
    for (auto number = numbers.begin(); number != numbers.end(); number += kNumbers)
        all.push_back({reinterpret_cast<const std::uint8_t *>(number[0]),
                       reinterpret_cast<const std::uint16_t *>(number[1]), static_cast<std::size_t>(number[2]),
                       static_cast<std::size_t>(number[3]), static_cast<std::size_t>(number[4]),
                       static_cast<int>(number[5])});
    return all;
}

}  // namespace alize::kernels
