#include "engine.hpp"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "../guard.hpp"

namespace alize::backends {
namespace {

using nvinfer1::Dims;

constexpr const char *kLengths = "cache_lengths", *kWindowLengths = "window_cache_lengths";

class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char *message) noexcept override {
        if (severity == Severity::kERROR || severity == Severity::kINTERNAL_ERROR)
            std::fprintf(stderr, "alize: tensorrt: %s\n", message);
    }
};

Logger &logger() {
    static Logger one;
    return one;
}

int attribute(cudaDeviceAttr which) {
    int found = 0;
    check(cudaDeviceGetAttribute(&found, which, 0), "cudaDeviceGetAttribute");
    return found;
}

std::string read(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), {}};
    if (!file || bytes.empty())
        throw Refusal(ALIZE_ARTIFACT, path + " is not there: build the artifact for this GPU's compute capability too");
    return bytes;
}

size_t bytes_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
            return 4;
        case nvinfer1::DataType::kHALF:
        case nvinfer1::DataType::kBF16:
            return 2;
        default:
            throw Refusal(ALIZE_ARTIFACT, "the engine's cache holds a type that is none of float32, float16, bfloat16");
    }
}

Dims dims(const std::vector<int64_t> &shape) {
    Dims found = {};
    found.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), found.d);
    return found;
}

CacheShape cache_shape(const nvinfer1::ICudaEngine &engine, int64_t layer, const char *part, bool windowed) {
    const std::string end = std::to_string(layer) + "." + part;
    CacheShape found = {"past_key_values." + end, "present." + end, windowed, 0, 0, 0};
    const Dims shape = engine.getTensorShape(found.past.c_str());  // [-1,K,C,D]
    if (shape.nbDims != 4 || shape.d[1] < 1 || shape.d[2] < 1 || shape.d[3] < 1)
        throw Refusal(ALIZE_ARTIFACT, "the engine has no input " + found.past + " of a fixed capacity: build it again");
    found.capacity = shape.d[2];
    found.heads = static_cast<size_t>(shape.d[1]);
    found.slot = static_cast<size_t>(shape.d[3]) * bytes_of(engine.getTensorDataType(found.past.c_str()));
    return found;
}

}  // namespace

std::vector<std::string> devices() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0 ? std::vector<std::string>{"gpu"}
                                                                  : std::vector<std::string>();
}

std::string gpu_name() {
    cudaDeviceProp found;
    check(cudaGetDeviceProperties(&found, 0), "cudaGetDeviceProperties");
    return found.name;
}

int gpu_sm() {
    return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
}

int driver_version() {
    int found = 0;
    check(cudaDriverGetVersion(&found), "cudaDriverGetVersion");
    return found;
}

std::string engine_version() {  // as the Python package says it: both keep one device's state in one folder
    std::string version = std::to_string(getInferLibMajorVersion());
    for (const int32_t part : {getInferLibMinorVersion(), getInferLibPatchVersion(), getInferLibBuildVersion()})
        version += "." + std::to_string(part);
    return version;
}

TensorRtEngine::TensorRtEngine(const alize_backend_model &model)
    : vocab_size(model.vocab_size), runtime(nvinfer1::createInferRuntime(logger())) {
    const std::string path =
        std::string(model.folder) + "/engine.sm" + std::to_string(gpu_sm()) + ".plan";  // nvidia.py
    const std::string plan = read(path);
    if (runtime == nullptr)
        throw Refusal(ALIZE_BACKEND_UNAVAILABLE, "TensorRT's runtime cannot start: is there a driver?");
    engine.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (engine == nullptr)
        throw Refusal(ALIZE_ARTIFACT,
                      path + ": TensorRT " + engine_version() + " cannot read it: build it with this version");
    for (int64_t layer = 0; layer < model.layers; layer++) {
        for (const char *part : {"key", "value"})
            caches.push_back(cache_shape(*engine, layer, part, model.windows[layer] > 0));
    }
    if (engine->getTensorDataType("logits") != nvinfer1::DataType::kFLOAT)
        throw Refusal(ALIZE_ARTIFACT, path + ": its logits are not float32: build it again");
}

