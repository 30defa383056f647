// Strict JSON, its one canonical text (docs/artifact.md), and the words that Python would use for a value.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace alize {

using Json = nlohmann::json;

// The byte at which `bytes` stops being UTF-8, or npos.
size_t not_utf8(std::string_view bytes);

// Raises ALIZE_ARTIFACT for what is no JSON (NaN and Infinity included) or names a key twice.
Json parse_json(std::string_view bytes);

// json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
std::string canonical(const Json &value);

// The shortest text that reads back to the same double, as Python's repr writes it.
std::string repr(double value);
// Python's repr of a str.
std::string repr(std::string_view value);
// "int 5", "str 'x'": the value's Python type and its repr, cut at 40 letters.
std::string describe(const Json &value);

}  // namespace alize
