#include "engine.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <map>
#include <numeric>
#include <sstream>

#include <openvino/opsets/opset13.hpp>
#include <openvino/runtime/exception.hpp>

#include "../guard.hpp"
#include "warm_up.hpp"

namespace alize::backends {
namespace {

constexpr const char *kModelFile = "openvino_model.xml";

// Letters of ASCII only, whatever the host's locale.
char lower(char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; }

// gpu.1 -> GPU.1
std::string engine_name(std::string device) {
    for (char &c : device) c = c >= 'a' && c <= 'z' ? char(c - 32) : c;
    return device;
}

// OpenVINO's names for a configuration's options; see compile_properties in runtimes/openvino_runner.py.
ov::AnyMap properties(const alize_backend_model &model) {
    std::map<std::string, alize_backend_option> options;
    for (size_t i = 0; i < model.option_count; i++) options[model.options[i].name] = model.options[i];
    const auto text = [](const alize_backend_option &option) {
        return option.kind == 's' ? std::string(option.text) : std::to_string(option.number);
    };
    const auto truth = [](const alize_backend_option &option) {
        return option.kind == 's' ? *option.text != '\0' : option.number != 0;
    };
    ov::AnyMap found;
    if (options.count("accuracy") != 0 && truth(options["accuracy"]))
        found = {{"EXECUTION_MODE_HINT", "ACCURACY"},
                 {"INFERENCE_PRECISION_HINT", "f32"},
                 {"KV_CACHE_PRECISION", "f32"},
                 {"DYNAMIC_QUANTIZATION_GROUP_SIZE", 0}};
    if (options.count("inference_precision") != 0)
        found["INFERENCE_PRECISION_HINT"] = text(options["inference_precision"]);
    if (options.count("kv_cache_precision") != 0) found["KV_CACHE_PRECISION"] = text(options["kv_cache_precision"]);
    if (options.count("dynamic_quantization_group") != 0)
        found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = std::stoi(text(options["dynamic_quantization_group"]));
    if (options.count("threads") != 0 && truth(options["threads"]))
        found["INFERENCE_NUM_THREADS"] = std::stoi(text(options["threads"]));
    return found;
}

// Adds the input `num_logits_to_keep` int64 [1]: the head computes the last so many positions only (0 = all).
void slice_before_head(ov::Model &model) {
    using namespace ov::opset13;
    const auto head = model.output("logits").get_node()->input_value(0).get_node_shared_ptr();
    const auto keep = std::make_shared<Parameter>(ov::element::i64, ov::Shape{1});
    keep->output(0).get_tensor().add_names({"num_logits_to_keep"});
    const auto constant = [](int64_t value) { return Constant::create(ov::element::i64, {1}, {value}); };
    const auto cut = std::make_shared<Slice>(head->input_value(0), std::make_shared<Negative>(keep),
                                             constant(std::numeric_limits<int64_t>::max()), constant(1), constant(1));
    head->input(0).replace_source_output(cut->output(0));
    model.add_parameters({keep});
    model.validate_nodes_and_infer_types();
}

ov::CompiledModel compile(const alize_backend_model &model) {
    const std::string path = std::string(model.folder) + "/" + kModelFile;
    try {
        ov::Core core;
        const auto graph = core.read_model(path);
        slice_before_head(*graph);
        if (model.experts > 0) add_expert_bias(*graph, model);
        ov::CompiledModel compiled = core.compile_model(graph, engine_name(model.device), properties(model));
        if (model.experts > 0) warm_up(compiled, model);
        return compiled;
    } catch (const std::exception &error) {
        throw Refusal(ALIZE_ARTIFACT, path + ": openvino " + engine_version() + " cannot compile it: " + error.what());
    }
}

}  // namespace

std::string engine_version() { return ov::get_openvino_version().buildNumber; }

std::string processor_name() {
    std::ifstream lines("/proc/cpuinfo");
    std::map<std::string, std::string> facts;
    const auto trimmed = [](const std::string &text) {
        const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
        return first == std::string::npos ? std::string() : text.substr(first, last - first + 1);
    };
    for (std::string line; std::getline(lines, line);) {
        const size_t colon = line.find(':');
        if (colon != std::string::npos) facts[trimmed(line.substr(0, colon))] = trimmed(line.substr(colon + 1));
    }
    std::vector<std::string> flags;
    std::istringstream words(facts["flags"]);
    for (std::string flag; words >> flag;) {
        if (flag.rfind("avx", 0) == 0 || flag.rfind("amx", 0) == 0) flags.push_back(flag);
    }
    std::sort(flags.begin(), flags.end());
    std::string name = facts.count("model name") != 0 ? facts["model name"] : "x86_64";
    for (const std::string &flag : flags) name += " " + flag;
    return name;
}

std::vector<std::string> devices() {
    std::vector<std::string> found;
    for (std::string device : ov::Core().get_available_devices()) {
        const std::string kind = device.substr(0, device.find('.'));
        std::transform(device.begin(), device.end(), device.begin(), lower);
        if (kind == "CPU" || kind == "GPU") found.push_back(device);
    }
    return found;
}

std::string device_name(const std::string &device) {
    return device == "cpu" ? processor_name() : ov::Core().get_property(engine_name(device), ov::device::full_name);
}

OpenVinoEngine::OpenVinoEngine(const alize_backend_model &model)
    : compiled(compile(model)),
      windows(model.windows, model.windows + model.layers),
      vocab_size(model.vocab_size),
      experts(model.experts),
      tokenizer(model.folder, model.tokenizers_library == nullptr ? "" : model.tokenizers_library) {}

OpenVinoRunner::OpenVinoRunner(OpenVinoEngine &engine, int64_t batch)
    : request_(engine.compiled.create_infer_request()),
      batch_(static_cast<size_t>(batch)),
      vocab_size_(static_cast<size_t>(engine.vocab_size)),
      caches_(request_.query_state(), engine.windows, batch_),
      rows_(batch_),
      no_bias_(static_cast<size_t>(engine.experts), 0.0F) {
    std::iota(rows_.begin(), rows_.end(), 0);
}

void OpenVinoRunner::step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
                          int64_t keep, float *logits) {
    // The first position that some row wants logits of.
    const int64_t first = std::max<int64_t>(*std::min_element(lengths, lengths + batch_) - keep, 0);
    const ov::Tensor result = infer(tokens, s, lengths, positions, s - first);
    caches_.append(s, lengths);
    const float *from = result.data<const float>();
    const auto computed = static_cast<int64_t>(result.get_shape()[1]);
    for (size_t b = 0; b < batch_; b++) {
        for (int64_t i = 0; i < keep; i++) {
            const int64_t last =
                std::max<int64_t>(lengths[b] - keep + i - first, 0);  // what a short row lacks is never read
            const size_t row = b * static_cast<size_t>(computed) + static_cast<size_t>(last);
            std::copy_n(from + row * vocab_size_, vocab_size_,
                        logits + (b * static_cast<size_t>(keep) + static_cast<size_t>(i)) * vocab_size_);
        }
    }
}

