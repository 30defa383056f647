// The golden replay: does this device still say what the reference said? See runtimes/golden.py.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "safetensors.hpp"
#include "session.hpp"
#include "state.hpp"

namespace alize {

constexpr const char *kGolden = "golden.safetensors";

// Limits on the worst position; near_tie: by default twice max_log_prob_error.
struct Budget {
    double kl = 0, max_log_prob_error = 0, top1 = 1.0;
    std::optional<double> near_tie;
};

struct Verdict {
    bool passed;
    Figures figures;
    std::vector<std::string> failures;  // one sentence each, with value and limit
};

// Per position: KL(reference || device), the greatest log-probability error, the reference's gap between both top-1.
struct Comparison {
    std::vector<double> kl, error, gap;
    // reference[n,V], logits[n,V]
    void add(std::span<const float> reference, std::span<const float> logits, size_t v);
};

Verdict judge(const Comparison &found, const Budget &budget);

// Replays every prompt of a golden.safetensors through a session of batch 1. Raises ALIZE_ARTIFACT for an unusable
// file.
Verdict replay_golden(Session &session, const std::filesystem::path &path);

}  // namespace alize
