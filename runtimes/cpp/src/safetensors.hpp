// A safetensors file, read tensor by tensor. Every number in its header is checked before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace alize {

class Safetensors {
public:
    struct Tensor {
        std::string dtype;
        std::vector<int64_t> shape;
        uint64_t begin, end;  // bytes behind the header
    };

    // Raises ALIZE_ARTIFACT saying what is wrong, without the path.
    explicit Safetensors(const std::filesystem::path &path);

    const std::map<std::string, Tensor> &tensors() const { return tensors_; }
    const std::map<std::string, std::string> &metadata() const { return metadata_; }

    // The values of an I64 or F32 tensor with `rank` dimensions. Raises ALIZE_ARTIFACT.
    std::vector<int64_t> integers(const std::string &name);
    std::vector<float> floats(const std::string &name, size_t rank);

private:
    void check_offsets(uint64_t size) const;
    const Tensor &tensor(const std::string &name, const char *dtype, size_t rank) const;
    void read(const Tensor &tensor, void *data);

    std::ifstream file_;
    uint64_t start_ = 0;  // of the tensors' bytes
    std::map<std::string, Tensor> tensors_;
    std::map<std::string, std::string> metadata_;
};

}  // namespace alize
