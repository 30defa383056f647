#include "log.hpp"

#include <cstdio>
#include <mutex>

namespace alize {
namespace {

std::mutex mutex;
alize_log target = nullptr;
void *target_user = nullptr;

}  // namespace

void set_log(alize_log log, void *user) {
    const std::lock_guard<std::mutex> lock(mutex);
    target = log, target_user = user;
}

void warn(const std::string &line) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (target != nullptr) {
        target(line.c_str(), target_user);
    } else {
        std::fprintf(stderr, "alize: %s\n", line.c_str());
    }
}

}  // namespace alize
