// Parallel sessions over one model, a second thread inside a session, cancellation.
#include <doctest/doctest.h>

#include <atomic>
#include <thread>

#include "data.hpp"

namespace {

std::vector<int64_t> written(const alize::Model &model, int64_t first, int64_t count) {
    alize::Session session = model.session();
    std::vector<int64_t> found;
    alize::GenerationOptions options;
    options.max_new_tokens = count, options.temperature = 1, options.seed = 7;
    session.generate(std::vector<int64_t>{first}, options, [&](int64_t token) { return found.push_back(token), true; });
    return found;
}

}  // namespace

TEST_CASE("parallel sessions write what each writes alone") {
    own_state("parallel");
    const alize::Model model = alize::Model::load(data_folder() + "/artifacts/uniform");
    constexpr int kThreads = 8;
    std::vector<std::vector<int64_t>> alone, together(kThreads);
    for (int i = 0; i < kThreads; i++) alone.push_back(written(model, i, 200));
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; i++)
        threads.emplace_back([&, i] { together[static_cast<size_t>(i)] = written(model, i, 200); });
    for (std::thread &thread : threads) thread.join();
    CHECK(alone == together);
}

TEST_CASE("models load and close in parallel") {
    own_state("loads");
    std::atomic<int> done = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&] {
            alize::Model model = alize::Model::load(data_folder() + "/artifacts/uniform");
            if (written(model, 1, 5).size() == 5) done++;
            model.close();
        });
    }
    for (std::thread &thread : threads) thread.join();
    CHECK(done == 4);
}

TEST_CASE("a second thread inside a session is refused, and cancellation from it ends the generation") {
    own_state("cancel");
    const alize::Model model = alize::Model::load(data_folder() + "/artifacts/uniform");
    alize::Session session = model.session();
    session.cancel();  // nothing is inside: nothing happens
    std::atomic<int64_t> tokens = 0;
    Json ended;
    std::thread inside([&] {
        alize::GenerationOptions endless;
        endless.max_new_tokens = INT64_MAX;
        ended = refusal(
            [&] { session.generate(std::vector<int64_t>{1}, endless, [&](int64_t) { return tokens++, true; }); });
    });
    while (tokens == 0) std::this_thread::yield();
    CHECK(refusal([&] { session.reset(); })["message"] ==
          "another thread is inside this session: use one session a thread (model.session() is cheap)");
    CHECK(refusal([&] { session.close(); })["name"] == "SessionError");
    session.cancel();
    inside.join();
    CHECK(ended["name"] == "Cancelled");
    CHECK(session.positions()[0] == tokens);  // between two tokens: the session is whole
    session.append(std::vector<int64_t>{1});
}

TEST_CASE("an error's message belongs to its thread") {
    CHECK(alize_model_close(nullptr) == ALIZE_USAGE);
    std::thread([] { CHECK(std::string(alize_error_message()).empty()); }).join();
}
