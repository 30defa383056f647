// A back-end's table from its classes: each entry calls the member of its name and turns an exception into a status.
#pragma once

#include <string>

#include "guard.hpp"

namespace alize::backends {

template <typename Engine, typename Runner>
struct Entries {
    static Engine &engine_of(void *engine) { return *static_cast<Engine *>(engine); }
    static Runner &runner_of(void *runner) { return *static_cast<Runner *>(runner); }

    static int32_t open(const alize_backend_model *model, void **engine, alize_backend_error *error) {
        return guarded(
            error, [&] { *engine = new Engine(*model); }, ALIZE_ARTIFACT);
    }
    static void close(void *engine) { delete &engine_of(engine); }

    static int32_t runner(void *engine, int64_t batch, void **runner, alize_backend_error *error) {
        return guarded(error, [&] { *runner = new Runner(engine_of(engine), batch); });
    }
    static int32_t step(void *runner, const int64_t *tokens, int64_t s, const int64_t *lengths,
                        const int64_t *positions, int64_t keep, float *logits, alize_backend_error *error) {
        return guarded(error, [&] { runner_of(runner).step(tokens, s, lengths, positions, keep, logits); });
    }
    static int32_t drop_last(void *runner, int64_t n, alize_backend_error *error) {
        return guarded(error, [&] { runner_of(runner).drop_last(n); });
    }
    static int32_t evict(void *runner, int64_t keep, alize_backend_error *error) {
        return guarded(error, [&] { runner_of(runner).evict(keep); });
    }
    static int64_t cached(void *runner) { return runner_of(runner).cached(); }
    static int32_t reset(void *runner, alize_backend_error *error) {
        return guarded(error, [&] { runner_of(runner).reset(); });
    }
    static void free_runner(void *runner) { delete &runner_of(runner); }
};

}  // namespace alize::backends

// Defines the symbol ALIZE_BACKEND_ENTRY of the back-end whose table is alize::backends::kTable.
#define ALIZE_BACKEND_EXPORT                                                                           \
    extern "C" __attribute__((visibility("default"))) const alize_backend *alize_backend_entry(void) { \
        return &alize::backends::kTable;                                                               \
    }
