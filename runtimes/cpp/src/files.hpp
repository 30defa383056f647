// Files: read whole, hashed, listed, and what `stat` says of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace alize {

// Reads a whole file into `bytes`. Returns 0 or errno.
int read_file(const std::filesystem::path &path, std::string &bytes);

// Writes beside the place and renames. Returns 0 or errno.
int replace_file(const std::filesystem::path &path, const std::string &bytes);

// sha256 of a file's bytes into `hex`. Returns 0 or errno.
int hash_file(const std::filesystem::path &path, std::string &hex);

// What `stat` said of a file when its sha256 was last found right.
struct FileRecord {
    int64_t size, inode, mtime_ns, ctime_ns;
    bool operator==(const FileRecord &) const = default;
};
// Returns 0 or errno.
int stat_file(const std::filesystem::path &path, FileRecord &record);

// Every file below `folder`, as sorted POSIX paths; a linked folder counts as one file. What cannot be listed is left
// out.
std::vector<std::string> list_files(const std::filesystem::path &folder);

}  // namespace alize
