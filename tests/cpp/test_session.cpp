// Session against a runner that counts: what it is told, and what an engine's error leaves behind.
#include <doctest/doctest.h>

#include <algorithm>

#include "error.hpp"
#include "generate.hpp"
#include "session.hpp"

namespace {

struct Told {
    std::vector<std::string> calls;
    int64_t cached = 0, most = 0;
    bool fails = false;
};

class CountingRunner : public alize::Runner {
public:
    explicit CountingRunner(Told &told) : told_(told) {}
    void step(const int64_t *, int64_t s, const int64_t *, const int64_t *positions, int64_t keep,
              float *logits) override {
        if (told_.fails) alize::fail(ALIZE_SESSION, "the engine broke");
        told_.calls.push_back(alize::text("step ", s, " at ", positions[0], " keep ", keep));
        told_.cached += s;
        told_.most = std::max(told_.most, told_.cached);
        std::fill_n(logits, keep * 4, 0.5F);
    }
    void drop_last(int64_t n) override { told_.cached -= n; }
    void evict(int64_t keep) override {
        told_.calls.push_back(alize::text("evict ", keep));
        told_.cached = std::min(told_.cached, keep);
    }
    int64_t cached() override { return told_.cached; }
    void reset() override { told_.cached = 0; }
    void cancel() override {}

private:
    Told &told_;
};

alize::ModelInfo info(std::vector<int64_t> windows) {
    alize::ModelInfo found = {};
    found.layers = static_cast<int64_t>(windows.size());
    found.vocab_size = 4, found.max_positions = 20;
    found.windows = std::move(windows);
    return found;
}

alize::Session session(Told &told, std::vector<int64_t> windows) {
    const alize::ModelInfo sizes = info(std::move(windows));
    return {nullptr, std::make_unique<CountingRunner>(told), sizes, 1,
            alize::session_limits(sizes, {{"chunk", int64_t{3}}, {"slack", int64_t{3}}})};
}

void append(alize::Session &one, int64_t count) {
    const std::vector<int64_t> tokens(static_cast<size_t>(count), 1);
    one.append(tokens.data(), count, nullptr, 1, nullptr, 0);
}

}  // namespace

TEST_CASE("the worked example of runtimes/session.py") {
    Told told;
    alize::Session one = session(told, {4});
    append(one, 3);
    CHECK(one.rewindable() == 3);
    append(one, 2);
    CHECK(one.rewindable() == 5);
    append(one, 2);
    CHECK(one.rewindable() == 2);
    append(one, 1);
    CHECK(one.rewindable() == 3);
    one.rewind(3);
    CHECK(one.rewindable() == 0);
    CHECK(told.calls == std::vector<std::string>{"step 3 at 0 keep 1", "step 2 at 3 keep 1", "evict 3",
                                                 "step 2 at 5 keep 1", "step 1 at 7 keep 1"});
    CHECK(one.positions() == std::vector<int64_t>{5});
}

TEST_CASE("windows in constant memory, for ever") {
    Told told;
    alize::Session one = session(told, {4, 2});
    for (int i = 0; i < 1000; i++) append(one, 1 + i % 7);
    CHECK(told.most <= 6);
    CHECK(!one.room());
}

TEST_CASE("positions end where some layer sees everything") {
    Told told;
    alize::Session one = session(told, {4, 0});
    append(one, 18);
    CHECK(one.room() == 2);
    CHECK_THROWS_AS(append(one, 3), alize::Error);
    append(one, 2);
    CHECK(one.room() == 0);
}

TEST_CASE("an engine's error asks for a reset, and a reset mends it") {
    Told told;
    alize::Session one = session(told, {4});
    told.fails = true;
    CHECK_THROWS_WITH(append(one, 1), "the engine broke");
    told.fails = false;
    CHECK_THROWS_WITH(
        append(one, 1),
        "an earlier call was interrupted half-way and the state is unknown: call reset() and append again");
    one.reset();
    append(one, 1);
}

TEST_CASE("generation ends by a stop token, the length or the context") {
    Told told;
    alize::Session one = session(told, {0});
    const int64_t prompt = 1;
    std::vector<int64_t> drawn;
    const auto take = [&](std::span<const int64_t> row) {
        drawn.push_back(row[0]);
        return true;
    };
    alize::GenerationOptions options;
    options.max_new_tokens = 3;
    CHECK(alize::generate(one, &prompt, 1, nullptr, options, take) == std::vector<int32_t>{ALIZE_LENGTH});
    CHECK(drawn == std::vector<int64_t>{0, 0, 0});
    options.stop_token_ids = {0};
    CHECK(alize::generate(one, &prompt, 1, nullptr, options, take) == std::vector<int32_t>{ALIZE_STOP});
    options.stop_token_ids = {}, options.max_new_tokens = 100;
    CHECK(alize::generate(one, &prompt, 1, nullptr, options, take) == std::vector<int32_t>{ALIZE_CONTEXT});
    CHECK(one.room() == 0);
}
