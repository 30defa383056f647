// Text to tokens and back through openvino-tokenizers' extension: the graphs that lie beside the model's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include <openvino/openvino.hpp>

namespace alize::backends {

// Any thread. A graph is compiled when it is first needed.
class Tokenizer {
public:
    // `library`: the extension; "" = $ALIZE_TOKENIZERS, else beside this back-end, else where it was built.
    Tokenizer(std::string folder, std::string library) : folder_(std::move(folder)), library_(std::move(library)) {}

    std::vector<int64_t> encode(std::string_view text, bool special_tokens);
    std::string decode(const int64_t *tokens, size_t count, bool skip_special_tokens);

private:
    struct Graph {
        std::mutex mutex;
        ov::InferRequest request;
    };
    ov::InferRequest &ready(Graph &graph, const char *file, bool special);
    ov::Core &core();

    const std::string folder_, library_;
    std::mutex mutex_;
    std::unique_ptr<ov::Core> core_;
    std::array<Graph, 2> encoders_, decoders_;  // [whether special tokens are added], [whether they are left out]
};

}  // namespace alize::backends
