// From logits to tokens, bit for bit as docs/sampling.md says. Compiled with -ffp-contract=off.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace alize {

struct SamplingOptions {
    double temperature = 0.0;  // 0 = greedy
    int64_t top_k = 0;         // 0 = off
    double top_p = 1.0;        // 1 = off
    double min_p = 0.0;        // 0 = off
    uint64_t seed = 0;
};
// Raises ALIZE_USAGE.
void check_sampling(const SamplingOptions &options);

// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);
// In [0, 1), a multiple of 2^-53.
double uniform(uint64_t seed, uint64_t row, uint64_t position);
// e^x for x <= 0.
double exp_spelled(double x);

// The token that row `row` will have at absolute position `position`. Raises ALIZE_SESSION for logits without a finite
// peak.
int64_t sample(std::span<const float> logits, uint64_t row, uint64_t position, const SamplingOptions &options);

}  // namespace alize
