// What OpenVINO looks for in a library of operators.
#include <dlfcn.h>

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/core/version.hpp>
#include <string>

#include "integer_attention.hpp"
#include "integer_linear.hpp"
#include "integer_rows.hpp"

namespace {

using Extensions = std::vector<ov::Extension::Ptr>;

// The CPU plugin's own way to read a PagedAttentionExtension, null where it has none.
ov::BaseOpExtension::Ptr of_plugin() {
    Dl_info place{};
    if (dladdr(reinterpret_cast<void *>(&ov::get_openvino_version), &place) == 0) return nullptr;
    const std::string engine = place.dli_fname;
    const std::string plugin = engine.substr(0, engine.rfind('/') + 1) + "libopenvino_intel_cpu_plugin.so";
    void *library = dlopen(plugin.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto create =
        library ? reinterpret_cast<void (*)(Extensions &)>(dlsym(library, "create_extensions")) : nullptr;
    Extensions all;
    if (create != nullptr) create(all);
    for (const auto &one : all) {
        const auto found = std::dynamic_pointer_cast<ov::BaseOpExtension>(one);
        if (found && std::string(found->get_type_info().name) == "PagedAttentionExtension") return found;
    }
    return nullptr;
}

// Reads paged attention with the sizes that the engine wants to find in the node's runtime info. It writes a compiled
// model without them, and cannot read that again; see runtimes/openvino_blob.py, which adds them.
class SizedPagedAttention : public ov::BaseOpExtension {
public:
    explicit SizedPagedAttention(ov::BaseOpExtension::Ptr plugin) : plugin_(std::move(plugin)) {}

    const ov::DiscreteTypeInfo &get_type_info() const override {
        static const ov::DiscreteTypeInfo info{"SizedPagedAttention", "alize"};
        return info;
    }

    ov::OutputVector create(const ov::OutputVector &inputs, ov::AttributeVisitor &visitor) const override {
        ov::OutputVector outputs = plugin_->create(inputs, visitor);
        for (const char *name : {"k_head_size", "num_k_heads", "v_head_size", "num_v_heads"}) {
            std::int64_t size = 0;
            visitor.on_attribute(name, size);
            outputs.at(0).get_node()->get_rt_info()[name] = static_cast<std::size_t>(size);
        }
        return outputs;
    }

    std::vector<ov::Extension::Ptr> get_attached_extensions() const override { return {}; }

private:
    ov::BaseOpExtension::Ptr plugin_;
};

Extensions extensions() {
    Extensions all{std::make_shared<ov::OpExtension<alize::kernels::IntegerLinear>>(),
                   std::make_shared<ov::OpExtension<alize::kernels::IntegerAttention>>(),
                   std::make_shared<ov::OpExtension<alize::kernels::IntegerRows>>()};
    if (const auto plugin = of_plugin()) all.push_back(std::make_shared<SizedPagedAttention>(plugin));
    return all;
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(extensions());