int TensorRtEngine::profile(int64_t rows, int64_t tokens) const {
    for (int one = 0; one < engine->getNbOptimizationProfiles(); one++) {
        const Dims least = engine->getProfileShape("input_ids", one, nvinfer1::OptProfileSelector::kMIN);
        const Dims most = engine->getProfileShape("input_ids", one, nvinfer1::OptProfileSelector::kMAX);
        if (least.d[0] <= rows && rows <= most.d[0] && least.d[1] <= tokens && tokens <= most.d[1]) return one;
    }
    throw Refusal(ALIZE_SESSION, "the engine was not built for " + std::to_string(rows) + " rows of " +
                                     std::to_string(tokens) + " tokens: open a smaller session, or build it for more");
}

bool TensorRtEngine::has(const char *input) const {
    for (int one = 0; one < engine->getNbIOTensors(); one++) {
        if (std::string(engine->getIOTensorName(one)) == input) return true;
    }
    return false;
}

TensorRtRunner::TensorRtRunner(TensorRtEngine &engine, int64_t batch)
    : engine_(engine),
      batch_(static_cast<size_t>(batch)),
      context_(engine.engine->createExecutionContext()),
      full_(batch_),
      windowed_(batch_) {
    if (context_ == nullptr) throw std::runtime_error("TensorRT cannot make a context: is the GPU's memory full?");
    engine.profile(batch, 1);
    for (const CacheShape &shape : engine.caches) {
        (shape.windowed ? any_windowed_ : any_full_) = true;
        const size_t bytes = batch_ * shape.row();
        caches_.push_back({shape, DeviceMemory(bytes)});
        // What was never written is masked, but must be finite all the same: 0 times NaN is NaN.
        check(cudaMemsetAsync(caches_.back().memory.data(), 0, bytes, stream_.handle()), "cudaMemsetAsync");
    }
}

// A row's padding is written behind its tokens. Where it does not fit each row runs by itself, without any.
bool TensorRtRunner::padding_fits(int64_t s) const {
    return std::all_of(caches_.begin(), caches_.end(), [&](const Cache &cache) {
        return *std::max_element(filled(cache).begin(), filled(cache).end()) + s <= cache.shape.capacity;
    });
}

// Session sees to layers with a window; the others may be built for fewer tokens than the model was trained for.
void TensorRtRunner::check_room(const int64_t *lengths) const {
    for (const Cache &cache : caches_) {
        for (size_t b = 0; b < batch_; b++) {
            const int64_t wanted = filled(cache)[b] + lengths[b];
            if (wanted > cache.shape.capacity)
                throw Refusal(ALIZE_SESSION,
                              std::to_string(wanted) + " tokens are more than the " +
                                  std::to_string(cache.shape.capacity) +
                                  " that this engine's caches hold: reset() the session, or build with a larger "
                                  "--capacity");
        }
    }
}

void TensorRtRunner::step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
                          int64_t keep, float *logits) {
    const auto rows = static_cast<int64_t>(batch_);
    check_room(lengths);
    if (padding_fits(s)) {
        run(0, rows, tokens, s, lengths, positions, keep, logits);
    } else {
        for (int64_t b = 0; b < rows; b++) {
            const int64_t kept = std::min(keep, lengths[b]);  // an engine gives no more logits than it reads tokens
            float *out = logits + (b * keep + keep - kept) * engine_.vocab_size;
            if (kept > 0) run(b, 1, tokens + b * s, lengths[b], lengths + b, positions + b, kept, out);
        }
    }
    for (size_t b = 0; b < batch_; b++) full_[b] += lengths[b], windowed_[b] += lengths[b];
}

