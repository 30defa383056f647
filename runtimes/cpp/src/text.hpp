// Text that grows token by token, and stop strings. runtimes/text.py says what must come out.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace alize {

// str.strip() of Python: Unicode white space at both ends.
std::string stripped(const std::string &text);

// Passes text on up to the first stop string, however it is cut into pieces.
class StopStrings {
public:
    explicit StopStrings(std::vector<std::string> stops);  // raises ALIZE_USAGE for an empty one

    std::string push(const std::string &text);  // what no stop string can claim any more
    std::string flush();                        // what was held back
    const std::optional<std::string> &found() const { return found_; }

private:
    std::vector<std::string> stops_;
    std::optional<std::string> found_;
    std::string held_;
};

// What `push` and `flush` return, joined, is the decoding of all tokens at once, cut between characters.
class StreamDecoder {
public:
    using Decode = std::function<std::string(const std::vector<int64_t> &)>;
    StreamDecoder(Decode decode, std::vector<std::string> stops)
        : decode_(std::move(decode)), stop_(std::move(stops)) {}

    std::string push(int64_t token);
    std::string flush();
    const std::optional<std::string> &stopped() const { return stop_.found(); }

private:
    std::string decoded();
    void advance(const std::string &text);

    Decode decode_;
    StopStrings stop_;
    std::vector<int64_t> tokens_;  // the last whole piece, then what came after it
    size_t whole_ = 0;             // tokens of that piece
    std::string said_;             // its text
    std::string more_;             // what was returned of the text after it
};

}  // namespace alize
