// The table of libalize_openvino.so.
#include <algorithm>
#include <cstdlib>

#include "../table.hpp"
#include "engine.hpp"

namespace alize::backends {
namespace {

using E = Entries<OpenVinoEngine, OpenVinoRunner>;

int32_t list_devices(alize_backend_text each, void *user, alize_backend_error *error) {
    return guarded(
        error,
        [&] {
            for (const std::string &device : devices()) each(user, device.data(), device.size());
        },
        ALIZE_BACKEND_UNAVAILABLE);
}

int32_t runner(void *engine, int64_t batch, void **runner, alize_backend_error *error) {
    return guarded(error, [&] { *runner = E::engine_of(engine).runner(batch).release(); });
}

int32_t fingerprint(const char *device, alize_backend_pair each, void *user, alize_backend_error *error) {
    return guarded(error, [&] {
        each(user, "backend", "openvino");
        each(user, "version", engine_version().c_str());
        each(user, "device", device);
        each(user, "name", device_name(device).c_str());
    });
}

void cancel(void *runner) {
    alize_backend_error ignored;  // a step that is over cannot be cancelled
    guarded(&ignored, [&] { E::runner_of(runner).cancel(); });
}

int32_t encode(void *engine, const char *text, size_t length, int32_t special_tokens, int64_t **tokens, size_t *count,
               alize_backend_error *error) {
    return guarded(error, [&] {
        const auto found = E::engine_of(engine).tokenizer.encode({text, length}, special_tokens != 0);
        *tokens = static_cast<int64_t *>(std::malloc((found.size() + 1) * sizeof(int64_t)));
        if (*tokens == nullptr) throw std::bad_alloc();
        std::copy(found.begin(), found.end(), *tokens);
        *count = found.size();
    });
}

int32_t decode(void *engine, const int64_t *tokens, size_t count, int32_t skip_special_tokens, alize_backend_text text,
               void *user, alize_backend_error *error) {
    return guarded(error, [&] {
        const int64_t vocabulary = E::engine_of(engine).vocab_size;
        const auto wrong = std::find_if(tokens, tokens + count, [&](int64_t id) { return id < 0 || id >= vocabulary; });
        if (wrong != tokens + count)
            throw Refusal(ALIZE_TOKEN_OUT_OF_RANGE, "token " + std::to_string(*wrong) + " is outside 0.." +
                                                        std::to_string(vocabulary - 1) +
                                                        ": decode this model's tokens only");
        const std::string found = E::engine_of(engine).tokenizer.decode(tokens, count, skip_special_tokens != 0);
        text(user, found.data(), found.size());
    });
}

int32_t missing(const alize_backend_option *options, size_t count, alize_backend_text each, void *user,
                alize_backend_error *error) {
    return guarded(error, [&] {
        if (!asks_for({options, count}, "kernels", "alize")) return;
        if (const std::string why = no_kernels(processor_name()); !why.empty()) each(user, why.data(), why.size());
    });
}

const alize_backend kTable = {
    ALIZE_BACKEND_ABI,
    "openvino",
    list_devices,
    fingerprint,
    E::open,
    E::close,
    runner,
    E::step,
    E::drop_last,
    E::evict,
    E::cached,
    E::reset,
    cancel,
    E::free_runner,
    encode,
    decode,
    [](int64_t *tokens) { std::free(tokens); },
    missing,
};

}  // namespace
}  // namespace alize::backends

ALIZE_BACKEND_EXPORT
