// Which blocks of a paged cache hold the tokens of which row; see runtimes/block_tables.py. No two rows share a block
// here.
#pragma once

#include <cstdint>
#include <vector>

namespace alize::backends {

// The blocks of some layers, numbered from 0, with room for `size` tokens each. Who derives from it holds their memory.
class Pool {
public:
    explicit Pool(int64_t block_size) : size(block_size) {}
    virtual ~Pool() = default;
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    const int64_t size;
    int64_t blocks() const { return blocks_; }  // how many there is memory for
    int64_t used() const { return blocks_ - static_cast<int64_t>(free_.size()); }

    // Makes room for `count` more blocks: by a half more than there are, so that copies are few, or by what is missing.
    void reserve(int64_t count);
    // Gives the memory back but for the first `keep` blocks. No table may have another.
    void shrink(int64_t keep);
    int32_t take();  // a block that nobody has; one must have been reserved
    void release(int32_t block) { free_.push_back(block); }

protected:
    // Makes the memory hold so many blocks, keeping what it holds.
    virtual void grow(int64_t blocks) = 0;

private:
    int64_t blocks_ = 0;
    std::vector<int32_t> free_;
};

// The blocks of one row in one pool: positions first() (a block's beginning) to end(), counted from the row's first
// token. All but the last are full. Nothing is given back by itself: its owner clears it.
class Table {
public:
    explicit Table(Pool &pool) : pool_(&pool) {}

    int64_t missing(int64_t count) const;  // how many blocks `append` of so many tokens takes
    void append(int64_t count);            // makes room for `count` tokens more; what they need was reserved
    void drop_last(int64_t count);         // forgets the last `count` tokens, which it has
    void keep_last(int64_t keep);          // forgets whole blocks in which none of the last `keep` tokens is
    void clear();

    const std::vector<int32_t> &blocks() const { return blocks_; }
    int64_t first() const { return first_; }
    int64_t end() const { return end_; }
    int64_t held() const { return end_ - first_; }

private:
    int64_t needed(int64_t tokens) const { return (tokens + pool_->size - 1) / pool_->size; }

    Pool *pool_;
    std::vector<int32_t> blocks_;
    int64_t first_ = 0, end_ = 0;
};

}  // namespace alize::backends
