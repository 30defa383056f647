// CUDA's runtime, as far as this back-end needs it: what fails raises, what was taken is given back.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace alize::backends {

inline void check(cudaError_t found, const char *call) {
    if (found != cudaSuccess)
        throw std::runtime_error(std::string(call) + " failed on the GPU: " + cudaGetErrorString(found));
}

// A stream whose commands run one after the other.
class Stream {
public:
    Stream() { check(cudaStreamCreate(&handle_), "cudaStreamCreate"); }
    ~Stream() { cudaStreamDestroy(handle_); }
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;

    cudaStream_t handle() const { return handle_; }
    void wait() const { check(cudaStreamSynchronize(handle_), "a step"); }
    void copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) const {
        check(cudaMemcpyAsync(to, from, bytes, kind, handle_), "cudaMemcpyAsync");
    }

private:
    cudaStream_t handle_ = nullptr;
};

// Memory of the GPU that grows where it must; its contents are then lost.
class DeviceMemory {
public:
    DeviceMemory() = default;
    explicit DeviceMemory(size_t bytes) { reserve(bytes); }
    ~DeviceMemory() { cudaFree(data_); }
    DeviceMemory(DeviceMemory &&other) noexcept : data_(other.data_), size_(other.size_) {
        other.data_ = nullptr, other.size_ = 0;
    }
    DeviceMemory &operator=(DeviceMemory &&) = delete;

    char *data() const { return static_cast<char *>(data_); }
    char *reserve(size_t bytes) {
        if (bytes > size_) {
            cudaFree(data_);
            data_ = nullptr, size_ = 0;
            check(cudaMalloc(&data_, bytes), "cudaMalloc");
            size_ = bytes;
        }
        return data();
    }

private:
    void *data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace alize::backends
