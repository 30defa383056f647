// The table of libalize_openvino.so.
#include <algorithm>
#include <cstdlib>

#include "../guard.hpp"
#include "engine.hpp"

namespace alize::backends {
namespace {

OpenVinoEngine &engine_of(void *engine) { return *static_cast<OpenVinoEngine *>(engine); }
OpenVinoRunner &runner_of(void *runner) { return *static_cast<OpenVinoRunner *>(runner); }

int32_t list_devices(alize_backend_text each, void *user, alize_backend_error *error) {
    return guarded(
        error,
        [&] {
            for (const std::string &device : devices()) each(user, device.data(), device.size());
        },
        ALIZE_BACKEND_UNAVAILABLE);
}

int32_t fingerprint(const char *device, alize_backend_pair each, void *user, alize_backend_error *error) {
    return guarded(error, [&] {
        each(user, "backend", "openvino");
        each(user, "version", engine_version().c_str());
        each(user, "device", device);
        each(user, "name", device_name(device).c_str());
    });
}

int32_t open(const alize_backend_model *model, void **engine, alize_backend_error *error) {
    return guarded(
        error, [&] { *engine = new OpenVinoEngine(*model); }, ALIZE_ARTIFACT);
}

int32_t make_runner(void *engine, int64_t batch, void **runner, alize_backend_error *error) {
    return guarded(error, [&] { *runner = new OpenVinoRunner(engine_of(engine), batch); });
}

int32_t step(void *runner, const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
             int64_t keep, float *logits, alize_backend_error *error) {
    return guarded(error, [&] { runner_of(runner).step(tokens, s, lengths, positions, keep, logits); });
}

int32_t drop_last(void *runner, int64_t n, alize_backend_error *error) {
    return guarded(error, [&] { runner_of(runner).drop_last(n); });
}

int32_t evict(void *runner, int64_t keep, alize_backend_error *error) {
    return guarded(error, [&] { runner_of(runner).evict(keep); });
}

int32_t reset(void *runner, alize_backend_error *error) {
    return guarded(error, [&] { runner_of(runner).reset(); });
}

void cancel(void *runner) {
    alize_backend_error ignored;  // a step that is over cannot be cancelled
    guarded(&ignored, [&] { runner_of(runner).cancel(); });
}

int32_t encode(void *engine, const char *text, size_t length, int32_t special_tokens, int64_t **tokens, size_t *count,
               alize_backend_error *error) {
    return guarded(error, [&] {
        const auto found = engine_of(engine).tokenizer.encode({text, length}, special_tokens != 0);
        *tokens = static_cast<int64_t *>(std::malloc((found.size() + 1) * sizeof(int64_t)));
        if (*tokens == nullptr) throw std::bad_alloc();
        std::copy(found.begin(), found.end(), *tokens);
        *count = found.size();
    });
}

int32_t decode(void *engine, const int64_t *tokens, size_t count, int32_t skip_special_tokens, alize_backend_text text,
               void *user, alize_backend_error *error) {
    return guarded(error, [&] {
        const int64_t vocabulary = engine_of(engine).vocab_size;
        const auto wrong = std::find_if(tokens, tokens + count, [&](int64_t id) { return id < 0 || id >= vocabulary; });
        if (wrong != tokens + count)
            throw Refusal(ALIZE_TOKEN_OUT_OF_RANGE, "token " + std::to_string(*wrong) + " is outside 0.." +
                                                        std::to_string(vocabulary - 1) +
                                                        ": decode this model's tokens only");
        const std::string found = engine_of(engine).tokenizer.decode(tokens, count, skip_special_tokens != 0);
        text(user, found.data(), found.size());
    });
}

const alize_backend kTable = {
    ALIZE_BACKEND_ABI,
    "openvino",
    list_devices,
    fingerprint,
    open,
    [](void *engine) { delete &engine_of(engine); },
    make_runner,
    step,
    drop_last,
    evict,
    [](void *runner) { return runner_of(runner).cached(); },
    reset,
    cancel,
    [](void *runner) { delete &runner_of(runner); },
    encode,
    decode,
    [](int64_t *tokens) { std::free(tokens); },
};

}  // namespace
}  // namespace alize::backends

extern "C" __attribute__((visibility("default"))) const alize_backend *alize_backend_entry(void) {
    return &alize::backends::kTable;
}
