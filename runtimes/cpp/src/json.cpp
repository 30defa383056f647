#include "json.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <set>
#include <vector>

#include "error.hpp"

namespace alize {
namespace {

constexpr int kDeepest = 500;  // Python gives up before 1000; what is sealed has a depth of 6

void append_string(std::string &out, const std::string &value) {
    out += '"';
    for (const char letter : value) {
        switch (letter) {
            case '"':
                out += "\\\"";
                break;
            case '\\':
                out += "\\\\";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\r':
                out += "\\r";
                break;
            case '\t':
                out += "\\t";
                break;
            case '\b':
                out += "\\b";
                break;
            case '\f':
                out += "\\f";
                break;
            default:
                if (static_cast<unsigned char>(letter) < 0x20) {
                    out += "\\u00";
                    out += "0123456789abcdef"[letter >> 4 & 15];
                    out += "0123456789abcdef"[letter & 15];
                } else {
                    out += letter;
                }
        }
    }
    out += '"';
}

void append(std::string &out, const Json &value, size_t indent);

template <typename Items, typename Each>
void append_items(std::string &out, const Items &items, char open, char close, size_t indent, Each each) {
    out += open;
    if (items.empty()) {
        out += close;
        return;
    }
    bool first = true;
    for (auto item = items.begin(); item != items.end(); ++item) {
        out += first ? "\n" : ",\n";
        out.append(indent + 2, ' ');
        each(item);
        first = false;
    }
    out += '\n';
    out.append(indent, ' ');
    out += close;
}

void append(std::string &out, const Json &value, size_t indent) {
    if (value.is_object()) {
        append_items(out, value, '{', '}', indent, [&](auto item) {
            append_string(out, item.key());
            out += ": ";
            append(out, item.value(), indent + 2);
        });
    } else if (value.is_array()) {
        append_items(out, value, '[', ']', indent, [&](auto item) { append(out, *item, indent + 2); });
    } else if (value.is_string()) {
        append_string(out, value.get_ref<const std::string &>());
    } else if (value.is_number_float()) {
        out += repr(value.get<double>());
    } else {
        out += value.dump();
    }
}

// The code point at `at`, which is moved on; the text is UTF-8.
char32_t next(std::string_view text, size_t &at) {
    const auto lead = static_cast<unsigned char>(text[at++]);
    size_t more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    if (more > text.size() - at) more = 0;  // a caller's text, cut in a character: one byte at a time
    char32_t point = more == 0 ? lead : lead & (0x3F >> more);
    for (size_t i = 0; i < more; i++) point = point << 6 | (static_cast<unsigned char>(text[at++]) & 0x3F);
    return point;
}

std::string python_repr(const Json &value) {
    if (value.is_null()) return "None";
    if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
    if (value.is_string()) return repr(std::string_view(value.get_ref<const std::string &>()));
    if (value.is_number_float()) return repr(value.get<double>());
    if (value.is_number()) return value.dump();
    std::string out;
    const char *separator = "";
    if (value.is_array()) {
        for (const auto &item : value) out += separator + python_repr(item), separator = ", ";
        return "[" + out + "]";
    }
    for (const auto &item : value.items()) {
        out += separator + repr(std::string_view(item.key())) + ": " + python_repr(item.value());
        separator = ", ";
    }
    return "{" + out + "}";
}

}  // namespace

size_t not_utf8(std::string_view bytes) {
    for (size_t at = 0; at < bytes.size();) {
        const auto byte = [&](size_t i) {
            return at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0U;
        };
        const unsigned lead = byte(0);
        const size_t more = lead < 0x80 ? 0 : lead < 0xC2 ? 4 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 4;
        if (more == 4) return at;
        for (size_t i = 1; i <= more; i++) {
            if ((byte(i) & 0xC0) != 0x80) return at;
        }
        const unsigned second = byte(1);
        if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
            (lead == 0xF4 && second > 0x8F))
            return at;
        at += more + 1;
    }
    return std::string_view::npos;
}

Json parse_json(std::string_view bytes) {
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto check = [&](int depth, Json::parse_event_t event, Json &parsed) {
        using Event = Json::parse_event_t;
        if (event == Event::object_start) keys.emplace_back();
        if (event == Event::object_end) keys.pop_back();
        if ((event == Event::object_start || event == Event::array_start) && depth > kDeepest)
            fail(ALIZE_ARTIFACT, "not valid JSON (nested deeper than ", kDeepest, ")");
        if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second)
            fail(ALIZE_ARTIFACT, "not valid JSON (a field is there twice: ", parsed.dump(), ")");
        return true;
    };
    try {
        if (bytes.substr(0, 3) == "\xEF\xBB\xBF")
            fail(ALIZE_ARTIFACT, "not valid JSON (it begins with a byte order mark)");
        return Json::parse(bytes.begin(), bytes.end(), check);
    } catch (const Json::exception &error) {
        fail(ALIZE_ARTIFACT, "not valid JSON (", error.what(), ")");
    }
}

std::string canonical(const Json &value) {
    std::string out;
    append(out, value, 0);
    return out + "\n";
}

std::string repr(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
    std::array<char, 40> buffer;
    const auto end =
        std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific).ptr;
    std::string found(buffer.data(), end);
    const std::string sign = found.front() == '-' ? "-" : "";
    const size_t e = found.find('e');
    const int exponent = std::stoi(found.substr(e + 1));
    std::string digits;
    for (const char letter : found.substr(0, e)) {
        if (letter >= '0' && letter <= '9') digits += letter;
    }
    if (exponent < -4 || exponent >= 16) {
        const std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
        const int size = std::abs(exponent);
        return sign + digits[0] + fraction + (exponent < 0 ? "e-" : "e+") + (size < 10 ? "0" : "") +
               std::to_string(size);
    }
    if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
    const auto whole = static_cast<size_t>(exponent) + 1;
    if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string repr(std::string_view value) {
    const bool single = value.find('\'') != value.npos && value.find('"') == value.npos;
    const char quote = single ? '"' : '\'';
    std::string out(1, quote);
    for (size_t at = 0; at < value.size();) {
        const size_t before = at;
        const char32_t point = next(value, at);
        if (point == '\\' || point == static_cast<unsigned char>(quote)) {
            out += '\\', out += static_cast<char>(point);
        } else if (point == '\n' || point == '\r' || point == '\t') {
            out += point == '\n' ? "\\n" : point == '\r' ? "\\r" : "\\t";
        } else if (point < 0x20 || (point >= 0x7F && point <= 0xA0) || point == 0xAD) {
            out += "\\x", out += "0123456789abcdef"[point >> 4 & 15], out += "0123456789abcdef"[point & 15];
        } else {
            out += value.substr(before, at - before);
        }
    }
    return out + quote;
}

std::string describe(const Json &value) {
    const char *type = value.is_null()           ? "NoneType"
                       : value.is_boolean()      ? "bool"
                       : value.is_string()       ? "str"
                       : value.is_number_float() ? "float"
                       : value.is_number()       ? "int"
                       : value.is_array()        ? "list"
                                                 : "dict";
    const std::string found = python_repr(value);
    size_t letters = 0, cut = 0;
    for (size_t at = 0; at < found.size(); letters++) {
        if (letters == 37) cut = at;
        next(found, at);
    }
    return std::string(type) + " " + (letters <= 40 ? found : found.substr(0, cut) + "...");
}

}  // namespace alize
