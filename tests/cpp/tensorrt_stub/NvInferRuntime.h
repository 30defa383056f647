// A stand-in for TensorRT's runtime, with the names and signatures that its documentation gives, and a plan of its own
// kind: words VOCABULARY CAPACITY WINDOW_CAPACITY BATCH CHUNK, then each layer's window. It computes the model of
// runtimes/fake.py through the inputs and outputs that optimize/static_cache.py and pick_logits.py make: a place of a
// cache holds, in the 8 bytes of head 0, what that model caches; each further head a copy, so that a copy of the wrong
// heads shows.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kBF16 = 7, kINT64 = 8 };
enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

class ILogger {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual ~ILogger() = default;
    virtual void log(Severity severity, const char *message) noexcept = 0;
};

namespace stub {
constexpr int64_t kHeads = 2, kHeadSize = 4;  // of float16: 8 bytes
struct Plan {
    int64_t vocabulary = 0, capacity = 0, window_capacity = 0, batch = 0, chunk = 0;
    std::vector<int64_t> windows;
    bool mixed() const {
        return std::count(windows.begin(), windows.end(), 0) % static_cast<std::ptrdiff_t>(windows.size()) != 0;
    }
    int64_t places(size_t layer) const { return windows[layer] > 0 ? window_capacity : capacity; }
    // Of profile 0 one token a row, of profile 1 a chunk: of the tokens read, and of those whose logits are asked for.
    int64_t most(int32_t profile) const { return profile == 0 ? 1 : chunk; }
};
inline uint64_t mix(uint64_t value) {
    value += 0x9E3779B97F4A7C15;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
    return value ^ (value >> 31);
}
}  // namespace stub

class IExecutionContext {
public:
    explicit IExecutionContext(const stub::Plan &plan) : plan_(plan) {}
    bool setOptimizationProfileAsync(int32_t index, cudaStream_t) noexcept {
        profile_ = index;
        return index == 0 || index == 1;
    }
    bool setInputShape(const char *name, const Dims &shape) noexcept {
        shapes_[name] = shape;
        return profile_ >= 0 && (shape.nbDims != 2 || shape.d[1] <= plan_.most(profile_));
    }
    bool setTensorAddress(const char *name, void *data) noexcept { return places_[name] = data, data != nullptr; }
    bool enqueueV3(cudaStream_t) noexcept {
        const Dims shape = shapes_["input_ids"], index = shapes_["logits_index"];
        for (int64_t b = 0; b < shape.d[0]; b++) {
            if (!row(b, shape.d[1], index.d[1])) return false;
        }
        return true;
    }

private:
    const int64_t *integers(const std::string &name) { return static_cast<const int64_t *>(places_[name]); }
    bool row(int64_t b, int64_t s, int64_t keep) {
        std::vector<uint64_t> state;
        for (int64_t i = b * s; i < (b + 1) * s; i++)
            state.push_back(stub::mix(stub::mix(static_cast<uint64_t>(integers("input_ids")[i])) +
                                      static_cast<uint64_t>(integers("position_ids")[i])));
        for (size_t layer = 0; layer < plan_.windows.size(); layer++) {
            if (!attend(layer, b, s, state)) return false;
        }
        const auto v = static_cast<size_t>(plan_.vocabulary);
        for (int64_t n = b * keep; n < (b + 1) * keep; n++) {
            const uint64_t one = state[static_cast<size_t>(integers("logits_index")[n])];
            float *out = static_cast<float *>(places_["logits"]) + static_cast<size_t>(n) * v;
            for (uint64_t id = 0; id < v; id++)
                out[id] = (static_cast<float>(stub::mix(one + stub::mix(id)) >> 44) - 524288.0F) / 65536.0F;
        }
        return true;
    }
    // TensorScatter, then attention: writes S places, and adds up what each token sees.
    bool attend(size_t layer, int64_t b, int64_t s, std::vector<uint64_t> &state) {
        const int64_t window = plan_.windows[layer], places = plan_.places(layer);
        const char *lengths = plan_.mixed() && window > 0 ? "window_cache_lengths" : "cache_lengths";
        const int64_t filled = integers(lengths)[b];
        if (filled < 0 || filled + s > places) return false;  // outside of the cache
        for (const char *part : {"key", "value"}) {
            const std::string end = std::to_string(layer) + "." + part;
            if (places_["past_key_values." + end] != places_["present." + end]) return false;  // two addresses
            auto *cache = static_cast<uint64_t *>(places_["present." + end]) + b * stub::kHeads * places;
            for (int64_t i = 0; i < s; i++) {
                for (int64_t head = 0; head < stub::kHeads; head++)
                    cache[head * places + filled + i] = stub::mix(state[static_cast<size_t>(i)]);
            }
        }
        const std::string end = std::to_string(layer) + ".value";
        const auto *cache = static_cast<const uint64_t *>(places_["present." + end]) + b * stub::kHeads * places;
        for (int64_t i = 0; i < s; i++) {
            uint64_t sum = 0;
            for (int64_t j = 0; j < places; j++) {
                if (j > filled + i || (window > 0 && j <= filled + i - window)) continue;
                if (cache[j] != cache[places + j]) return false;  // the heads were not moved alike
                sum += cache[j];
            }
            state[static_cast<size_t>(i)] = stub::mix(state[static_cast<size_t>(i)] + sum);
        }
        return true;
    }

    const stub::Plan plan_;
    int32_t profile_ = -1;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, void *> places_;
};

class ICudaEngine {
public:
    explicit ICudaEngine(const stub::Plan &plan) : plan_(plan) {}
    int32_t getNbIOTensors() const noexcept { return plan_.mixed() ? 2 : 1; }
    const char *getIOTensorName(int32_t index) const noexcept {
        return index == 0 ? "cache_lengths" : "window_cache_lengths";
    }
    DataType getTensorDataType(const char *name) const noexcept {
        return std::string(name) == "logits" ? DataType::kFLOAT : DataType::kHALF;
    }
    Dims getTensorShape(const char *name) const noexcept {
        const size_t layer = std::stoul(std::string(name).substr(std::string("past_key_values.").size()));
        return {4, {-1, stub::kHeads, plan_.places(layer), stub::kHeadSize}};
    }
    int32_t getNbOptimizationProfiles() const noexcept { return 2; }
    Dims getProfileShape(const char *, int32_t profile, OptProfileSelector which) const noexcept {
        return which == OptProfileSelector::kMAX ? Dims{2, {plan_.batch, plan_.most(profile)}} : Dims{2, {1, 1}};
    }
    IExecutionContext *createExecutionContext() noexcept { return new IExecutionContext(plan_); }

private:
    const stub::Plan plan_;
};

class IRuntime {
public:
    ICudaEngine *deserializeCudaEngine(const void *blob, size_t size) noexcept {
        std::istringstream words(std::string(static_cast<const char *>(blob), size));
        stub::Plan plan;
        words >> plan.vocabulary >> plan.capacity >> plan.window_capacity >> plan.batch >> plan.chunk;
        for (int64_t window = 0; words >> window;) plan.windows.push_back(window);
        return plan.windows.empty() ? nullptr : new ICudaEngine(plan);
    }
};

inline IRuntime *createInferRuntime(ILogger &) noexcept { return new IRuntime; }

}  // namespace nvinfer1

inline int32_t getInferLibMajorVersion() noexcept { return 10; }
inline int32_t getInferLibMinorVersion() noexcept { return 13; }
inline int32_t getInferLibPatchVersion() noexcept { return 3; }
inline int32_t getInferLibBuildVersion() noexcept { return 9; }
