#include "paged.hpp"

#include <algorithm>

#include <openvino/runtime/exception.hpp>

#include "../guard.hpp"
#include "kernels.hpp"
#include "paging.hpp"
#include "warm_up.hpp"

namespace alize::backends {
namespace {

constexpr int64_t kOneByOne = kRoundedTokens;  // each reads the whole cache anew

size_t rows_for_one_kernel(const ov::CompiledModel &compiled, const alize_backend_model &model,
                           const AttentionTable *attention) {
    if (attention != nullptr) return 0;
    const auto threads = compiled.get_property(ov::inference_num_threads);
    return threads <= model.key_value_heads ? static_cast<size_t>(threads) : 0;
}

std::vector<size_t> layers_where(const alize_backend_model &model, bool windowed) {
    std::vector<size_t> found;
    for (int64_t layer = 0; layer < model.layers; layer++) {
        if ((model.windows[layer] > 0) == windowed) found.push_back(static_cast<size_t>(layer));
    }
    return found;
}

ov::Tensor without_blocks(const ov::CompiledModel &compiled, const std::string &name) {
    const auto input = compiled.input(name);
    ov::Shape shape = {0};
    const ov::PartialShape wanted = input.get_partial_shape();
    for (size_t axis = 1; axis < wanted.size(); axis++)
        shape.push_back(static_cast<size_t>(wanted[static_cast<std::ptrdiff_t>(axis)].get_length()));
    return {input.get_element_type(), shape};
}

}  // namespace

PagedEngine::PagedEngine(ov::CompiledModel &compiled, const alize_backend_model &model, AttentionTable *attention)
    : request_(compiled.create_infer_request()),
      attention_(attention),
      vocab_size_(static_cast<size_t>(model.vocab_size)),
      windowed_(std::any_of(model.windows, model.windows + model.layers, [](int64_t window) { return window > 0; })),
      rows_at_least_(rows_for_one_kernel(compiled, model, attention)),
      expert_bias_(static_cast<size_t>(model.experts), 0.0F) {
    const auto empty = [&](const std::string &name) {
        return attention != nullptr ? attention->no_blocks() : without_blocks(compiled, name);
    };
    const auto give = [this](const std::string &name, const ov::Tensor &cache) {
        attention_ != nullptr ? attention_->set_cache(name, cache) : request_.set_tensor(name, cache);
    };
    if (mixed(model)) {
        caches_.emplace_back(empty, give, layers_where(model, false), false);
        caches_.emplace_back(empty, give, layers_where(model, true), true);
    } else {
        caches_.emplace_back(empty, give, layers_where(model, windowed_), false);
    }
    blocks_.resize(caches_.size());
    for (size_t number = 0; number < caches_.size(); number++) {
        for (const size_t layer : caches_[number].layers()) {
            index_names_.push_back("block_indices." + std::to_string(layer));
            index_caches_.push_back(number);
        }
    }
    if (caches_.size() == 1) index_names_ = {"block_indices"}, index_caches_ = {0};
}

void PagedEngine::warm_up(const alize_backend_model &model) {
    const int64_t token = std::max<int64_t>(model.bos_token_id, 0), count = 1, position = 0;
    std::vector<float> logits(vocab_size_);
    std::vector<std::vector<float>> turns = expert_biases(model);
    if (turns.empty()) turns.emplace_back();
    for (const std::vector<float> &bias : turns) {
        expert_bias_ = bias;
        PagedRunner(*this, 1).step(&token, 1, &count, &position, 1, logits.data());
    }
    std::fill(expert_bias_.begin(), expert_bias_.end(), 0.0F);
}

// A runner inside its engine's request: the others wait.
class PagedEngine::Turn {
public:
    Turn(PagedEngine &engine, const PagedRunner &runner) : engine_(engine), lock_(engine.turn_) { say(&runner); }
    ~Turn() { say(nullptr); }
    Turn(const Turn &) = delete;
    Turn &operator=(const Turn &) = delete;

private:
    void say(const PagedRunner *runner) {
        const std::lock_guard<std::mutex> lock(engine_.inside_mutex_);
        engine_.inside_ = runner;
    }
    PagedEngine &engine_;
    const std::lock_guard<std::mutex> lock_;
};

void PagedEngine::run(const std::vector<RowStep> &steps) {
    make_room(steps);
    gather(steps);
    feed();
    try {
        request_.infer();
    } catch (const ov::Cancelled &) {
        throw Refusal(ALIZE_CANCELLED, kCancelled);
    }
    answer(steps);
}

void PagedEngine::make_room(const std::vector<RowStep> &steps) {
    for (size_t number = 0; number < caches_.size(); number++) {
        int64_t missing = 0;
        for (const RowStep &step : steps) missing += (*step.tables)[number].missing(step.count);
        caches_[number].reserve(missing);
        for (const RowStep &step : steps) (*step.tables)[number].append(step.count);
    }
}

void PagedEngine::gather(const std::vector<RowStep> &steps) {
    tokens_.clear(), positions_.clear(), logits_index_.clear(), past_.clear();
    begins_.assign(1, 0), block_begins_.assign(1, 0);
    for (std::vector<int32_t> &blocks : blocks_) blocks.clear();
    longest_ = 0;
    for (const RowStep &step : steps) {
        tokens_.insert(tokens_.end(), step.tokens, step.tokens + step.count);
        for (int64_t i = 0; i < step.count; i++) positions_.push_back(step.position + i);
        const auto end = static_cast<int64_t>(tokens_.size());
        for (int64_t i = end - step.wanted; i < end; i++) logits_index_.push_back(i);
        // Where a draft is being checked each token is a row: see RowStep.spans in openvino_paged.py.
        const int64_t past = step.tables->front().held() - step.count;
        const int64_t each = step.wanted == step.count && step.count <= kOneByOne ? 1 : step.count;
        for (int64_t done = 0; done < step.count; done += each) add_row(*step.tables, past + done, each);
    }
    add_idle_rows();
}

void PagedEngine::add_row(const std::vector<Table> &tables, int64_t past, int64_t count) {
    const int64_t size = caches_.front().size, blocks = (past + count + size - 1) / size;
    past_.push_back(static_cast<int32_t>(past));
    longest_ = std::max(longest_, static_cast<int32_t>(past + count));
    begins_.push_back(begins_.back() + static_cast<int32_t>(count));
    for (size_t number = 0; number < caches_.size(); number++)
        caches_[number].add_indices(tables[number], blocks, blocks_[number]);
    block_begins_.push_back(static_cast<int32_t>(blocks_.front().size()));
}

// Rows without a token, so that one token is summed as it is among others: see PagedEngine._idle in openvino_paged.py.
void PagedEngine::add_idle_rows() {
    if (past_.size() != tokens_.size()) return;
    while (past_.size() < rows_at_least_) {
        past_.push_back(0);
        begins_.push_back(begins_.back());
        block_begins_.push_back(block_begins_.back());
    }
}

void PagedEngine::feed() {
    const auto give = [&](const std::string &name, auto &values) {
        request_.set_tensor(
            name, ov::Tensor(ov::element::from<std::decay_t<decltype(values[0])>>(), {values.size()}, values.data()));
    };
    give("input_ids", tokens_);
    give("position_ids", positions_);
    give("logits_index", logits_index_);
    if (!expert_bias_.empty()) give(kExpertBias, expert_bias_);
    if (attention_ != nullptr) return feed_attention();
    give("past_lens", past_);
    give("subsequence_begins", begins_);
    give("block_indices_begins", block_begins_);
    for (size_t i = 0; i < index_names_.size(); i++) give(index_names_[i], blocks_[index_caches_[i]]);
    request_.set_tensor("max_context_len", ov::Tensor(ov::element::i32, {}, &longest_));
}

void PagedEngine::feed_attention() {
    attention_->set_rows(past_, begins_, block_begins_);
    for (size_t number = 0; number < caches_.size(); number++) {
        for (const size_t layer : caches_[number].layers()) attention_->set_blocks(layer, blocks_[number]);
    }
}

void PagedEngine::answer(const std::vector<RowStep> &steps) {
    const ov::Tensor result = request_.get_tensor("logits");
    if (result.get_element_type() != ov::element::f32 || result.get_size() != logits_index_.size() * vocab_size_)
        throw std::runtime_error("the engine returned logits of shape " + result.get_shape().to_string());
    const float *from = result.data<const float>();
    for (const RowStep &step : steps) {
        const size_t count = static_cast<size_t>(step.wanted) * vocab_size_;
        std::copy_n(from, count, step.logits);
        from += count;
    }
}

PagedRunner::PagedRunner(PagedEngine &engine, int64_t batch) : engine_(engine) {
    std::vector<Table> row;
    for (PagedCache &cache : engine.caches_) row.emplace_back(cache);
    rows_.assign(static_cast<size_t>(batch), row);
}

PagedRunner::~PagedRunner() {
    const std::lock_guard<std::mutex> lock(engine_.turn_);
    clear();
    alize_backend_error ignored;  // what could not be given back waits for the next session
    guarded(&ignored, [&] {
        for (PagedCache &cache : engine_.caches_) cache.shrink_unused();
    });
}

void PagedRunner::step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions, int64_t keep,
                       float *logits) {
    cancelled_ = false;
    std::vector<PagedEngine::RowStep> steps;
    for (size_t b = 0; b < rows_.size(); b++) {
        if (lengths[b] == 0) continue;
        const int64_t wanted = std::min(keep, lengths[b]), row = static_cast<int64_t>(b);
        float *place = logits + static_cast<size_t>((row + 1) * keep - wanted) * engine_.vocab_size_;
        steps.push_back({&rows_[b], tokens + row * s, lengths[b], positions[b], wanted, place});
    }
    const PagedEngine::Turn turn(engine_, *this);
    if (cancelled_) throw Refusal(ALIZE_CANCELLED, kCancelled);  // while others had their turns
    engine_.run(steps);
}

void PagedRunner::drop_last(int64_t n) {
    const std::lock_guard<std::mutex> lock(engine_.turn_);
    for (std::vector<Table> &row : rows_) {
        for (Table &table : row) table.drop_last(n);
    }
}

void PagedRunner::evict(int64_t keep) {
    if (!engine_.windowed_) return;
    const std::lock_guard<std::mutex> lock(engine_.turn_);
    for (std::vector<Table> &row : rows_) row.back().keep_last(keep);
}

int64_t PagedRunner::cached() const {
    int64_t most = 0;
    for (const std::vector<Table> &row : rows_) most = std::max(most, row.back().held());
    return most;
}

void PagedRunner::reset() {
    const std::lock_guard<std::mutex> lock(engine_.turn_);
    clear();
}

void PagedRunner::clear() {
    for (std::vector<Table> &row : rows_) {
        for (Table &table : row) table.clear();
    }
}

void PagedRunner::cancel() {
    cancelled_ = true;
    const std::lock_guard<std::mutex> lock(engine_.inside_mutex_);
    if (engine_.inside_ == this) engine_.request_.cancel();
}

}  // namespace alize::backends
