#include "kernels.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "../../kernels/integer_linear.hpp"
#include "products.hpp"

namespace alize::backends {
namespace {

// Products of the same form, in the graph's order.
std::vector<std::vector<Product>> products(const ov::Model &graph) {
    std::vector<std::vector<Product>> found;
    std::map<Form, size_t> places;
    for (const Node &node : graph.get_ordered_ops()) {
        if (kind(*node) != "MatMul") continue;
        const std::optional<Product> one = product(node);
        if (!one) continue;
        const auto [place, fresh] = places.emplace(one->form(), found.size());
        if (fresh) found.emplace_back();
        found[place->second].push_back(*one);
    }
    return found;
}

bool is_silu(const Node &node, const Node &of) {
    const ov::OutputVector sources = node->input_values();
    if (kind(*node) == "Swish") return sources.size() == 1 && sources[0].get_node_shared_ptr() == of;
    if (kind(*node) != "Multiply") return false;
    const Node first = sources[0].get_node_shared_ptr(), second = sources[1].get_node_shared_ptr();
    const Node sigmoid = first == of ? second : first;
    return (first == of || second == of) && kind(*sigmoid) == "Sigmoid" && sigmoid->get_input_node_shared_ptr(0) == of;
}

// Whether a reader of the gate is the silu, or the sigmoid in it.
bool leads_to(const Node &node, const Node &silu) {
    const std::vector<Node> next = readers(node);
    return node == silu ||
           (!next.empty() && std::all_of(next.begin(), next.end(), [&](const Node &reader) { return reader == silu; }));
}

// The Multiply(silu(first), second) that alone reads two products, or null.
Node gated(const std::vector<Product> &both) {
    if (both.size() != 2) return nullptr;
    const Node &first = both[0].node, &second = both[1].node;
    const std::vector<Node> last = readers(second), gate = readers(first);
    if (last.size() != 1 || kind(*last[0]) != "Multiply") return nullptr;
    const Node left = last[0]->get_input_node_shared_ptr(0), right = last[0]->get_input_node_shared_ptr(1);
    const Node silu = left == second ? right : left;
    const bool whole = is_silu(silu, first) && std::all_of(gate.begin(), gate.end(),
                                                           [&](const Node &reader) { return leads_to(reader, silu); });
    return whole ? last[0] : nullptr;
}

using ByNode = std::map<Node, Product>;

// Puts one node in the place of all. Returns the product's node that it computes besides, or null.
Node replace(const std::vector<Product> &all, const ByNode &by_node) {
    std::vector<Node> ends;
    std::vector<int64_t> numbers;
    for (const Product &one : all) ends.push_back(one.node), one.add_numbers(numbers);
    const char *form = "apart";
    Node besides;
    if (const Node gate = gated(all)) {
        form = "gated", ends = {gate};
        const std::vector<Node> next = readers(gate);
        const auto last = next.size() == 1 ? by_node.find(next[0]) : by_node.end();
        if (last != by_node.end()) {
            form = "mlp", besides = last->first, ends = {besides};
            last->second.add_numbers(numbers);
        }
    }
    const auto node =
        std::make_shared<kernels::IntegerLinear>(all[0].node->input_value(0), form, std::move(numbers), kRoundedTokens);
    node->set_friendly_name(ends[0]->get_friendly_name());
    for (size_t i = 0; i < ends.size(); i++) ends[i]->output(0).replace(node->output(i));
    return besides;
}

}  // namespace

std::string no_kernels(std::string_view processor) {
    return processor.find("avx512_vnni") == std::string_view::npos ? "the processor has no AVX512-VNNI" : "";
}

Kept use_kernels(ov::Model &graph, std::string_view processor) {
    if (const std::string why = no_kernels(processor); !why.empty()) throw refused_kernels(why);
    const std::vector<std::vector<Product>> found = products(graph);
    ByNode by_node;
    for (const auto &all : found) {
        for (const Product &one : all) by_node.emplace(one.node, one);
    }
    std::set<Node> taken;  // the products that are part of another's node
    for (const auto &all : found) {
        if (taken.count(all[0].node) == 0) taken.insert(replace(all, by_node));
    }
    graph.validate_nodes_and_infer_types();
    Kept kept;
    for (const auto &[node, one] : by_node) kept.insert(kept.end(), {one.integers, one.scales});
    return kept;
}

}  // namespace alize::backends
