// alize.hpp: alize.h for C++20. Handles that close themselves, spans, exceptions; header only.
//
//     alize::Model model = alize::Model::load("artifact");
//     alize::Session session = model.session();
//     alize::Stream stream = model.stream();
//     session.generate(model.encode("Hello"), {.max_new_tokens = 64},
//                      [&](int64_t token) { std::cout << stream.push(token) << std::flush; return true; });
//     std::cout << stream.flush() << '\n';
#ifndef ALIZE_ALIZE_HPP
#define ALIZE_ALIZE_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "alize/alize.h"

namespace alize {

// What a call of alize.h refused. what() states the value, the limit and the remedy.
class error : public std::runtime_error {
public:
    explicit error(alize_status status) : std::runtime_error(alize_error_message()), status_(status) {}
    alize_status status() const { return status_; }
    const char *name() const { return alize_status_name(status_); }
    int exit_code() const { return status_ / 10; }

private:
    alize_status status_;
};

namespace detail {

inline void check(alize_status status) {
    if (status != ALIZE_OK) throw error(status);
}

inline const char *text_or_null(const std::string &text) { return text.empty() ? nullptr : text.c_str(); }

template <typename Item>
struct Freed {
    void operator()(Item *memory) const { alize_free(memory); }
};

// Runs a callback of the host's behind the C boundary: what it throws is carried over and thrown again.
template <typename Body>
int carried(std::exception_ptr &thrown, Body body) noexcept {
    try {
        return body() ? 0 : 1;
    } catch (...) {
        thrown = std::current_exception();
        return 1;
    }
}

}  // namespace detail

struct LoadOptions {
    std::string device = {}, expect = {}, configuration = {}, backend_path = {}, tokenizers_library = {};
    bool verify_full = false, unsafe_skip_validation = false;
};

struct GenerationOptions {
    double temperature = 0.0;  // 0 = greedy
    int64_t top_k = 0;
    double top_p = 1.0, min_p = 0.0;
    uint64_t seed = 0;
    int64_t max_new_tokens = 256;
    std::vector<int64_t> stop_token_ids = {};

    alize_generation_options c() const {
        return {sizeof(alize_generation_options),
                temperature,
                top_k,
                top_p,
                min_p,
                seed,
                max_new_tokens,
                stop_token_ids.data(),
                stop_token_ids.size()};
    }
};

struct Message {
    std::string role, content;
};

// B rows of tokens; one thread at a time, cancel() excepted.
class Session {
public:
    Session(alize_model *model, int64_t batch, int64_t vocab_size) : batch_(batch), vocab_size_(vocab_size) {
        alize_session *handle = nullptr;
        detail::check(alize_session_open(model, batch, &handle));
        handle_.reset(handle);
    }

    int64_t batch() const { return batch_; }
    // tokens[B,S] -> logits float32[B,keep,V] of the last `keep` tokens of each row (0 = all S); lengths[B] or none.
    std::vector<float> append(std::span<const int64_t> tokens, int64_t keep = 1,
                              std::span<const int64_t> lengths = {}) {
        const int64_t s = columns(tokens, lengths);
        // What the library would refuse must not be allocated for first.
        const int64_t kept = keep < 0 || keep > s ? 0 : keep == 0 ? s : keep;
        std::vector<float> logits(static_cast<size_t>(batch_ * kept * vocab_size_));
        detail::check(alize_session_append(handle_.get(), tokens.data(), s, lengths.empty() ? nullptr : lengths.data(),
                                           keep, logits.data(), logits.size()));
        return logits;
    }
    void rewind(int64_t n) { detail::check(alize_session_rewind(handle_.get(), n)); }
    void reset() { detail::check(alize_session_reset(handle_.get())); }
    void close() { detail::check(alize_session_close(handle_.get())); }
    void cancel() { detail::check(alize_session_cancel(handle_.get())); }  // from any thread

    int64_t rewindable() const {
        int64_t n = 0;
        detail::check(alize_session_rewindable(handle_.get(), &n));
        return n;
    }
    std::vector<int64_t> positions() const {
        std::vector<int64_t> found(static_cast<size_t>(batch_));
        detail::check(alize_session_positions(handle_.get(), found.data(), found.size()));
        return found;
    }
    std::optional<int64_t> room() const {  // none = endless
        int64_t found = 0;
        detail::check(alize_session_room(handle_.get(), &found));
        return found < 0 ? std::nullopt : std::optional(found);
    }

    // Appends tokens[B,S] and generates; `each` takes the next token of each row and returns whether to go on. Returns
    // how each row ended: ALIZE_STOP, ALIZE_LENGTH, ALIZE_CONTEXT, or ALIZE_RUNNING where `each` stopped it.
    std::vector<int32_t> generate_rows(std::span<const int64_t> tokens, const GenerationOptions &options,
                                       const std::function<bool(std::span<const int64_t>)> &each,
                                       std::span<const int64_t> lengths = {}) {
        struct Call {
            const std::function<bool(std::span<const int64_t>)> &each;
            size_t rows;
            std::exception_ptr thrown;
        } call = {each, static_cast<size_t>(batch_), nullptr};
        const auto on_tokens = [](const int64_t *row, void *user) {
            auto &one = *static_cast<Call *>(user);
            return detail::carried(one.thrown, [&] { return one.each({row, one.rows}); });
        };
        std::vector<int32_t> reasons(call.rows);
        const alize_generation_options given = options.c();
        const alize_status status =
            alize_generate(handle_.get(), tokens.data(), columns(tokens, lengths),
                           lengths.empty() ? nullptr : lengths.data(), &given, on_tokens, &call, reasons.data());
        if (call.thrown) std::rethrow_exception(call.thrown);
        detail::check(status);
        return reasons;
    }
    // The same for one row.
    int32_t generate(std::span<const int64_t> tokens, const GenerationOptions &options,
                     const std::function<bool(int64_t)> &each) {
        return generate_rows(tokens, options, [&](std::span<const int64_t> row) { return each(row[0]); })[0];
    }

private:
    struct Free {
        void operator()(alize_session *handle) const { alize_session_free(handle); }
    };
    int64_t columns(std::span<const int64_t> tokens, std::span<const int64_t> lengths) const {
        if (tokens.size() % static_cast<size_t>(batch_) != 0 ||
            (!lengths.empty() && lengths.size() != static_cast<size_t>(batch_)))
            throw std::invalid_argument(
                "tokens are not [B,S], or lengths are not [B]: give each of the B rows as many");
        return static_cast<int64_t>(tokens.size()) / batch_;
    }

