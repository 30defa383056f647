// The two fast forms of `multiply` on x86-64, each for a range of rows: what one thread does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "linear.hpp"

namespace alize::kernels {

template <typename T>
class Aligned {  // of 64 bytes, grows only
public:
    T *reserve(std::size_t count) {
        if (count > size_) {
            data_.reset(static_cast<T *>(::operator new[](count * sizeof(T), std::align_val_t{64})));
            size_ = count;
        }
        return data_.get();
    }
    T *get() const { return data_.get(); }

private:
    struct Delete {
        void operator()(T *data) const { ::operator delete[](data, std::align_val_t{64}); }
    };
    std::unique_ptr<T[], Delete> data_;
    std::size_t size_ = 0;
};

// Activations in 8 bits, as the dot products want them: nibbles' even and odd columns apart, in blocks of 64 bytes of a
// row.
class Rounded {
public:
    void reserve(std::size_t tokens, std::size_t columns, int bits);
    void set(const float *x, std::size_t columns, int bits, std::size_t first, std::size_t last);  // of these tokens
    std::size_t blocks = 0;    // of 64 bytes of a row
    std::size_t operands = 0;  // bytes of a token's values
    const std::int8_t *values(std::size_t token) const { return values_.get() + token * operands; }
    const std::int32_t *starts(std::size_t token) const { return starts_.get() + token * blocks * 16; }
    const float *scales(std::size_t token) const { return scales_.get() + token * blocks * 16; }

private:
    Aligned<std::int8_t> values_;
    Aligned<std::int32_t> starts_;  // of every lane: what cancels that integers are read as if they had no sign
    Aligned<float> scales_;         // of every lane
};

void multiply_rounded(const Rounded &x, std::size_t tokens, const Output &output, std::size_t first, std::size_t last);

// Activations in bfloat16, in tiles of 32 columns of 16 tokens: pairs of columns, and of a pair 16 tokens.
class Halved {
public:
    std::size_t reserve(std::size_t tokens, std::size_t columns);  // the panels of 16 tokens
    void set(const float *x, std::size_t tokens, std::size_t columns, std::size_t first,
             std::size_t last);  // of these panels
    const std::uint16_t *tile(std::size_t panel, std::size_t step) const {
        return values_.get() + (panel * steps_ + step) * 512;
    }
    std::uint16_t *tile(std::size_t panel, std::size_t step) { return values_.get() + (panel * steps_ + step) * 512; }

private:
    Aligned<std::uint16_t> values_;
    std::size_t steps_ = 0;
};

// Of rows [first, last); first is a multiple of 32.
void multiply_halved(const Halved &x, std::size_t tokens, const Output &output, std::size_t first, std::size_t last);

// silu(x one^T) * (x other^T) into the columns [first, last) of y; both are multiples of 32.
void multiply_gated_halved(const Halved &x, std::size_t tokens, const Matrix &one, const Matrix &other, Halved &y,
                           std::size_t first, std::size_t last);

// values = silu(values) * factors
void gate_rows(float *values, const float *factors, std::size_t count);

bool allow_amx();  // asks the system, once

}  // namespace alize::kernels
