// OpenVINO on a CPU or an Intel GPU (never run on one): how an artifact is compiled, and in which form: with
// `attention: paged` see paged.hpp, else stateful.hpp; with `kernels: alize` see kernels.hpp.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <openvino/openvino.hpp>

#include "alize/backend.h"
#include "integer_attention.hpp"
#include "kernels.hpp"
#include "paged.hpp"
#include "runner.hpp"
#include "tokenizer.hpp"

namespace alize::backends {

std::string engine_version();
std::string processor_name();
std::vector<std::string> devices();                  // cpu, gpu, gpu.1: those of this machine
std::string device_name(const std::string &device);  // the processor, or the graphics unit

// Whether an option is there and has this value.
bool asks_for(std::span<const alize_backend_option> options, std::string_view option, std::string_view value);

class OpenVinoEngine {
public:
    explicit OpenVinoEngine(const alize_backend_model &model);
    std::unique_ptr<OpenVinoRunner> runner(int64_t batch);
    const PagedEngine *paged() const { return paged_.get(); }  // null where the graph is stateful

    const int64_t vocab_size;
    Tokenizer tokenizer;

private:
    void compile(const std::string &path, const alize_backend_model &model);

    const std::vector<int64_t> windows_;
    const int64_t experts_;
    Kept read_in_place_;                         // before what reads it, so that it is there longer
    std::unique_ptr<AttentionTable> attention_;  // null where attention is the engine's
    ov::CompiledModel compiled_;
    std::unique_ptr<PagedEngine> paged_;
};

}  // namespace alize::backends
