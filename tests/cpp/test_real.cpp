// Real engines: the greedy tokens that Python's Session writes, and the text that its tokenizer writes.
#include <doctest/doctest.h>

#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "data.hpp"
#include "replay.hpp"

TEST_SUITE_BEGIN("real");

namespace {

alize::Model load(const Json &one) { return alize::Model::load(one["artifact"]); }

std::vector<int64_t> greedy(alize::Session &session, const std::vector<int64_t> &prompt, int64_t count) {
    std::vector<int64_t> found;
    alize::GenerationOptions options;
    options.max_new_tokens = count;
    session.generate(prompt, options, [&](int64_t token) { return found.push_back(token), true; });
    return found;
}

}  // namespace

TEST_CASE("appends, rewinds, resets and generations give Python's tokens") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        CAPTURE(one["artifact"]);
        std::optional<alize::Model> model;  // one for the traces that follow one another on it, as in Python
        std::string loaded;
        for (const Json &trace : one["traces"]) {
            const std::string wanted = trace["artifact"].get<std::string>() + trace["configuration"].get<std::string>();
            if (std::exchange(loaded, wanted) != wanted) model.emplace(load_for(trace));
            replay(*model, trace);
        }
    }
}

TEST_CASE("a graph whose windows are not the manifest's is refused in Python's words") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        if (one["narrow"].is_null()) continue;
        CAPTURE(one["artifact"]);
        CHECK(refusal([&] { alize::Model::load(one["refused"]["folder"]); }) == refusal_of(one["refused"]));
    }
}

TEST_CASE("a prompt in chunks, an answer across the window's edge, a rewind") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        CAPTURE(one["artifact"]);
        const Json &expected = one["generation"];
        const alize::Model model = load(one);
        alize::Session session = model.session();
        CHECK(greedy(session, expected["prompt"], 48) == expected["tokens"].get<std::vector<int64_t>>());
        session.rewind(expected["dropped"]);
        CHECK(greedy(session, {1}, 8) == expected["again"].get<std::vector<int64_t>>());
    }
}

TEST_CASE("parallel sessions and tokenizers of one model give what each gives alone") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        const alize::Model model = load(one);
        const auto work = [&](size_t i) {
            alize::Session session = model.session();
            const std::vector<int64_t> prompt = model.encode("thread " + std::to_string(i));
            return model.decode(greedy(session, prompt, 6), false);
        };
        std::vector<std::string> alone, together(4);
        for (size_t i = 0; i < together.size(); i++) alone.push_back(work(i));
        std::vector<std::thread> threads;
        for (size_t i = 0; i < together.size(); i++) threads.emplace_back([&, i] { together[i] = work(i); });
        for (std::thread &thread : threads) thread.join();
        CHECK(alone == together);
    }
}

TEST_CASE("text to tokens and back") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        const alize::Model model = load(one);
        for (const Json &item : one["encode"]) {
            CAPTURE(item);
            CHECK(model.encode(item["text"].get<std::string>(), item["special"]) ==
                  item["tokens"].get<std::vector<int64_t>>());
        }
        for (const Json &item : one["decode"]) {
            CAPTURE(item);
            CHECK(model.decode(item["tokens"].get<std::vector<int64_t>>(), item["skip"]) ==
                  item["text"].get<std::string>());
        }
        CHECK(refusal([&] { model.decode(std::vector<int64_t>{-1}); })["name"] == "TokenOutOfRange");
    }
}

TEST_CASE("streams cut the text where Python's do") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        const alize::Model model = load(one);
        for (const Json &item : one["streams"]) {
            CAPTURE(item);
            alize::Stream stream = model.stream(item["stop"]);
            Json pieces = Json::array();
            for (const int64_t token : item["tokens"]) pieces.push_back(stream.push(token));
            pieces.push_back(stream.flush());
            CHECK(pieces == item["pieces"]);
            CHECK(stream.stopped().value_or("") ==
                  (item["stopped"].is_null() ? "" : item["stopped"].get<std::string>()));
        }
    }
}

TEST_CASE("conversations without Jinja") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        const alize::Model model = load(one);
        for (const Json &item : one["chat"]) {
            CAPTURE(item);
            std::vector<alize::Message> messages;
            for (const Json &message : item["messages"]) messages.push_back({message["role"], message["content"]});
            std::string text;
            const Json refused = refusal([&] { text = model.render_chat(messages, item["prompt"]); });
            CHECK(refused.is_null() != item["text"].is_null());
            if (refused.is_null()) CHECK(text == item["text"].get<std::string>());
        }
    }
}

TEST_CASE("a step in the engine is cancelled from another thread, a reset mends the session, and no other notices") {
    own_state("real");
    for (const Json &one : data("openvino")) {
        CAPTURE(one["artifact"]);
        const alize::Model model = load(one);
        alize::Session session = model.session(), bystander = model.session();
        const std::vector<int64_t> token = {1};
        const auto expected = bystander.append(token);
        std::atomic<bool> begun = false, done = false;
        Json ended, disturbed;
        std::thread inside([&] {
            ended = refusal([&] {
                for (;;) {
                    begun = true;
                    session.append(token);
                    if (session.rewindable() > 0) session.rewind(1);
                }
            });
            done = true;
        });
        bool same = true;
        std::thread beside([&] {
            disturbed = refusal([&] {
                while (!done) {
                    bystander.rewind(1);
                    same = same && bystander.append(token) == expected;
                }
            });
        });
        while (!begun) std::this_thread::yield();
        while (!done) {
            session.cancel();
            std::this_thread::yield();
        }
        inside.join();
        beside.join();
        CHECK(ended["name"] == "Cancelled");
        CHECK(disturbed.is_null());
        CHECK(same);
        session.reset();
        CHECK(greedy(session, token, 3).size() == 3);
    }
}

TEST_SUITE_END();
