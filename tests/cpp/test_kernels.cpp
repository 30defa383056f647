// The kernels against a plain loop, and the graphs that they are put into. What they read and write ends where the
// memory does: an access beyond it ends the test, also one that no sanitizer sees, as in assembly or a tile.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include <openvino/opsets/opset13.hpp>

#include "alize/alize.h"
#include "backends/guard.hpp"
#include "backends/openvino/kernels.hpp"
#include "kernels/integer_linear.hpp"

namespace {

using namespace alize::kernels;

// `count` values up to the end of a page, behind which nothing may be touched.
template <typename T>
class Fenced {
public:
    explicit Fenced(size_t count) : count_(count) {
        const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
        const size_t room = (count * sizeof(T) + page - 1) / page * page;
        size_ = room + page;
        memory_ =
            static_cast<char *>(::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        REQUIRE(memory_ != MAP_FAILED);
        REQUIRE(::mprotect(memory_ + room, page, PROT_NONE) == 0);
        data_ = reinterpret_cast<T *>(memory_ + room) - count;
    }
    ~Fenced() { ::munmap(memory_, size_); }
    Fenced(const Fenced &) = delete;
    Fenced &operator=(const Fenced &) = delete;
    T *data() const { return data_; }
    size_t size() const { return count_; }
    T &operator[](size_t i) const { return data_[i]; }

private:
    size_t count_, size_ = 0;
    char *memory_ = nullptr;
    T *data_ = nullptr;
};

// Scales are powers of two from 1/8 to 1, so that products of whole numbers are exact in every arithmetic.
struct Weights {
    Weights(size_t rows, size_t columns, size_t group, int bits, std::mt19937 &chance)
        : values(rows * columns * static_cast<size_t>(bits) / 8),
          scales(rows * (columns / group)),
          matrix{values.data(), scales.data(), rows, columns, group, bits} {
        for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<uint8_t>(chance() & 0xFF);
        for (size_t i = 0; i < scales.size(); i++) scales[i] = static_cast<uint16_t>((12 + chance() % 4) << 10);
    }
    Fenced<uint8_t> values;
    Fenced<uint16_t> scales;
    Matrix matrix;
};

// Whole numbers, the largest of each 32 being 127: none is rounded, to 8 bits or to bfloat16.
void fill_whole(const Fenced<float> &x, std::mt19937 &chance) {
    for (size_t i = 0; i < x.size(); i++)
        x[i] = i % 32 == 5 ? 127.0F : static_cast<float>(static_cast<int>(chance() % 255) - 127);
}

double worst(const Fenced<float> &found, const Fenced<float> &expected) {
    double difference = 0, largest = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        const double one = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
        if (!(one <= difference)) difference = one;
        largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    return difference / largest;
}

std::vector<Arithmetic> fast() {
    std::vector<Arithmetic> found;
    for (const Arithmetic one : {Arithmetic::rounded, Arithmetic::halved}) {
        if (can(one))
            found.push_back(one);
        else
            MESSAGE("this processor cannot compute ", one == Arithmetic::rounded ? "rounded" : "halved",
                    ": not tested");
    }
    return found;
}

struct Case {
    int bits;
    size_t columns, group, tokens;
};

std::vector<Case> cases() {
    std::vector<Case> found;
    for (const int bits : {4, 8})
        for (const auto &[columns, group] : std::initializer_list<std::pair<size_t, size_t>>{
                 {32, 32}, {160, 32}, {320, 64}, {640, 128}, {1152, 32}, {2176, 128}, {32, 0}, {96, 0}, {352, 0}})
            for (const size_t tokens : {1, 3, 33, 70})
                found.push_back({bits, columns, group == 0 ? columns : group, tokens});
    return found;
}

std::string named(Arithmetic arithmetic, const Case &one) {
    return std::string(arithmetic == Arithmetic::rounded ? "rounded" : "halved") + ", " + std::to_string(one.bits) +
           " bits, " + std::to_string(one.columns) + " columns in groups of " + std::to_string(one.group) + ", " +
           std::to_string(one.tokens) + " tokens";
}

// body(arithmetic, case, chance) for every case in each arithmetic that this processor has.
template <typename Body>
void each(unsigned seed, Body body) {
    std::mt19937 chance(seed);
    for (const Arithmetic arithmetic : fast()) {
        for (const Case &one : cases()) {
            const std::string what = named(arithmetic, one);
            CAPTURE(what);
            body(arithmetic, one, chance);
        }
    }
}

}  // namespace

TEST_CASE("products of one input, of matrices with odd row counts") {
    each(1, [](Arithmetic arithmetic, const Case &one, std::mt19937 &chance) {
        const Fenced<float> x(one.tokens * one.columns);
        fill_whole(x, chance);
        const Weights first(77, one.columns, one.group, one.bits, chance),
            second(100, one.columns, one.group, one.bits, chance), third(1, one.columns, one.group, one.bits, chance);
        const Fenced<float> y(one.tokens * 77), z(one.tokens * 100), w(one.tokens);
        const Fenced<float> expected(y.size()), other(z.size()), last(w.size());
        multiply(Arithmetic::reference, x.data(), one.tokens,
                 {{first.matrix, expected.data()}, {second.matrix, other.data()}, {third.matrix, last.data()}});
        multiply(arithmetic, x.data(), one.tokens,
                 {{first.matrix, y.data()}, {second.matrix, z.data()}, {third.matrix, w.data()}});
        CHECK(worst(y, expected) < 1e-6);
        CHECK(worst(z, other) < 1e-6);
        CHECK(worst(w, last) < 1e-5);  // few sums, which may all be small beside what was summed
    });
}

TEST_CASE("a gate and what it gates") {
    each(2, [](Arithmetic arithmetic, const Case &one, std::mt19937 &chance) {
        const Fenced<float> x(one.tokens * one.columns);
        fill_whole(x, chance);
        const size_t rows = one.tokens % 2 == 0 ? 100 : 77;
        const Weights first(rows, one.columns, one.group, one.bits, chance),
            second(rows, one.columns, one.group, one.bits, chance);
        // so that the gate is neither open nor shut
        for (size_t i = 0; i < first.scales.size(); i++) first.scales[i] = 1 << 10;
        const Fenced<float> y(one.tokens * rows), expected(y.size());
        multiply_gated(Arithmetic::reference, x.data(), one.tokens, first.matrix, second.matrix, expected.data());
        multiply_gated(arithmetic, x.data(), one.tokens, first.matrix, second.matrix, y.data());
        CHECK(worst(y, expected) < 1e-5);
    });
}

TEST_CASE("an MLP, rounded between its halves") {
    each(6, [](Arithmetic arithmetic, const Case &one, std::mt19937 &chance) {
        const bool whole = one.group == one.columns;
        const size_t between = whole ? 160 : std::max<size_t>(one.group, 96 / one.group * one.group);
        const Fenced<float> x(one.tokens * one.columns), y(one.tokens * 77), expected(y.size());
        fill_whole(x, chance);
        const Weights first(between, one.columns, one.group, one.bits, chance),
            second(between, one.columns, one.group, one.bits, chance),
            last(77, between, whole ? between : one.group, one.bits, chance);
        for (size_t i = 0; i < first.scales.size(); i++) first.scales[i] = 1 << 10;
        const auto multiplied = [&](Arithmetic how, float *to) {
            multiply_mlp(how, x.data(), one.tokens, first.matrix, second.matrix, last.matrix, to);
        };
        multiplied(Arithmetic::reference, expected.data());
        multiplied(arithmetic, y.data());
        CHECK(worst(y, expected) < 0.02);
    });
}

// So many that a thread which helps is awake before its part is done.
TEST_CASE("activations that several threads bring into the product") {
    std::mt19937 chance(7);
    constexpr size_t tokens = 2048, columns = 640;
    for (const Arithmetic arithmetic : fast()) {
        for (int turn = 0; turn < 3; turn++) {
            CAPTURE(arithmetic == Arithmetic::rounded);
            const Fenced<float> x(tokens * columns), y(tokens), expected(tokens);
            fill_whole(x, chance);
            const Weights weights(1, columns, 128, 8, chance);
            multiply(Arithmetic::reference, x.data(), tokens, {{weights.matrix, expected.data()}});
            multiply(arithmetic, x.data(), tokens, {{weights.matrix, y.data()}});
            CHECK(worst(y, expected) < 1e-5);
        }
    }
}

TEST_CASE("activations are rounded no more than their arithmetic says, and a token's bits are its own") {
    std::normal_distribution<float> normal;
    each(3, [&](Arithmetic arithmetic, const Case &one, std::mt19937 &chance) {
        const Fenced<float> x(one.tokens * one.columns), y(one.tokens * 77), expected(y.size()), alone(77);
        for (size_t i = 0; i < x.size(); i++) x[i] = normal(chance);
        const Weights weights(77, one.columns, one.group, one.bits, chance);
        multiply(Arithmetic::reference, x.data(), one.tokens, {{weights.matrix, expected.data()}});
        multiply(arithmetic, x.data(), one.tokens, {{weights.matrix, y.data()}});
        CHECK(worst(y, expected) < 0.02);
        if (arithmetic != Arithmetic::rounded) return;
        const size_t last = one.tokens - 1;
        multiply(arithmetic, x.data() + last * one.columns, 1, {{weights.matrix, alone.data()}});
        CHECK(std::memcmp(alone.data(), y.data() + last * 77, 77 * sizeof(float)) == 0);
    });
}

namespace {

using namespace ov::opset13;

// A matrix as an artifact has it: integers [N,K/group,group] times scales, in the shape [N,K], transposed.
class Graphs {
public:
    explicit Graphs(size_t group) : group_(group) {}

