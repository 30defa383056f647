#include "engine.hpp"

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include "../guard.hpp"
#include "paging.hpp"
#include "stateful.hpp"
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

using Options = std::map<std::string, alize_backend_option>;

Options options_of(const alize_backend_model &model) {
    Options found;
    for (size_t i = 0; i < model.option_count; i++) found[model.options[i].name] = model.options[i];
    return found;
}

// OpenVINO's names for a configuration's options; see compile_properties in runtimes/openvino_runner.py. `attention`
// and `kernels` are none: they decide which graph is compiled.
ov::AnyMap properties(const alize_backend_model &model) {
    Options options = options_of(model);
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

}  // namespace

bool asks_for(std::span<const alize_backend_option> options, std::string_view option, std::string_view value) {
    return std::any_of(options.begin(), options.end(), [&](const alize_backend_option &one) {
        return one.name == option && one.kind == 's' && one.text == value;
    });
}

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
    : vocab_size(model.vocab_size),
      tokenizer(model.folder, model.tokenizers_library == nullptr ? "" : model.tokenizers_library),
      windows_(model.windows, model.windows + model.layers),
      experts_(model.experts) {
    const std::string path = std::string(model.folder) + "/" + kModelFile;
    try {
        compile(path, model);
    } catch (const Refusal &) {
        throw;
    } catch (const std::exception &error) {
        throw Refusal(ALIZE_ARTIFACT, path + ": openvino " + engine_version() + " cannot compile it: " + error.what());
    }
}

void OpenVinoEngine::compile(const std::string &path, const alize_backend_model &model) {
    const std::span options(model.options, model.option_count);
    const bool paged = asks_for(options, "attention", "paged");
    ov::Core core;
    const auto graph = core.read_model(path);
    if (paged)
        page(graph, model);
    else
        slice_before_head(*graph);
    if (paged) attention_ = use_attention(*graph, model, processor_name());
    if (asks_for(options, "kernels", "alize")) read_in_place_ = use_kernels(*graph, processor_name());
    if (model.experts > 0) add_expert_bias(*graph, model);
    compiled_ = core.compile_model(graph, engine_name(model.device), properties(model));
    if (paged) {
        paged_ = std::make_unique<PagedEngine>(compiled_, model, attention_.get());
        paged_->warm_up(model);
    } else if (model.experts > 0) {
        warm_up(compiled_, model);
    }
}

std::unique_ptr<OpenVinoRunner> OpenVinoEngine::runner(int64_t batch) {
    if (paged_ != nullptr) return std::make_unique<PagedRunner>(*paged_, batch);
    return std::make_unique<StatefulRunner>(compiled_.create_infer_request(), windows_, vocab_size, experts_, batch);
}

}  // namespace alize::backends
