#include "linear.hpp"

#include <algorithm>
#include <cmath>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "avx512.hpp"

namespace alize::kernels {

namespace {

constexpr std::size_t kBlock = 32;  // rows

// body(first, last) of a part of `count` for each thread; in place where it is little.
template <typename Body>
void share(std::size_t count, bool little, const Body &body) {
    const std::size_t threads = little ? 1 : static_cast<std::size_t>(tbb::this_task_arena::max_concurrency());
    const std::size_t parts = std::min(threads, count);
    if (parts <= 1) return body(std::size_t{0}, count);
    tbb::this_task_arena::isolate(
        [&] {  // who waits here takes no work of another request, which would use the same scratch
            tbb::parallel_for(
                std::size_t{0}, parts,
                [&](std::size_t part) { body(count * part / parts, count * (part + 1) / parts); },
                tbb::static_partitioner{});
        });
}

float half_to_float(std::uint16_t bits) {
    const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return bits & 0x8000 ? -size : size;
}

int weight(const Matrix &matrix, std::size_t row, std::size_t column) {
    const std::size_t at = row * matrix.columns + column;
    if (matrix.bits == 8) return static_cast<std::int8_t>(matrix.values[at]);
    const int nibble = matrix.values[at / 2] >> (at % 2 * 4) & 0x0F;
    return nibble < 8 ? nibble : nibble - 16;
}

void multiply_reference(const float *x, std::size_t tokens, const Output &output, std::size_t first, std::size_t last) {
    const Matrix &matrix = output.matrix;
    for (std::size_t row = first; row < last; ++row)
        for (std::size_t token = 0; token < tokens; ++token) {
            double sum = 0;
            for (std::size_t column = 0; column < matrix.columns; ++column) {
                const float scale = half_to_float(matrix.scale((row * matrix.columns + column) / matrix.group));
                sum += static_cast<double>(x[token * matrix.columns + column]) * weight(matrix, row, column) * scale;
            }
            output.values[token * matrix.rows + row] = static_cast<float>(sum);
        }
}

void gate(bool fast, std::size_t tokens, const Output &one, const Output &other, std::size_t first, std::size_t last) {
    for (std::size_t token = 0; token < tokens; ++token) {
        float *values = one.values + token * one.matrix.rows;
        const float *factors = other.values + token * one.matrix.rows;
        if (fast)
            gate_rows(values + first, factors + first, last - first);
        else
            for (std::size_t row = first; row < last; ++row)
                values[row] = values[row] / (1.0F + std::exp(-values[row])) * factors[row];
    }
}

// multiply(activations, tokens, output, first, last) for all rows of all outputs, in parts of 32 rows; a gated pair is
// one.
template <typename Multiply, typename Activations>
void each_row(Multiply *multiply, const Activations &activations, std::size_t tokens,
              const std::vector<Output> &outputs, bool gated) {
    std::vector<std::size_t> begins{0};
    std::size_t work = 0;
    for (const Output &output : outputs) {
        begins.push_back(begins.back() + (output.matrix.rows + kBlock - 1) / kBlock);
        work += tokens * output.matrix.rows * output.matrix.columns * static_cast<std::size_t>(output.matrix.bits) / 8;
    }
    const std::size_t count = gated ? begins[1] : begins.back();
    share(count, work < 1U << 15U, [&](std::size_t from, std::size_t to) {
        const auto rows = [&](std::size_t which, std::size_t begin, std::size_t end) {
            multiply(activations, tokens, outputs[which], begin * kBlock,
                     std::min(end * kBlock, outputs[which].matrix.rows));
        };
        if (gated) {
            rows(0, from, to);
            rows(1, from, to);
            gate(can(Arithmetic::rounded), tokens, outputs[0], outputs[1], from * kBlock,
                 std::min(to * kBlock, outputs[0].matrix.rows));
            return;
        }
        for (std::size_t which = 0; which < outputs.size(); ++which) {
            const std::size_t begin = std::max(from, begins[which]), end = std::min(to, begins[which + 1]);
            if (begin < end) rows(which, begin - begins[which], end - begins[which]);
        }
    });
}

// What a thread that was given a product keeps between products. Those that help it reach it by reference: by name each
// would find its own.
struct Scratch {
    Rounded rounded;
    Halved halved, between_halved;
    std::vector<float> factors, between;
};

Scratch &scratch() {
    thread_local Scratch mine;
    return mine;
}

float *reserve(std::vector<float> &values, std::size_t count) {
    values.resize(std::max(values.size(), count));
    return values.data();
}

const Rounded &rounded(const float *x, std::size_t tokens, std::size_t columns, int bits) {
    Rounded &activations = scratch().rounded;
    activations.reserve(tokens, columns, bits);
    share(tokens, tokens * columns < 1U << 14U,
          [&](std::size_t first, std::size_t last) { activations.set(x, columns, bits, first, last); });
    return activations;
}

const Halved &halved(const float *x, std::size_t tokens, std::size_t columns) {
    Halved &activations = scratch().halved;
    share(activations.reserve(tokens, columns), false,
          [&](std::size_t first, std::size_t last) { activations.set(x, tokens, columns, first, last); });
    return activations;
}

void multiply_all(Arithmetic arithmetic, const float *x, std::size_t tokens, const std::vector<Output> &outputs,
                  bool gated) {
    const Matrix &one = outputs[0].matrix;
    switch (arithmetic) {
        case Arithmetic::rounded:
            return each_row(multiply_rounded, rounded(x, tokens, one.columns, one.bits), tokens, outputs, gated);
        case Arithmetic::halved:
            return each_row(multiply_halved, halved(x, tokens, one.columns), tokens, outputs, gated);
        default:
            return each_row(multiply_reference, x, tokens, outputs, gated);
    }
}

}  // namespace

bool can(Arithmetic arithmetic) {
    switch (arithmetic) {
        case Arithmetic::rounded:
            return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl");
        case Arithmetic::halved:
            return can(Arithmetic::rounded) && allow_amx();
        default:
            return true;
    }
}

void multiply(Arithmetic arithmetic, const float *x, std::size_t tokens, const std::vector<Output> &outputs) {
    multiply_all(arithmetic, x, tokens, outputs, false);
}

void multiply_gated(Arithmetic arithmetic, const float *x, std::size_t tokens, const Matrix &first,
                    const Matrix &second, float *y) {
    multiply_all(arithmetic, x, tokens, {{first, y}, {second, reserve(scratch().factors, tokens * first.rows)}}, true);
}

void multiply_mlp(Arithmetic arithmetic, const float *x, std::size_t tokens, const Matrix &first, const Matrix &second,
                  const Matrix &last, float *y) {
    if (arithmetic != Arithmetic::halved) {
        float *between = reserve(scratch().between, tokens * first.rows);
        multiply_gated(arithmetic, x, tokens, first, second, between);
        return multiply(arithmetic, between, tokens, {{last, y}});
    }
    const Halved &activations = halved(x, tokens, first.columns);
    Halved &between = scratch().between_halved;
    between.reserve(tokens, first.rows);
    share(first.rows / kBlock, false, [&](std::size_t from, std::size_t to) {
        multiply_gated_halved(activations, tokens, first, second, between, from * kBlock, to * kBlock);
    });
    each_row(multiply_halved, between, tokens, {{last, y}}, false);
}

}  // namespace alize::kernels
