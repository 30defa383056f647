// What compare.py measures of libalize. Each answer is one line of JSON.
//     decode ARTIFACT cold PROMPT         the first token, and memory then; whoever started it takes the time
//     decode ARTIFACT serve               for every line PROMPT NEW SESSIONS SEED on stdin: that many sessions at once
//                                         over one model, each with PROMPT tokens and NEW greedy ones; seconds and
//                                         memory
#include <algorithm>
#include <alize/alize.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

// MB of this process: VmRSS, VmHWM, RssAnon.
double memory(const std::string &field) {
    std::ifstream lines("/proc/self/status");
    for (std::string line; std::getline(lines, line);) {
        if (line.rfind(field + ":", 0) == 0) return std::strtod(line.c_str() + field.size() + 1, nullptr) * 1024 / 1e6;
    }
    return 0;
}

void say(const std::string &figures) {
    std::printf("{%s, \"rss_mb\": %.1f, \"anonymous_mb\": %.1f, \"peak_mb\": %.1f}\n", figures.c_str(), memory("VmRSS"),
                memory("RssAnon"), memory("VmHWM"));
    std::fflush(stdout);
}

// process.py's prompt_tokens.
std::vector<int64_t> prompt(const alize::Model &model, int64_t size, int64_t seed) {
    std::vector<int64_t> found;
    for (int64_t i = 0; i < size; i++) found.push_back((7 * i + 101 * seed + 11) % model.info().vocab_size);
    return found;
}

// Seconds to the first token; of one of the tokens behind it the seconds that pass, and that all threads compute.
struct Token {
    double first, seconds, processor_seconds;
};

Token decode(const alize::Model &model, int64_t size, int64_t count, int64_t seed) {
    const auto began = Clock::now();
    alize::Session session = model.session();
    alize::GenerationOptions options;
    options.max_new_tokens = count;
    int64_t done = 0;
    Clock::time_point first, last;
    std::clock_t first_processor = 0, last_processor = 0;
    session.generate(prompt(model, size, seed), options, [&](int64_t) {
        last = Clock::now(), last_processor = std::clock();
        if (++done == 1) first = last, first_processor = last_processor;
        return true;
    });
    const auto rest = static_cast<double>(std::max<int64_t>(done - 1, 1));
    return {between(began, first), between(first, last) / rest,
            static_cast<double>(last_processor - first_processor) / CLOCKS_PER_SEC / rest};
}

void cold(const char *artifact, int64_t size) {
    const auto began = Clock::now();
    const alize::Model model = alize::Model::load(artifact);
    const double loaded = between(began, Clock::now());
    decode(model, size, 1, 0);
    say("\"load_seconds\": " + std::to_string(loaded));
}

void serve(const char *artifact) {
    const alize::Model model = alize::Model::load(artifact);
    for (int64_t size = 0, count = 0, sessions = 0, seed = 0; std::cin >> size >> count >> sessions >> seed;) {
        const auto started = Clock::now();
        Token each = {0, 0, 0};  // of a single session
        if (sessions == 1) {
            each = decode(model, size, count, seed);
        } else {
            std::vector<std::thread> threads;
            for (int64_t i = 0; i < sessions; i++) threads.emplace_back([&] { decode(model, size, count, seed); });
            for (std::thread &thread : threads) thread.join();
        }
        const double all = between(started, Clock::now());
        say("\"first_token_seconds\": " + std::to_string(each.first) + ", \"token_seconds\": " +
            std::to_string(each.seconds) + ", \"token_processor_seconds\": " + std::to_string(each.processor_seconds) +
            ", \"tokens_per_second\": " + std::to_string(static_cast<double>(sessions * count) / all));
    }
}

}  // namespace

int main(int count, char **words) {
    const std::string what = count > 2 ? words[2] : "";
    try {
        if (what == "cold" && count == 4)
            cold(words[1], std::atoll(words[3]));
        else if (what == "serve" && count == 3)
            serve(words[1]);
        else
            return 2;
        return 0;
    } catch (const alize::error &error) {
        std::fprintf(stderr, "%s: %s\n", error.name(), error.what());
        return error.exit_code();
    }
}
