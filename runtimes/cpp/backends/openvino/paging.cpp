#include "paging.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <openvino/opsets/opset13.hpp>
#include <openvino/pass/manager.hpp>
#include <openvino/pass/sdpa_to_paged_attention.hpp>

#include "../guard.hpp"

namespace alize::backends {
namespace {

constexpr size_t kWindowInput = 10;  // of a PagedAttentionExtension

// A constant, or a product of constants.
int64_t product(const std::shared_ptr<ov::Node> &node) {
    if (const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(node))
        return constant->cast_vector<int64_t>().at(0);
    int64_t found = 1;
    for (const auto &value : node->input_values()) found *= product(value.get_node_shared_ptr());
    return found;
}

std::vector<int64_t> windows_of(const ov::Model &graph) {
    std::vector<int64_t> found;
    for (const auto &node : graph.get_ordered_ops()) {
        if (std::string_view(node->get_type_name()) == "PagedAttentionExtension")
            found.push_back(product(node->get_input_node_shared_ptr(kWindowInput)));
    }
    return found;
}

std::string listed(const std::vector<int64_t> &numbers) {
    std::string text;
    for (const int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
    return "[" + text + "]";
}

void gather_before_head(ov::Model &graph) {
    using namespace ov::opset13;
    const auto head = graph.output("logits").get_node()->input_value(0).get_node_shared_ptr();
    const auto index = std::make_shared<Parameter>(ov::element::i64, ov::PartialShape{-1});
    index->output(0).get_tensor().add_names({"logits_index"});
    const auto axis = Constant::create(ov::element::i64, {}, {0});
    head->input(0).replace_source_output(std::make_shared<Gather>(head->input_value(0), index, axis)->output(0));
    graph.add_parameters({index});
    graph.validate_nodes_and_infer_types();
}

}  // namespace

bool mixed(const alize_backend_model &model) {
    const auto full = std::count(model.windows, model.windows + model.layers, 0);
    return full > 0 && full < model.layers;
}

void page(const std::shared_ptr<ov::Model> &graph, const alize_backend_model &model) {
    ov::pass::Manager manager;
    manager.register_pass<ov::pass::SDPAToPagedAttention>(mixed(model));
    manager.run_passes(graph);
    const std::vector<int64_t> found = windows_of(*graph), expected(model.windows, model.windows + model.layers);
    if (found != expected)
        throw Refusal(ALIZE_ARTIFACT, "paged attention would run with the windows " + listed(found) +
                                          ", the model's are " + listed(expected) + ": build it again");
    gather_before_head(*graph);
}

}  // namespace alize::backends
