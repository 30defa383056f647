// The blocks of a paged cache against what is written to them: rows come, go, forget and go back, and read their own
// tokens.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>

#include "backends/openvino/block_tables.hpp"

using alize::backends::Table;

namespace {

constexpr int64_t kSize = 4;

// Memory of numbers for keys.
class Numbers : public alize::backends::Pool {
public:
    Numbers() : Pool(kSize) {}
    std::vector<std::array<int64_t, kSize>> memory;
    int grown = 0;

private:
    void grow(int64_t blocks) override { memory.resize(static_cast<size_t>(blocks)), grown++; }
};

// A row as it should be: all its tokens, of which those before `first` may be forgotten.
struct Row {
    explicit Row(Numbers &pool) : numbers(pool), table(pool) {}

    void append(int64_t count, int64_t &next) {
        numbers.reserve(table.missing(count));
        table.append(count);
        for (int64_t i = 0; i < count; i++) {
            tokens.push_back(next++);
            at(static_cast<int64_t>(tokens.size()) - 1) = tokens.back();
        }
    }
    void drop_last(int64_t count) {
        table.drop_last(count);
        tokens.resize(tokens.size() - static_cast<size_t>(count));
    }
    int64_t &at(int64_t position) {
        const int64_t place = position - table.first();
        return numbers.memory.at(static_cast<size_t>(table.blocks().at(static_cast<size_t>(place / kSize))))
            .at(static_cast<size_t>(place % kSize));
    }
    void check() {
        CHECK(table.end() == static_cast<int64_t>(tokens.size()));
        CHECK(table.first() % kSize == 0);
        CHECK(static_cast<int64_t>(table.blocks().size()) == (table.held() + kSize - 1) / kSize);
        for (int64_t i = table.first(); i < table.end(); i++) CHECK(at(i) == tokens[static_cast<size_t>(i)]);
    }

    Numbers &numbers;
    Table table;
    std::vector<int64_t> tokens;
};

}  // namespace

TEST_CASE("rows that append, forget and go back read their own tokens, and no block is lost or had by two") {
    std::mt19937 chance(3);
    const auto upto = [&](int64_t most) { return static_cast<int64_t>(chance() % static_cast<uint64_t>(most + 1)); };
    Numbers pool;
    std::vector<Row> rows(3, Row(pool));
    int64_t next = 0;
    for (int turn = 0; turn < 2000; turn++) {
        Row &row = rows[static_cast<size_t>(upto(2))];
        const int64_t held = row.table.held(), keep = upto(9);
        switch (upto(5)) {
            case 0:
                row.drop_last(upto(held));
                break;
            case 1:
                row.table.keep_last(keep);
                CHECK(row.table.held() >= std::min(keep, held));
                CHECK(row.table.held() < keep + kSize);
                break;
            case 2:
                if (upto(9) == 0) row.table.clear(), row.tokens.clear();
                break;
            default:
                row.append(upto(11), next);
        }
        std::set<int32_t> had;
        int64_t used = 0;
        for (Row &one : rows) {
            one.check();
            had.insert(one.table.blocks().begin(), one.table.blocks().end());
            used += static_cast<int64_t>(one.table.blocks().size());
        }
        CHECK(static_cast<int64_t>(had.size()) == used);
        CHECK(pool.used() == used);
        CHECK(pool.blocks() == static_cast<int64_t>(pool.memory.size()));
    }
}

TEST_CASE("a row that forgets as it goes on needs no more memory, and one that does not, few copies") {
    Numbers forgetting, keeping;
    Row windowed(forgetting), full(keeping);
    int64_t next = 0;
    for (int turn = 0; turn < 1000; turn++) {
        windowed.append(1, next);
        windowed.table.keep_last(2 * kSize);
        full.append(1, next);
    }
    CHECK(forgetting.blocks() <= 4);
    CHECK(windowed.table.first() >= 1000 - 3 * kSize);
    CHECK(keeping.used() == 1000 / kSize);
    CHECK(keeping.blocks() <= 1000 / kSize * 3 / 2);
    CHECK(keeping.grown < 20);
}

TEST_CASE("memory is given back but for the blocks that are kept") {
    Numbers pool;
    pool.reserve(1);
    CHECK(pool.take() == 0);
    Row row(pool);
    int64_t next = 0;
    row.append(40, next);
    row.table.clear();
    CHECK(pool.used() == 1);
    pool.shrink(1);
    CHECK(pool.memory.size() == 1);
    row.tokens.clear();
    row.append(9, next);  // never block 0, which is kept
    row.check();
    CHECK(std::count(row.table.blocks().begin(), row.table.blocks().end(), 0) == 0);
}
