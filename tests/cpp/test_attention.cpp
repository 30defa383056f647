// Attention over a paged cache against a plain loop: blocks in disorder, shared and unused ones full of NaN.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <openvino/core/type/float16.hpp>

#include "kernels/attention.hpp"
#include "kernels/linear.hpp"

namespace {

using namespace alize::kernels;

constexpr size_t kBlock = 32;

struct Row {
    size_t past, count;
};

// A cache, and what some rows bring to it in one step.
class Paged {
public:
    Paged(AttentionForm form, std::vector<Row> rows, unsigned seed)
        : form_(form),
          rows_(std::move(rows)),
          width_(form.heads * form.head_size),
          kept_(form.kv_heads * form.head_size) {
        size_t blocks = 1;
        for (const Row &row : rows_) {
            past_.push_back(static_cast<int32_t>(row.past));
            begins_.push_back(begins_.back() + static_cast<int32_t>(row.count));
            blocks += (row.past + row.count + kBlock - 1) / kBlock;
            block_begins_.push_back(static_cast<int32_t>(blocks - 1));
        }
        blocks_.resize(blocks - 1);
        std::iota(blocks_.begin(), blocks_.end(), 1);
        std::shuffle(blocks_.begin(), blocks_.end(), std::mt19937(seed));
        for (std::vector<uint16_t> *cache : {&keys_, &values_})
            cache->assign(blocks * kept_ * kBlock, ov::float16(std::numeric_limits<float>::quiet_NaN()).to_bits());
        for (size_t row = 0; row < rows_.size(); row++) {
            const std::vector<float> past = random(2 * rows_[row].past * kept_);
            for (size_t i = 0; i < past.size() / 2; i++) {
                keys_[place(row, i / kept_, i % kept_)] = ov::float16(past[2 * i]).to_bits();
                values_[place(row, i / kept_, i % kept_)] = ov::float16(past[2 * i + 1]).to_bits();
            }
        }
        const auto fill = [&](std::vector<float> &values, size_t each) { values = random(tokens() * each); };
        fill(q_, width_), fill(k_, kept_), fill(v_, kept_), fill(angles_, 2 * form.head_size);
    }

    size_t tokens() const { return static_cast<size_t>(begins_.back()); }
    size_t width() const { return width_; }

    std::vector<float> attended() {
        std::vector<float> q = q_, y(tokens() * width_, std::numeric_limits<float>::quiet_NaN());
        attend(form_, {keys_.data(), values_.data(), blocks_.data()},
               {rows_.size(), past_.data(), begins_.data(), block_begins_.data()}, q.data(), k_.data(), v_.data(),
               angles_.data(), y.data());
        return y;
    }

    // After `attended`, which has written the cache.
    std::vector<double> expected() const {
        std::vector<double> y;
        for (size_t row = 0; row < rows_.size(); row++) {
            for (size_t i = 0; i < rows_[row].count; i++) {
                for (size_t head = 0; head < form_.heads; head++) add_expected(row, i, head, y);
            }
        }
        return y;
    }

    double turned(const float *x, const float *angles, size_t i) const {
        const size_t half = form_.head_size / 2, at = i % half;
        const double one = x[at], other = x[half + at], cosine = angles[at], sine = angles[half + at];
        return i < half ? one * cosine - other * sine : other * cosine + one * sine;
    }

    // How far what was written as a token's key is from what it should be.
    double wrong_key() const {
        double most = 0;
        for (size_t row = 0; row < rows_.size(); row++) {
            for (size_t i = 0; i < rows_[row].count; i++) {
                const size_t token = static_cast<size_t>(begins_[row]) + i;
                for (size_t at = 0; at < kept_; at++) {
                    const float *x = k_.data() + token * kept_ + at / form_.head_size * form_.head_size;
                    const double right =
                        turned(x, angles_.data() + token * 2 * form_.head_size + form_.head_size, at % form_.head_size);
                    const double found = half(keys_[place(row, rows_[row].past + i, at)]);
                    most = std::max(most, std::abs(found - right) / (1 + std::abs(right)));
                }
            }
        }
        return most;
    }

private:
    // Always the same, as far as it goes.
    static std::vector<float> random(size_t count) {
        std::mt19937 chance(1);
        std::normal_distribution<float> normal;
        std::vector<float> values(count);
        for (float &value : values) value = normal(chance);
        return values;
    }

