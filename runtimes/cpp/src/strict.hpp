// JSON to structures with no leniency: an unknown, missing or wrongly typed field is an error that names it.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "json.hpp"

namespace alize {

// A JSON value and its place ("target.options", "files[3].size"). The reads below raise ALIZE_ARTIFACT in Python's
// words. A whole number where a fraction is meant becomes one in place, so that the canonical text is the one that was
// sealed.
class Field {
public:
    Field(Json &value, std::string where) : value_(&value), where_(std::move(where)) {}

    // Refuses what is no object, or has other fields than these.
    const Field &fields(std::initializer_list<const char *> names) const;
    Field operator[](const char *name) const;  // of an object whose fields were checked

    std::string string() const;
    std::string string(std::initializer_list<const char *> choices) const;
    int64_t integer() const;
    bool boolean() const;
    double number() const;
    bool null() const { return value_->is_null(); }
    // What is neither null nor of the one type besides.
    [[noreturn]] void should_be(const char *what) const;

    std::vector<Field> items() const;                            // of a list
    std::vector<std::pair<std::string, Field>> members() const;  // of an object with free names

    Json &json() const { return *value_; }
    const std::string &where() const { return where_; }

private:
    Json *value_;
    std::string where_;
};

}  // namespace alize
