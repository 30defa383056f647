// OpenVINO's runners by themselves, on the tiny artifacts: what they keep, and that no row reads what is not its own.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <thread>

#include "backends/guard.hpp"
#include "backends/openvino/engine.hpp"
#include "backends/openvino/warm_up.hpp"
#include "data.hpp"

using alize::backends::OpenVinoEngine;
using alize::backends::OpenVinoRunner;

TEST_SUITE_BEGIN("real");

namespace {

constexpr int64_t kBlock = 32;

// An artifact's graph, in float32 throughout.
struct Opened {
    Opened(const std::string &place, const char *attention) : folder(place) {
        const Json model = Json::parse(std::ifstream(folder + "/manifest.json"))["model"];
        windows = model["windows"].get<std::vector<int64_t>>();
        vocabulary = model["vocab_size"];
        widest = *std::max_element(windows.begin(), windows.end());
        full = std::count(windows.begin(), windows.end(), 0) > 0;
        const alize_backend_option options[] = {{"accuracy", 'b', nullptr, 1}, {"attention", 's', attention, 0}};
        engine = std::make_unique<OpenVinoEngine>(alize_backend_model{
            folder.c_str(), "cpu", static_cast<int64_t>(windows.size()), model["key_value_heads"], model["head_size"],
            vocabulary, model["experts"], model["experts_per_token"], -1, windows.data(), options, 2, nullptr});
        REQUIRE((engine->paged() != nullptr) == (attention == std::string("paged")));
    }
    std::vector<int64_t> blocks() const {
        std::vector<int64_t> found;
        for (const auto &cache : engine->paged()->caches()) found.push_back(cache.blocks());
        return found;
    }
    // What stays where no session is: the hidden block of mixed windows.
    std::vector<int64_t> unused() const {
        return full && widest > 0 ? std::vector<int64_t>{0, 1} : std::vector<int64_t>{0};
    }

    std::string folder;
    std::vector<int64_t> windows;
    int64_t vocabulary = 0, widest = 0;
    bool full = false;
    std::unique_ptr<OpenVinoEngine> engine;
};

// A runner with the positions that a session would count.
class Rows {
public:
    Rows(Opened &opened, size_t batch) : runner(opened.engine->runner(static_cast<int64_t>(batch))), opened_(opened) {
        positions.assign(batch, 0);
    }
    // Rows of tokens, padded on the right -> the logits of each row's last token.
    std::vector<std::vector<float>> append_rows(const std::vector<std::vector<int64_t>> &tokens) {
        size_t width = 0;
        std::vector<int64_t> flat, lengths;
        for (const auto &row : tokens) width = std::max(width, row.size());
        for (const auto &row : tokens) {
            flat.insert(flat.end(), row.begin(), row.end());
            flat.resize(flat.size() + width - row.size(), 0);
            lengths.push_back(static_cast<int64_t>(row.size()));
        }
        const auto v = static_cast<size_t>(opened_.vocabulary);
        std::vector<float> logits(tokens.size() * v);
        runner->step(flat.data(), static_cast<int64_t>(width), lengths.data(), positions.data(), 1, logits.data());
        std::vector<std::vector<float>> found;
        for (size_t b = 0; b < tokens.size(); b++) {
            positions[b] += lengths[b];
            const auto first = logits.begin() + static_cast<std::ptrdiff_t>(b * v);
            found.emplace_back(first, first + static_cast<std::ptrdiff_t>(v));
        }
        return found;
    }
    std::vector<float> append(const std::vector<int64_t> &tokens) { return append_rows({tokens})[0]; }
    void drop_last(int64_t n) {
        runner->drop_last(n);
        for (int64_t &position : positions) position -= n;
    }

