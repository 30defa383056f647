#include "output.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

namespace alize::run {
namespace {

// One line. Bytes that are no UTF-8, of a path perhaps, become U+FFFD.
std::string line(const nlohmann::ordered_json &value) {
    return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

Unwritable::Unwritable(int number)
    : std::runtime_error(std::string("the text cannot be written (") + std::strerror(number) +
                         "): make room, or write elsewhere"),
      closed(number == EPIPE) {}

Output::Output(bool json) : json_(json), file_(nullptr) {
    const int own = ::dup(STDOUT_FILENO);
    if (own >= 0) file_ = ::fdopen(own, "w");
    if (file_ == nullptr || ::dup2(STDERR_FILENO, STDOUT_FILENO) < 0) throw Unwritable(errno);
}

void Output::raw(const std::string &bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size() || std::fflush(file_) != 0)
        throw Unwritable(errno);
}

void Output::text(const std::string &piece) {
    if (!piece.empty()) raw(json_ ? line({{"text", piece}}) : piece);
}

void Output::end(const Summary &one, bool quiet) {
    if (json_) {
        raw(line({{"end",
                   {{"finish_reason", one.finish_reason},
                    {"prompt_tokens", one.prompt_tokens},
                    {"new_tokens", one.new_tokens},
                    {"prompt_seconds", one.prompt_seconds},
                    {"seconds", one.seconds}}}}));
    } else if (::isatty(::fileno(file_)) != 0) {
        raw("\n");  // a pipe gets the model's text to the letter
    }
    if (quiet) return;
    std::fprintf(stderr, "alize: %zu prompt tokens in %.2f s, %zu new in %.2f s", one.prompt_tokens, one.prompt_seconds,
                 one.new_tokens, one.seconds);
    if (one.new_tokens > 1 && one.seconds > 0)
        std::fprintf(stderr, ", %.1f tokens/s", static_cast<double>(one.new_tokens - 1) / one.seconds);
    std::fprintf(stderr, " (%s)\n", one.finish_reason.c_str());
}

void Output::error(const std::string &type, const std::string &message, int exit_code) {
    std::fprintf(stderr, "alize: error: %s\n", message.c_str());
    if (json_) raw(line({{"error", {{"type", type}, {"message", message}, {"exit_code", exit_code}}}}));
}

}  // namespace alize::run
