// A stateful graph turned into its paged form by the engine's own pass; see `page` in runtimes/openvino_paged.py.
#pragma once

#include <memory>

#include <openvino/openvino.hpp>

#include "alize/backend.h"

namespace alize::backends {

// Whether some layers have a window and others have none: each kind then keeps its keys in a pool of its own.
bool mixed(const alize_backend_model &model);

// In place; the head computes `logits_index` int64 [n] of the tokens only. Refuses a graph in which the engine's pass
// finds other windows than the model's: it drops one that it does not recognise.
void page(const std::shared_ptr<ov::Model> &graph, const alize_backend_model &model);

}  // namespace alize::backends
