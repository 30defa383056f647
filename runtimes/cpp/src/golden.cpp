#include "golden.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "error.hpp"
#include "json.hpp"

namespace alize {
namespace {

// Tokens at the end of each prompt that are appended one by one, so that the engine's decoding is replayed as well.
constexpr int64_t kDecoded = 8;

Budget read_budget(const std::filesystem::path &path, const Safetensors &file) {
    const auto unusable = [&] {
        fail(ALIZE_ARTIFACT, path.string(), " has no usable budget in its metadata: rebuild the artifact");
    };
    const auto found = file.metadata().find("budget");
    Budget budget;
    if (found == file.metadata().end()) unusable();
    Json json;
    try {
        json = parse_json(found->second);
    } catch (const Error &) {
        unusable();
    }
    if (!json.is_object() || !json.contains("kl") || !json.contains("max_log_prob_error")) unusable();
    for (const auto &item : json.items()) {
        if (!item.value().is_number()) unusable();
        const auto value = item.value().get<double>();
        if (item.key() == "kl") {
            budget.kl = value;
        } else if (item.key() == "max_log_prob_error") {
            budget.max_log_prob_error = value;
        } else if (item.key() == "near_tie") {
            budget.near_tie = value;
        } else if (item.key() == "top1") {
            budget.top1 = value;
        } else {
            unusable();
        }
    }
    return budget;
}

size_t check_names(const std::filesystem::path &path, const Safetensors &file) {
    const size_t count = file.tensors().size() / 3;
    bool whole = count > 0 && file.tensors().size() == 3 * count;
    for (size_t i = 0; i < count && whole; i++) {
        for (const char *part : {"prompt.", "positions.", "log_probs."})
            whole &= file.tensors().count(text(part, i)) == 1;
    }
    if (!whole)
        fail(ALIZE_ARTIFACT, path.string(),
             " does not hold prompt, positions and log_probs of each case: rebuild the artifact");
    return count;
}

struct Case {
    std::vector<int64_t> prompt, positions;
    std::vector<float> log_probs;  // [n,V]
};

Case read_case(const std::filesystem::path &path, Safetensors &file, size_t i, size_t v) {
    Case one{file.integers(text("prompt.", i)), file.integers(text("positions.", i)),
             file.floats(text("log_probs.", i), 2)};
    const auto size = static_cast<int64_t>(one.prompt.size());
    bool usable = size > 0 && one.log_probs.size() == one.positions.size() * v;
    int64_t before = -1;
    for (const int64_t position : one.positions) {
        usable &= position > before && position < size;
        before = position;
    }
    if (!usable)
        fail(ALIZE_ARTIFACT, path.string(), ": the parts of case ", i, " do not fit together: rebuild the artifact");
    return one;
}

// Compares at one.positions; of the rest no more than a chunk is ever held.
void replay_case(Session &session, const Case &one, size_t v, Comparison &found) {
    session.reset();
    const auto size = static_cast<int64_t>(one.prompt.size());
    const int64_t prefill = size - std::min(kDecoded, size / 2), chunk = session.limits().chunk;
    size_t done = 0;  // of the positions
    std::vector<float> logits;
    for (int64_t start = 0; start < size;) {
        const int64_t stop = start < prefill ? std::min(start + chunk, prefill) : start + 1;
        size_t next = done;
        while (next < one.positions.size() && one.positions[next] < stop) next++;
        const int64_t keep = next > done ? stop - one.positions[done] : 1;
        logits.resize(static_cast<size_t>(keep) * v);
        session.append(one.prompt.data() + start, stop - start, nullptr, keep, logits.data(), logits.size());
        for (; done < next; done++) {
            const auto row = static_cast<size_t>(one.positions[done] - (stop - keep));
            found.add({one.log_probs.data() + done * v, v}, {logits.data() + row * v, v}, v);
        }
        start = stop;
    }
}

std::vector<double> log_softmax(std::span<const float> logits) {
    std::vector<double> shifted(logits.begin(), logits.end());
    double peak = -std::numeric_limits<double>::infinity(), sum = 0;
    for (const double value : shifted) {
        if (!(value <= peak)) peak = value;  // a NaN stays, and fails
    }
    for (double &value : shifted) value -= peak, sum += std::exp(value);
    for (double &value : shifted) value -= std::log(sum);
    return shifted;
}

double greatest(const std::vector<double> &values) {
    double found = 0;
    for (const double value : values) {
        if (std::isnan(value)) return value;
        found = std::max(found, value);
    }
    return found;
}

// Not printf, which obeys the host's locale.
std::string digits(double value, std::chars_format format, int precision) {
    std::array<char, 400> buffer;
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format, precision).ptr;
    return {buffer.data(), end};
}

std::string three(double value) { return digits(value, std::chars_format::general, 3); }  // Python's :.3g
std::string four(double value) { return digits(value, std::chars_format::fixed, 4); }     // :.4f

}  // namespace