    std::unique_ptr<alize_session, Free> handle_;
    int64_t batch_, vocab_size_;
};

// Text that grows token by token: whole characters, ended before the first stop string.
class Stream {
public:
    Stream(alize_model *model, const std::vector<std::string> &stop) {
        std::vector<const char *> stops;
        for (const std::string &one : stop) stops.push_back(one.c_str());
        alize_stream *handle = nullptr;
        detail::check(alize_stream_open(model, stops.data(), stops.size(), &handle));
        handle_.reset(handle);
    }
    std::string push(int64_t token) {
        const char *text = nullptr;
        size_t length = 0;
        detail::check(alize_stream_push(handle_.get(), token, &text, &length));
        return {text, length};
    }
    std::string flush() {
        const char *text = nullptr;
        size_t length = 0;
        detail::check(alize_stream_flush(handle_.get(), &text, &length));
        return {text, length};
    }
    std::optional<std::string> stopped() const {
        const char *stop = nullptr;
        detail::check(alize_stream_stopped(handle_.get(), &stop));
        return stop == nullptr ? std::nullopt : std::optional<std::string>(stop);
    }

private:
    struct Free {
        void operator()(alize_stream *handle) const { alize_stream_free(handle); }
    };
    std::unique_ptr<alize_stream, Free> handle_;
};

// Weights and compiled graph, shared by its sessions. Any thread.
class Model {
public:
    static Model load(const std::string &folder, const LoadOptions &options = {}) {
        const alize_load_options given = {sizeof(alize_load_options),
                                          detail::text_or_null(options.device),
                                          detail::text_or_null(options.expect),
                                          detail::text_or_null(options.configuration),
                                          detail::text_or_null(options.backend_path),
                                          detail::text_or_null(options.tokenizers_library),
                                          options.verify_full,
                                          options.unsafe_skip_validation};
        alize_model *handle = nullptr;
        detail::check(alize_load(folder.c_str(), &given, &handle));
        return Model(handle);
    }

    const alize_info &info() const { return info_; }  // its texts live as long as the model
    std::vector<int64_t> eos_token_ids() const { return {info_.eos_token_ids, info_.eos_token_ids + info_.eos_count}; }
    Session session(int64_t batch = 1) const { return {handle_.get(), batch, info_.vocab_size}; }
    Stream stream(const std::vector<std::string> &stop = {}) const { return {handle_.get(), stop}; }
    void close() { detail::check(alize_model_close(handle_.get())); }

    std::vector<int64_t> encode(std::string_view text, bool special_tokens = true) const {
        int64_t *tokens = nullptr;
        size_t count = 0;
        detail::check(alize_encode(handle_.get(), text.data(), text.size(), special_tokens, &tokens, &count));
        const std::unique_ptr<int64_t, detail::Freed<int64_t>> owned(tokens);
        return {tokens, tokens + count};
    }
    std::string decode(std::span<const int64_t> tokens, bool skip_special_tokens = true) const {
        char *text = nullptr;
        size_t length = 0;
        detail::check(alize_decode(handle_.get(), tokens.data(), tokens.size(), skip_special_tokens, &text, &length));
        return taken(text, length);
    }
    std::string render_chat(const std::vector<Message> &messages, bool add_generation_prompt = true) const {
        std::vector<alize_message> given;
        for (const Message &one : messages) given.push_back({one.role.c_str(), one.content.c_str()});
        char *text = nullptr;
        size_t length = 0;
        detail::check(
            alize_render_chat(handle_.get(), given.data(), given.size(), add_generation_prompt, &text, &length));
        return taken(text, length);
    }
    std::vector<int64_t> encode_chat(const std::vector<Message> &messages, bool add_generation_prompt = true) const {
        return encode(render_chat(messages, add_generation_prompt), false);
    }

private:
    struct Free {
        void operator()(alize_model *handle) const { alize_model_free(handle); }
    };
    explicit Model(alize_model *handle) : handle_(handle), info_{} {
        info_.size = sizeof(alize_info);
        detail::check(alize_model_info(handle, &info_));
    }
    static std::string taken(char *text, size_t length) {
        const std::unique_ptr<char, detail::Freed<char>> owned(text);
        return {text, length};
    }

    std::unique_ptr<alize_model, Free> handle_;
    alize_info info_;
};

// The token that row `row` will have at absolute position `position` from its logits[V].
inline int64_t sample(std::span<const float> logits, uint64_t row, uint64_t position,
                      const GenerationOptions &options) {
    const alize_generation_options given = options.c();
    int64_t token = 0;
    detail::check(alize_sample(logits.data(), static_cast<int64_t>(logits.size()), row, position, &given, &token));
    return token;
}

}  // namespace alize
#endif
