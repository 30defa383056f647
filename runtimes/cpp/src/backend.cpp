#include "backend.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "error.hpp"
#include "json.hpp"

namespace alize {
namespace {

// Where this library itself lies.
std::filesystem::path own_folder() {
    Dl_info info;
    if (::dladdr(reinterpret_cast<const void *>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return {};
    std::error_code error;
    const auto found = std::filesystem::canonical(info.dli_fname, error);
    return error ? std::filesystem::path() : found.parent_path();
}

std::filesystem::path library(const std::string &name, const std::string &folder) {
    std::filesystem::path where = folder;
    if (const char *named = std::getenv("ALIZE_BACKEND_PATH"); where.empty() && named != nullptr) where = named;
    if (where.empty()) where = own_folder();
    return where / ("libalize_" + name + ".so");
}

bool plain_name(const std::string &name) {
    return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    });
}

const alize_backend *load_table(const std::string &name, const std::string &folder) {
    const std::string path = library(name, folder).string();
    void *handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char *why = ::dlerror();
        fail(ALIZE_BACKEND_UNAVAILABLE, "back-end ", name, " cannot be used here (", why == nullptr ? path : why,
             "): put libalize_", name, ".so and the engine's libraries beside libalize, or set ALIZE_BACKEND_PATH");
    }
    void *symbol = ::dlsym(handle, ALIZE_BACKEND_ENTRY);
    const alize_backend *table = nullptr;
    if (symbol != nullptr) {
        alize_backend_entry_function entry;
        std::memcpy(&entry, &symbol, sizeof(entry));
        table = entry();
    }
    if (table == nullptr || table->abi != ALIZE_BACKEND_ABI)
        fail(ALIZE_BACKEND_UNAVAILABLE, "back-end ", name, " cannot be used here (", path,
             " was made for another libalize): install both of one version");
    return table;
}

void check(int32_t status, const alize_backend_error &error) {
    if (status != 0) throw Error(status, error.message);
}

// Its texts live as long as `options`.
std::vector<alize_backend_option> listed_options(const Options &options) {
    std::vector<alize_backend_option> listed;
    for (const auto &[name, value] : options) {
        alize_backend_option option = {name.c_str(), 's', nullptr, 0};
        if (const auto *words = std::get_if<std::string>(&value)) option.text = words->c_str();
        if (const auto *number = std::get_if<int64_t>(&value)) option.kind = 'i', option.number = *number;
        if (const auto *truth = std::get_if<bool>(&value)) option.kind = 'b', option.number = *truth;
        listed.push_back(option);
    }
    return listed;
}

void take_text(void *user, const char *text, size_t length) { static_cast<std::string *>(user)->assign(text, length); }

class TableRunner : public Runner {
public:
    TableRunner(const alize_backend &table, void *runner) : table_(table), runner_(runner) {}
    ~TableRunner() override { table_.free_runner(runner_); }
    TableRunner(const TableRunner &) = delete;
    TableRunner &operator=(const TableRunner &) = delete;

    void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
              float *logits) override {
        alize_backend_error error = {};
        check(table_.step(runner_, tokens, s, lengths, positions, keep, logits, &error), error);
    }
    void drop_last(int64_t n) override {
        alize_backend_error error = {};
        check(table_.drop_last(runner_, n, &error), error);
    }
    void evict(int64_t keep) override {
        alize_backend_error error = {};
        check(table_.evict(runner_, keep, &error), error);
    }
    int64_t cached() override { return table_.cached(runner_); }
    void reset() override {
        alize_backend_error error = {};
        check(table_.reset(runner_, &error), error);
    }
    void cancel() override {
        if (table_.cancel != nullptr) table_.cancel(runner_);
    }

private:
    const alize_backend &table_;
    void *runner_;
};

}  // namespace