void TensorRtRunner::run(int64_t first, int64_t rows, const int64_t *tokens, int64_t s, const int64_t *lengths,
                         const int64_t *positions, int64_t keep, float *logits) {
    std::vector<int64_t> places, index, full, windowed;
    for (int64_t b = 0; b < rows; b++) {
        for (int64_t i = 0; i < s; i++) places.push_back(positions[b] + i);
        // What a short row lacks is never read.
        for (int64_t i = 0; i < keep; i++) index.push_back(std::max<int64_t>(lengths[b] - keep + i, 0));
        full.push_back(full_[static_cast<size_t>(first + b)]);
        windowed.push_back(windowed_[static_cast<size_t>(first + b)]);
    }
    choose_profile(rows, s);
    feed("input_ids", {tokens, tokens + rows * s}, {rows, s}, tokens_);
    feed("position_ids", places, {rows, s}, positions_);
    feed("logits_index", index, {rows, keep}, index_);
    feed(kLengths, any_full_ ? full : windowed, {rows}, lengths_);
    if (engine_.has(kWindowLengths)) feed(kWindowLengths, windowed, {rows}, window_lengths_);
    bind_caches(first, rows);
    const size_t bytes = static_cast<size_t>(rows * keep * engine_.vocab_size) * sizeof(float);
    if (!context_->setTensorAddress("logits", logits_.reserve(bytes)) || !context_->enqueueV3(stream_.handle()))
        throw std::runtime_error("TensorRT could not run a step: stderr says why");
    stream_.copy(logits, logits_.data(), bytes, cudaMemcpyDeviceToHost);
    stream_.wait();
}

void TensorRtRunner::choose_profile(int64_t rows, int64_t s) {
    const int wanted = engine_.profile(rows, s);
    if (wanted == profile_) return;
    if (!context_->setOptimizationProfileAsync(wanted, stream_.handle()))
        throw std::runtime_error("TensorRT refuses its optimisation profile " + std::to_string(wanted));
    profile_ = wanted;
}

void TensorRtRunner::feed(const char *name, const std::vector<int64_t> &values, const std::vector<int64_t> &shape,
                          DeviceMemory &on) {
    const size_t bytes = values.size() * sizeof(int64_t);
    void *place = on.reserve(bytes);
    check(cudaMemcpy(place, values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");  // `values` goes away
    if (!context_->setInputShape(name, dims(shape)) || !context_->setTensorAddress(name, place))
        throw std::runtime_error(std::string("TensorRT refuses the shape of input ") + name);
}

// TensorRT writes what is new into the cache itself: past and present are one place.
void TensorRtRunner::bind_caches(int64_t first, int64_t rows) {
    for (const Cache &cache : caches_) {
        const CacheShape &shape = cache.shape;
        char *place = cache.memory.data() + static_cast<size_t>(first) * shape.row();
        const Dims past = engine_.engine->getTensorShape(shape.past.c_str());
        if (!context_->setInputShape(shape.past.c_str(), dims({rows, past.d[1], past.d[2], past.d[3]})) ||
            !context_->setTensorAddress(shape.past.c_str(), place) ||
            !context_->setTensorAddress(shape.present.c_str(), place))
            throw std::runtime_error("TensorRT refuses the cache " + shape.past);
    }
}

void TensorRtRunner::drop_last(int64_t n) {
    for (size_t b = 0; b < batch_; b++) full_[b] -= n, windowed_[b] -= n;
}

void TensorRtRunner::evict(int64_t keep) {
    for (const Cache &cache : caches_) {
        const CacheShape &shape = cache.shape;
        for (size_t b = 0; b < batch_ && shape.windowed; b++) {
            const size_t kept = static_cast<size_t>(std::min(windowed_[b], keep)) * shape.slot;
            const size_t from = static_cast<size_t>(windowed_[b]) * shape.slot - kept;
            const size_t pitch = static_cast<size_t>(shape.capacity) * shape.slot;
            if (from == 0 || kept == 0) continue;
            char *row = cache.memory.data() + b * shape.row(), *beside = moving_.reserve(shape.row());
            const auto copy = [&](char *to, size_t to_pitch, const char *source, size_t source_pitch) {
                check(cudaMemcpy2DAsync(to, to_pitch, source, source_pitch, kept, shape.heads, cudaMemcpyDeviceToDevice,
                                        stream_.handle()),
                      "cudaMemcpy2DAsync");
            };
            copy(beside, kept, row + from, pitch);  // both places may overlap
            copy(row, pitch, beside, kept);
        }
    }
    for (int64_t &one : windowed_) one = std::min(one, keep);
}

int64_t TensorRtRunner::cached() const {
    const Filled &counted = any_windowed_ ? windowed_ : full_;
    return *std::max_element(counted.begin(), counted.end());
}

void TensorRtRunner::reset() {
    std::fill(full_.begin(), full_.end(), 0);
    std::fill(windowed_.begin(), windowed_.end(), 0);
}

}  // namespace alize::backends
