// A stand-in for CUDA's runtime where there is no GPU: memory is the host's, and what is asynchronous happens at once.
// Only what runtimes/cpp/backends/tensorrt calls.
#pragma once

#include <cstdlib>
#include <cstring>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
struct CUstream_st {};
using cudaStream_t = CUstream_st *;
struct cudaDeviceProp {
    char name[256];
};

inline const char *cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
    return *value = which == cudaDevAttrComputeCapabilityMajor ? 8 : 0, cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *found, int) {
    return std::strcpy(found->name, "no GPU"), cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int *version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) { return *stream = new CUstream_st, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMalloc(void **memory, size_t bytes) {
    *memory = std::malloc(bytes);
    if (*memory != nullptr) std::memset(*memory, 0xAB, bytes);  // as unknown as a GPU's
    return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFree(void *memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t) {
    return std::memset(memory, value, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind, cudaStream_t) {
    for (size_t row = 0; row < height; row++)
        std::memcpy(static_cast<char *>(to) + row * to_pitch, static_cast<const char *>(from) + row * from_pitch,
                    width);
    return cudaSuccess;
}
