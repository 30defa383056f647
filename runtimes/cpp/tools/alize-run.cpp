// alize-run: continues a prompt with a sealed artifact. `alize run` without Python: the same options, exit codes and
// text.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "alize/alize.hpp"
#include "arguments.hpp"
#include "interrupt.hpp"
#include "output.hpp"

namespace {

using alize::run::Arguments;
using alize::run::Output;
using alize::run::Summary;
using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

const char *reason_name(int32_t reason) {
    return reason == ALIZE_STOP ? "stop" : reason == ALIZE_CONTEXT ? "context" : "length";
}

std::vector<int64_t> prompt_tokens(const alize::Model &model, const Arguments &given) {
    if (!given.chat) return model.encode(given.prompt);
    std::vector<alize::Message> messages = {{"user", given.prompt}};
    if (!given.system.empty()) messages.insert(messages.begin(), {"system", given.system});
    return model.encode_chat(messages);
}

void introduce(const alize_info &info) {
    std::fprintf(stderr, "alize: %s, %s (%s) on %s, %s\n", info.architecture, info.backend, info.weights, info.device,
                 info.level);
}

// Appends the prompt and writes what follows, piece by piece.
Summary answer(const alize::Model &model, const Arguments &given, Output &out) {
    alize::Session session = model.session();
    const alize::run::Interrupt interrupt(session);
    if (!given.quiet) introduce(model.info());
    Summary found;
    const std::vector<int64_t> prompt = prompt_tokens(model, given);
    found.prompt_tokens = prompt.size();
    alize::GenerationOptions options = given.generation;
    options.stop_token_ids = model.eos_token_ids();
    const auto is_stop = [&](int64_t token) {
        const auto &stops = options.stop_token_ids;
        return std::find(stops.begin(), stops.end(), token) != stops.end();
    };
    alize::Stream stream = model.stream(given.stop);
    interrupt.check();
    const auto began = Clock::now();
    auto first = began;
    const int32_t reason = session.generate(prompt, options, [&](int64_t token) {
        interrupt.check();
        if (++found.new_tokens == 1) first = Clock::now();
        if (is_stop(token)) return false;
        out.text(stream.push(token));
        return !stream.stopped();
    });
    if (!stream.stopped()) out.text(stream.flush());
    found.finish_reason = stream.stopped() ? "stop_string" : reason_name(reason);
    found.prompt_seconds = seconds(began, first);
    found.seconds = seconds(first, Clock::now());
    return found;
}

void run(const Arguments &given, Output &out) {
    if (given.help) return out.raw(alize::run::kUsage);
    if (given.version) return out.raw(std::string("alize-run ") + alize_version() + "\n");
    const alize::Model model = alize::Model::load(given.artifact, given.load);
    out.end(answer(model, given, out), given.quiet);
}

// In Python's words.
int interrupted(Output &out) {
    out.error("KeyboardInterrupt", "interrupted", 130);
    return 130;
}

// Runs `words` and returns the exit code; what went wrong is written.
int guarded(const std::vector<std::string> &words, Output &out) {
    try {
        run(alize::run::parse(words), out);
        return 0;
    } catch (const alize::run::Usage &error) {
        out.error("UsageError", std::string(error.what()) + " (see `alize-run --help`)", 2);
        return 2;
    } catch (const alize::run::Interrupted &) {
        return interrupted(out);
    } catch (const alize::error &error) {
        if (error.status() == ALIZE_CANCELLED) return interrupted(out);
        out.error(error.name(), error.what(), error.exit_code());
        return error.exit_code();
    }
}

}  // namespace

int main(int count, char **argv) {
    const std::vector<std::string> words(argv + 1, argv + count);
    try {
        Output out(alize::run::wants_json(words));
        return guarded(words, out);
    } catch (const alize::run::Unwritable &error) {
        if (!error.closed) std::fprintf(stderr, "alize: error: %s\n", error.what());
        return error.closed ? 141 : 4;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "alize: error: %s (a defect of alize: please report it)\n", error.what());
        return 1;
    }
}
