#include "manifest.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <set>

#include "error.hpp"
#include "files.hpp"
#include "sha256.hpp"
#include "strict.hpp"

namespace alize {

Options decode_options(const Field &field) {
    Options found;
    for (const auto &[name, value] : field.members()) {
        const Json &json = value.json();
        if (json.is_string()) {
            found[name] = value.string();
        } else if (json.is_boolean()) {
            found[name] = value.boolean();
        } else if (json.is_number_integer()) {
            found[name] = value.integer();
        } else {
            value.should_be("str or int or bool");
        }
    }
    return found;
}

namespace {

bool is_digest(std::string_view text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::vector<std::string> strings(const Field &field) {
    std::vector<std::string> found;
    for (const Field &item : field.items()) found.push_back(item.string());
    return found;
}

std::vector<int64_t> integers(const Field &field) {
    std::vector<int64_t> found;
    for (const Field &item : field.items()) found.push_back(item.integer());
    return found;
}

void check_strings(const Field &field) {
    for (const auto &[name, value] : field.members()) value.string();
}

void check_numbers(const Field &field) {
    for (const auto &[name, value] : field.members()) value.number();
}

// Figures have 4 significant digits where they are no whole numbers.
void check_figures(const Field &field) {
    for (const auto &[name, value] : field.members()) {
        const double exact = value.number();
        std::array<char, 40> buffer;
        char *const end =
            std::to_chars(buffer.data(), buffer.data() + buffer.size(), exact, std::chars_format::general, 4).ptr;
        double rounded = exact;
        if (exact != std::floor(exact)) std::from_chars(buffer.data(), end, rounded);
        value.json() = rounded;
    }
}

std::string decode_source(const Field &source) {
    source.fields({"kind", "repo", "commit", "sha256", "architecture", "family", "config", "quantised", "adapter"});
    for (const char *name : {"repo", "commit", "quantised", "adapter"}) {
        const Field field = source[name];
        if (!field.null() && !field.json().is_string()) field.should_be("str or null");
    }
    source["kind"].string({"folder", "hub"});
    source["sha256"].string();
    source["family"].string();
    source["config"].members();
    return source["architecture"].string();
}

ModelInfo decode_model(const Field &model) {
    model.fields({"layers", "query_heads", "key_value_heads", "head_size", "hidden_size", "vocab_size", "windows",
                  "max_positions", "bos_token_id", "eos_token_ids", "experts", "experts_per_token"});
    ModelInfo info;
    const auto read = [&](const char *name) { return model[name].integer(); };
    info.layers = read("layers"), info.query_heads = read("query_heads");
    info.key_value_heads = read("key_value_heads"), info.head_size = read("head_size");
    info.hidden_size = read("hidden_size"), info.vocab_size = read("vocab_size");
    info.windows = integers(model["windows"]);
    info.max_positions = read("max_positions");
    const Field bos = model["bos_token_id"];
    if (!bos.null() && !bos.json().is_number_integer()) bos.should_be("int or null");
    if (!bos.null()) info.bos_token_id = bos.integer();
    info.eos_token_ids = integers(model["eos_token_ids"]);
    info.experts = read("experts"), info.experts_per_token = read("experts_per_token");
    return info;
}

Configuration decode_configuration(const Field &field) {
    field.fields({"name", "options"});
    return {field["name"].string(), decode_options(field["options"])};
}

void decode_target(const Field &target, Manifest &manifest) {
    target.fields({"backend", "device", "weights", "options", "versions", "passes", "structure"});
    manifest.backend = target["backend"].string();
    manifest.device = target["device"].string();
    manifest.weights = target["weights"].string();
    check_strings(target["options"]);
    check_strings(target["versions"]);
    strings(target["passes"]);
    target["structure"].members();
}

void decode_validation(const Field &validation, Manifest &manifest) {
    validation.fields({"level", "verdict", "left_out", "budget", "cases", "figures"});
    manifest.level = validation["level"].string({"device-validated", "graph-validated"});
    manifest.verdict = validation["verdict"].string({"pass", "fail", "partial"});
    manifest.left_out = strings(validation["left_out"]);
    check_numbers(validation["budget"]);
    for (const Field &result : validation["cases"].items()) {
        result.fields({"name", "question", "passed", "figures"});
        result["name"].string();
        result["question"].string({"compile fidelity", "quantisation loss", "runtime loss"});
        result["passed"].boolean();
        check_figures(result["figures"]);
    }
    for (const auto &[name, figures] : validation["figures"].members()) check_figures(figures);
}

Manifest decode(Json &json) {
    const Field top(json, "");
    top.fields({"schema", "alize", "source", "model", "target", "configurations", "files", "unsealed", "validation",
                "rebuild", "digest"});
    Manifest manifest;
    top["schema"].integer();
    top["alize"].string();
    manifest.architecture = decode_source(top["source"]);
    manifest.model = decode_model(top["model"]);
    decode_target(top["target"], manifest);
    for (const Field &field : top["configurations"].items())
        manifest.configurations.push_back(decode_configuration(field));
    for (const Field &field : top["files"].items()) {
        field.fields({"path", "size", "sha256"});
        manifest.files.push_back({field["path"].string(), field["size"].integer(), field["sha256"].string()});
    }
    manifest.unsealed = strings(top["unsealed"]);
    decode_validation(top["validation"], manifest);
    manifest.rebuild = top["rebuild"].string();
    manifest.digest = top["digest"].string();
    return manifest;
}

void check_schema(const Json &json) {
    const auto schema = json.is_object() ? json.find("schema") : json.end();
    if (schema == json.end() || !schema->is_number_integer() || *schema == kSchema) return;
    const char *remedy =
        *schema > kSchema ? "upgrade with `pip install --upgrade alize`" : "build the artifact again with this alize";
    fail(ALIZE_UNKNOWN_SCHEMA, "schema ", schema->dump(), " is not the schema ", kSchema,
         " that this alize reads: ", remedy);
}

bool is_plain(const std::string &path) {
    if (path.empty() || path == kManifest || path.find('\\') != std::string::npos) return false;
    for (size_t at = 0; at <= path.size();) {
        const size_t end = std::min(path.find('/', at), path.size());
        const std::string part = path.substr(at, end - at);
        if (part.empty() || part == "." || part == "..") return false;
        at = end + 1;
    }
    return true;
}

void check_paths(const Manifest &manifest) {
    std::set<std::string> known;
    std::vector<std::string> paths;
    for (const FileEntry &entry : manifest.files) paths.push_back(entry.path);
    paths.insert(paths.end(), manifest.unsealed.begin(), manifest.unsealed.end());
    for (const std::string &path : paths) {
        if (!is_plain(path))
            fail(ALIZE_ARTIFACT, "field files or unsealed has ", repr(std::string_view(path)),
                 ", which is no plain path inside the artifact");
    }
    for (const std::string &path : paths) {
        if (!known.insert(path).second) fail(ALIZE_ARTIFACT, "field files or unsealed names a path twice");
    }
    for (const FileEntry &entry : manifest.files) {
        if (entry.size < 0 || !is_digest(entry.sha256))
            fail(ALIZE_ARTIFACT, "field files has no usable size and sha256 for ", entry.path);
    }
}

// What else than arithmetic an honest manifest cannot hold, and a runtime would stumble over.
void check_model(const ModelInfo &info) {
    const bool counts = info.layers > 0 && info.key_value_heads > 0 && info.head_size > 0 && info.vocab_size > 0;
    const bool windows = static_cast<int64_t>(info.windows.size()) == info.layers && info.layers > 0 &&
                         *std::min_element(info.windows.begin(), info.windows.end()) >= 0;
    const bool experts = info.experts == 0 ? info.experts_per_token == 0
                                           : info.experts_per_token >= 1 && info.experts_per_token <= info.experts;
    if (!counts || !windows || !experts) fail(ALIZE_ARTIFACT, "field model has sizes that no model has");
}

// `json` went through `decode`, which made it what Python reads: so its canonical text is the one that was sealed.
void check_digest(std::string_view bytes, const Json &json, const Manifest &manifest) {
    Json rest = json;
    rest.erase("digest");
    if (sha256(canonical(rest)) != manifest.digest)
        fail(ALIZE_TAMPERED, "it was changed (digest is not ", manifest.digest.substr(0, 12), "...): rebuild with `",
             manifest.rebuild, "`");
    if (bytes != canonical(json))  // white space or an escaped letter: same meaning, other bytes
        fail(ALIZE_TAMPERED, "it was rewritten (not in canonical form): rebuild with `", manifest.rebuild, "`");
}

void check_pin(const std::filesystem::path &folder, const Manifest &manifest, const std::string &expect) {
    std::string pin = expect;
    std::transform(pin.begin(), pin.end(), pin.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
    if (pin.rfind("sha256:", 0) == 0) pin = pin.substr(7);
    if (!is_digest(pin))
        fail(ALIZE_USAGE, repr(std::string_view(expect)),
             " is not a digest: give the 64 hex digits that `alize inspect` shows");
    if (pin != manifest.digest)
        fail(ALIZE_TAMPERED, folder.string(), " has digest ", manifest.digest, ", not the pinned ", pin,
             ": load the artifact that was pinned, or pin this one");
}

}  // namespace

int64_t ModelInfo::widest_window() const { return *std::max_element(windows.begin(), windows.end()); }

bool ModelInfo::bounded() const { return std::find(windows.begin(), windows.end(), 0) != windows.end(); }

Manifest parse_manifest(std::string_view bytes) {
    Json json = parse_json(bytes);
    check_schema(json);
    Manifest manifest = decode(json);
    check_paths(manifest);
    check_digest(bytes, json, manifest);
    check_model(manifest.model);
    return manifest;
}

Manifest read_manifest(const std::filesystem::path &folder, const std::string &expect) {
    const std::filesystem::path path = folder / kManifest;
    std::string bytes;
    if (const int number = read_file(path, bytes); number == ENOENT || number == ENOTDIR) {
        std::error_code ignored;
        const bool is_folder = std::filesystem::is_directory(folder, ignored);
        fail(ALIZE_ARTIFACT, folder.string(), " is not an artifact (",
             is_folder ? "it has no manifest.json" : "there is no such folder",
             "): make one with `alize build SOURCE -o ", folder.string(), "`");
    } else if (number != 0) {
        fail(ALIZE_ARTIFACT, path.string(), " cannot be read: ", system_error(number));
    }
    if (const size_t at = not_utf8(bytes); at != std::string_view::npos)
        fail(ALIZE_TAMPERED, path.string(), ": not UTF-8 from byte ", at, " on: restore the file or rebuild");
    Manifest manifest;
    try {
        manifest = parse_manifest(bytes);
    } catch (const Error &error) {
        const char *remedy = error.status() == ALIZE_ARTIFACT ? ": restore the file, or build the artifact again" : "";
        fail(error.status(), path.string(), ": ", error.what(), remedy);
    }
    if (!expect.empty()) check_pin(folder, manifest, expect);
    return manifest;
}

}  // namespace alize
