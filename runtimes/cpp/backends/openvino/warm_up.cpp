#include "warm_up.hpp"

#include <algorithm>
#include <string_view>
#include <vector>

#include <openvino/opsets/opset13.hpp>

#include "../guard.hpp"

namespace alize::backends {
namespace {

constexpr float kChosen = 1e6F;  // far above what a router says, and finite: logits stay finite too

// layers.{i}.router_logits
bool is_router_name(std::string_view name) {
    constexpr std::string_view kBefore = "layers.", kBehind = ".router_logits";
    if (name.size() <= kBefore.size() + kBehind.size() || !name.starts_with(kBefore) || !name.ends_with(kBehind))
        return false;
    const auto layer = name.substr(kBefore.size(), name.size() - kBefore.size() - kBehind.size());
    return layer.find_first_not_of("0123456789") == std::string_view::npos;
}

bool is_router(const ov::Output<ov::Node> &value) {
    const auto &names = value.get_names();
    return std::any_of(names.begin(), names.end(), is_router_name);
}

}  // namespace

void add_expert_bias(ov::Model &graph, const alize_backend_model &model) {
    std::vector<ov::Output<ov::Node>> logits;
    for (const auto &node : graph.get_ops()) {
        for (const auto &value : node->outputs()) {
            if (is_router(value)) logits.push_back(value);
        }
    }
    if (logits.size() != static_cast<size_t>(model.layers))
        throw Refusal(ALIZE_ARTIFACT, "the graph names the router's logits of " + std::to_string(logits.size()) +
                                          " layers, the manifest has " + std::to_string(model.layers) +
                                          ": build it again");
    const auto bias =
        std::make_shared<ov::opset13::Parameter>(ov::element::f32, ov::Shape{static_cast<size_t>(model.experts)});
    bias->output(0).set_names({kExpertBias});
    for (ov::Output<ov::Node> &value : logits) {
        const auto readers = value.get_target_inputs();
        const auto biased = std::make_shared<ov::opset13::Add>(value, bias);
        for (ov::Input<ov::Node> reader : readers) reader.replace_source_output(biased->output(0));
    }
    graph.add_parameters({bias});
    graph.validate_nodes_and_infer_types();
}

std::vector<std::vector<float>> expert_biases(const alize_backend_model &model) {
    const auto experts = static_cast<size_t>(model.experts);
    const auto chosen = static_cast<size_t>(std::max<int64_t>(model.experts_per_token, 1));
    std::vector<std::vector<float>> found;
    for (size_t first = 0; first < experts; first += chosen) {
        std::vector<float> &bias = found.emplace_back(experts, 0.0F);
        for (size_t expert = first; expert < std::min(first + chosen, experts); expert++) bias[expert] = kChosen;
    }
    return found;
}

void warm_up(ov::CompiledModel &compiled, const alize_backend_model &model) {
    ov::InferRequest request = compiled.create_infer_request();
    int64_t token = std::max<int64_t>(model.bos_token_id, 0), position = 0, seen = 1, count = 1;
    int32_t row = 0;
    for (std::vector<float> &bias : expert_biases(model)) {
        request.reset_state();
        request.set_tensor("input_ids", ov::Tensor(ov::element::i64, {1, 1}, &token));
        request.set_tensor("position_ids", ov::Tensor(ov::element::i64, {1, 1}, &position));
        request.set_tensor("attention_mask", ov::Tensor(ov::element::i64, {1, 1}, &seen));
        request.set_tensor("beam_idx", ov::Tensor(ov::element::i32, {1}, &row));
        request.set_tensor("num_logits_to_keep", ov::Tensor(ov::element::i64, {1}, &count));
        request.set_tensor(kExpertBias, ov::Tensor(ov::element::f32, {bias.size()}, bias.data()));
        request.infer();
    }
}

}  // namespace alize::backends
