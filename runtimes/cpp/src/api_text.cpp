// The C ABI of text: tokenizer, chat template, streams.
#include <cstdlib>
#include <cstring>

#include "api.hpp"

using alize::api::guarded;
using alize::api::require;

namespace {

template <typename Item>
Item *copied(const Item *items, size_t count) {
    auto *memory = static_cast<Item *>(std::malloc((count + 1) * sizeof(Item)));
    if (memory == nullptr) throw std::bad_alloc();
    if (count > 0) std::memcpy(memory, items, count * sizeof(Item));
    memory[count] = Item{};  // a text ends in 0
    return memory;
}

}  // namespace

void alize_free(void *memory) { std::free(memory); }

alize_status alize_encode(alize_model *model, const char *text, size_t length, int32_t special_tokens, int64_t **tokens,
                          size_t *count) {
    return guarded([&] {
        require("alize_encode", model, text, tokens, count);
        const std::vector<int64_t> found = model->model->encode({text, length}, special_tokens != 0);
        *tokens = copied(found.data(), found.size());
        *count = found.size();
    });
}

alize_status alize_decode(alize_model *model, const int64_t *tokens, size_t count, int32_t skip_special_tokens,
                          char **text, size_t *length) {
    return guarded([&] {
        require("alize_decode", model, text, length);
        if (count > 0) require("alize_decode", tokens);
        const std::string found = model->model->decode({tokens, tokens + count}, skip_special_tokens != 0);
        *text = copied(found.data(), found.size());
        *length = found.size();
    });
}

alize_status alize_render_chat(alize_model *model, const alize_message *messages, size_t count,
                               int32_t add_generation_prompt, char **text, size_t *length) {
    return guarded([&] {
        require("alize_render_chat", model, messages, text, length);
        std::vector<alize::Message> given;
        for (size_t i = 0; i < count; i++) {
            require("alize_render_chat", messages[i].role, messages[i].content);
            given.push_back({messages[i].role, messages[i].content});
        }
        const std::string found = model->model->render_chat(given, add_generation_prompt != 0);
        *text = copied(found.data(), found.size());
        *length = found.size();
    });
}

alize_status alize_stream_open(alize_model *model, const char *const *stop, size_t stop_count, alize_stream **stream) {
    return guarded([&] {
        require("alize_stream_open", model, stream);
        if (stop_count > 0) require("alize_stream_open", stop);
        std::vector<std::string> stops;
        for (size_t i = 0; i < stop_count; i++) {
            require("alize_stream_open", stop[i]);
            stops.emplace_back(stop[i]);
        }
        *stream = nullptr;
        *stream = new alize_stream{model->model->stream(std::move(stops)), {}};
    });
}

alize_status alize_stream_push(alize_stream *stream, int64_t token, const char **text, size_t *length) {
    return guarded([&] {
        require("alize_stream_push", stream, text, length);
        stream->text = stream->decoder.push(token);
        *text = stream->text.c_str(), *length = stream->text.size();
    });
}

alize_status alize_stream_flush(alize_stream *stream, const char **text, size_t *length) {
    return guarded([&] {
        require("alize_stream_flush", stream, text, length);
        stream->text = stream->decoder.flush();
        *text = stream->text.c_str(), *length = stream->text.size();
    });
}

alize_status alize_stream_stopped(alize_stream *stream, const char **stop) {
    return guarded([&] {
        require("alize_stream_stopped", stream, stop);
        const auto &found = stream->decoder.stopped();
        *stop = found ? found->c_str() : nullptr;
    });
}

void alize_stream_free(alize_stream *stream) {
    guarded([&] { delete stream; });
}
