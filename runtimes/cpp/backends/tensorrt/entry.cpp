// The table of libalize_tensorrt.so and libalize_tensorrt-rtx.so. It has no tokenizer: tokens go in and come out.
#include "../table.hpp"
#include "engine.hpp"

namespace alize::backends {
namespace {

using E = Entries<TensorRtEngine, TensorRtRunner>;

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

const alize_backend kTable = {
    ALIZE_BACKEND_ABI, ALIZE_TENSORRT_NAME,
    list_devices,      fingerprint,
    E::open,           E::close,
    E::runner,         E::step,
    E::drop_last,      E::evict,
    E::cached,         E::reset,
    nullptr,  // a step is short: a session stops between two of them
    E::free_runner,    nullptr,
    nullptr,           nullptr,
    nullptr,
};

}  // namespace
}  // namespace alize::backends

ALIZE_BACKEND_EXPORT
