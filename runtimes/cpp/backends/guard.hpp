// What every back-end's table functions share: an exception becomes a status and a message.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "alize/alize.h"
#include "alize/backend.h"

namespace alize::backends {

// A refusal with a status of its own; any other exception is `otherwise`.
class Refusal : public std::runtime_error {
public:
    Refusal(alize_status code, const std::string &message) : std::runtime_error(message), status(code) {}
    const alize_status status;
};

inline void say(alize_backend_error *error, const std::string &message) {
    const size_t size = std::min(message.size(), sizeof(error->message) - 1);
    std::memcpy(error->message, message.data(), size);
    error->message[size] = '\0';
}

constexpr const char *kNoMemory = "no memory left: free some, or ask for less at once";

template <typename Body>
int32_t guarded(alize_backend_error *error, Body body, alize_status otherwise = ALIZE_SESSION) noexcept {
    try {
        body();
        return ALIZE_OK;
    } catch (const Refusal &refusal) {
        say(error, refusal.what());
        return refusal.status;
    } catch (const std::bad_alloc &) {
        say(error, kNoMemory);
        return ALIZE_DEFECT;
    } catch (const std::length_error &) {  // more than any memory
        say(error, kNoMemory);
        return ALIZE_DEFECT;
    } catch (const std::exception &other) {
        say(error, other.what());
        return otherwise;
    } catch (...) {
        say(error, "the engine raised what is no exception");
        return otherwise;
    }
}

}  // namespace alize::backends
