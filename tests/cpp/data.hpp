// What make_data.py wrote, and statuses by the names of Python's errors.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "alize/alize.hpp"

using Json = nlohmann::json;

inline std::string data_folder() {
    const char *named = std::getenv("ALIZE_TEST_DATA");
    if (named == nullptr) throw std::runtime_error("set ALIZE_TEST_DATA to what tests/cpp/make_data.py wrote");
    return named;
}

inline Json data(const std::string &name) {
    std::ifstream file(data_folder() + "/" + name + ".json");
    return Json::parse(file);
}

// States of this run, apart from Python's.
inline void own_state(const std::string &name) {
    ::setenv("ALIZE_STATE_DIR", (data_folder() + "/state-" + name + "-" + std::to_string(::getpid())).c_str(), 1);
}

// What a call is refused with: {name, message}, or null.
template <typename Body>
Json refusal(Body body) {
    try {
        body();
        return nullptr;
    } catch (const alize::error &error) {
        return {{"name", error.name()}, {"message", error.what()}};
    }
}

inline Json refusal_of(const Json &one) {
    if (!one.contains("name") || one["name"].is_null()) return nullptr;
    return {{"name", one["name"]}, {"message", one["message"]}};
}
