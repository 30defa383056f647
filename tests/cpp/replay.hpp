// Repeats a trace of make_data.py and compares.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "data.hpp"

inline std::vector<int64_t> flat(const Json &rows) {
    std::vector<int64_t> found;
    for (const Json &row : rows) found.insert(found.end(), row.begin(), row.end());
    return found;
}

// FNV-1a of the logits' bytes: what make_data.py computes of Python's.
inline std::string fingerprint(const std::vector<float> &logits) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const float value : logits) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (bits >> shift & 0xFF)) * 0x100000001b3;
    }
    return std::to_string(hash);
}

inline Json best(const std::vector<float> &logits, size_t rows, size_t v) {
    Json found = Json::array();
    const size_t kept = logits.size() / rows / v;
    for (size_t b = 0; b < rows; b++) {
        Json row = Json::array();
        for (size_t i = 0; i < kept; i++) {
            const auto first = logits.begin() + static_cast<std::ptrdiff_t>((b * kept + i) * v);
            row.push_back(std::max_element(first, first + static_cast<std::ptrdiff_t>(v)) - first);
        }
        found.push_back(row);
    }
    return found;
}

inline alize::GenerationOptions generation(const Json &options) {
    return {options["temperature"],
            options["top_k"],
            options["top_p"],
            options["min_p"],
            options["seed"],
            options["max_new_tokens"],
            options["stop_token_ids"].get<std::vector<int64_t>>()};
}

// What the call returned, under the names of make_data.py.
inline Json made(alize::Session &session, const Json &call, size_t v) {
    if (call["call"] == "rewind") return session.rewind(call["n"]), Json::object();
    if (call["call"] == "reset") return session.reset(), Json::object();
    const std::vector<int64_t> tokens = flat(call["tokens"]), lengths = call["lengths"];
    if (call["call"] == "append") {
        const std::vector<float> logits = session.append(tokens, call["keep"], lengths);
        if (call.contains("best")) return {{"best", best(logits, lengths.size(), v)}};
        return {{"fingerprint", fingerprint(logits)}};
    }
    Json rows = Json::array(), reasons = Json::array();
    const auto take = [&](std::span<const int64_t> row) {
        return rows.push_back(std::vector(row.begin(), row.end())), true;
    };
    for (const int32_t reason : session.generate_rows(tokens, generation(call["options"]), take, lengths))
        reasons.push_back(std::vector{"", "stop", "length", "context"}.at(static_cast<size_t>(reason)));
    return {{"rows", rows}, {"reasons", reasons}};
}

inline void replay(const alize::Model &model, const Json &trace) {
    alize::Session session = model.session(trace["batch"]);
    size_t number = 0;
    for (const Json &call : trace["calls"]) {
        CAPTURE(number++);
        Json found;
        const Json refused =
            refusal([&] { found = made(session, call, static_cast<size_t>(model.info().vocab_size)); });
        CHECK(refused == refusal_of(call));
        for (const char *name : {"fingerprint", "best", "rows", "reasons"}) {
            if (call.contains(name)) CHECK(found[name] == call[name]);
        }
        CHECK(session.positions() == call["positions"].get<std::vector<int64_t>>());
        CHECK(session.rewindable() == call["rewindable"].get<int64_t>());
    }
}

inline alize::Model load_for(const Json &trace, alize::LoadOptions options = {}) {
    options.configuration = trace["configuration"];
    return alize::Model::load(trace["artifact"], options);
}
