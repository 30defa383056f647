#include "arguments.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <map>

namespace alize::run {

const char *const kUsage = R"(usage: alize-run [options] ARTIFACT PROMPT
       alize-run [options] --chat ARTIFACT PROMPT

Continues PROMPT with a sealed artifact: `alize run` without Python. PROMPT - reads it from stdin; behind -- nothing is an option.
The model's text goes to stdout to the letter, everything else to stderr.

the text
  --chat                     put the prompt into the model's chat template
  --system TEXT              a system message before it (with --chat)
  --max-new-tokens N         at most so many new tokens (default: 256)
  --temperature T            0 is greedy (default: 0)
  --top-k K                  draw among the K likeliest (default: 0, off)
  --top-p P                  draw among the likeliest that share P of the probability (default: 1, off)
  --min-p P                  leave out what is under P times the likeliest (default: 0, off)
  --seed N                   the same seed draws the same tokens on every machine (default: 0)
  --stop TEXT                end the text before TEXT; may be repeated

the artifact
  --device NAME              where to run (default: the device that it was built for)
  --configuration NAME       a runtime configuration of its manifest, or tuned (default: what was tuned here, else the first)
  --expect DIGEST            refuse any other artifact
  --verify stat|full         hash the files that changed since they were last hashed here, or all (default: stat)
  --unsafe-skip-validation   run what nothing proves
  --backends FOLDER          where libalize_BACKEND.so lies (or $ALIZE_BACKEND_PATH; default: beside libalize)
  --tokenizers FILE          openvino-tokenizers' extension (or $ALIZE_TOKENIZERS; default: beside the back-end)

what is written
  --json                     one object a line: {"text": ...} for each piece, at the end {"end": {figures}} or {"error": ...}
  -q, --quiet                text only
  --version, -h, --help

exit codes: 0 done, 1 a defect of alize, 2 wrong usage, 4 the text cannot be written, 6 the artifact is refused, 7 a library or device
is missing, 8 the session was asked for what it cannot do, 130 Ctrl-C, 141 whoever read the text went away.
What this device was found to say is kept in $ALIZE_STATE_DIR (default: ~/.local/state/alize).
)";

namespace {

double fraction(const std::string &name, const std::string &value) {
    char *end = nullptr;
    const double found = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0') throw Usage(name + " " + value + " is no number: give one like 0.7");
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
    if (end != value.size()) throw Usage(name + " " + value + " is no whole number: give one like 64");
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

bool verify_full(const std::string &value) {
    if (value != "full" && value != "stat") throw Usage("--verify " + value + " must be stat or full");
    return value == "full";
}

std::map<std::string, bool *> flags(Arguments &found) {
    return {
        {"--chat", &found.chat},       {"--json", &found.json},
        {"-q", &found.quiet},          {"--quiet", &found.quiet},
        {"-h", &found.help},           {"--help", &found.help},
        {"--version", &found.version}, {"--unsafe-skip-validation", &found.load.unsafe_skip_validation},
    };
}

std::map<std::string, std::string *> texts(Arguments &found) {
    return {
        {"--system", &found.system},
        {"--device", &found.load.device},
        {"--configuration", &found.load.configuration},
        {"--expect", &found.load.expect},
        {"--backends", &found.load.backend_path},
        {"--tokenizers", &found.load.tokenizers_library},
    };
}

// Returns false where no option has this name.
bool set_option(Arguments &found, const std::string &name, const std::string &value) {
    GenerationOptions &generation = found.generation;
    const auto text = texts(found);
    if (text.count(name) != 0)
        *text.at(name) = value;
    else if (name == "--max-new-tokens")
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
    else if (name == "--verify")
        found.load.verify_full = verify_full(value);
    else
        return false;
    return true;
}

bool is_option(const std::string &name) {
    Arguments unused;
    try {
        return set_option(unused, name, "");
    } catch (const Usage &) {  // it is one, with another kind of value
        return true;
    }
}

// Sets what words[i] says and returns how many words it took.
size_t take(Arguments &found, const std::vector<std::string> &words, size_t i) {
    const std::string &word = words[i];
    const auto flag = flags(found);
    if (flag.count(word) != 0) {
        *flag.at(word) = true;
        return 1;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    if (!is_option(name)) throw Usage(name + " is no option");
    if (equals == std::string::npos && i + 1 == words.size()) throw Usage(name + " needs a value");
    set_option(found, name, equals == std::string::npos ? words[i + 1] : word.substr(equals + 1));
    return equals == std::string::npos ? 2 : 1;
}

// A last line end on stdin is the pipe's, not the prompt's.
std::string prompt_of(const std::string &word) {
    if (word != "-") return word;
    std::string found{std::istreambuf_iterator<char>(std::cin), {}};
    for (const char end : {'\n', '\r'}) {
        if (!found.empty() && found.back() == end) found.pop_back();
    }
    return found;
}

}  // namespace

bool wants_json(const std::vector<std::string> &words) {
    const auto end = std::find(words.begin(), words.end(), "--");
    return std::find(words.begin(), end, "--json") != end;
}

Arguments parse(const std::vector<std::string> &words) {
    Arguments found;
    std::vector<std::string> places;
    for (size_t i = 0; i < words.size() && !found.help && !found.version;) {
        if (words[i] == "--") {
            places.insert(places.end(), words.begin() + static_cast<std::ptrdiff_t>(i) + 1, words.end());
            break;
        }
        if (words[i].size() < 2 || words[i][0] != '-')
            places.push_back(words[i++]);
        else
            i += take(found, words, i);
    }
    if (found.help || found.version) return found;
    if (places.size() != 2)
        throw Usage("give an artifact and a prompt, not " + std::to_string(places.size()) + " words");
    if (!found.system.empty() && !found.chat) throw Usage("--system is of a conversation: give --chat too");
    if (found.generation.max_new_tokens < 1)
        throw Usage("max_new_tokens " + std::to_string(found.generation.max_new_tokens) + " must be 1 or more");
    sample(std::array<float, 1>{0.0F}, 0, 0, found.generation);  // refuses now what it would refuse after a long load
    found.artifact = places[0], found.prompt = prompt_of(places[1]);
    if (found.prompt.empty()) throw Usage("the prompt is empty: give at least one letter");
    return found;
}

}  // namespace alize::run