void Comparison::add(std::span<const float> reference, std::span<const float> logits, size_t v) {
    const std::vector<double> expected = log_softmax(reference), device = log_softmax(logits);
    double divergence = 0, worst = 0;
    size_t top = 0, best = 0;
    for (size_t id = 0; id < v; id++) {
        divergence += std::exp(expected[id]) * (expected[id] - device[id]);
        const double difference = std::abs(expected[id] - device[id]);
        if (!(difference <= worst)) worst = difference;
        if (!(device[id] <= device[top])) top = id;
        if (!(expected[id] <= expected[best])) best = id;
    }
    kl.push_back(divergence < 0 ? 0.0 : divergence);  // KL is not negative: below 0 is rounding
    error.push_back(worst);
    gap.push_back(expected[best] - expected[top]);
}

Verdict judge(const Comparison &found, const Budget &budget) {
    const double near_tie = budget.near_tie.value_or(2 * budget.max_log_prob_error);
    const size_t n = found.kl.size();
    const auto count = static_cast<double>(n);
    double flips = 0, near_ties = 0;
    for (const double gap : found.gap) {
        if (!(gap <= near_tie)) flips++;
        if (gap > 0 && gap <= near_tie) near_ties++;
    }
    Figures figures = {
        {"positions", count},
        {"kl", greatest(found.kl)},
        {"kl_mean", n == 0 ? 0.0 : std::accumulate(found.kl.begin(), found.kl.end(), 0.0) / count},
        {"max_log_prob_error", greatest(found.error)},
        {"top1", n == 0 ? 0.0 : 1 - flips / count},
        {"near_ties", near_ties},
    };
    std::vector<std::string> failures;
    const auto limit = [&](const char *name, double most) {
        if (!(figures[name] <= most))
            failures.push_back(text(name, " ", three(figures[name]), " is over ", three(most)));
    };
    limit("kl", budget.kl);
    limit("max_log_prob_error", budget.max_log_prob_error);
    if (!(figures["top1"] >= budget.top1))
        failures.push_back("top-1 agreement " + four(figures["top1"]) + " is under " + four(budget.top1));
    if (n == 0) failures.emplace_back("nothing was compared");
    for (auto figure = figures.begin(); figure != figures.end();)
        figure = std::isfinite(figure->second) ? std::next(figure) : figures.erase(figure);
    return {failures.empty(), figures, failures};
}

Verdict replay_golden(Session &session, const std::filesystem::path &path) {
    const auto v = static_cast<size_t>(session.vocabulary());
    try {
        Safetensors file(path);
        const Budget budget = read_budget(path, file);
        const size_t count = check_names(path, file);
        Comparison found;
        for (size_t i = 0; i < count; i++) replay_case(session, read_case(path, file, i, v), v, found);
        return judge(found, budget);
    } catch (const Error &error) {
        if (error.status() != ALIZE_ARTIFACT || std::string(error.what()).find(path.string()) == 0) throw;
        fail(ALIZE_ARTIFACT, path.string(), " cannot be read (", error.what(), "): rebuild the artifact");
    }
}

}  // namespace alize
