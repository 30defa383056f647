#include "generate.hpp"

#include <algorithm>

#include "error.hpp"

namespace alize {
namespace {

// Decoding until the end of the scope.
class Decoding {
public:
    explicit Decoding(Session &session) : session_(session) {}
    ~Decoding() { session_.decoding(false); }
    Decoding(const Decoding &) = delete;
    Decoding &operator=(const Decoding &) = delete;
    void begin() { session_.decoding(true); }

private:
    Session &session_;
};

void finish(std::vector<int32_t> &reasons, const std::vector<int64_t> &yielded, int64_t count,
            std::optional<int64_t> room, const GenerationOptions &options) {
    const auto &stops = options.stop_token_ids;
    for (size_t row = 0; row < reasons.size(); row++) {
        if (reasons[row] != ALIZE_RUNNING) continue;
        if (std::find(stops.begin(), stops.end(), yielded[row]) != stops.end()) {
            reasons[row] = ALIZE_STOP;
        } else if (count >= options.max_new_tokens) {
            reasons[row] = ALIZE_LENGTH;
        } else if (room && *room == 0) {
            reasons[row] = ALIZE_CONTEXT;
        }
    }
}

}  // namespace

std::vector<int32_t> generate(Session &session, const int64_t *tokens, int64_t s, const int64_t *lengths,
                              const GenerationOptions &options,
                              const std::function<bool(std::span<const int64_t>)> &on_tokens) {
    check_sampling(options);
    if (options.max_new_tokens < 1) fail(ALIZE_USAGE, "max_new_tokens ", options.max_new_tokens, " must be 1 or more");
    const Session::Entered entered(session);
    const auto rows = static_cast<size_t>(session.batch());
    const auto v = static_cast<size_t>(session.vocabulary());
    std::vector<int32_t> reasons(rows, ALIZE_RUNNING);
    std::vector<int64_t> drawn(rows), yielded(rows);
    std::vector<float> logits(rows * v);
    Decoding decoding(session);
    for (int64_t count = 1;; count++) {
        if (count == 1) {
            session.append(tokens, s, lengths, 1, logits.data(), logits.size());
            decoding.begin();
        } else {
            session.append(drawn.data(), 1, nullptr, 1, logits.data(), logits.size());
        }
        const std::vector<int64_t> positions = session.positions();
        for (size_t row = 0; row < rows; row++) {
            drawn[row] = sample({logits.data() + row * v, v}, row, static_cast<uint64_t>(positions[row]), options);
            yielded[row] = reasons[row] == ALIZE_RUNNING ? drawn[row] : ALIZE_ENDED;
        }
        finish(reasons, yielded, count, session.room(), options);
        if (!on_tokens(yielded) || std::find(reasons.begin(), reasons.end(), ALIZE_RUNNING) == reasons.end())
            return reasons;
        if (session.cancelled()) fail(ALIZE_CANCELLED, "this generation was cancelled from another thread");
    }
}

}  // namespace alize