    static double half(uint16_t bits) { return static_cast<float>(ov::float16::from_bits(bits)); }

    size_t place(size_t row, size_t position, size_t i) const {
        const auto block = static_cast<size_t>(blocks_[static_cast<size_t>(block_begins_[row]) + position / kBlock]);
        const size_t head = i / form_.head_size;
        return ((block * form_.kv_heads + head) * kBlock + position % kBlock) * form_.head_size + i % form_.head_size;
    }

    void add_expected(size_t row, size_t i, size_t head, std::vector<double> &y) const {
        const size_t size = form_.head_size, token = static_cast<size_t>(begins_[row]) + i;
        const size_t its = head * form_.kv_heads / form_.heads * size, end = rows_[row].past + i + 1;
        const size_t first = form_.window > 0 && end > form_.window ? end - form_.window : 0;
        std::vector<double> weights;
        double sum = 0;
        for (size_t at = first; at < end; at++) {
            double score = 0;
            for (size_t e = 0; e < size; e++)
                score += turned(q_.data() + token * width_ + head * size, angles_.data() + token * 2 * size, e) *
                         half(keys_[place(row, at, its + e)]);
            weights.push_back(std::exp(score * static_cast<double>(form_.scale)));
            sum += weights.back();
        }
        for (size_t e = 0; e < size; e++) {
            double mixed = 0;
            for (size_t at = first; at < end; at++)
                mixed += weights[at - first] * half(values_[place(row, at, its + e)]);
            y.push_back(mixed / sum);
        }
    }

    const AttentionForm form_;
    const std::vector<Row> rows_;
    const size_t width_, kept_;
    std::vector<int32_t> past_, begins_{0}, block_begins_{0}, blocks_;
    std::vector<uint16_t> keys_, values_;
    std::vector<float> q_, k_, v_, angles_;
};

double apart(const std::vector<float> &found, const std::vector<double> &expected, size_t first, size_t last) {
    double difference = 0, size = 0;
    for (size_t i = first; i < last; i++) {
        difference += std::pow(static_cast<double>(found[i]) - expected[i], 2);
        size += std::pow(expected[i], 2);
    }
    return std::sqrt(difference / size);
}

AttentionForm form(size_t heads, size_t kv_heads, size_t head_size, size_t window) {
    return {heads, kv_heads, head_size, window, kBlock, 0.125F};
}

}  // namespace

TEST_CASE("attention gives what a plain loop gives, few tokens nearly so, many in bfloat16") {
    if (!can(Arithmetic::rounded)) return;
    for (const AttentionForm &one : {form(4, 2, 32, 0), form(9, 3, 64, 0), form(5, 1, 128, 0), form(2, 2, 96, 0),
                                     form(6, 2, 64, 1), form(6, 2, 64, 40), form(3, 1, 32, 200)}) {
        const std::vector<Row> rows = {{0, 1}, {0, 33}, {31, 2}, {300, 70}, {0, 0}, {127, 1}, {128, 32}, {5, 64}};
        CAPTURE(one.head_size);
        CAPTURE(one.window);
        Paged paged(one, rows, 2);
        const std::vector<float> found = paged.attended();
        const std::vector<double> expected = paged.expected();
        CHECK(paged.wrong_key() < 1e-3);
        size_t at = 0;
        for (const Row &row : rows) {
            CAPTURE(row.past);
            CAPTURE(row.count);
            const size_t next = at + row.count * paged.width();
            const bool many = row.count > kFewTokens && can(Arithmetic::halved);
            if (row.count > 0) CHECK(apart(found, expected, at, next) < (many ? 1e-2 : 1e-5));
            at = next;
        }
    }
}

TEST_CASE("a token's bits are the same alone as among others, whichever blocks hold its keys") {
    if (!can(Arithmetic::rounded)) return;
    for (const size_t window : {0, 50}) {
        const AttentionForm one = form(9, 3, 64, window);
        Paged alone(one, {{299, 1}}, 2), elsewhere(one, {{299, 1}}, 3);
        const std::vector<float> found = alone.attended();
        const auto same = [&](const float *other) {
            return std::memcmp(found.data(), other, found.size() * sizeof(float)) == 0;
        };
        CHECK(same(elsewhere.attended().data()));
        CHECK(same(Paged(one, {{299, 1}, {40, 1}, {700, 3}, {10, 40}}, 4).attended().data()));
    }
}
