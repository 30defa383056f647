// alize-run: continues a prompt with a sealed artifact. `alize run` without Python: the same options, exit codes and
// text.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "alize/alize.hpp"

namespace {

constexpr const char *kUsage = R"(usage: alize-run [options] ARTIFACT PROMPT
       alize-run [options] --chat ARTIFACT PROMPT
PROMPT - reads it from stdin.

  --chat                     put the prompt into the model's chat template
  --system TEXT              a system message before it (with --chat)
  --max-new-tokens N         at most so many new tokens (default: 256)
  --temperature T            0 is greedy (default: 0)
  --top-k K  --top-p P  --min-p P  --seed N
  --stop TEXT                end the text before TEXT; may be repeated
  --device NAME  --configuration NAME
  --expect DIGEST            refuse any other artifact
  --verify full              hash every file
  --unsafe-skip-validation   run what nothing proves
  --backends FOLDER          where libalize_BACKEND.so lies
  --tokenizers FILE          openvino-tokenizers' extension
  -q, --quiet                text only
  --version, --help
)";

struct Usage : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Arguments {
    std::string artifact, prompt, system;
    std::vector<std::string> stop;
    alize::LoadOptions load;
    alize::GenerationOptions generation;
    bool chat = false, quiet = false;
};

double fraction(const std::string &name, const std::string &value) {
    char *end = nullptr;
    const double found = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0') throw Usage(name + " " + value + " is no number");
    return found;
}

int64_t whole(const std::string &name, const std::string &value) {
    size_t end = 0;
    int64_t found = 0;
    try {
        found = std::stoll(value, &end);
    } catch (const std::exception &) {
        end = std::string::npos;
    }
    if (end != value.size()) throw Usage(name + " " + value + " is no whole number");
    return found;
}

uint64_t seed(const std::string &value) {
    size_t end = 0;
    uint64_t found = 0;
    try {
        found = std::stoull(value, &end);
    } catch (const std::exception &) {
        end = std::string::npos;
    }
    if (end != value.size() || value.find('-') != std::string::npos)
        throw Usage("seed " + value + " must be within 0 .. 2^64-1");
    return found;
}

// Options without a value. Returns false where `word` is none of them.
bool set_flag(Arguments &found, const std::string &word) {
    if (word == "--chat") {
        found.chat = true;
    } else if (word == "-q" || word == "--quiet") {
        found.quiet = true;
    } else if (word == "--unsafe-skip-validation") {
        found.load.unsafe_skip_validation = true;
    } else {
        return false;
    }
    return true;
}

void set_option(Arguments &found, const std::string &name, const std::string &value) {
    alize::GenerationOptions &generation = found.generation;
    if (name == "--max-new-tokens")
        generation.max_new_tokens = whole(name, value);
    else if (name == "--temperature")
        generation.temperature = fraction(name, value);
    else if (name == "--top-k")
        generation.top_k = whole(name, value);
    else if (name == "--top-p")
        generation.top_p = fraction(name, value);
    else if (name == "--min-p")
        generation.min_p = fraction(name, value);
    else if (name == "--seed")
        generation.seed = seed(value);
    else if (name == "--stop")
        found.stop.push_back(value);
    else if (name == "--system")
        found.system = value;
    else if (name == "--device")
        found.load.device = value;
    else if (name == "--configuration")
        found.load.configuration = value;
    else if (name == "--expect")
        found.load.expect = value;
    else if (name == "--backends")
        found.load.backend_path = value;
    else if (name == "--tokenizers")
        found.load.tokenizers_library = value;
    else if (name == "--verify" && (value == "full" || value == "stat"))
        found.load.verify_full = value == "full";
    else
        throw Usage(name + " " + value + " is unknown");
}

