#include "stateful.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include <openvino/opsets/opset13.hpp>
#include <openvino/runtime/exception.hpp>

#include "../guard.hpp"
#include "warm_up.hpp"

namespace alize::backends {

void slice_before_head(ov::Model &model) {
    using namespace ov::opset13;
    const auto head = model.output("logits").get_node()->input_value(0).get_node_shared_ptr();
    const auto keep = std::make_shared<Parameter>(ov::element::i64, ov::Shape{1});
    keep->output(0).get_tensor().add_names({"num_logits_to_keep"});
    const auto constant = [](int64_t value) { return Constant::create(ov::element::i64, {1}, {value}); };
    const auto cut = std::make_shared<Slice>(head->input_value(0), std::make_shared<Negative>(keep),
                                             constant(std::numeric_limits<int64_t>::max()), constant(1), constant(1));
    head->input(0).replace_source_output(cut->output(0));
    model.add_parameters({keep});
    model.validate_nodes_and_infer_types();
}

StatefulRunner::StatefulRunner(ov::InferRequest request, const std::vector<int64_t> &windows, int64_t vocab_size,
                               int64_t experts, int64_t batch)
    : request_(std::move(request)),
      batch_(static_cast<size_t>(batch)),
      vocab_size_(static_cast<size_t>(vocab_size)),
      caches_(request_.query_state(), windows, batch_),
      rows_(batch_),
      no_bias_(static_cast<size_t>(experts), 0.0F) {
    std::iota(rows_.begin(), rows_.end(), 0);
}

void StatefulRunner::step(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
                          int64_t keep, float *logits) {
    // The first position that some row wants logits of.
    const int64_t first = std::max<int64_t>(*std::min_element(lengths, lengths + batch_) - keep, 0);
    const ov::Tensor result = infer(tokens, s, lengths, positions, s - first);
    caches_.append(s, lengths);
    const float *from = result.data<const float>();
    const auto computed = static_cast<int64_t>(result.get_shape()[1]);
    for (size_t b = 0; b < batch_; b++) {
        for (int64_t i = 0; i < keep; i++) {
            const int64_t last =
                std::max<int64_t>(lengths[b] - keep + i - first, 0);  // what a short row lacks is never read
            const size_t row = b * static_cast<size_t>(computed) + static_cast<size_t>(last);
            std::copy_n(from + row * vocab_size_, vocab_size_,
                        logits + (b * static_cast<size_t>(keep) + static_cast<size_t>(i)) * vocab_size_);
        }
    }
}

ov::Tensor StatefulRunner::infer(const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
                                 int64_t count) {
    const Cache &cache = caches_.longest();
    const auto width = static_cast<size_t>(s), slots = static_cast<size_t>(cache.slots());
    positions_.clear(), mask_.clear();
    for (size_t b = 0; b < batch_; b++) {
        for (int64_t i = 0; i < s; i++) positions_.push_back(positions[b] + i);
        const int64_t blank = cache.slots() - cache.filled()[b];
        for (int64_t i = 0; i < cache.slots(); i++) mask_.push_back(i >= blank);
        for (int64_t i = 0; i < s; i++) mask_.push_back(i < lengths[b]);
    }
    count_ = count;
    const auto feed = [&](const char *name, auto element, const ov::Shape &shape, const void *data) {
        request_.set_tensor(name, ov::Tensor(element, shape, const_cast<void *>(data)));
    };
    feed("input_ids", ov::element::i64, {batch_, width}, tokens);
    feed("position_ids", ov::element::i64, {batch_, width}, positions_.data());
    feed("attention_mask", ov::element::i64, {batch_, slots + width}, mask_.data());
    feed("beam_idx", ov::element::i32, {batch_}, rows_.data());
    feed("num_logits_to_keep", ov::element::i64, {1}, &count_);
    if (!no_bias_.empty()) feed(kExpertBias, ov::element::f32, {no_bias_.size()}, no_bias_.data());
    try {
        request_.infer();
    } catch (const ov::Cancelled &) {
        throw Refusal(ALIZE_CANCELLED, kCancelled);
    }
    ov::Tensor result = request_.get_tensor("logits");
    const ov::Shape expected = {batch_, static_cast<size_t>(count), vocab_size_};
    if (result.get_element_type() != ov::element::f32 || result.get_shape() != expected)
        throw std::runtime_error("the engine returned logits of shape " + result.get_shape().to_string());
    return result;
}

void StatefulRunner::reset() {
    caches_.clear();
    request_.reset_state();
}

}  // namespace alize::backends
