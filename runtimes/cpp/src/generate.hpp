// Generation: the one loop over every back-end.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "sampling.hpp"
#include "session.hpp"

namespace alize {

struct GenerationOptions : SamplingOptions {
    int64_t max_new_tokens = 256;
    std::vector<int64_t> stop_token_ids;
};

// Appends tokens[B,S] and passes the next token of each row to `on_tokens` until every row has ended, or it returns
// false. Returns for each row how it ended (ALIZE_STOP ...). See Generation in runtimes/generate.py.
std::vector<int32_t> generate(Session &session, const int64_t *tokens, int64_t s, const int64_t *lengths,
                              const GenerationOptions &options,
                              const std::function<bool(std::span<const int64_t>)> &on_tokens);

}  // namespace alize
