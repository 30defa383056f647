#include "interrupt.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <system_error>

namespace alize::run {
namespace {

int pipe_ends[2];  // a handler has nothing else to reach
std::atomic<bool> was_pressed = false;
static_assert(std::atomic<bool>::is_always_lock_free);

// Only what a signal handler may do: the rest is the watcher's, for which cancelling may take a lock.
void pressed(int) {
    const int before = errno;
    was_pressed = true;
    [[maybe_unused]] const auto written = ::write(pipe_ends[1], "c", 1);
    errno = before;
}

}  // namespace

Interrupt::Interrupt(Session &session) {
    if (::pipe2(pipe_ends, O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe2");
    watcher_ = std::thread([&session] {
        char what = 0;
        while (::read(pipe_ends[0], &what, 1) < 0 && errno == EINTR) continue;
        if (what == 'c') session.cancel();
    });
    struct sigaction action = {};
    action.sa_handler = pressed;
    action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
    ::sigaction(SIGINT, &action, nullptr);
}

void Interrupt::check() const {
    if (was_pressed) throw Interrupted();
}

Interrupt::~Interrupt() {
    std::signal(SIGINT, SIG_DFL);
    [[maybe_unused]] const auto written = ::write(pipe_ends[1], "q", 1);
    watcher_.join();
    ::close(pipe_ends[0]), ::close(pipe_ends[1]);
}

}  // namespace alize::run