Arguments parse(const std::vector<std::string> &words) {
    Arguments found;
    std::vector<std::string> places;
    for (size_t i = 0; i < words.size(); i++) {
        const std::string &word = words[i];
        if (word.size() < 2 || word[0] != '-') {
            places.push_back(word);
        } else if (!set_flag(found, word)) {
            const size_t equals = word.find('=');
            if (equals == std::string::npos && i + 1 == words.size())
                throw Usage(word + " needs a value, or is unknown");
            set_option(found, word.substr(0, equals),
                       equals == std::string::npos ? words[++i] : word.substr(equals + 1));
        }
    }
    if (places.size() != 2) throw Usage("give an artifact and a prompt");
    found.artifact = places[0], found.prompt = places[1];
    if (found.prompt == "-") {
        found.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
        for (const char end : {'\n', '\r'}) {
            if (!found.prompt.empty() && found.prompt.back() == end) found.prompt.pop_back();
        }
    }
    if (found.prompt.empty()) throw Usage("the prompt is empty: give at least one letter");
    return found;
}

const char *reason_name(int32_t reason) {
    return reason == ALIZE_STOP ? "stop" : reason == ALIZE_CONTEXT ? "context" : "length";
}

// Writes the text as it comes to stdout and one line of figures to stderr. Ctrl-C and a closed pipe end it as any
// program.
void run(const Arguments &given) {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](Clock::time_point from, Clock::time_point to) {
        return std::chrono::duration<double>(to - from).count();
    };
    const alize::Model model = alize::Model::load(given.artifact, given.load);
    const alize_info &info = model.info();
    if (!given.quiet)
        std::fprintf(stderr, "alize: %s, %s (%s) on %s, %s\n", info.architecture, info.backend, info.weights,
                     info.device, info.level);
    std::vector<alize::Message> messages = {{"user", given.prompt}};
    if (!given.system.empty()) messages.insert(messages.begin(), {"system", given.system});
    const std::vector<int64_t> prompt = given.chat ? model.encode_chat(messages) : model.encode(given.prompt);
    alize::GenerationOptions options = given.generation;
    options.stop_token_ids = model.eos_token_ids();
    alize::Session session = model.session();
    alize::Stream stream = model.stream(given.stop);
    const auto say = [](const std::string &piece) {
        std::fwrite(piece.data(), 1, piece.size(), stdout);
        std::fflush(stdout);
    };
    const auto is_stop = [&](int64_t token) {
        return std::find(options.stop_token_ids.begin(), options.stop_token_ids.end(), token) !=
               options.stop_token_ids.end();
    };
    int64_t count = 0;
    const auto began = Clock::now();
    auto first = began;
    const int32_t reason = session.generate(prompt, options, [&](int64_t token) {
        if (++count == 1) first = Clock::now();
        if (is_stop(token)) return false;
        say(stream.push(token));
        return !stream.stopped();
    });
    if (!stream.stopped()) say(stream.flush());
    const double decoding = seconds(first, Clock::now());
    if (::isatty(STDOUT_FILENO)) say("\n");  // a pipe gets the model's text to the letter
    if (given.quiet) return;
    std::fprintf(stderr, "alize: %zu prompt tokens in %.2f s, %lld new in %.2f s", prompt.size(), seconds(began, first),
                 static_cast<long long>(count), decoding);
    if (count > 1 && decoding > 0) std::fprintf(stderr, ", %.1f tokens/s", static_cast<double>(count - 1) / decoding);
    std::fprintf(stderr, " (%s)\n", stream.stopped() ? "stop_string" : reason_name(reason));
}

}  // namespace

int main(int count, char **words) {
    const std::vector<std::string> given(words + 1, words + count);
    for (const std::string &word : given) {
        if (word == "--help" || word == "--version") {
            std::printf("%s", word == "--help" ? kUsage : (std::string("alize-run ") + alize_version() + "\n").c_str());
            return 0;
        }
    }
    try {
        run(parse(given));
        return 0;
    } catch (const Usage &error) {
        std::fprintf(stderr, "alize: error: %s (see `alize-run --help`)\n", error.what());
        return 2;
    } catch (const alize::error &error) {
        std::fprintf(stderr, "alize: error: %s\n", error.what());
        return error.exit_code();
    } catch (const std::exception &error) {
        std::fprintf(stderr, "alize: error: %s (a defect of alize: please report it)\n", error.what());
        return 1;
    }
}