ov::Tensor OpenVinoRunner::infer(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
                                 int64_t count) {
    const Cache &cache = caches_.longest();
    const auto width = static_cast<size_t>(s), slots = static_cast<size_t>(cache.slots());
    positions_.clear(), mask_.clear();
    for (size_t b = 0; b < batch_; b++) {
        for (int64_t i = 0; i < s; i++) positions_.push_back(positions[b] + i);
        const int64_t blank = cache.slots() - cache.filled()[b];
        for (int64_t i = 0; i < cache.slots(); i++) mask_.push_back(i >= blank);
        for (int64_t i = 0; i < s; i++) mask_.push_back(i < lengths[b]);
    }
    count_ = count;
    const auto feed = [&](const char *name, auto element, const ov::Shape &shape, const void *data) {
        request_.set_tensor(name, ov::Tensor(element, shape, const_cast<void *>(data)));
    };
    feed("input_ids", ov::element::i64, {batch_, width}, tokens);
    feed("position_ids", ov::element::i64, {batch_, width}, positions_.data());
    feed("attention_mask", ov::element::i64, {batch_, slots + width}, mask_.data());
    feed("beam_idx", ov::element::i32, {batch_}, rows_.data());
    feed("num_logits_to_keep", ov::element::i64, {1}, &count_);
    if (!no_bias_.empty()) feed(kExpertBias, ov::element::f32, {no_bias_.size()}, no_bias_.data());
    try {
        request_.infer();
    } catch (const ov::Cancelled &) {
        throw Refusal(ALIZE_CANCELLED, "this call was cancelled from another thread");
    }
    ov::Tensor result = request_.get_tensor("logits");
    const ov::Shape expected = {batch_, static_cast<size_t>(count), vocab_size_};
    if (result.get_element_type() != ov::element::f32 || result.get_shape() != expected)
        throw std::runtime_error("the engine returned logits of shape " + result.get_shape().to_string());
    return result;
}

void OpenVinoRunner::reset() {
    caches_.clear();
    request_.reset_state();
}

}  // namespace alize::backends
