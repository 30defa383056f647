// Where the text goes: to stdout as it is, or as JSON, one object a line (docs/cli.md).
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

namespace alize::run {

// The text cannot be written any more. `closed`: whoever read it went away.
struct Unwritable : std::runtime_error {
    explicit Unwritable(int number);
    const bool closed;
};

// One answer. `prompt_seconds` runs to the first new token, `seconds` from there to the last.
struct Summary {
    std::string finish_reason;
    size_t prompt_tokens = 0, new_tokens = 0;
    double prompt_seconds = 0, seconds = 0;
};

// Takes stdout for itself: what an engine prints there goes to stderr.
class Output {
public:
    explicit Output(bool json);
    ~Output() { std::fclose(file_); }
    Output(const Output &) = delete;
    Output &operator=(const Output &) = delete;

    void raw(const std::string &bytes);
    void text(const std::string &piece);
    void end(const Summary &summary, bool quiet);
    void error(const std::string &type, const std::string &message, int exit_code);

private:
    const bool json_;
    std::FILE *file_;
};

}  // namespace alize::run
