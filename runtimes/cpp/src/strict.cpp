#include "strict.hpp"

#include <algorithm>
#include <limits>
#include <set>

#include "error.hpp"

namespace alize {
namespace {

std::string place(const std::string &where) { return where.empty() ? "at the top" : where; }

}  // namespace

const Field &Field::fields(std::initializer_list<const char *> names) const {
    if (!value_->is_object()) should_be("dict");
    const std::string prefix = where_.empty() ? "" : where_ + ".";
    const std::set<std::string> known(names.begin(), names.end());
    for (const auto &item : value_->items()) {
        if (known.count(item.key()) == 0) fail(ALIZE_ARTIFACT, "unknown field ", prefix, item.key());
    }
    for (const auto &name : known) {
        if (!value_->contains(name)) fail(ALIZE_ARTIFACT, "missing field ", prefix, name);
    }
    return *this;
}

Field Field::operator[](const char *name) const {
    return {(*value_)[name], (where_.empty() ? "" : where_ + ".") + name};
}

void Field::should_be(const char *what) const {
    fail(ALIZE_ARTIFACT, "field ", place(where_), " should be ", what, ", not ", describe(*value_));
}

std::string Field::string() const {
    if (!value_->is_string()) should_be("str");
    return value_->get<std::string>();
}

std::string Field::string(std::initializer_list<const char *> choices) const {
    if (value_->is_string()) {
        const auto &found = value_->get_ref<const std::string &>();
        if (std::find(choices.begin(), choices.end(), found) != choices.end()) return found;
    }
    std::string listed;
    for (const char *choice : choices) listed += (listed.empty() ? "" : " or ") + repr(std::string_view(choice));
    const std::string found = value_->is_string() ? repr(std::string_view(value_->get_ref<const std::string &>()))
                                                  : describe(*value_).substr(describe(*value_).find(' ') + 1);
    fail(ALIZE_ARTIFACT, "field ", where_, " is ", found, "; it can be ", listed);
}

int64_t Field::integer() const {
    if (!value_->is_number_integer()) should_be("int");
    if (value_->is_number_unsigned() && value_->get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()})
        fail(ALIZE_ARTIFACT, "field ", where_, " is ", value_->dump(), ", which is over 2^63-1");
    return value_->get<int64_t>();
}

bool Field::boolean() const {
    if (!value_->is_boolean()) should_be("bool");
    return value_->get<bool>();
}

double Field::number() const {
    if (value_->is_number_integer()) *value_ = value_->get<double>();
    if (!value_->is_number_float()) should_be("float");
    return value_->get<double>();
}

std::vector<Field> Field::items() const {
    if (!value_->is_array()) should_be("list");
    std::vector<Field> found;
    for (size_t i = 0; i < value_->size(); i++) found.emplace_back((*value_)[i], text(where_, "[", i, "]"));
    return found;
}

std::vector<std::pair<std::string, Field>> Field::members() const {
    if (!value_->is_object()) should_be("dict");
    std::vector<std::pair<std::string, Field>> found;
    for (auto item = value_->begin(); item != value_->end(); ++item)
        found.emplace_back(item.key(), Field(item.value(), where_ + "." + item.key()));
    return found;
}

}  // namespace alize
