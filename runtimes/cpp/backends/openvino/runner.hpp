// What a session is given, whichever form of the graph is behind it: the state of B rows; see Runner in
// runtimes/runner.py.
#pragma once

#include <cstdint>

namespace alize::backends {

class OpenVinoRunner {
public:
    OpenVinoRunner() = default;
    virtual ~OpenVinoRunner() = default;
    OpenVinoRunner(const OpenVinoRunner &) = delete;
    OpenVinoRunner &operator=(const OpenVinoRunner &) = delete;

    virtual void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
                      float *logits) = 0;
    virtual void drop_last(int64_t n) = 0;
    virtual void evict(int64_t keep) = 0;
    virtual int64_t cached() const = 0;
    virtual void reset() = 0;
    virtual void cancel() = 0;
};

constexpr const char *kCancelled = "this call was cancelled from another thread";

}  // namespace alize::backends
