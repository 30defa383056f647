#include <doctest/doctest.h>

#include <cmath>

#include "error.hpp"
#include "json.hpp"

using alize::canonical;
using alize::not_utf8;
using alize::parse_json;
using alize::repr;

TEST_CASE("numbers are written as Python writes them") {
    CHECK(repr(1.0) == "1.0");
    CHECK(repr(-0.0) == "-0.0");
    CHECK(repr(1e-5) == "1e-05");
    CHECK(repr(0.0001) == "0.0001");
    CHECK(repr(1.235e-7) == "1.235e-07");
    CHECK(repr(1e16) == "1e+16");
    CHECK(repr(1234567890123456.0) == "1234567890123456.0");
    CHECK(repr(5e-324) == "5e-324");
    CHECK(repr(1.7976931348623157e308) == "1.7976931348623157e+308");
    CHECK(repr(0.1 + 0.2) == "0.30000000000000004");
    CHECK(repr(std::nan("")) == "nan");
}

TEST_CASE("texts are quoted as Python quotes them") {
    CHECK(repr(std::string_view("it's")) == "\"it's\"");
    CHECK(repr(std::string_view("'\"")) == "'\\'\"'");
    CHECK(repr(std::string_view("a\n\x01é")) == "'a\\n\\x01é'");
}

TEST_CASE("canonical text") {
    const std::string text =
        "{\n  \"a\": [],\n  \"b\": {},\n  \"é\": [\n    1,\n    2.5,\n    \"\\\"\\u001f/\"\n  ]\n}\n";
    CHECK(canonical(parse_json(text)) == text);
}

TEST_CASE("what is no strict JSON is refused") {
    for (const char *text : {"", "{", "NaN", "[1,]", "{\"a\":1,\"a\":2}", "{\"b\":{\"a\":1,\"a\":2}}", "1e999",
                             "\"\xff\"", "'a'", "\"\\ud800\"", "\xEF\xBB\xBF{}", "[Infinity]", "01", "{} x"})
        CHECK_THROWS_AS(parse_json(text), alize::Error);
    CHECK_THROWS_AS(parse_json(std::string(100000, '[')), alize::Error);
    CHECK_NOTHROW(parse_json("{\"a\": {\"a\": 1}, \"b\": {\"a\": 1}}"));
}

TEST_CASE("where UTF-8 ends") {
    CHECK(not_utf8("aé🐫") == std::string_view::npos);
    CHECK(not_utf8("ab\xff") == 2);
    CHECK(not_utf8("a\xC3") == 1);
    CHECK(not_utf8("\xC0\x80") == 0);          // overlong
    CHECK(not_utf8("\xED\xA0\x80") == 0);      // half a pair
    CHECK(not_utf8("\xF4\x90\x80\x80") == 0);  // beyond U+10FFFF
}
