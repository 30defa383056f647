// Products of float32 activations with matrices of 4 or 8 bit integers, read as they lie in the artifact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace alize::kernels {

// rows x columns integers, row after row, nibbles with the even column low; signed, without zero points. Scales are
// float16, one for each `group` columns of a row (group == columns: one a row).
struct Matrix {
    const std::uint8_t *values;
    const std::uint16_t *scales;
    std::size_t rows, columns, group;
    int bits;

    // In an artifact's file they lie at any address, odd ones too.
    std::uint16_t scale(std::size_t at) const {
        std::uint16_t half;
        std::memcpy(&half, reinterpret_cast<const std::uint8_t *>(scales) + at * sizeof(half), sizeof(half));
        return half;
    }
};

// y[token][row] of one matrix.
struct Output {
    Matrix matrix;
    float *values;
};

// How activations are brought into the product. `rounded`: to 8 bits, 32 of them sharing a scale; a token gives the
// same bits alone as among others. `halved`: to bfloat16, for many tokens, on processors with AMX.
enum class Arithmetic { reference, rounded, halved };

// Whether this processor can.
bool can(Arithmetic arithmetic);

// outputs[i].values[token * rows + row] = sum over columns of x[token * columns + column] * matrix[row][column]. All
// matrices have the same columns, bits and group; columns is a multiple of 32, and of the group.
void multiply(Arithmetic arithmetic, const float *x, std::size_t tokens, const std::vector<Output> &outputs);

// y[token * rows + row] = silu(what the first matrix gives) * what the second one gives; both of the same size.
void multiply_gated(Arithmetic arithmetic, const float *x, std::size_t tokens, const Matrix &first,
                    const Matrix &second, float *y);

// y[token * last.rows + row] = what the last matrix makes of `multiply_gated`; its columns are the others' rows.
void multiply_mlp(Arithmetic arithmetic, const float *x, std::size_t tokens, const Matrix &first, const Matrix &second,
                  const Matrix &last, float *y);

}  // namespace alize::kernels
