// manifest.json: what an artifact is, which files it has, and what was measured on it (docs/artifact.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace alize {

using OptionValue = std::variant<std::string, int64_t, bool>;
using Options = std::map<std::string, OptionValue>;

struct ModelInfo {
    int64_t layers, query_heads, key_value_heads, head_size, hidden_size, vocab_size;
    std::vector<int64_t> windows;  // one W for each layer, 0 = full attention
    int64_t max_positions;
    std::optional<int64_t> bos_token_id;
    std::vector<int64_t> eos_token_ids;
    int64_t experts, experts_per_token;

    int64_t widest_window() const;
    bool bounded() const;  // some layer sees everything, so that max_positions holds
};

struct Configuration {
    std::string name;
    Options options;
};

struct FileEntry {
    std::string path;  // POSIX, inside the artifact
    int64_t size;
    std::string sha256;
};

struct Manifest {
    std::string architecture;
    ModelInfo model;
    std::string backend, device, weights;
    std::vector<Configuration> configurations;
    std::vector<FileEntry> files;
    std::vector<std::string> unsealed;
    std::string level, verdict;
    std::vector<std::string> left_out;
    std::string rebuild, digest;
};

class Field;

// The options of a configuration. Raises ALIZE_ARTIFACT for values that are no text, integer or truth.
Options decode_options(const Field &field);

constexpr int64_t kSchema = 3;
constexpr const char *kManifest = "manifest.json";

// Parses and checks the bytes of a manifest.json. Raises ALIZE_UNKNOWN_SCHEMA, ALIZE_ARTIFACT, ALIZE_TAMPERED.
Manifest parse_manifest(std::string_view bytes);

// Reads and checks FOLDER/manifest.json; `expect` pins the digest ("" = any).
Manifest read_manifest(const std::filesystem::path &folder, const std::string &expect);

}  // namespace alize
