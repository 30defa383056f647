// What one device has learnt about one artifact: verdicts, which files it has hashed, and what was tuned
// (docs/state.md).
#pragma once

#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "files.hpp"
#include "manifest.hpp"

namespace alize {

using Fingerprint = std::map<std::string, std::string>;
using Figures = std::map<std::string, double>;
using FileRecords = std::map<std::string, FileRecord>;

// The name by which `load` is asked for what tuning chose.
constexpr const char *kTuned = "tuned";

// $ALIZE_STATE_DIR, or `alize` under $XDG_STATE_HOME, or ~/.local/state/alize.
std::filesystem::path state_dir();
// Folder name of a fingerprint: the first 16 hex digits of the sha256 of its sorted `key=value` lines.
std::string fingerprint_key(const Fingerprint &fingerprint);

// Reads at once, writes at every change. A state that is missing, broken or unwritable costs work, never trust.
class DeviceState {
public:
    DeviceState(const std::string &digest, Fingerprint fingerprint);

    // "pass", "fail", "skipped", or "" where there is none.
    std::string verdict(const std::string &configuration) const;
    void record_verdict(const std::string &configuration, const std::string &verdict, const Figures &figures);

    FileRecords file_records(const std::filesystem::path &folder) const;
    void record_files(const std::filesystem::path &folder, const FileRecords &records);

    // What `alize tune` chose for this device, if it did. Its name has a digest of its options, so that a verdict
    // belongs to these.
    std::optional<Configuration> tuned() const;

    const std::filesystem::path &folder() const { return folder_; }

private:
    struct Verdict {
        std::string verdict;
        Figures figures;
    };
    void read();
    void write() const;

    Fingerprint fingerprint_;
    std::filesystem::path folder_;
    std::map<std::string, Verdict> verdicts_;
    std::map<std::string, FileRecords> files_;
};

}  // namespace alize