    std::unique_ptr<OpenVinoRunner> runner;
    std::vector<int64_t> positions;

private:
    Opened &opened_;
};

std::vector<int64_t> some_tokens(int64_t count, int64_t seed) {
    std::vector<int64_t> found;
    for (int64_t i = 0; i < count; i++) found.push_back((i * i * 31 + i * 7 + seed * 13) % 251);
    return found;
}

float distance(const std::vector<float> &one, const std::vector<float> &other) {
    float most = 0;
    for (size_t i = 0; i < one.size(); i++) {
        const float apart = std::abs(one[i] - other[i]);
        if (!(apart <= most)) most = apart;  // a NaN stays
    }
    return most;
}

constexpr float kSame = 1e-3F;  // of logits that spread over tens; float32 sums in another order

template <typename Body>
void each(Body body, const char *attention = "paged") {
    for (const Json &one : data("openvino")) {
        if (one["narrow"].is_null()) continue;  // the demo model: its tokens are compared with Python's
        CAPTURE(one["artifact"]);
        Opened opened(one["artifact"], attention);
        body(opened);
    }
}

}  // namespace

TEST_CASE("unequal rows, and rows beside other sessions, get what each gets alone") {
    each([](Opened &opened) {
        std::vector<std::vector<float>> alone, last;
        for (const int64_t size : {1, 33, 70}) alone.push_back(Rows(opened, 1).append(some_tokens(size, size)));
        Rows other(opened, 2), batch(opened, 3);
        other.append_rows({some_tokens(40, 5), some_tokens(3, 6)});
        batch.append_rows({some_tokens(1, 1), some_tokens(33, 33), some_tokens(50, 70)});
        other.append_rows({some_tokens(1, 7), some_tokens(64, 8)});
        const auto all = some_tokens(70, 70);
        last = batch.append_rows({{}, {}, {all.begin() + 50, all.end()}});
        CHECK(distance(last[2], alone[2]) < kSame);
        batch.runner->reset();
        batch.positions.assign(3, 0);
        last = batch.append_rows({some_tokens(1, 1), some_tokens(33, 33), all});
        for (size_t b = 0; b < 3; b++) CHECK(distance(last[b], alone[b]) < kSame);
    });
}

TEST_CASE("what a window cannot see is forgotten block by block, and nothing that it sees changes") {
    each([](Opened &opened) {
        Rows keeping(opened, 1), forgetting(opened, 1);
        const auto tokens = some_tokens(400, 2);
        for (int64_t start = 0; start < 400; start += 40) {
            const std::vector<int64_t> part(tokens.begin() + start, tokens.begin() + start + 40);
            const auto expected = keeping.append(part);
            if (opened.widest > 0) forgetting.runner->evict(opened.widest - 1);
            CHECK(distance(forgetting.append(part), expected) < kSame);
            const int64_t most = opened.widest > 0 ? opened.widest - 1 + kBlock + 40 : 400;
            CHECK(forgetting.runner->cached() <= most);
        }
        // One at a time, behind the window: the hidden block stays hidden.
        for (int64_t token = 0; token < 3; token++)
            CHECK(distance(forgetting.append({token}), keeping.append({token})) < kSame);
        CHECK(keeping.runner->cached() == 403);
    });
}

TEST_CASE("the stateful form keeps what it is told to keep") {
    const auto body = [](Opened &opened) {
        Rows row(opened, 1);
        row.append(some_tokens(40, 1));
        CHECK(row.runner->cached() == 40);
        row.runner->evict(opened.widest);
        CHECK(row.runner->cached() == (opened.widest > 0 ? opened.widest : 40));
    };
    each(body, "stateful");
}

TEST_CASE("a windowed model's memory does not grow with the text") {
    each([](Opened &opened) {
        if (opened.widest == 0) return;
        Rows row(opened, 1);
        std::vector<int64_t> early;
        for (int64_t turn = 0; turn < 15; turn++) {
            row.runner->evict(opened.widest - 1);
            row.append(some_tokens(32, turn));
            if (turn == 5) early = opened.blocks();
        }
        CHECK(opened.blocks().back() == early.back());
        if (opened.full) CHECK(opened.blocks().front() >= 15);
    });
}

