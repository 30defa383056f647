// The products with integer weights in a graph, as the kernels know them; see Product in runtimes/openvino_kernels.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include <openvino/op/constant.hpp>
#include <openvino/openvino.hpp>

namespace alize::backends {

using Constant = ov::op::v0::Constant;
using Node = std::shared_ptr<ov::Node>;

std::string_view kind(const ov::Node &node);

// Who reads the first output.
std::vector<Node> readers(const Node &node);

// The input, bits, columns and groups: what products of one node have in common.
using Form = std::tuple<const ov::Node *, size_t, int64_t, size_t, size_t>;

// A MatMul with a matrix of signed integers [N,K], and float16 scales [N] or [N,K/group].
struct Product {
    Node node;
    std::shared_ptr<Constant> integers, scales;

    size_t rows() const { return integers->get_shape().at(0); }
    size_t columns() const { return integers->get_shape().at(1); }
    size_t groups() const { return ov::shape_size(scales->get_shape()) / rows(); }
    int64_t bits() const { return integers->get_element_type() == ov::element::i8 ? 8 : 4; }
    Form form() const {
        const ov::Output<ov::Node> source = node->input_value(0);
        return {source.get_node(), source.get_index(), bits(), columns(), groups()};
    }
    bool known() const {
        if (integers->get_shape().size() != 2 || groups() * rows() != ov::shape_size(scales->get_shape())) return false;
        if (groups() == 0 || columns() % 32 != 0 || columns() % groups() != 0) return false;
        const size_t group = columns() / groups();
        return groups() == 1 || group == 32 || group == 64 || group == 128;
    }
    // What the operator's `matrices` has of it: where its values and scales lie, rows, columns, group and bits.
    void add_numbers(std::vector<int64_t> &numbers) const {
        for (const auto &constant : {integers, scales})
            numbers.push_back(reinterpret_cast<int64_t>(constant->get_data_ptr()));
        for (const size_t size : {rows(), columns(), columns() / groups()})
            numbers.push_back(static_cast<int64_t>(size));
        numbers.push_back(bits());
    }
};

// The product of this node, where the constants that its transposed matrix is computed from are what `Product` says.
std::optional<Product> product(const Node &node);

}  // namespace alize::backends
