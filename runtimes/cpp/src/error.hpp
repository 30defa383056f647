// Errors inside libalize: one exception type that carries the status which the C ABI returns.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "alize/alize.h"

namespace alize {

class Error : public std::runtime_error {
public:
    Error(alize_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    alize_status status() const { return status_; }

private:
    alize_status status_;
};

template <typename... Parts>
std::string text(const Parts &...parts) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    (out << ... << parts);
    return std::move(out).str();
}

template <typename... Parts>
[[noreturn]] void fail(alize_status status, const Parts &...parts) {
    throw Error(status, text(parts...));
}

// What strerror says, without its shared buffer.
std::string system_error(int number);

}  // namespace alize
