// The words behind `alize-run`.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "alize/alize.hpp"

namespace alize::run {

// Words that cannot be meant: exit code 2.
struct Usage : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Arguments {
    std::string artifact, prompt, system;
    std::vector<std::string> stop;
    LoadOptions load;
    GenerationOptions generation;
    bool chat = false, quiet = false, json = false;
    bool help = false, version = false;  // nothing else was looked at
};

extern const char *const kUsage;

// Raises Usage; alize::error for sampling options that the library refuses. PROMPT - is read from stdin.
Arguments parse(const std::vector<std::string> &words);
// Whether the answer to these words, even to wrong ones, is JSON.
bool wants_json(const std::vector<std::string> &words);

}  // namespace alize::run
