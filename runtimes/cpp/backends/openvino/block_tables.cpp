#include "block_tables.hpp"

#include <algorithm>
#include <cstddef>

namespace alize::backends {

void Pool::reserve(int64_t count) {
    const int64_t missing = count - static_cast<int64_t>(free_.size());
    if (missing <= 0) return;
    const int64_t total = blocks_ + std::max(missing, blocks_ / 2);
    free_.reserve(static_cast<size_t>(total));  // here and not in `release`, which must not fail
    grow(total);
    for (int64_t block = total; block-- > blocks_;) free_.push_back(static_cast<int32_t>(block));
    blocks_ = total;
}

void Pool::shrink(int64_t keep) {
    free_.clear();
    blocks_ = keep;  // first: memory that could not be given back is no more than unused
    grow(keep);
}

int32_t Pool::take() {
    const int32_t block = free_.back();
    free_.pop_back();
    return block;
}

int64_t Table::missing(int64_t count) const { return needed(held() + count) - static_cast<int64_t>(blocks_.size()); }

void Table::append(int64_t count) {
    for (int64_t more = missing(count); more > 0; more--) blocks_.push_back(pool_->take());
    end_ += count;
}

void Table::drop_last(int64_t count) {
    end_ -= count;
    for (int64_t less = -missing(0); less > 0; less--) {
        pool_->release(blocks_.back());
        blocks_.pop_back();
    }
}

void Table::keep_last(int64_t keep) {
    const int64_t forgotten = std::max<int64_t>(held() - keep, 0) / pool_->size;
    const auto stop = blocks_.begin() + static_cast<std::ptrdiff_t>(forgotten);
    std::for_each(blocks_.begin(), stop, [this](int32_t block) { pool_->release(block); });
    blocks_.erase(blocks_.begin(), stop);
    first_ += forgotten * pool_->size;
}

void Table::clear() {
    for (const int32_t block : blocks_) pool_->release(block);
    blocks_.clear();
    first_ = end_ = 0;
}

}  // namespace alize::backends
