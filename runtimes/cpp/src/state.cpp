#include "state.hpp"

#include <pwd.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <set>

#include "error.hpp"
#include "log.hpp"
#include "sha256.hpp"
#include "strict.hpp"

namespace alize {
namespace {

constexpr int64_t kStateSchema = 1;
constexpr const char *kStateFile = "state.json", *kTunedFile = "tuned.json";

std::string environment(const char *name) {
    const char *value = std::getenv(name);
    return value == nullptr ? "" : value;
}

std::filesystem::path from_root(const std::filesystem::path &path) {
    std::error_code error;
    const auto found = std::filesystem::absolute(path, error);
    return error ? path : found;
}

// The user's home as the system lists it, for a process without $HOME.
std::string listed_home() {
    std::array<char, 4096> buffer;
    passwd entry, *found = nullptr;
    if (::getpwuid_r(::getuid(), &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) return "";
    return entry.pw_dir;
}

std::string resolved(const std::filesystem::path &folder) {
    std::error_code error;
    const auto found = std::filesystem::weakly_canonical(from_root(folder), error);
    return error ? from_root(folder).string() : found.string();
}

Json parse_utf8(const std::string &bytes) {
    if (not_utf8(bytes) != std::string_view::npos) fail(ALIZE_ARTIFACT, "not UTF-8");
    return parse_json(bytes);
}

FileRecord decode_record(const Field &field) {
    field.fields({"size", "inode", "mtime_ns", "ctime_ns"});
    return {field["size"].integer(), field["inode"].integer(), field["mtime_ns"].integer(),
            field["ctime_ns"].integer()};
}

void complain(int number) {
    static std::mutex mutex;
    static std::set<std::string> complained;  // so that a process says it once
    const std::string folder = state_dir().string();
    const std::lock_guard<std::mutex> lock(mutex);
    if (complained.insert(folder).second)
        warn(text(folder, " cannot be written (", system_error(number),
                  "): checks are repeated at every load; set ALIZE_STATE_DIR"));
}

}  // namespace

std::filesystem::path state_dir() {
    if (const std::string own = environment("ALIZE_STATE_DIR"); !own.empty()) return from_root(own);
    const std::filesystem::path base = environment("XDG_STATE_HOME");
    if (base.is_absolute()) return base / "alize";  // the XDG specification has relative paths ignored
    std::string home = environment("HOME");
    if (home.empty()) home = listed_home();
    if (home.empty()) return "/dev/null/alize";  // cannot be made, so that work is repeated and said so
    return std::filesystem::path(home) / ".local" / "state" / "alize";
}

std::string fingerprint_key(const Fingerprint &fingerprint) {
    std::string lines;
    for (const auto &[key, value] : fingerprint) lines += key + "=" + value + "\n";
    return sha256(lines).substr(0, 16);
}

DeviceState::DeviceState(const std::string &digest, Fingerprint fingerprint)
    : fingerprint_(std::move(fingerprint)), folder_(state_dir() / digest / fingerprint_key(fingerprint_)) {
    read();
}

std::string DeviceState::verdict(const std::string &configuration) const {
    const auto found = verdicts_.find(configuration);
    return found == verdicts_.end() ? "" : found->second.verdict;
}

void DeviceState::record_verdict(const std::string &configuration, const std::string &verdict, const Figures &figures) {
    verdicts_[configuration] = {verdict, figures};
    write();
}

FileRecords DeviceState::file_records(const std::filesystem::path &folder) const {
    const auto found = files_.find(resolved(folder));
    return found == files_.end() ? FileRecords() : found->second;
}

void DeviceState::record_files(const std::filesystem::path &folder, const FileRecords &records) {
    const std::string name = resolved(folder);
    if (not_utf8(name) != std::string::npos)  // JSON has no place for it
        return warn(text(name, " is no UTF-8: its files are hashed again at every load; rename it"));
    files_[name] = records;
    write();
}

std::optional<Configuration> DeviceState::tuned() const {
    const std::filesystem::path path = folder_ / kTunedFile;
    std::string bytes;
    if (read_file(path, bytes) != 0) return std::nullopt;
    try {
        Json json = parse_utf8(bytes);
        const Field top(json, "");
        top.fields({"schema", "options", "gain"});
        const int64_t schema = top["schema"].integer();
        Options options = decode_options(top["options"]);
        top["gain"].number();
        if (schema != kStateSchema) return std::nullopt;
        const std::string digest = sha256(canonical(top["options"].json()));
        return Configuration{std::string(kTuned) + "-" + digest.substr(0, 8), std::move(options)};
    } catch (const Error &error) {
        warn(text(path.string(), " is not a file that alize can read (", error.what(),
                  "): the artifact is not tuned here"));
        return std::nullopt;
    }
}

void DeviceState::read() {
    const std::filesystem::path path = folder_ / kStateFile;
    std::string bytes;
    if (read_file(path, bytes) != 0) return;  // none yet, or unreadable: then writing will complain
    try {
        Json json = parse_utf8(bytes);
        const Field top(json, "");
        top.fields({"schema", "fingerprint", "verdicts", "files"});
        Fingerprint fingerprint;
        for (const auto &[name, value] : top["fingerprint"].members()) fingerprint[name] = value.string();
        std::map<std::string, Verdict> verdicts;
        for (const auto &[name, field] : top["verdicts"].members()) {
            field.fields({"verdict", "figures"});
            Verdict &verdict = verdicts[name];
            verdict.verdict = field["verdict"].string({"pass", "fail", "skipped"});
            for (const auto &[figure, value] : field["figures"].members()) verdict.figures[figure] = value.number();
        }
        std::map<std::string, FileRecords> files;
        for (const auto &[folder, field] : top["files"].members()) {
            for (const auto &[file, record] : field.members()) files[folder][file] = decode_record(record);
        }
        if (top["schema"].integer() != kStateSchema || fingerprint != fingerprint_) return;
        verdicts_ = std::move(verdicts), files_ = std::move(files);
    } catch (const Error &error) {
        warn(text(path.string(), " is not a state file that alize can read (", error.what(),
                  "): its work is done again"));
    }
}

void DeviceState::write() const {
    Json json = {{"schema", kStateSchema}, {"fingerprint", fingerprint_}};
    json["verdicts"] = json["files"] = Json::object();
    for (const auto &[name, verdict] : verdicts_)
        json["verdicts"][name] = {{"verdict", verdict.verdict}, {"figures", verdict.figures}};
    for (const auto &[folder, records] : files_) {
        Json &members = json["files"][folder] = Json::object();
        for (const auto &[file, record] : records)
            members[file] = {{"size", record.size},
                             {"inode", record.inode},
                             {"mtime_ns", record.mtime_ns},
                             {"ctime_ns", record.ctime_ns}};
    }
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    const int number = error ? error.value() : replace_file(folder_ / kStateFile, canonical(json));
    if (number != 0) complain(number);
}

}  // namespace alize
