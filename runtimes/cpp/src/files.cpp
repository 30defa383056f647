#include "files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "sha256.hpp"

namespace alize {
namespace {

constexpr size_t kChunk = size_t{1} << 20;

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {}
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    Descriptor(const Descriptor &) = delete;
    Descriptor &operator=(const Descriptor &) = delete;
    int number() const { return number_; }

private:
    int number_;
};

template <typename Each>
int each_piece(const std::filesystem::path &path, Each each) {
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.number() < 0) return errno;
    std::string buffer(kChunk, '\0');
    for (;;) {
        const ssize_t size = ::read(file.number(), buffer.data(), buffer.size());
        if (size == 0) return 0;
        if (size > 0) each(buffer.data(), static_cast<size_t>(size));
        if (size < 0 && errno != EINTR) return errno;
    }
}

int64_t nanoseconds(const timespec &time) { return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec; }

}  // namespace

int read_file(const std::filesystem::path &path, std::string &bytes) {
    bytes.clear();
    return each_piece(path, [&](const char *data, size_t size) { bytes.append(data, size); });
}

int replace_file(const std::filesystem::path &path, const std::string &bytes) {
    // The number keeps threads of one process apart as the process number keeps processes.
    static std::atomic<unsigned> count = 0;
    const std::string suffix = std::to_string(::getpid()) + "-" + std::to_string(count++);
    const std::filesystem::path beside = path.parent_path() / ("." + path.filename().string() + "." + suffix);
    int number = 0;
    {
        const Descriptor file(::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
        if (file.number() < 0) return errno;
        for (size_t done = 0; done < bytes.size() && number == 0;) {
            const ssize_t size = ::write(file.number(), bytes.data() + done, bytes.size() - done);
            if (size >= 0) done += static_cast<size_t>(size);
            if (size < 0 && errno != EINTR) number = errno;
        }
    }
    if (number == 0 && ::rename(beside.c_str(), path.c_str()) != 0) number = errno;
    if (number != 0) ::unlink(beside.c_str());
    return number;
}

int hash_file(const std::filesystem::path &path, std::string &hex) {
    Sha256 hash;
    const int number = each_piece(path, [&](const char *data, size_t size) { hash.update(data, size); });
    if (number == 0) hex = hash.hex();
    return number;
}

int stat_file(const std::filesystem::path &path, FileRecord &record) {
    struct stat found;
    if (::stat(path.c_str(), &found) != 0) return errno;
    record = {int64_t{found.st_size}, static_cast<int64_t>(found.st_ino), nanoseconds(found.st_mtim),
              nanoseconds(found.st_ctim)};
    return 0;
}

std::vector<std::string> list_files(const std::filesystem::path &folder) {
    std::vector<std::string> found;
    std::error_code error;
    std::filesystem::recursive_directory_iterator at(folder, std::filesystem::directory_options::skip_permission_denied,
                                                     error);
    const std::filesystem::recursive_directory_iterator end;
    while (!error && at != end) {
        std::error_code ignored;
        if (at->is_symlink(ignored) || !at->is_directory(ignored))
            found.push_back(at->path().lexically_relative(folder).generic_string());
        at.increment(error);
    }
    std::sort(found.begin(), found.end());
    return found;
}

}  // namespace alize
