// load: from an artifact's folder to a Model that has proven itself on this device.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.hpp"
#include "chat.hpp"
#include "manifest.hpp"
#include "session.hpp"
#include "text.hpp"

namespace alize {

struct LoadOptions {
    std::string device, expect, configuration, backend_path, tokenizers_library;  // "" = the default
    bool verify_full = false, unsafe_skip_validation = false;
};

// Weights and compiled graph of one artifact on one device, shared by its sessions. Any thread.
class Model {
public:
    Model(std::filesystem::path folder, Manifest manifest, std::string device, Configuration configuration,
          std::shared_ptr<const Engine> engine);

    std::shared_ptr<Session> session(int64_t batch);
    void close();  // its sessions as well

    std::vector<int64_t> encode(std::string_view text, bool special_tokens) const;
    std::string decode(const std::vector<int64_t> &tokens, bool skip_special_tokens) const;
    std::string render_chat(const std::vector<Message> &messages, bool add_generation_prompt) const;
    StreamDecoder stream(std::vector<std::string> stops) const;

    const Manifest &manifest() const { return manifest_; }
    const std::string &device() const { return device_; }
    const Configuration &configuration() const { return configuration_; }
    const Limits &limits() const { return limits_; }

private:
    std::shared_ptr<const Engine> engine() const;  // raises ALIZE_SESSION_CLOSED

    const std::filesystem::path folder_;
    const Manifest manifest_;
    const std::string device_;
    const Configuration configuration_;
    const Limits limits_;
    mutable std::mutex mutex_;
    std::shared_ptr<const Engine> engine_;
    std::vector<std::weak_ptr<Session>> sessions_;
};

// Raises what `load` of runtimes/model.py raises, in the same words.
std::shared_ptr<Model> load(const std::filesystem::path &folder, const LoadOptions &options);

}  // namespace alize
