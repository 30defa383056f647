#include "products.hpp"

#include <set>

namespace alize::backends {
namespace {

// Between integers and the matrix that they stand for.
const std::set<std::string_view> kPassed = {"Convert", "Multiply", "Reshape", "Unsqueeze", "ShapeOf"};

}  // namespace

std::string_view kind(const ov::Node &node) { return node.get_type_info().name; }

std::vector<Node> readers(const Node &node) {
    std::vector<Node> found;
    for (const ov::Input<ov::Node> &input : node->output(0).get_target_inputs())
        found.push_back(input.get_node()->shared_from_this());
    return found;
}

std::optional<Product> product(const Node &node) {
    const Node matrix = node->get_input_node_shared_ptr(1);
    if (kind(*matrix) != "Transpose") return std::nullopt;
    std::vector<Node> waiting = {matrix->get_input_node_shared_ptr(0)};
    std::set<std::shared_ptr<Constant>> integers, scales;
    while (!waiting.empty()) {
        const Node one = waiting.back();
        waiting.pop_back();
        if (const auto constant = ov::as_type_ptr<Constant>(one)) {
            const ov::element::Type element = constant->get_element_type();
            if (element == ov::element::i8 || element == ov::element::i4) {
                integers.insert(constant);
            } else if (element == ov::element::f16) {
                scales.insert(constant);
            } else if (element != ov::element::i64 && element != ov::element::i32) {  // a shape or an axis
                return std::nullopt;
            }
        } else if (kPassed.count(kind(*one)) != 0) {
            for (const auto &value : one->input_values()) waiting.push_back(value.get_node_shared_ptr());
        } else {
            return std::nullopt;
        }
    }
    if (integers.size() != 1 || scales.size() != 1) return std::nullopt;
    Product found{node, *integers.begin(), *scales.begin()};
    return found.known() ? std::optional(found) : std::nullopt;
}

}  // namespace alize::backends