const Backend &Backend::open(const std::string &name, const std::string &folder) {
    static std::mutex mutex;
    static std::map<std::string, Backend> opened;
    if (!plain_name(name))
        fail(ALIZE_BACKEND_UNAVAILABLE, "no back-end ", repr(std::string_view(name)),
             " in this alize: upgrade libalize");
    const std::string key = library(name, folder).string();
    const std::lock_guard<std::mutex> lock(mutex);
    auto found = opened.find(key);
    if (found == opened.end()) found = opened.emplace(key, Backend(load_table(name, folder))).first;
    return found->second;
}

std::vector<std::string> Backend::devices() const {
    std::vector<std::string> found;
    alize_backend_error error = {};
    const auto each = [](void *user, const char *text, size_t length) {
        static_cast<std::vector<std::string> *>(user)->emplace_back(text, length);
    };
    check(table_->devices(each, &found, &error), error);
    return found;
}

void Backend::check_device(const std::string &device) const {
    const std::vector<std::string> there = devices();
    if (std::find(there.begin(), there.end(), device) != there.end()) return;
    std::string listed;
    for (const std::string &one : there) listed += (listed.empty() ? "" : ", ") + one;
    fail(ALIZE_DEVICE_UNAVAILABLE, table_->name, " has no device ", repr(std::string_view(device)),
         " here: use one of ", listed.empty() ? "none at all" : listed);
}

Fingerprint Backend::fingerprint(const std::string &device) const {
    Fingerprint found;
    alize_backend_error error = {};
    const auto each = [](void *user, const char *key, const char *value) {
        static_cast<Fingerprint *>(user)->emplace(key, value);
    };
    check(table_->fingerprint(device.c_str(), each, &found, &error), error);
    return found;
}

std::string Backend::missing(const Options &options) const {
    std::string found;
    if (table_->missing == nullptr) return found;
    const std::vector<alize_backend_option> listed = listed_options(options);
    alize_backend_error error = {};
    check(table_->missing(listed.data(), listed.size(), take_text, &found, &error), error);
    return found;
}

Engine::Engine(const Backend &backend, const std::filesystem::path &folder, const Manifest &manifest,
               const std::string &device, const Options &options, const std::string &tokenizers_library)
    : table_(backend.table()) {
    const std::vector<alize_backend_option> listed = listed_options(options);
    const std::string place = folder.string();
    const ModelInfo &info = manifest.model;
    const alize_backend_model model = {place.c_str(),
                                       device.c_str(),
                                       info.layers,
                                       info.key_value_heads,
                                       info.head_size,
                                       info.vocab_size,
                                       info.experts,
                                       info.experts_per_token,
                                       info.bos_token_id.value_or(-1),
                                       info.windows.data(),
                                       listed.data(),
                                       listed.size(),
                                       tokenizers_library.empty() ? nullptr : tokenizers_library.c_str()};
    alize_backend_error error = {};
    check(table_.open(&model, &engine_, &error), error);
}

Engine::~Engine() { table_.close(engine_); }

std::unique_ptr<Runner> Engine::runner(int64_t batch) const {
    void *runner = nullptr;
    alize_backend_error error = {};
    check(table_.runner(engine_, batch, &runner, &error), error);
    return std::make_unique<TableRunner>(table_, runner);
}

std::vector<int64_t> Engine::encode(std::string_view text, bool special_tokens) const {
    if (table_.encode == nullptr)
        fail(ALIZE_BACKEND_UNAVAILABLE, "back-end ", table_.name, " has no tokenizer: pass token ids");
    int64_t *tokens = nullptr;
    size_t count = 0;
    alize_backend_error error = {};
    check(table_.encode(engine_, text.data(), text.size(), special_tokens, &tokens, &count, &error), error);
    std::vector<int64_t> found(tokens, tokens + count);
    table_.free_tokens(tokens);
    return found;
}

std::string Engine::decode(const std::vector<int64_t> &tokens, bool skip_special_tokens) const {
    if (table_.decode == nullptr)
        fail(ALIZE_BACKEND_UNAVAILABLE, "back-end ", table_.name, " has no tokenizer: pass token ids");
    std::string found;
    alize_backend_error error = {};
    check(table_.decode(engine_, tokens.data(), tokens.size(), skip_special_tokens, take_text, &found, &error), error);
    return found;
}

}  // namespace alize
