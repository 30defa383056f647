// One line of JSON: cold start to the first token, decoding, and memory, of N parallel sessions over one model.
//     decode ARTIFACT PROMPT_TOKENS NEW_TOKENS SESSIONS
#include <alize/alize.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// MB of this process: VmHWM, RssAnon ...
double memory(const std::string &field) {
    std::ifstream lines("/proc/self/status");
    for (std::string line; std::getline(lines, line);) {
        if (line.rfind(field + ":", 0) == 0) return std::strtod(line.c_str() + field.size() + 1, nullptr) / 1024;
    }
    return 0;
}

}  // namespace

int main(int count, char **words) {
    if (count != 5) return 2;
    try {
        const auto began = Clock::now();
        const alize::Model model = alize::Model::load(words[1]);
        const double loaded = since(began);
        const int64_t prompt_size = std::atoll(words[2]), size = std::atoll(words[3]), sessions = std::atoll(words[4]);
        std::vector<int64_t> prompt;
        for (int64_t i = 0; i < prompt_size; i++) prompt.push_back((7 * i + 11) % model.info().vocab_size);
        alize::GenerationOptions options;
        options.max_new_tokens = size;
        double first = 0;
        const auto run = [&](bool timed) {
            alize::Session session = model.session();
            session.generate(prompt, options, [&](int64_t) {
                if (timed && first == 0) first = since(began);
                return true;
            });
        };
        run(true);  // warm as well: the engine packs weights when it first runs
        std::vector<std::thread> threads;
        const auto started = Clock::now();
        for (int64_t i = 0; i < sessions; i++) threads.emplace_back(run, false);
        for (std::thread &thread : threads) thread.join();
        const double seconds = since(started);
        std::printf(
            "{\"load_seconds\": %.3f, \"first_token_seconds\": %.3f, \"sessions\": %lld, \"tokens_per_second\": %.2f, "
            "\"anonymous_mb\": %.0f, \"peak_mb\": %.0f}\n",
            loaded, first, static_cast<long long>(sessions), static_cast<double>(size * sessions) / seconds,
            memory("RssAnon"), memory("VmHWM"));
        return 0;
    } catch (const alize::error &error) {
        std::fprintf(stderr, "%s: %s\n", error.name(), error.what());
        return error.exit_code();
    }
}
