// A conversation's text without Jinja: chat_form.json holds what the template writes between messages (docs/cpp.md).
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace alize {

struct Message {
    std::string role, content;
};

constexpr const char *kChatForm = "chat_form.json";

class ChatForm {
public:
    // Raises ALIZE_ARTIFACT for an unusable file, ALIZE_USAGE where there is no template or it has no such form.
    static ChatForm read(const std::filesystem::path &folder);
    static ChatForm parse(std::string_view bytes);

    // Raises ALIZE_USAGE for a sequence of roles that the template refuses.
    std::string render(const std::vector<Message> &messages, bool add_generation_prompt) const;

private:
    using Gap = std::vector<std::optional<std::string>>;  // literal texts; none = the system message's content

    std::string refused_;
    bool system_inline_ = true;  // or its content moves into a gap
    std::set<std::string> strip_;
    std::map<std::string, Gap> gaps_;
};

}  // namespace alize
