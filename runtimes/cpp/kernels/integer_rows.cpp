#include "integer_rows.hpp"

#include <openvino/core/type/float16.hpp>
#include <utility>

#include "integer_linear.hpp"

namespace alize::kernels {

namespace {

template <typename Id>
bool take(const Matrix &table, const Id *ids, std::size_t count, float *y) {
    for (std::size_t i = 0; i < count; ++i, y += table.columns) {
        if (ids[i] < 0 || static_cast<std::size_t>(ids[i]) >= table.rows) return false;
        const auto row = static_cast<std::size_t>(ids[i]);
        const auto scale = static_cast<float>(ov::float16::from_bits(table.scale(row)));
        const auto *values = reinterpret_cast<const std::int8_t *>(table.values) + row * table.columns;
        for (std::size_t k = 0; k < table.columns; ++k) y[k] = static_cast<float>(values[k]) * scale;
    }
    return true;
}

}  // namespace

IntegerRows::IntegerRows(const ov::Output<ov::Node> &ids, std::vector<std::int64_t> table)
    : Op({ids}), table_(std::move(table)) {
    constructor_validate_and_infer_types();
}

void IntegerRows::validate_and_infer_types() {
    const std::vector<Matrix> tables = matrices_of(table_);
    OPENVINO_ASSERT(tables.size() == 1 && tables[0].bits == 8 && tables[0].group == tables[0].columns,
                    "one table of 8 bits with a scale a row");
    ov::PartialShape shape = get_input_partial_shape(0);
    if (shape.rank().is_static()) shape.push_back(static_cast<std::int64_t>(tables[0].columns));
    set_output_type(0, ov::element::f32, shape);
}

std::shared_ptr<ov::Node> IntegerRows::clone_with_new_inputs(const ov::OutputVector &inputs) const {
    return std::make_shared<IntegerRows>(inputs.at(0), table_);
}

bool IntegerRows::visit_attributes(ov::AttributeVisitor &visitor) {
    visitor.on_attribute("matrices", table_);
    return true;
}

bool IntegerRows::evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const {
    const Matrix table = matrices_of(table_).at(0);
    ov::Shape shape = inputs[0].get_shape();
    shape.push_back(table.columns);
    outputs[0].set_shape(shape);
    auto *y = outputs[0].data<float>();
    const std::size_t count = inputs[0].get_size();
    // The CPU plugin has 32 bits for what the graph has 64 for.
    return inputs[0].get_element_type() == ov::element::i64 ? take(table, inputs[0].data<std::int64_t>(), count, y)
                                                            : take(table, inputs[0].data<std::int32_t>(), count, y);
}

}  // namespace alize::kernels
