// TensorRT: one plan for each compute capability, engine.sm80.plan; see optimize/static_cache.py for the graph in it.
//
// NOT RUN ON A GPU YET. tests/cpp/tensorrt_stub compiles it against a small stand-in for TensorRT and CUDA that
// computes the fake back-end's model, and repeats Python's traces: that proves the bookkeeping here, not TensorRT.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "alize/backend.h"
#include "cuda.hpp"

namespace alize::backends {

std::vector<std::string> devices();
std::string gpu_name();
int gpu_sm();
int driver_version();
std::string engine_version();

// The keys or the values of one layer: [rows,K,capacity,D].
struct CacheShape {
    std::string past, present;
    bool windowed;
    int64_t capacity;
    size_t heads, slot;  // K; bytes of D elements
    size_t row() const { return heads * static_cast<size_t>(capacity) * slot; }
};

class TensorRtEngine {
public:
    explicit TensorRtEngine(const alize_backend_model &model);

    // The first optimisation profile that takes these shapes; raises where there is none.
    int profile(int64_t rows, int64_t tokens) const;
    bool has(const char *input) const;

    const int64_t vocab_size;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::vector<CacheShape> caches;
};

class TensorRtRunner {
public:
    TensorRtRunner(TensorRtEngine &engine, int64_t batch);

    void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
              float *logits);
    void drop_last(int64_t n);
    void evict(int64_t keep);
    int64_t cached() const;
    void reset();

private:
    struct Cache {
        CacheShape shape;
        DeviceMemory memory;
    };
    // Tokens that row b holds in the layers without or with a window: the first so many places of its cache.
    using Filled = std::vector<int64_t>;

    const Filled &filled(const Cache &cache) const { return cache.shape.windowed ? windowed_ : full_; }
    void check_room(const int64_t *lengths) const;
    bool padding_fits(int64_t s) const;
    // Rows first .. first + rows - 1, s tokens each.
    void run(int64_t first, int64_t rows, const int64_t *tokens, int64_t s, const int64_t *lengths,
             const int64_t *positions, int64_t keep, float *logits);
    void feed(const char *name, const std::vector<int64_t> &values, const std::vector<int64_t> &shape,
              DeviceMemory &on);
    void choose_profile(int64_t rows, int64_t s);
    void bind_caches(int64_t first, int64_t rows);

    TensorRtEngine &engine_;
    const size_t batch_;
    Stream stream_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::vector<Cache> caches_;
    Filled full_, windowed_;
    bool any_windowed_ = false, any_full_ = false;
    int profile_ = -1;
    DeviceMemory tokens_, positions_, index_, lengths_, window_lengths_, logits_, moving_;
};

}  // namespace alize::backends
