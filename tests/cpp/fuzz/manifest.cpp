// Any bytes as a manifest, a chat form or JSON: a refusal, never a crash; what parses has one canonical text.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "chat.hpp"
#include "error.hpp"
#include "json.hpp"
#include "manifest.hpp"

namespace {

template <typename Body>
bool passes(Body body) {
    try {
        body();
        return true;
    } catch (const alize::Error &) {
        return false;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const std::string_view bytes(reinterpret_cast<const char *>(data), size);
    if (alize::not_utf8(bytes) != std::string_view::npos) return 0;  // refused before anything is parsed
    passes([&] { alize::parse_manifest(bytes); });
    passes([&] { alize::ChatForm::parse(bytes).render({{"system", "a"}, {"user", "b"}}, true); });
    std::string canonical;
    if (passes([&] { canonical = alize::canonical(alize::parse_json(bytes)); })) {
        if (alize::canonical(alize::parse_json(canonical)) != canonical) std::abort();
        alize::describe(alize::parse_json(canonical));
    }
    return 0;
}
