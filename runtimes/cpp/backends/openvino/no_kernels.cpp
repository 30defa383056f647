// In the place of kernels.cpp where libalize is built without them: for another processor than x86-64, or without TBB.
#include "../guard.hpp"
#include "kernels.hpp"

namespace alize::backends {

std::string no_kernels(std::string_view) { return "this libalize was built without them"; }

Kept use_kernels(ov::Model &, std::string_view processor) {
    throw Refusal(ALIZE_BACKEND_UNAVAILABLE, "alize's kernels cannot be used: " + no_kernels(processor) +
                                                 "; the configuration `engine` does without");
}

}  // namespace alize::backends
