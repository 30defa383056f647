// In the place of kernels.cpp where libalize is built without them: for another processor than x86-64, or without TBB.
#include "integer_attention.hpp"
#include "kernels.hpp"

namespace alize::backends {

std::string no_kernels(std::string_view) { return "this libalize was built without them"; }

Kept use_kernels(ov::Model &, std::string_view processor) { throw refused_kernels(no_kernels(processor)); }

std::unique_ptr<AttentionTable> use_attention(ov::Model &, const alize_backend_model &, std::string_view) {
    return nullptr;
}

}  // namespace alize::backends
