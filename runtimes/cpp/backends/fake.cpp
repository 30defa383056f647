// The fake back-end: the "language model" of integer arithmetic that runtimes/fake.py describes, bit for bit.
#include <algorithm>
#include <string_view>
#include <vector>

#include "table.hpp"

namespace alize::backends {
namespace {

// The finaliser of splitmix64 (Steele, Lea and Flood 2014) behind an offset, so that 0 does not stay 0.
uint64_t mix(uint64_t value) {
    value += 0x9E3779B97F4A7C15;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
    return value ^ (value >> 31);
}

struct Engine {
    explicit Engine(const alize_backend_model &model)
        : windows(model.windows, model.windows + model.layers), vocab_size(model.vocab_size) {}

    const std::vector<int64_t> windows;
    const int64_t vocab_size;
};

using Cache = std::vector<uint64_t>;

struct Runner {
    Runner(const Engine &engine, int64_t batch)
        : windows(engine.windows),
          vocab_size(engine.vocab_size),
          rows(static_cast<size_t>(batch), std::vector<Cache>(windows.size())) {}

    const std::vector<int64_t> windows;
    const int64_t vocab_size;
    std::vector<std::vector<Cache>> rows;  // [row][layer][cached]

    std::vector<uint64_t> append(std::vector<Cache> &caches, const int64_t *tokens, int64_t count,
                                 int64_t position) const {
        std::vector<uint64_t> state;
        for (int64_t i = 0; i < count; i++)
            state.push_back(mix(mix(static_cast<uint64_t>(tokens[i])) + static_cast<uint64_t>(position + i)));
        for (size_t layer = 0; layer < windows.size(); layer++) {
            Cache &cache = caches[layer];
            for (const uint64_t one : state) cache.push_back(mix(one));
            for (int64_t i = 0; i < count; i++) {
                const auto stop = static_cast<int64_t>(cache.size()) - count + i + 1;
                const int64_t start = windows[layer] == 0 ? 0 : std::max<int64_t>(stop - windows[layer], 0);
                uint64_t sum = 0;  // wraps at 2^64
                for (int64_t j = start; j < stop; j++) sum += cache[static_cast<size_t>(j)];
                uint64_t &one = state[static_cast<size_t>(i)];
                one = mix(one + sum);
            }
        }
        return state;
    }

    void step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
              float *logits) {
        const auto v = static_cast<size_t>(vocab_size);
        for (size_t row = 0; row < rows.size(); row++) {
            const auto place = static_cast<int64_t>(row);
            const auto state = append(rows[row], tokens + place * s, lengths[row], positions[row]);
            const auto kept = std::min(static_cast<int64_t>(state.size()), keep);
            for (int64_t i = 0; i < kept; i++) {
                float *out = logits + static_cast<size_t>(place * keep + keep - kept + i) * v;
                const uint64_t one = state[state.size() - static_cast<size_t>(kept - i)];
                for (uint64_t id = 0; id < v; id++)  // 20 bits: exact in float32
                    out[id] = (static_cast<float>(mix(one + mix(id)) >> 44) - 524288.0F) / 65536.0F;
            }
        }
    }

    void drop_last(int64_t n) {
        edit(false, [&](Cache &cache) { cache.resize(cache.size() - static_cast<size_t>(n)); });
    }

    void evict(int64_t keep) {
        edit(true, [&](Cache &cache) {
            const auto extra = static_cast<std::ptrdiff_t>(cache.size()) - static_cast<std::ptrdiff_t>(keep);
            if (extra > 0) cache.erase(cache.begin(), cache.begin() + extra);
        });
    }

    void reset() {
        edit(false, [](Cache &cache) { cache.clear(); });
    }

    template <typename Change>
    void edit(bool windowed_only, Change change) {
        for (auto &caches : rows) {
            for (size_t layer = 0; layer < caches.size(); layer++) {
                if (!windowed_only || windows[layer] > 0) change(caches[layer]);
            }
        }
    }

    int64_t cached() const {
        const bool any = std::any_of(windows.begin(), windows.end(), [](int64_t window) { return window > 0; });
        size_t most = 0;
        for (const auto &caches : rows) {
            for (size_t layer = 0; layer < caches.size(); layer++) {
                if (!any || windows[layer] > 0) most = std::max(most, caches[layer].size());
            }
        }
        return static_cast<int64_t>(most);
    }
};

using E = Entries<Engine, Runner>;

int32_t missing(const alize_backend_option *options, size_t count, alize_backend_text each, void *user,
                alize_backend_error *) {
    constexpr std::string_view kWhy = "the fake back-end has no kernels";
    const bool asked = std::any_of(options, options + count, [](const alize_backend_option &option) {
        return std::string_view(option.name) == "kernels" && option.kind == 's' &&
               std::string_view(option.text) == "alize";
    });
    if (asked) each(user, kWhy.data(), kWhy.size());
    return 0;
}

const alize_backend kTable = {
    ALIZE_BACKEND_ABI,
    "fake",
    [](alize_backend_text each, void *user, alize_backend_error *) {
        each(user, "cpu", 3);
        return int32_t{0};
    },
    [](const char *device, alize_backend_pair each, void *user, alize_backend_error *) {
        each(user, "backend", "fake");
        each(user, "device", device);
        return int32_t{0};
    },
    E::open,
    E::close,
    E::runner,
    E::step,
    E::drop_last,
    E::evict,
    E::cached,
    E::reset,
    nullptr,  // a step is over before anybody could cancel it
    E::free_runner,
    nullptr,
    nullptr,
    nullptr,
    missing,
};

}  // namespace
}  // namespace alize::backends

ALIZE_BACKEND_EXPORT