    std::shared_ptr<ov::Node> product(const ov::Output<ov::Node> &x, size_t rows, size_t columns) {
        std::vector<int8_t> values(rows * columns);
        for (int8_t &value : values) value = static_cast<int8_t>(static_cast<int>(chance_() % 255) - 127);
        std::vector<float> scales(rows * (columns / group_));
        for (float &scale : scales) scale = static_cast<float>(1 + chance_() % 7) / 1024;
        std::shared_ptr<ov::Node> matrix = Constant::create(ov::element::i8, {rows, columns}, values);
        const auto shape = [](std::vector<int64_t> sizes) {
            return Constant::create(ov::element::i64, {sizes.size()}, sizes);
        };
        const auto wide = static_cast<int64_t>(columns), tall = static_cast<int64_t>(rows);
        matrix = std::make_shared<Convert>(matrix, ov::element::f16);
        matrix = std::make_shared<Reshape>(matrix, shape({tall, -1, static_cast<int64_t>(group_)}), false);
        matrix =
            std::make_shared<Multiply>(matrix, Constant::create(ov::element::f16, {rows, columns / group_, 1}, scales));
        matrix = std::make_shared<Reshape>(matrix, shape({tall, wide}), false);
        matrix = std::make_shared<Convert>(matrix, ov::element::f32);
        matrix = std::make_shared<Transpose>(matrix, shape({1, 0}));
        return std::make_shared<MatMul>(x, matrix, false, false);
    }

