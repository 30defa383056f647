#include <doctest/doctest.h>

#include <string>

#include "error.hpp"
#include "manifest.hpp"
#include "sha256.hpp"
#include "state.hpp"

namespace {

std::string refusal(const std::string &text) {
    try {
        alize::parse_manifest(text);
        return "";
    } catch (const alize::Error &error) {
        return error.what();
    }
}

}  // namespace

TEST_CASE("what is no manifest is refused") {
    CHECK(refusal("[]") == "field at the top should be dict, not list []");
    CHECK(refusal("{\"schema\": 7}") ==
          "schema 7 is not the schema 3 that this alize reads: upgrade with `pip install --upgrade alize`");
    CHECK(refusal("{\"schema\": 3}") == "missing field alize");
    CHECK(refusal("{\"schema\": 3, \"zz\": 1}") == "unknown field zz");
}

TEST_CASE("the fingerprint's key is the one that docs/state.md gives") {
    CHECK(alize::fingerprint_key({{"backend", "openvino"}, {"device", "CPU"}, {"version", "2026.4.1"}}) ==
          "fb8d3730bf7920f0");
}
