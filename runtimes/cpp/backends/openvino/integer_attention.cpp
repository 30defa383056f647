#include "integer_attention.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <openvino/opsets/opset13.hpp>

#include "../../kernels/integer_attention.hpp"
#include "engine.hpp"
#include "products.hpp"

namespace alize::backends {
namespace {

using Value = ov::Output<ov::Node>;
using Kinds = std::vector<std::string_view>;
using Factor = std::pair<const ov::Node *, size_t>;  // an output of a node; of null: -1
using Terms = std::set<std::vector<Factor>>;         // a sum of products

constexpr size_t kScale = 9, kWindow = 10, kBiases = 11, kContext = 12;  // inputs of a PagedAttentionExtension
const std::set<std::string> kReadByAttention = {
    "past_lens",       "subsequence_begins", "block_indices", "block_indices_begins",
    "max_context_len", "key_cache",          "value_cache"};

Factor factor(const Value &value) { return {value.get_node(), value.get_index()}; }

bool is_minus_one(const ov::Node &node) {
    const auto *constant = dynamic_cast<const Constant *>(&node);
    return constant != nullptr && ov::shape_size(constant->get_shape()) == 1 &&
           constant->cast_vector<double>()[0] == -1.0;
}

Terms terms(const Value &value) {
    const ov::Node &node = *value.get_node();
    if (is_minus_one(node)) return {{{nullptr, 0}}};
    if (kind(node) != "Add" && kind(node) != "Multiply") return {{factor(value)}};
    Terms left = terms(node.input_value(0)), right = terms(node.input_value(1)), found;
    if (kind(node) == "Add") {
        left.merge(right);
        return left;
    }
    for (const auto &a : left) {
        for (const auto &b : right) {
            std::vector<Factor> both = a;
            both.insert(both.end(), b.begin(), b.end());
            std::sort(both.begin(), both.end());
            found.insert(both);
        }
    }
    return found;
}

std::vector<Factor> sorted(std::vector<Factor> factors) {
    std::sort(factors.begin(), factors.end());
    return factors;
}

// What the first of nodes of these kinds, each the next one's input, reads.
std::optional<Value> source(Value value, const Kinds &kinds) {
    for (const std::string_view one : kinds) {
        if (kind(*value.get_node()) != one) return std::nullopt;
        value = value.get_node()->input_value(0);
    }
    return value;
}

// The last of nodes of these kinds that alone read one another, or null.
Node reader(Node node, const Kinds &kinds) {
    for (const std::string_view one : kinds) {
        const std::vector<Node> found = readers(node);
        if (found.size() != 1 || kind(*found[0]) != one) return nullptr;
        node = found[0];
    }
    return node;
}

struct Turned {
    Node product;
    Value cosines, sines;
};

// What a factor stands for the cosines or sines of, where a term is it times `half` alone.
const ov::Node *angle_of(const Terms &sum, const Factor &half) {
    const ov::Node *found = nullptr;
    for (const std::vector<Factor> &term : sum) {
        if (term.size() != 2 || (term[0] != half && term[1] != half)) continue;
        found = (term[0] == half ? term[1] : term[0]).first;
    }
    return found != nullptr && kind(*found) == "Unsqueeze" ? found : nullptr;
}

// The product whose heads a rotary embedding turns, by halves: [a, b] -> [a cos - b sin, b cos + a sin].
std::optional<Turned> turned(const Value &value) {
    const std::optional<Value> joined = source(value, {"Reshape", "Transpose"});
    if (!joined || kind(*joined->get_node()) != "Concat" || joined->get_node()->get_input_size() != 2)
        return std::nullopt;
    const Terms one = terms(joined->get_node()->input_value(0)), other = terms(joined->get_node()->input_value(1));
    const ov::Node *split = nullptr;
    for (const std::vector<Factor> &term : one) {
        for (const Factor &part : term) {
            if (part.first != nullptr && kind(*part.first) == "VariadicSplit") split = part.first;
        }
    }
    if (split == nullptr || split->get_output_size() != 2) return std::nullopt;
    const Factor a{split, 0}, b{split, 1};
    const ov::Node *cosine = angle_of(other, b), *sine = angle_of(other, a);
    if (cosine == nullptr || sine == nullptr) return std::nullopt;
    const Factor c{cosine, 0}, s{sine, 0}, minus{nullptr, 0};
    if (one != Terms{sorted({a, c}), sorted({b, s, minus})} || other != Terms{sorted({b, c}), sorted({a, s})})
        return std::nullopt;
    const auto width = [&](size_t half) { return *split->get_output_partial_shape(half).rbegin(); };
    const std::optional<Value> from = source(split->input_value(0), {"Transpose", "Reshape"});
    if (width(0) != width(1) || !from) return std::nullopt;
    return Turned{from->get_node_shared_ptr(), cosine->input_value(0), sine->input_value(0)};
}

// Whether its scale is a constant, and what is beyond its window says nothing: biases, sinks, evictions.
bool is_plain(const ov::Node &attention) {
    for (size_t place = kScale; place < attention.get_input_size(); place++) {
        if (place == kWindow || place == kContext) continue;
        const auto constant = ov::as_type_ptr<Constant>(attention.get_input_node_shared_ptr(place));
        if (constant == nullptr) return false;
        const std::vector<double> said = constant->cast_vector<double>();
        if (place != kScale && std::any_of(said.begin(), said.end(), [](double one) { return one != 0; })) return false;
    }
    return true;
}

struct Attention {
    std::array<Product, 4> products;
    std::array<Value, 4> angles;  // cosines and sines of the query, and of the key
    int64_t heads, layer;
    float scale;
};

// key_cache.7 -> 7
int64_t layer_of(const ov::Node &attention) {
    const std::string &name = attention.get_input_node_ptr(3)->get_friendly_name();
    return std::stoll(name.substr(name.find('.') + 1));
}

std::optional<Attention> attention(const Node &node, const alize_backend_model &model) {
    const std::optional<Turned> query = turned(node->input_value(0)), key = turned(node->input_value(1));
    const std::optional<Value> value = source(node->input_value(2), {"Reshape", "Transpose", "Transpose", "Reshape"});
    const Node end = reader(node, {"Reshape", "Transpose", "Transpose", "Reshape", "MatMul"});
    if (!query || !key || !value || end == nullptr || !is_plain(*node)) return std::nullopt;
    std::vector<Product> products;
    for (const Node &one : {query->product, key->product, value->get_node_shared_ptr(), end}) {
        const std::optional<Product> its = kind(*one) == "MatMul" ? product(one) : std::nullopt;
        if (!its) return std::nullopt;
        products.push_back(*its);
        if (products.size() < 4 && one->input_value(0) != query->product->input_value(0)) return std::nullopt;
    }
    const auto size = static_cast<size_t>(model.head_size), heads = products[0].rows() / size;
    const size_t kept = static_cast<size_t>(model.key_value_heads) * size;
    if (heads * size != products[0].rows() || products[1].rows() != kept || products[2].rows() != kept ||
        products[3].columns() != heads * size)
        return std::nullopt;
    const auto scale = ov::as_type_ptr<Constant>(node->get_input_node_shared_ptr(kScale))->cast_vector<float>().at(0);
    return Attention{{products[0], products[1], products[2], products[3]},
                     {query->cosines, query->sines, key->cosines, key->sines},
                     static_cast<int64_t>(heads),
                     layer_of(*node),
                     scale};
}

std::vector<Attention> attentions(const ov::Model &graph, const alize_backend_model &model) {
    std::vector<Attention> found;
    for (const Node &node : graph.get_ordered_ops()) {
        if (kind(*node) != "PagedAttentionExtension") continue;
        if (const std::optional<Attention> one = attention(node, model)) found.push_back(*one);
    }
    return found;
}

using Joined = std::map<std::array<Factor, 4>, Node>;

// float32 [T,1,2*D], one node for all layers that turn by the same angles.
Node joined(const std::array<Value, 4> &parts, Joined &known) {
    Node &node = known[{factor(parts[0]), factor(parts[1]), factor(parts[2]), factor(parts[3])}];
    if (node == nullptr) node = std::make_shared<ov::opset13::Concat>(ov::OutputVector(parts.begin(), parts.end()), -1);
    return node;
}

void replace(const Attention &one, const Node &angles, const alize_backend_model &model, int64_t table) {
    std::vector<int64_t> numbers;
    for (const Product &its : one.products) its.add_numbers(numbers);
    const Node &end = one.products[3].node;
    const std::vector<int64_t> sizes = {one.heads, model.key_value_heads, model.head_size, model.windows[one.layer],
                                        one.layer};
    const auto node = std::make_shared<kernels::IntegerAttention>(one.products[0].node->input_value(0), angles, numbers,
                                                                  sizes, one.scale, table, kRoundedTokens);
    node->set_friendly_name(end->get_friendly_name());
    end->output(0).replace(node->output(0));
}

// Whether a configuration has what the kernels can do, on a processor where they pay.
bool pays(const alize_backend_model &model, std::string_view processor) {
    const std::span options(model.options, model.option_count);
    return asks_for(options, "kernels", "alize") && asks_for(options, "attention", "paged") &&
           asks_for(options, "kv_cache_precision", "f16") && asks_for(options, "inference_precision", "f32") &&
           processor.find("amx_bf16") != std::string_view::npos && model.head_size % 32 == 0;
}

}  // namespace

std::unique_ptr<AttentionTable> use_attention(ov::Model &graph, const alize_backend_model &model,
                                              std::string_view processor) {
    if (!pays(model, processor)) return nullptr;
    const std::vector<Attention> found = attentions(graph, model);
    if (found.size() != static_cast<size_t>(model.layers)) return nullptr;
    auto table = std::make_unique<AttentionTable>(model);
    Joined angles;
    for (const Attention &one : found) {
        replace(one, joined(one.angles, angles), model, table->address());
        for (const Product &its : one.products) table->kept.insert(table->kept.end(), {its.integers, its.scales});
    }
    for (const auto &parameter : ov::ParameterVector(graph.get_parameters())) {
        const std::string &name = parameter->get_friendly_name();
        if (kReadByAttention.count(name.substr(0, name.find('.'))) != 0) graph.remove_parameter(parameter);
    }
    graph.validate_nodes_and_infer_types();
    return table;
}

}  // namespace alize::backends
