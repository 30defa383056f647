// Has alize's own kernels (runtimes/cpp/kernels) compute the products with integer weights of a graph; see
// runtimes/openvino_kernels.py.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <openvino/openvino.hpp>

#include "../guard.hpp"

namespace alize::backends {

// Up to so many tokens activations are rounded to 8 bits, and a token gives the same bits alone as among others.
constexpr int64_t kRoundedTokens = 32;

using Kept = std::vector<std::shared_ptr<const ov::Node>>;

// Why the kernels cannot be used, "" where they can. `processor` is its name with its flags, as in a fingerprint.
std::string no_kernels(std::string_view processor);

// What it is refused with, in the words of runtimes/kernels.py.
inline Refusal refused_kernels(const std::string &why) {
    return {ALIZE_BACKEND_UNAVAILABLE,
            "alize's kernels cannot be used: " + why + "; the configuration `engine` does without"};
}

// Replaces, in place, the products that the kernels know. Returns the constants that they read where they lie, which
// have to be kept as long as what is compiled of the graph. Refuses where the kernels cannot be used.
Kept use_kernels(ov::Model &graph, std::string_view processor);

}  // namespace alize::backends
