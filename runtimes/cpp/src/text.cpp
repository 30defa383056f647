#include "text.hpp"

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>
#include <utility>

#include "error.hpp"

namespace alize {
namespace {

// U+FFFD: what decoders show for bytes that are no UTF-8, or not yet.
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

std::string without_replacements(std::string text) {
    while (text.ends_with(kReplacement)) text.resize(text.size() - kReplacement.size());
    return text;
}

// The part of `text` behind what was returned already.
std::string behind(const std::string &text, size_t returned) {
    return text.size() > returned ? text.substr(returned) : "";
}

constexpr std::array<std::string_view, 29> kSpaces = {
    "\t",           "\n",           "\v",           "\f",           "\r",
    "\x1c",         "\x1d",         "\x1e",         "\x1f",         " ",
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
    "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
    "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
    "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

}  // namespace

std::string stripped(const std::string &text) {
    std::string_view rest = text;
    for (bool again = true; again;) {
        again = false;
        for (const std::string_view space : kSpaces) {
            if (rest.starts_with(space)) rest.remove_prefix(space.size()), again = true;
            if (rest.ends_with(space)) rest.remove_suffix(space.size()), again = true;
        }
    }
    return std::string(rest);
}

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
    for (const std::string &stop : stops_) {
        if (stop.empty()) fail(ALIZE_USAGE, "a stop string is empty: give at least one character");
    }
}

std::string StopStrings::push(const std::string &fresh) {
    if (found_) return "";
    const std::string text = held_ + fresh;
    // The one that is complete first, as if the text came letter by letter; of those the longest.
    std::optional<std::tuple<size_t, size_t, std::string>> first;
    for (const std::string &stop : stops_) {
        const size_t at = text.find(stop);
        if (at == std::string::npos) continue;
        std::tuple<size_t, size_t, std::string> end = {at + stop.size(), at, stop};
        if (!first || end < *first) first = std::move(end);
    }
    if (first) {
        found_ = std::get<2>(*first);
        held_.clear();
        return text.substr(0, std::get<1>(*first));
    }
    size_t size = 0;
    for (const std::string &stop : stops_) size = std::max(size, stop.size() - 1);
    for (size = std::min(size, text.size()); size > 0; size--) {
        const std::string_view end = std::string_view(text).substr(text.size() - size);
        if (std::any_of(stops_.begin(), stops_.end(), [&](const std::string &stop) { return stop.starts_with(end); }))
            break;
    }
    held_ = text.substr(text.size() - size);
    return text.substr(0, text.size() - size);
}

std::string StopStrings::flush() { return std::exchange(held_, ""); }

std::string StreamDecoder::push(int64_t token) {
    tokens_.push_back(token);
    const std::string text = decoded();
    const std::string certain = without_replacements(text);
    const std::string fresh = behind(certain, said_.size() + more_.size());
    more_ += fresh;
    if (certain.size() == text.size()) advance(text);
    return stop_.push(fresh);
}

std::string StreamDecoder::flush() {
    const std::string rest = tokens_.empty() ? "" : behind(decoded(), said_.size() + more_.size());
    tokens_.clear(), said_.clear(), more_.clear();
    whole_ = 0;
    const std::string last = stop_.push(rest);
    return last + stop_.flush();
}

std::string StreamDecoder::decoded() {
    std::string text = decode_(tokens_);
    if (!text.starts_with(said_)) {
        // Byte tokens were whole characters until the last ones broke the run: those are decoded by themselves.
        tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(whole_));
        whole_ = 0;
        said_.clear();
        text = decode_(tokens_);
    }
    return text;
}

void StreamDecoder::advance(const std::string &text) {
    // A piece without text (special tokens) cannot stand before the next: a decoder would take the next one's leading
    // space for the start of the text and strip it.
    const std::vector<int64_t> piece(tokens_.begin() + static_cast<std::ptrdiff_t>(whole_), tokens_.end());
    std::string said = decode_(piece);
    if (said.empty()) {
        said = text;
    } else {
        tokens_ = piece;
    }
    whole_ = tokens_.size();
    said_ = std::move(said);
    more_.clear();
}

}  // namespace alize
