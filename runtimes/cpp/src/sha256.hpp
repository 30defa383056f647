// SHA-256 as FIPS 180-4 defines it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace alize {

class Sha256 {
public:
    void update(const void *data, size_t size);
    std::string hex();  // 64 lower-case digits; nothing may follow

private:
    void block(const unsigned char *data);

    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> held_ = {};
    uint64_t size_ = 0;
};

std::string sha256(std::string_view text);

}  // namespace alize
