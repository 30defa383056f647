// A back-end opened at run time: its C table behind small classes that raise Error.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "alize/backend.h"
#include "manifest.hpp"
#include "state.hpp"

namespace alize {

// libalize_NAME.so. Stays open for the life of the process: engines do not like to be unloaded.
class Backend {
public:
    // `folder` "" = $ALIZE_BACKEND_PATH, else where libalize itself is. Raises ALIZE_BACKEND_UNAVAILABLE.
    static const Backend &open(const std::string &name, const std::string &folder);

    explicit Backend(const alize_backend *table) : table_(table) {}
    std::vector<std::string> devices() const;
    // Raises ALIZE_DEVICE_UNAVAILABLE, listing the devices that are there, unless `device` is one of them.
    void check_device(const std::string &device) const;
    Fingerprint fingerprint(const std::string &device) const;
    // Why a configuration with these options cannot run on this machine; "" where it can.
    std::string missing(const Options &options) const;
    const alize_backend &table() const { return *table_; }

private:
    const alize_backend *table_;
};

// The state of B rows; see Runner in runtimes/runner.py.
class Runner {
public:
    virtual ~Runner() = default;
    // Writes logits[B,keep,V], keep > 0.
    virtual void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
                      float *logits) = 0;
    virtual void drop_last(int64_t n) = 0;
    virtual void evict(int64_t keep) = 0;
    virtual int64_t cached() = 0;
    virtual void reset() = 0;
    virtual void cancel() = 0;
};

// Weights and compiled graph on one device.
class Engine {
public:
    Engine(const Backend &backend, const std::filesystem::path &folder, const Manifest &manifest,
           const std::string &device, const Options &options, const std::string &tokenizers_library);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    std::unique_ptr<Runner> runner(int64_t batch) const;
    std::vector<int64_t> encode(std::string_view text, bool special_tokens) const;
    std::string decode(const std::vector<int64_t> &tokens, bool skip_special_tokens) const;

private:
    const alize_backend &table_;
    void *engine_ = nullptr;
};

}  // namespace alize
