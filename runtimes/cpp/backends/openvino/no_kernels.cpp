// In the place of kernels.cpp where libalize is built without them: for another processor than x86-64, or without TBB.
#include "kernels.hpp"

namespace alize::backends {

std::string no_kernels(std::string_view) { return "this libalize was built without them"; }

Kept use_kernels(ov::Model &, std::string_view processor) { throw refused_kernels(no_kernels(processor)); }

}  // namespace alize::backends
