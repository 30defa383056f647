// Session: B rows of tokens on one engine, appended to and rewound together. runtimes/session.py explains the cache by
// example.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"

namespace alize {

// How a session cuts its work: `chunk` tokens a step at most, `slack` cached positions beyond the W-1 needed.
struct Limits {
    int64_t chunk, slack;
    std::optional<int64_t> capacity;  // the most positions that a sliding-window layer ever caches
};
// A configuration's options `chunk` and `slack`, or the defaults. Raises ALIZE_USAGE.
Limits session_limits(const ModelInfo &info, const Options &options);

class Session {
public:
    // `engine` keeps the weights alive.
    Session(std::shared_ptr<const Engine> engine, std::unique_ptr<Runner> runner, ModelInfo info, int64_t batch,
            Limits limits);

    int64_t batch() const { return batch_; }
    int64_t vocabulary() const { return info_.vocab_size; }
    const Limits &limits() const { return limits_; }

    // tokens[B,S], lengths[B] or nullptr -> logits float32[B,keep,V] (keep 0: [B,S,V], 0 where a row is padding).
    // `logits` may be nullptr. A refused call changes nothing.
    void append(const int64_t *tokens, int64_t s, const int64_t *lengths, int64_t keep, float *logits, size_t count);
    void rewind(int64_t n);
    void reset();
    void close();
    void cancel();
    int64_t rewindable();
    std::vector<int64_t> positions();
    std::optional<int64_t> room();  // none = endless

    // One thread inside at a time; a second one is refused. Nested in the same thread: generation appends.
    class Entered {
    public:
        explicit Entered(Session &session, bool closing = false);
        ~Entered();
        Entered(const Entered &) = delete;
        Entered &operator=(const Entered &) = delete;

    private:
        Session &session_;
        bool outermost_;
    };
    bool cancelled() const { return cancelled_; }
    // While on, `cancel` waits for the step that is running, which is one token, and so leaves the session whole.
    void decoding(bool on);

private:
    class Tearing;
    void check_whole() const;
    std::vector<int64_t> check(const int64_t *tokens, int64_t s, const int64_t *lengths, int64_t keep) const;
    void check_context(const std::vector<int64_t> &counts) const;
    void check_range(const int64_t *tokens, int64_t s, const std::vector<int64_t> &counts) const;
    void append_checked(const int64_t *tokens, int64_t s, const std::vector<int64_t> &counts, int64_t keep,
                        float *logits);
    void step(const std::vector<int64_t> &tokens, const std::vector<int64_t> &lengths, int64_t keep);
    int64_t rewindable_now() const;

    std::shared_ptr<const Engine> engine_;
    std::unique_ptr<Runner> runner_;
    const ModelInfo info_;
    const int64_t batch_;
    const Limits limits_;
    const int64_t window_;
    std::vector<int64_t> positions_, cached_;
    std::vector<float> logits_;                   // [B,keep,V] of the last step
    std::atomic<const void *> inside_ = nullptr;  // the thread that is inside
    std::atomic<bool> cancelled_ = false;
    std::mutex runner_mutex_;  // held to replace runner_, and by `cancel` while it uses it
    bool decoding_ = false;    // under runner_mutex_
    bool closed_ = false, torn_ = false;
};

}  // namespace alize
