#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "error.hpp"
#include "safetensors.hpp"

namespace {

std::filesystem::path written(const std::string &header, const std::string &data, uint64_t length) {
    const auto path = std::filesystem::temp_directory_path() / ("alize-" + std::to_string(::getpid()) + ".safetensors");
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char *>(&length), sizeof(length));
    file << header << data;
    return path;
}

void check_refused(const std::string &header, const std::string &data) {
    CHECK_THROWS_AS(alize::Safetensors(written(header, data, header.size())), alize::Error);
}

}  // namespace

TEST_CASE("reads what was written") {
    const int64_t values[] = {1, -2};
    std::string data(16, '\0');
    std::memcpy(data.data(), values, 16);
    const std::string header = R"({"__metadata__":{"k":"v"},"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})";
    alize::Safetensors file(written(header, data, header.size()));
    CHECK(file.metadata().at("k") == "v");
    CHECK(file.integers("a") == std::vector<int64_t>{1, -2});
    CHECK_THROWS_AS(file.floats("a", 1), alize::Error);
    CHECK_THROWS_AS(file.integers("b"), alize::Error);
}

TEST_CASE("nothing in a header is believed") {
    check_refused("", "");
    check_refused("[]", "");
    check_refused(R"({"a":1})", "");
    check_refused(R"({"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})", "short");
    check_refused(R"({"a":{"dtype":"I64","shape":[2],"data_offsets":[0,8]}})", "12345678");
    check_refused(R"({"a":{"dtype":"X","shape":[8],"data_offsets":[0,8]}})", "12345678");
    check_refused(R"({"a":{"dtype":"U8","shape":[-8],"data_offsets":[0,8]}})", "12345678");
    check_refused(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[8,0]}})", "12345678");
    check_refused(R"({"a":{"dtype":"F64","shape":[4294967296,4294967296,2],"data_offsets":[0,0]}})", "");
    check_refused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", "12345678");
    check_refused(
        R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[6],"data_offsets":[2,8]}})",
        "12345678");
    CHECK_THROWS_AS(alize::Safetensors(written("{}", "", 1ULL << 63)), alize::Error);
    CHECK_THROWS_AS(alize::Safetensors("/nowhere"), alize::Error);
}
