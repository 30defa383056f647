#include <doctest/doctest.h>

#include "error.hpp"
#include "text.hpp"

using alize::StopStrings;

namespace {

std::string joined(StopStrings &stops, const std::vector<std::string> &pieces) {
    std::string out;
    for (const std::string &piece : pieces) out += stops.push(piece);
    return out + stops.flush();
}

// A byte-level tokenizer: each token is a byte; what is no UTF-8 (yet) becomes U+FFFD, one for each byte.
std::string bytes_decoded(const std::vector<int64_t> &tokens) {
    std::string bytes, out;
    for (const int64_t token : tokens) bytes += static_cast<char>(token);
    for (size_t at = 0; at < bytes.size();) {
        const auto lead = static_cast<unsigned char>(bytes[at]);
        const size_t size = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        bool whole = size > 0 && at + size <= bytes.size();
        for (size_t i = 1; i < size && whole; i++) whole = (static_cast<unsigned char>(bytes[at + i]) & 0xC0) == 0x80;
        out += whole ? bytes.substr(at, size) : "\xEF\xBF\xBD";
        at += whole ? size : 1;
    }
    return out;
}

}  // namespace

TEST_CASE("a stop string ends the text before it, however it is cut") {
    for (size_t cut = 0; cut <= 12; cut++) {
        StopStrings stops({"END", "ENDING", "xyz"});
        const std::string text = "some ENDING.";
        CHECK(joined(stops, {text.substr(0, cut), text.substr(cut)}) == "some ");
        CHECK(stops.found() == "END");
        CHECK(stops.push("more").empty());
    }
}

TEST_CASE("what only began as a stop string is returned in the end") {
    StopStrings stops({"END"});
    CHECK(stops.push("the EN") == "the ");
    CHECK(stops.push("tire") == "ENtire");
    CHECK(stops.push(" E") == " ");
    CHECK(stops.flush() == "E");
    CHECK_THROWS_AS(StopStrings({""}), alize::Error);
}

TEST_CASE("a stream returns whole characters only") {
    alize::StreamDecoder stream(bytes_decoded, {});
    const std::string text = "aé🐫b";
    std::string out;
    for (const char byte : text) {
        const std::string piece = stream.push(static_cast<unsigned char>(byte));
        CHECK(piece.find("\xEF\xBF\xBD") == std::string::npos);
        out += piece;
    }
    CHECK(out + stream.flush() == text);
    stream.push(0xF0);
    CHECK(stream.flush() == "\xEF\xBF\xBD");
    CHECK(stream.flush().empty());
}

TEST_CASE("strip as Python strips") {
    CHECK(alize::stripped("\t\u00a0 x \u3000\n") == "x");
    CHECK(alize::stripped(" \n").empty());
    CHECK(alize::stripped("\u200bx") == "\u200bx");  // no white space
}