    // down(silu(gate) * up) of x [?,K], and a product of what that gives
    std::shared_ptr<ov::Model> mlp(size_t columns, size_t between) {
        const auto x =
            std::make_shared<Parameter>(ov::element::f32, ov::PartialShape{-1, static_cast<int64_t>(columns)});
        const auto gate = product(x, between, columns), up = product(x, between, columns);
        const auto silu = std::make_shared<Multiply>(gate, std::make_shared<Sigmoid>(gate));
        const auto down = product(std::make_shared<Multiply>(silu, up), 77, between);
        return std::make_shared<ov::Model>(ov::OutputVector{down}, ov::ParameterVector{x});
    }

private:
    size_t group_;
    std::mt19937 chance_{4};
};

std::vector<float> run(const std::shared_ptr<ov::Model> &graph, size_t tokens, size_t columns) {
    std::mt19937 chance(5);
    std::normal_distribution<float> normal;
    ov::Tensor x(ov::element::f32, {tokens, columns});
    std::generate_n(x.data<float>(), x.get_size(), [&] { return normal(chance); });
    ov::CompiledModel compiled =
        ov::Core().compile_model(graph, "CPU", ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = compiled.create_infer_request();
    request.set_input_tensor(x);
    request.infer();
    const ov::Tensor y = request.get_output_tensor();
    return {y.data<float>(), y.data<float>() + y.get_size()};
}

std::vector<std::string> kinds(const ov::Model &graph) {
    std::vector<std::string> found;
    for (const auto &node : graph.get_ordered_ops()) {
        const std::string kind = node->get_type_info().name;
        if (kind == "MatMul" || kind == "IntegerLinear" || kind == "Sigmoid") found.push_back(kind);
    }
    return found;
}

constexpr const char *kProcessor = "Any avx2 avx512_vnni";

}  // namespace

TEST_CASE("an MLP becomes one node that gives what the graph gave") {
    for (const size_t group : {32, 64, 128}) {
        for (const size_t tokens : {0, 1, 40}) {
            CAPTURE(group);
            CAPTURE(tokens);
            const auto plain = Graphs(group).mlp(128, 384), graph = Graphs(group).mlp(128, 384);
            const auto kept = alize::backends::use_kernels(*graph, kProcessor);
            CHECK(kept.size() == 6);
            CHECK(kinds(*graph) == std::vector<std::string>{"IntegerLinear"});
            const std::vector<float> expected = run(plain, tokens, 128), found = run(graph, tokens, 128);
            REQUIRE(found.size() == expected.size());
            double difference = 0, size = 0;
            for (size_t i = 0; i < found.size(); i++) {
                difference += std::pow(static_cast<double>(found[i]) - static_cast<double>(expected[i]), 2);
                size += std::pow(static_cast<double>(expected[i]), 2);
            }
            CHECK(difference <= 4e-4 * size);  // 2 %
        }
    }
}

TEST_CASE("what the kernels cannot compute is left to the engine") {
    const auto graph = Graphs(48).mlp(96, 384);  // groups of 48
    CHECK(alize::backends::use_kernels(*graph, kProcessor).empty());
    CHECK(kinds(*graph) == std::vector<std::string>{"MatMul", "Sigmoid", "MatMul", "MatMul"});
}

TEST_CASE("a processor without AVX512-VNNI is refused") {
    const auto graph = Graphs(32).mlp(128, 384);
    try {
        alize::backends::use_kernels(*graph, "Another avx avx2 avx512f");
        FAIL("it was not refused");
    } catch (const alize::backends::Refusal &refusal) {
        CHECK(refusal.status == ALIZE_BACKEND_UNAVAILABLE);
        CHECK(std::string(refusal.what()) ==
              "alize's kernels cannot be used: the processor has no AVX512-VNNI; the configuration `engine` does "
              "without");
    }
    CHECK(kinds(*graph).size() == 4);
}
