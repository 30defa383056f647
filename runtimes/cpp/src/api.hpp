// What the functions of the C ABI share: their handles, and that no exception leaves them.
#pragma once

#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "alize/alize.h"
#include "error.hpp"
#include "model.hpp"

struct alize_model {
    std::shared_ptr<alize::Model> model;
};
struct alize_session {
    std::shared_ptr<alize::Session> session;
};
struct alize_stream {
    alize::StreamDecoder decoder;
    std::string text;  // of the last call
};

namespace alize::api {

// What the last call that failed in this thread had to say.
inline std::string &message() {
    thread_local std::string last;
    return last;
}

constexpr const char *kNoMemory = "no memory left: free some, or ask for less at once";

template <typename Body>
alize_status guarded(Body body) noexcept {
    try {
        body();
        return ALIZE_OK;
    } catch (const alize::Error &error) {
        message() = error.what();
        return error.status();
    } catch (const std::bad_alloc &) {
        message() = kNoMemory;
        return ALIZE_DEFECT;
    } catch (const std::length_error &) {  // more than any memory
        message() = kNoMemory;
        return ALIZE_DEFECT;
    } catch (const std::exception &error) {
        message() = alize::text(error.what(), " (a defect of alize: please report it)");
        return ALIZE_DEFECT;
    } catch (...) {
        message() = "an unknown exception (a defect of alize: please report it)";
        return ALIZE_DEFECT;
    }
}

template <typename... Pointers>
void require(const char *call, Pointers... pointers) {
    if (((pointers == nullptr) || ...)) alize::fail(ALIZE_USAGE, call, " was given a null handle or argument");
}

}  // namespace alize::api
