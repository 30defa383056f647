#include "sampling.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "error.hpp"
#include "json.hpp"

namespace alize {
namespace {

// numpy's argmax: of equals the lowest id; a NaN counts as greatest.
size_t argmax(std::span<const float> logits) {
    size_t best = 0;
    for (size_t id = 0; id < logits.size(); id++) {
        if (std::isnan(logits[id])) return id;
        if (logits[id] > logits[best]) best = id;
    }
    return best;
}

// One integer that orders as (logit descending, id ascending) do.
uint64_t key(float logit, size_t id) {
    const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0F);  // + 0: -0 becomes 0, its equal
    const uint32_t ascending = bits >> 31 != 0 ? ~bits : bits | 0x80000000U;
    return uint64_t{~ascending} << 32 | static_cast<uint32_t>(id);
}

std::vector<size_t> descending(std::span<const float> logits, size_t count) {
    std::vector<uint64_t> keys(logits.size());
    for (size_t id = 0; id < keys.size(); id++) keys[id] = key(logits[id], id);
    const auto end = keys.begin() + static_cast<std::ptrdiff_t>(count);
    std::partial_sort(keys.begin(), end, keys.end());
    std::vector<size_t> order(count);
    std::transform(keys.begin(), end, order.begin(), [](uint64_t one) { return one & 0xFFFFFFFFU; });
    return order;
}

size_t draw(std::span<const float> logits, double u, const SamplingOptions &options) {
    const size_t v = logits.size();
    const auto top_k = static_cast<size_t>(options.top_k);
    size_t n = top_k == 0 ? v : std::min(top_k, v);
    const std::vector<size_t> order = descending(logits, n);
    std::vector<double> weights(n), sums(n);
    const double peak = logits[order[0]];
    for (size_t i = 0; i < n; i++) {
        weights[i] = exp_spelled((double{logits[order[i]]} - peak) / options.temperature);
        sums[i] = i == 0 ? weights[0] : sums[i - 1] + weights[i];
    }
    if (options.top_p < 1) {
        const double limit = options.top_p * sums[n - 1];
        size_t kept = 1;
        while (kept < n && sums[kept - 1] < limit) kept++;
        n = kept;
    }
    if (options.min_p > 0) {
        const auto below = std::find_if(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(n),
                                        [&](double weight) { return weight < options.min_p; });
        n = static_cast<size_t>(below - weights.begin());
    }
    const double aim = u * sums[n - 1];
    size_t i = 0;
    while (i + 1 < n && sums[i] <= aim) i++;
    return order[i];
}

}  // namespace

void check_sampling(const SamplingOptions &options) {
    const auto check = [](const char *name, const std::string &value, bool fits, const char *limit) {
        if (!fits) fail(ALIZE_USAGE, name, " ", value, " must be ", limit);
    };
    check("temperature", repr(options.temperature), std::isfinite(options.temperature) && options.temperature >= 0,
          "0 (greedy) or more");
    check("top_k", std::to_string(options.top_k), options.top_k >= 0, "0 (off) or more");
    check("top_p", repr(options.top_p), options.top_p > 0 && options.top_p <= 1, "more than 0 and at most 1 (off)");
    check("min_p", repr(options.min_p), options.min_p >= 0 && options.min_p <= 1, "within 0 (off) .. 1");
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    auto [c0, c1, c2, c3] = counter;
    auto [k0, k1] = key;
    for (int round = 0; round < 10; round++) {
        const uint64_t left = uint64_t{0xD2511F53} * c0, right = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ k0, c1 = static_cast<uint32_t>(right);
        c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ k1, c3 = static_cast<uint32_t>(left);
        k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    return {c0, c1, c2, c3};
}

double uniform(uint64_t seed, uint64_t row, uint64_t position) {
    const auto low = [](uint64_t value) { return static_cast<uint32_t>(value); };
    const auto words =
        philox4x32({low(row), low(row >> 32), low(position), low(position >> 32)}, {low(seed), low(seed >> 32)});
    const uint64_t bits = words[0] | uint64_t{words[1]} << 32;
    return static_cast<double>(bits >> 11) * 0x1p-53;
}

double exp_spelled(double x) {
    if (x < -708.0) return 0.0;
    const double n = std::floor(x * 0x1.71547652b82fep+0 + 0.5);
    const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    static const std::array<double, 14> taylor = [] {
        std::array<double, 14> found = {};
        double factorial = 1.0;  // 13! is exact in a double
        for (size_t d = 0; d < found.size(); d++) {
            if (d > 0) factorial *= static_cast<double>(d);
            found[d] = 1.0 / factorial;
        }
        return found;
    }();
    double t = taylor[13];
    for (size_t d = 13; d-- > 0;) {
        t = t * r;
        t = t + taylor[d];
    }
    return std::ldexp(t, static_cast<int>(n));
}

int64_t sample(std::span<const float> logits, uint64_t row, uint64_t position, const SamplingOptions &options) {
    if (logits.empty()) fail(ALIZE_USAGE, "logits are empty: give one for each token of the vocabulary");
    const size_t best = argmax(logits);
    if (!std::isfinite(logits[best]))
        fail(ALIZE_SESSION, "the greatest logit of row ", row, " is ", repr(double{logits[best]}),
             ", not finite: try `alize validate ARTIFACT`");
    if (options.temperature == 0) return static_cast<int64_t>(best);
    return static_cast<int64_t>(draw(logits, uniform(options.seed, row, position), options));
}

}  // namespace alize
