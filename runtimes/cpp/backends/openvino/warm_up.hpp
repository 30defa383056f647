// Makes every expert run once at load: OpenVINO packs a multiplication's weights when it first gets rows. See
// runtimes/openvino_warm_up.py.
#pragma once

#include <vector>

#include <openvino/openvino.hpp>

#include "alize/backend.h"

namespace alize::backends {

constexpr const char *kExpertBias = "expert_bias";

// Adds the input `expert_bias` float32 [E] to the router's logits of each layer; 0 adds nothing.
void add_expert_bias(ov::Model &graph, const alize_backend_model &model);

// What is fed instead of 0, run after run, to run every expert once; nothing where there are none.
std::vector<std::vector<float>> expert_biases(const alize_backend_model &model);

// Runs one token for each top_k experts on the stateful graph, in a request that is thrown away.
void warm_up(ov::CompiledModel &compiled, const alize_backend_model &model);

}  // namespace alize::backends
