// Ctrl-C while a session works: the first one cancels it, the second one ends the program as usual.
#pragma once

#include <thread>

#include "alize/alize.hpp"

namespace alize::run {

struct Interrupted {};

// Until the end of the scope. One at a time.
class Interrupt {
public:
    explicit Interrupt(Session &session);
    ~Interrupt();
    Interrupt(const Interrupt &) = delete;
    Interrupt &operator=(const Interrupt &) = delete;

    // Before and between the session's calls there is nothing to cancel: ask. Raises Interrupted.
    void check() const;

private:
    std::thread watcher_;
};

}  // namespace alize::run
