#include "verify.hpp"

#include <algorithm>
#include <chrono>
#include <optional>
#include <set>

#include "error.hpp"
#include "files.hpp"

namespace alize {
namespace {

// A file changed this shortly before it was hashed may change again under the same time stamp: no record is kept of it.
constexpr int64_t kRacyNs = 20000000;

std::string listed(const std::vector<std::string> &names) {
    std::string out;
    for (size_t i = 0; i < std::min<size_t>(names.size(), 3); i++) out += (i == 0 ? "" : ", ") + names[i];
    return names.size() > 3 ? text(out, " (and ", names.size() - 3, " more)") : out;
}

void check_names(const std::filesystem::path &folder, const Manifest &manifest) {
    std::set<std::string> sealed, known(manifest.unsealed.begin(), manifest.unsealed.end());
    for (const FileEntry &entry : manifest.files) sealed.insert(entry.path);
    known.insert(sealed.begin(), sealed.end());
    known.insert(kManifest);
    std::vector<std::string> missing, extra;
    const std::vector<std::string> there = list_files(folder);
    std::set_difference(sealed.begin(), sealed.end(), there.begin(), there.end(), std::back_inserter(missing));
    std::set_difference(there.begin(), there.end(), known.begin(), known.end(), std::back_inserter(extra));
    if (!missing.empty())
        fail(ALIZE_TAMPERED, folder.string(), ": ", listed(missing), " is missing: rebuild with `", manifest.rebuild,
             "`");
    if (!extra.empty())
        fail(ALIZE_TAMPERED, folder.string(), ": ", listed(extra),
             " is not part of the artifact: remove it, or rebuild with `", manifest.rebuild, "`");
}

int64_t now_ns() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// Returns the record to keep of the file, none where its time stamps are too fresh to be told from a later change.
std::optional<FileRecord> verify_file(const std::filesystem::path &folder, const FileEntry &entry,
                                      const FileRecord *record, const Manifest &manifest) {
    const std::filesystem::path path = folder / entry.path;
    const auto changed = [&](const std::string &how) {
        fail(ALIZE_TAMPERED, folder.string(), ": ", entry.path, " is not what was sealed (", how, "): rebuild with `",
             manifest.rebuild, "`");
    };
    FileRecord before, after;
    std::string hex;
    int number = stat_file(path, before);
    if (number == 0 && before.size != entry.size) changed(text(before.size, " bytes, not ", entry.size));
    if (number == 0 && record != nullptr && *record == before) return before;
    if (number == 0) number = hash_file(path, hex);
    if (number == 0) number = stat_file(path, after);
    if (number != 0) changed("it cannot be read: " + system_error(number));
    if (hex != entry.sha256) changed("sha256 " + hex.substr(0, 12) + "..., not " + entry.sha256.substr(0, 12) + "...");
    const bool fresh = after != before || now_ns() - before.ctime_ns < kRacyNs;
    return fresh ? std::nullopt : std::optional(before);
}

}  // namespace

void verify(const std::filesystem::path &folder, const Manifest &manifest, DeviceState &state, bool full) {
    check_names(folder, manifest);
    const FileRecords known = state.file_records(folder);
    FileRecords kept;
    for (const FileEntry &entry : manifest.files) {
        const auto record = known.find(entry.path);
        const FileRecord *trusted = full || record == known.end() ? nullptr : &record->second;
        if (const auto found = verify_file(folder, entry, trusted, manifest)) kept[entry.path] = *found;
    }
    if (kept != known) state.record_files(folder, kept);
}

}  // namespace alize