TEST_CASE("tokens that were dropped leave no trace") {
    each([](Opened &opened) {
        Rows straight(opened, 1), wandering(opened, 1);
        const auto begin = some_tokens(31, 3), end = some_tokens(9, 4);
        straight.append(begin);
        wandering.append(begin);
        wandering.append(some_tokens(66, 9));
        wandering.drop_last(66);
        wandering.append(some_tokens(1, 9));
        wandering.drop_last(1);
        CHECK(distance(wandering.append(end), straight.append(end)) < kSame);
    });
}

TEST_CASE("the last session that goes gives the memory back, and none before") {
    each([](Opened &opened) {
        CHECK(opened.blocks() == opened.unused());  // also behind the warm-up
        auto first = std::make_unique<Rows>(opened, 2);
        first->append_rows({some_tokens(100, 1), some_tokens(60, 2)});
        const auto kept = opened.blocks();
        CHECK(kept.front() >= 6);
        {
            Rows second(opened, 1);
            const auto expected = second.append(some_tokens(70, 3));
            first->append_rows({some_tokens(300, 4), some_tokens(300, 5)});  // grows while the other holds blocks
            second.runner->reset();
            second.positions = {0};
            CHECK(distance(second.append(some_tokens(70, 3)), expected) < kSame);
            second.append({7});
        }
        CHECK(opened.blocks().front() > kept.front());
        first.reset();
        CHECK(opened.blocks() == opened.unused());
        CHECK(Rows(opened, 1).append({1}).size() == static_cast<size_t>(opened.vocabulary));
    });
}

TEST_CASE("a cancellation ends the step of its own session, inside the engine or waiting for it, and no other") {
    each([](Opened &opened) {
        using Clock = std::chrono::steady_clock;
        const std::vector<std::vector<int64_t>> work(16, some_tokens(400, 1));
        const auto refused = [&](Rows &rows) {
            try {
                rows.append_rows(work);
            } catch (const alize::backends::Refusal &refusal) {
                return refusal.status == ALIZE_CANCELLED;
            }
            return false;
        };
        Rows rows(opened, 16), beside(opened, 16);
        CHECK(!refused(beside));  // packs what the first step packs
        const auto begin = Clock::now();
        CHECK(!refused(rows));
        const auto span = Clock::now() - begin;
        const auto again = [](Rows &one) { one.runner->reset(), one.positions.assign(16, 0); };

        bool ended = false;
        for (int turn = 0; turn < 50 && !ended; turn++) {
            again(rows);
            std::thread other([&] { std::this_thread::sleep_for(span / 4), rows.runner->cancel(); });
            ended = refused(rows);
            other.join();
        }
        CHECK(ended);

        bool waited = false;
        for (int turn = 0; turn < 50 && !waited; turn++) {
            again(rows), again(beside);
            std::atomic<bool> spared = false;
            std::thread first([&] { spared = !refused(beside); });
            std::thread other([&] { std::this_thread::sleep_for(span / 2), rows.runner->cancel(); });
            std::this_thread::sleep_for(span / 8);
            waited = refused(rows) && rows.runner->cached() == 0;
            first.join(), other.join();
            CHECK(spared);
        }
        CHECK(waited);

        again(rows), again(beside);
        std::atomic<bool> done = false;
        std::thread other([&] {
            while (!done) rows.runner->cancel();  // of a session that does nothing
        });
        CHECK(!refused(beside));
        done = true;
        other.join();
        CHECK(!refused(rows));
    });
}

TEST_CASE("every expert has its turn at load") {
    alize_backend_model model = {};
    CHECK(alize::backends::expert_biases(model).empty());
    model.experts = 7, model.experts_per_token = 2;
    std::vector<int> turns(7, 0);
    for (const std::vector<float> &bias : alize::backends::expert_biases(model)) {
        REQUIRE(bias.size() == 7);
        for (size_t expert = 0; expert < 7; expert++) turns[expert] += bias[expert] > 0;
        CHECK(std::count_if(bias.begin(), bias.end(), [](float one) { return one > 0; }) <= 2);
    }
    CHECK(turns == std::vector<int>(7, 1));
}

TEST_SUITE_END();
