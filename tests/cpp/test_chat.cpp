#include <doctest/doctest.h>

#include "chat.hpp"
#include "error.hpp"

using alize::ChatForm;

namespace {

constexpr const char *kMoved = R"({"schema": 1, "refused": null, "strip": ["system"], "system": "moved", "gaps": {
    "none/start/user/last": ["<s>[", "("], "none/user/prompt/last": [")]"], "none/user/end/last": [")]."],
    "system/start/user/last": ["<s>", null, "\n", null, "("], "system/user/prompt/last": []}})";

}  // namespace

TEST_CASE("texts stand between messages, and the system's where the template puts it") {
    const ChatForm form = ChatForm::parse(kMoved);
    CHECK(form.render({{"user", " hi "}}, true) == "<s>[( hi )]");
    CHECK(form.render({{"user", "hi"}}, false) == "<s>[(hi)].");
    CHECK(form.render({{"system", " be kind\n"}, {"user", "hi"}}, true) == "<s>be kind\nbe kind(hi");
}

TEST_CASE("a sequence of roles that has no place is refused") {
    const ChatForm form = ChatForm::parse(kMoved);
    CHECK_THROWS_WITH(
        form.render({{"assistant", "x"}}, true),
        "the chat template cannot render these messages ('assistant' after 'start'): mend them, or prompt "
        "without it");
    CHECK_THROWS_AS(form.render({}, true), alize::Error);
    CHECK_THROWS_AS(form.render({{"system", "x"}}, true), alize::Error);
}

TEST_CASE("a file that is no form is refused") {
    for (const char *text :
         {"", "{}", "[]", R"({"schema": 2, "refused": null, "strip": [], "system": "inline", "gaps": {}})",
          R"({"schema": 1, "refused": null, "strip": [], "system": "inline", "gaps": {"a": [1]}})",
          R"({"schema": 1, "refused": null, "strip": [], "system": "else", "gaps": {}})"})
        CHECK_THROWS_AS(ChatForm::parse(text), alize::Error);
    const auto refused = ChatForm::parse(
        R"({"schema": 1, "refused": "it writes the date", "strip": [], "system": "inline", "gaps": {}})");
    CHECK_THROWS_WITH(
        refused.render({{"user", "x"}}, true),
        "this model's chat template has no form without Jinja (it writes the date): render the conversation "
        "yourself and pass its text");
}
