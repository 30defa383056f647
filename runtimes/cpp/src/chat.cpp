#include "chat.hpp"

#include <cerrno>

#include "error.hpp"
#include "files.hpp"
#include "strict.hpp"
#include "text.hpp"

namespace alize {

ChatForm ChatForm::read(const std::filesystem::path &folder) {
    const std::filesystem::path path = folder / kChatForm;
    std::string bytes;
    const int number = read_file(path, bytes);
    if (number == ENOENT)
        fail(ALIZE_USAGE,
             "this model has no chat template: continue a raw prompt instead (`alize run` without --chat)");
    if (number != 0) fail(ALIZE_ARTIFACT, path.string(), " cannot be read: ", system_error(number));
    try {
        return parse(bytes);
    } catch (const Error &error) {
        fail(error.status(), path.string(), ": ", error.what());
    }
}

ChatForm ChatForm::parse(std::string_view bytes) {
    if (not_utf8(bytes) != std::string_view::npos) fail(ALIZE_ARTIFACT, "not UTF-8");
    Json json = parse_json(bytes);
    const Field top(json, "");
    top.fields({"schema", "refused", "strip", "system", "gaps"});
    if (const int64_t schema = top["schema"].integer(); schema != 1)
        fail(ALIZE_UNKNOWN_SCHEMA, "schema ", schema, " is not the schema 1 that this libalize reads: upgrade it");
    ChatForm form;
    if (!top["refused"].null()) form.refused_ = top["refused"].string();
    form.system_inline_ = top["system"].string({"inline", "moved"}) == "inline";
    for (const Field &role : top["strip"].items()) form.strip_.insert(role.string());
    for (const auto &[key, gap] : top["gaps"].members()) {
        for (const Field &part : gap.items())
            form.gaps_[key].push_back(part.null() ? std::nullopt : std::optional(part.string()));
        form.gaps_[key];
    }
    return form;
}

std::string ChatForm::render(const std::vector<Message> &messages, bool add_generation_prompt) const {
    if (!refused_.empty())
        fail(ALIZE_USAGE, "this model's chat template has no form without Jinja (", refused_,
             "): render the conversation yourself and pass its text");
    if (messages.empty()) fail(ALIZE_USAGE, "the conversation is empty: give at least one message");
    const auto content = [&](const Message &message) {
        return strip_.count(message.role) != 0 ? stripped(message.content) : message.content;
    };
    const bool has_system = messages[0].role == "system";
    std::string out, before = "start";
    const auto cross = [&](const std::string &to, bool last) {
        const std::string key =
            std::string(has_system ? "system" : "none") + "/" + before + "/" + to + (last ? "/last" : "/more");
        const auto gap = gaps_.find(key);
        if (gap == gaps_.end())
            fail(ALIZE_USAGE, "the chat template cannot render these messages (", repr(std::string_view(to)), " after ",
                 repr(std::string_view(before)), "): mend them, or prompt without it");
        for (const auto &part : gap->second) out += part ? *part : content(messages[0]);
        before = to;
    };
    for (size_t i = has_system && !system_inline_ ? 1 : 0; i < messages.size(); i++) {
        cross(messages[i].role, i + 1 == messages.size());
        out += content(messages[i]);
    }
    cross(add_generation_prompt ? "prompt" : "end", true);
    return out;
}

}  // namespace alize
