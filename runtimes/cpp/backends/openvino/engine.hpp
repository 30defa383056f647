// OpenVINO on a CPU or an Intel GPU (never run on one): the stateful graph, one infer request a session.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

#include "alize/backend.h"
#include "states.hpp"
#include "tokenizer.hpp"

namespace alize::backends {

std::string engine_version();
std::string processor_name();
std::vector<std::string> devices();                  // cpu, gpu, gpu.1: those of this machine
std::string device_name(const std::string &device);  // the processor, or the graphics unit

class OpenVinoEngine {
public:
    explicit OpenVinoEngine(const alize_backend_model &model);

    ov::CompiledModel compiled;
    const std::vector<int64_t> windows;
    const int64_t vocab_size, experts;
    Tokenizer tokenizer;
};

class OpenVinoRunner {
public:
    OpenVinoRunner(OpenVinoEngine &engine, int64_t batch);

    void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
              float *logits);
    void drop_last(int64_t n) { caches_.drop_last(n); }
    void evict(int64_t keep) { caches_.evict(keep); }
    int64_t cached() const { return caches_.cached(); }
    void reset();
    void cancel() { request_.cancel(); }

private:
    ov::Tensor infer(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t count);

    ov::InferRequest request_;
    const size_t batch_;
    const size_t vocab_size_;
    Caches caches_;
    std::vector<int64_t> positions_, mask_;
    std::vector<int32_t> rows_;
    std::vector<float> no_bias_;  // [E], see warm_up.hpp
    int64_t count_ = 0;
};

}  // namespace alize::backends
