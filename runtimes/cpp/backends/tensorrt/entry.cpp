// The table of libalize_tensorrt.so and libalize_tensorrt-rtx.so. It has no tokenizer: tokens go in and come out.
#include "../guard.hpp"
#include "engine.hpp"

namespace alize::backends {
namespace {

TensorRtEngine &engine_of(void *engine) { return *static_cast<TensorRtEngine *>(engine); }
TensorRtRunner &runner_of(void *runner) { return *static_cast<TensorRtRunner *>(runner); }

int32_t list_devices(alize_backend_text each, void *user, alize_backend_error *error) {
    return guarded(error, [&] {
        for (const std::string &device : devices()) each(user, device.data(), device.size());
    });
}

int32_t fingerprint(const char *device, alize_backend_pair each, void *user, alize_backend_error *error) {
    return guarded(error, [&] {
        each(user, "backend", ALIZE_TENSORRT_NAME);
        each(user, "version", engine_version().c_str());
        each(user, "device", device);
        each(user, "name", gpu_name().c_str());
        each(user, "sm", std::to_string(gpu_sm()).c_str());
        each(user, "driver", std::to_string(driver_version()).c_str());
    });
}

int32_t open(const alize_backend_model *model, void **engine, alize_backend_error *error) {
    return guarded(
        error, [&] { *engine = new TensorRtEngine(*model); }, ALIZE_ARTIFACT);
}

int32_t make_runner(void *engine, int64_t batch, void **runner, alize_backend_error *error) {
    return guarded(error, [&] { *runner = new TensorRtRunner(engine_of(engine), batch); });
}

int32_t step(void *runner, const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
             int64_t keep, float *logits, alize_backend_error *error) {
    return guarded(error, [&] { runner_of(runner).step(tokens, s, lengths, positions, keep, logits); });
}

const alize_backend kTable = {
    ALIZE_BACKEND_ABI,
    ALIZE_TENSORRT_NAME,
    list_devices,
    fingerprint,
    open,
    [](void *engine) { delete &engine_of(engine); },
    make_runner,
    step,
    [](void *runner, int64_t n, alize_backend_error *error) {
        return guarded(error, [&] { runner_of(runner).drop_last(n); });
    },
    [](void *runner, int64_t keep, alize_backend_error *error) {
        return guarded(error, [&] { runner_of(runner).evict(keep); });
    },
    [](void *runner) { return runner_of(runner).cached(); },
    [](void *runner, alize_backend_error *error) { return guarded(error, [&] { runner_of(runner).reset(); }); },
    nullptr,  // a step is short: a session stops between two of them
    [](void *runner) { delete &runner_of(runner); },
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace
}  // namespace alize::backends

extern "C" __attribute__((visibility("default"))) const alize_backend *alize_backend_entry(void) {
    return &alize::backends::kTable;
}
