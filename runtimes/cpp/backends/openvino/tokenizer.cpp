#include "tokenizer.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include <openvino/op/constant.hpp>

#include "../guard.hpp"

namespace alize::backends {
namespace {

constexpr const char *kEncoder = "openvino_tokenizer.xml", *kDecoder = "openvino_detokenizer.xml";
constexpr const char *kLibrary = "libopenvino_tokenizers.so";

std::string find_library(const std::string &given) {
    if (!given.empty()) return given;
    if (const char *named = std::getenv("ALIZE_TOKENIZERS"); named != nullptr && *named != '\0') return named;
    Dl_info info;
    if (::dladdr(reinterpret_cast<const void *>(&find_library), &info) != 0 && info.dli_fname != nullptr) {
        const auto beside = std::filesystem::path(info.dli_fname).parent_path() / kLibrary;
        std::error_code ignored;
        if (std::filesystem::exists(beside, ignored)) return beside.string();
    }
    return ALIZE_TOKENIZERS_DEFAULT;
}

bool is_constant(const ov::Output<ov::Node> &value) {
    return std::dynamic_pointer_cast<ov::op::v0::Constant>(value.get_node_shared_ptr()) != nullptr;
}

// CombineSegments joins triples (begins, ends, ids) and a last input; a triple of constants is a special token around
// the text, and is empty where it ends at its beginning.
void leave_out_special_tokens(ov::Model &model) {
    for (const auto &node : model.get_ops()) {
        if (std::string(node->get_type_name()) != "CombineSegments") continue;
        for (size_t i = 0; i + 2 < node->get_input_size(); i += 3) {
            if (is_constant(node->input_value(i)) && is_constant(node->input_value(i + 1)))
                node->input(i + 1).replace_source_output(node->input_value(i));
        }
    }
}

// VocabDecoder's input 4 lists the ids that it writes nothing for.
void show_special_tokens(ov::Model &model) {
    for (const auto &node : model.get_ops()) {
        if (std::string(node->get_type_name()) != "VocabDecoder" || node->get_input_size() < 5) continue;
        const auto none = ov::op::v0::Constant::create(node->get_input_element_type(4), {0}, std::vector<int32_t>());
        node->input(4).replace_source_output(none->output(0));
    }
}

}  // namespace

ov::Core &Tokenizer::core() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (core_ == nullptr) {
        const std::string library = find_library(library_);
        auto fresh = std::make_unique<ov::Core>();
        try {
            fresh->add_extension(library);
        } catch (const std::exception &error) {
            throw Refusal(ALIZE_BACKEND_UNAVAILABLE, "openvino-tokenizers cannot be used here (" + library + ": " +
                                                         error.what() + "): put " + kLibrary +
                                                         " beside the back-end, or set ALIZE_TOKENIZERS");
        }
        core_ = std::move(fresh);
    }
    return *core_;
}

ov::InferRequest &Tokenizer::ready(Graph &graph, const char *file, bool special) {
    if (graph.request) return graph.request;
    const std::string path = folder_ + "/" + file;
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored))
        throw Refusal(ALIZE_ARTIFACT, folder_ + " has no " + file +
                                          ": build it from a checkpoint that has a tokenizer.json, or pass token ids");
    ov::Core &engine = core();
    try {
        const auto model = engine.read_model(path);
        if (file == kEncoder && !special) leave_out_special_tokens(*model);
        if (file == kDecoder && !special) show_special_tokens(*model);
        graph.request = engine.compile_model(model, "CPU", {{"INFERENCE_NUM_THREADS", 1}}).create_infer_request();
    } catch (const std::exception &error) {
        throw Refusal(ALIZE_ARTIFACT, path + " cannot be compiled: " + error.what());
    }
    return graph.request;
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool special_tokens) {
    if (text.empty() && !special_tokens) return {};
    Graph &graph = encoders_[special_tokens];
    const std::lock_guard<std::mutex> lock(graph.mutex);
    ov::InferRequest &request = ready(graph, kEncoder, special_tokens);
    ov::Tensor input(ov::element::string, {1});
    input.data<std::string>()[0] = text;
    request.set_input_tensor(input);
    request.infer();
    const ov::Tensor ids = request.get_tensor("input_ids");
    const auto *first = ids.data<const int64_t>();
    return {first, first + ids.get_size()};
}

std::string Tokenizer::decode(const int64_t *tokens, size_t count, bool skip_special_tokens) {
    if (count == 0) return "";
    Graph &graph = decoders_[skip_special_tokens];
    const std::lock_guard<std::mutex> lock(graph.mutex);
    ov::InferRequest &request = ready(graph, kDecoder, skip_special_tokens);
    request.set_input_tensor(ov::Tensor(ov::element::i64, {1, count}, const_cast<int64_t *>(tokens)));
    request.infer();
    return request.get_output_tensor().data<const std::string>()[0];
}

}  // namespace alize::backends
