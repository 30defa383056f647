#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#include <dlfcn.h>

// The engine closes its plugins, and a sanitizer can neither name nor suppress what belongs to a library that is gone.
extern "C" __attribute__((visibility("default"))) void *dlopen(const char *file, int flags) noexcept {
    static const auto next = reinterpret_cast<void *(*)(const char *, int)>(::dlsym(RTLD_NEXT, "dlopen"));
    return next(file, flags | RTLD_NODELETE);
}
#endif
