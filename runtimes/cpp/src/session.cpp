#include "session.hpp"

#include <algorithm>
#include <numeric>

#include "error.hpp"

namespace alize {
namespace {

constexpr int64_t kDefaultChunk = 512;
constexpr const char *kCancelled = "this call was cancelled from another thread";

int64_t whole(const Options &options, const char *name, int64_t otherwise) {
    const auto found = options.find(name);
    if (found == options.end()) return otherwise;
    if (const auto *number = std::get_if<int64_t>(&found->second)) return *number;
    if (const auto *truth = std::get_if<bool>(&found->second)) return *truth;
    fail(ALIZE_USAGE, name, " ", std::get<std::string>(found->second), " must be a whole number");
}

// An address that no other living thread has.
const void *this_thread() {
    thread_local char mark;
    return &mark;
}

size_t index(int64_t value) { return static_cast<size_t>(value); }

}  // namespace

Limits session_limits(const ModelInfo &info, const Options &options) {
    const int64_t window = info.widest_window();
    const int64_t chunk = whole(options, "chunk", kDefaultChunk);
    const int64_t slack = whole(options, "slack", std::max(chunk, window));
    if (chunk < 1 || chunk > slack)
        fail(ALIZE_USAGE, "chunk ", chunk, " must be at least 1 and at most slack ", slack,
             ": a chunk has to fit in the slack");
    return {chunk, slack, window == 0 ? std::nullopt : std::optional(window - 1 + slack)};
}

Session::Session(std::shared_ptr<const Engine> engine, std::unique_ptr<Runner> runner, ModelInfo info, int64_t batch,
                 Limits limits)
    : engine_(std::move(engine)),
      runner_(std::move(runner)),
      info_(std::move(info)),
      batch_(batch),
      limits_(limits),
      window_(info_.widest_window()),
      positions_(index(batch), 0),
      cached_(index(batch), 0) {}

Session::Entered::Entered(Session &session, bool closing) : session_(session), outermost_(false) {
    if (session.inside_ != this_thread()) {
        const void *nobody = nullptr;
        if (!session.inside_.compare_exchange_strong(nobody, this_thread()))
            fail(ALIZE_SESSION,
                 "another thread is inside this session: use one session a thread (model.session() is cheap)");
        outermost_ = true;
        if (!closing) session.cancelled_ = false;
    }
    if (session.closed_ && !closing) {
        if (outermost_) session.inside_ = nullptr;
        fail(ALIZE_SESSION_CLOSED, "this session is closed: open another with model.session()");
    }
}

Session::Entered::~Entered() {
    if (outermost_) session_.inside_ = nullptr;
}

// Whatever stops a step half-way leaves a state that nobody can describe.
class Session::Tearing {
public:
    explicit Tearing(Session &session) : session_(session) { session.torn_ = true; }
    void done() { session_.torn_ = false; }

private:
    Session &session_;
};

void Session::check_whole() const {
    if (torn_)
        fail(ALIZE_SESSION,
             "an earlier call was interrupted half-way and the state is unknown: call reset() and append again");
}

void Session::append(const int64_t *tokens, int64_t s, const int64_t *lengths, int64_t keep, float *logits,
                     size_t count) {
    const Entered entered(*this);
    const std::vector<int64_t> counts = check(tokens, s, lengths, keep);
    const size_t wanted = index(batch_) * index(keep == 0 ? s : keep) * index(info_.vocab_size);
    if (logits != nullptr && count != wanted)
        fail(ALIZE_USAGE, "logits have room for ", count, " floats, not the ", wanted, " of [B,keep,V]");
    if (cancelled_) fail(ALIZE_CANCELLED, kCancelled);  // before anything was done
    Tearing tearing(*this);
    append_checked(tokens, s, counts, keep, logits);
    tearing.done();
}

std::vector<int64_t> Session::check(const int64_t *tokens, int64_t s, const int64_t *lengths, int64_t keep) const {
    check_whole();
    std::vector<int64_t> counts(index(batch_), s);
    if (lengths != nullptr) counts.assign(lengths, lengths + batch_);
    const auto shortest = std::min_element(counts.begin(), counts.end());
    const auto longest = std::max_element(counts.begin(), counts.end());
    if (s <= 0 || *shortest < 1)
        fail(ALIZE_SESSION, "row ", shortest - counts.begin(),
             " is an empty prompt: append at least one token a row (BOS, say)");
    if (*longest > s)
        fail(ALIZE_SESSION, "length ", *longest, " of row ", longest - counts.begin(), " is more than the ", s,
             " tokens given");
    if (keep < 0 || keep > *shortest)
        fail(ALIZE_SESSION, "keep ", keep, " is not within 0..", *shortest,
             ", the tokens of the shortest row; 0 keeps all");
    check_context(counts);
    check_range(tokens, s, counts);
    return counts;
}

void Session::check_context(const std::vector<int64_t> &counts) const {
    if (!info_.bounded()) return;
    std::vector<int64_t> end(counts);
    for (size_t b = 0; b < end.size(); b++) end[b] += positions_[b];
    const size_t row = index(std::max_element(end.begin(), end.end()) - end.begin());
    if (end[row] > info_.max_positions)
        fail(ALIZE_CONTEXT_EXCEEDED, "prompt of ", counts[row], " tokens at position ", positions_[row], " needs ",
             end[row], " positions, the model has ", info_.max_positions,
             ": shorten the prompt or reset() the session");
}

void Session::check_range(const int64_t *tokens, int64_t s, const std::vector<int64_t> &counts) const {
    for (int64_t row = 0; row < batch_; row++) {
        for (int64_t column = 0; column < counts[index(row)]; column++) {
            const int64_t token = tokens[row * s + column];
            if (token < 0 || token >= info_.vocab_size)
                fail(ALIZE_TOKEN_OUT_OF_RANGE, "token ", token, " at index ", column, " of row ", row,
                     " is outside 0..", info_.vocab_size - 1, " (vocabulary of ", info_.vocab_size,
                     "): use this model's tokenizer");
        }
    }
}

void Session::append_checked(const int64_t *tokens, int64_t s, const std::vector<int64_t> &counts, int64_t keep,
                             float *logits) {
    const int64_t longest = *std::max_element(counts.begin(), counts.end());
    const int64_t rows = keep == 0 ? s : keep;
    const size_t v = index(info_.vocab_size);
    if (logits != nullptr && keep == 0) std::fill_n(logits, index(batch_ * rows) * v, 0.0F);
    for (int64_t start = 0; start < longest; start += limits_.chunk) {
        if (start > 0 && cancelled_) fail(ALIZE_CANCELLED, kCancelled);
        const int64_t size = std::min(limits_.chunk, longest - start);
        std::vector<int64_t> chunk(index(batch_ * size), 0), lengths(index(batch_)), wanted(index(batch_));
        int64_t most = 1;
        for (int64_t row = 0; row < batch_; row++) {
            const int64_t count = counts[index(row)];
            const int64_t first =
                keep == 0 ? 0 : std::max<int64_t>(count - keep, 0);  // logits are wanted from this token on
            const int64_t length = std::clamp<int64_t>(count - start, 0, size);
            lengths[index(row)] = length;
            wanted[index(row)] = std::clamp<int64_t>(start + length - first, 0, length);
            most = std::max(most, wanted[index(row)]);
            std::copy_n(tokens + row * s + start, length, chunk.begin() + row * size);
        }
        step(chunk, lengths, most);
        for (int64_t row = 0; logits != nullptr && row < batch_; row++) {
            const int64_t count = counts[index(row)], part = wanted[index(row)];
            const int64_t end = start + lengths[index(row)] - (keep == 0 ? 0 : std::max<int64_t>(count - keep, 0));
            const float *from = logits_.data() + index((row + 1) * most - part) * v;
            std::copy_n(from, index(part) * v, logits + index(row * rows + end - part) * v);
        }
    }
}

void Session::step(const std::vector<int64_t> &tokens, const std::vector<int64_t> &lengths, int64_t keep) {
    int64_t most = 0;
    for (size_t b = 0; b < lengths.size(); b++) most = std::max(most, cached_[b] + lengths[b]);
    if (limits_.capacity && most > *limits_.capacity) {
        runner_->evict(window_ - 1);
        for (int64_t &cached : cached_) cached = std::min(cached, window_ - 1);
    }
    logits_.resize(index(batch_ * keep * info_.vocab_size));
    const int64_t s = static_cast<int64_t>(tokens.size()) / batch_;
    runner_->step(tokens.data(), s, lengths.data(), positions_.data(), keep, logits_.data());
    for (size_t b = 0; b < lengths.size(); b++) positions_[b] += lengths[b], cached_[b] += lengths[b];
}

void Session::rewind(int64_t n) {
    const Entered entered(*this);
    check_whole();
    if (n < 0) fail(ALIZE_SESSION, "cannot rewind ", n, " tokens: give the number of tokens to drop, 0 or more");
    if (n > rewindable_now()) {
        bool evicted = false;
        for (size_t b = 0; b < cached_.size(); b++) evicted |= cached_[b] < positions_[b];
        fail(ALIZE_REWIND_TOO_FAR, "cannot rewind ", n, " tokens, the limit is ", rewindable_now(), " (",
             evicted ? "the window moved on" : "no more were appended", "): reset() and append again");
    }
    if (n == 0) return;
    Tearing tearing(*this);
    runner_->drop_last(n);
    for (size_t b = 0; b < cached_.size(); b++) positions_[b] -= n, cached_[b] -= n;
    tearing.done();
}

void Session::reset() {
    const Entered entered(*this);
    Tearing tearing(*this);
    runner_->reset();
    std::fill(positions_.begin(), positions_.end(), 0);
    std::fill(cached_.begin(), cached_.end(), 0);
    tearing.done();
}

void Session::close() {
    const Entered entered(*this, true);
    closed_ = true;
    const std::lock_guard<std::mutex> lock(runner_mutex_);
    runner_.reset();
    engine_.reset();
}

void Session::cancel() {
    cancelled_ = true;
    const std::lock_guard<std::mutex> lock(runner_mutex_);
    if (runner_ != nullptr && !decoding_) runner_->cancel();
}

void Session::decoding(bool on) {
    const std::lock_guard<std::mutex> lock(runner_mutex_);
    decoding_ = on;
}

int64_t Session::rewindable_now() const {
    int64_t least = INT64_MAX;
    for (size_t b = 0; b < cached_.size(); b++) {
        const bool evicted = cached_[b] < positions_[b];
        least = std::min(least, evicted ? cached_[b] - (window_ - 1) : positions_[b]);
    }
    return std::max<int64_t>(0, least);
}

int64_t Session::rewindable() {
    const Entered entered(*this);
    return rewindable_now();
}

std::vector<int64_t> Session::positions() {
    const Entered entered(*this);
    return positions_;
}

std::optional<int64_t> Session::room() {
    const Entered entered(*this);
    if (!info_.bounded()) return std::nullopt;
    return std::max<int64_t>(0, info_.max_positions - *std::max_element(positions_.begin(), positions_.end()));
}

}  // namespace alize
