// tests/vectors/sampling.json, which Python's tests read as well.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "error.hpp"
#include "json.hpp"
#include "sampling.hpp"

using alize::Json;

namespace {

const Json &vectors() {
    static const Json found = [] {
        std::ifstream file(ALIZE_VECTORS);
        return Json::parse(file);
    }();
    return found;
}

uint32_t word(const Json &digits) { return static_cast<uint32_t>(std::stoul(digits.get<std::string>(), nullptr, 16)); }
double hexadecimal(const Json &digits) { return std::strtod(digits.get<std::string>().c_str(), nullptr); }
uint64_t seed(const Json &options) { return std::stoull(options.value("seed", std::string("0")), nullptr, 16); }

std::vector<float> logits(const Json &values) {
    std::vector<float> found;
    for (const Json &value : values)
        found.push_back(value.is_string() ? -std::numeric_limits<float>::infinity() : value.get<float>());
    return found;
}

}  // namespace

TEST_CASE("Philox's known answers") {
    for (const Json &one : vectors()["philox"]) {
        const Json &c = one["counter"], &k = one["key"], &w = one["words"];
        const auto found =
            alize::philox4x32({word(c[0]), word(c[1]), word(c[2]), word(c[3])}, {word(k[0]), word(k[1])});
        for (size_t i = 0; i < 4; i++) CHECK(found[i] == word(w[i]));
    }
    for (const Json &one : vectors()["uniform"]) {
        const double found = alize::uniform(seed(one), one["row"].get<uint64_t>(), one["position"].get<uint64_t>());
        CHECK(found == static_cast<double>(one["numerator"].get<uint64_t>()) * 0x1p-53);
    }
}

TEST_CASE("e to the power x, to the last bit") {
    for (const Json &one : vectors()["exp"]) CHECK(alize::exp_spelled(hexadecimal(one["x"])) == hexadecimal(one["e"]));
}

TEST_CASE("the same tokens as Python") {
    size_t count = 0;
    for (const Json &one : vectors()["sample"]) {
        const Json &options = one["options"];
        const alize::SamplingOptions given = {options.value("temperature", 0.0), options.value("top_k", int64_t{0}),
                                              options.value("top_p", 1.0), options.value("min_p", 0.0), seed(options)};
        const std::vector<float> values = logits(vectors()["logits"][one["logits"].get<std::string>()]);
        for (size_t i = 0; i < one["tokens"].size(); i++, count++) {
            const Json &place = vectors()["places"][i];
            CHECK(alize::sample(values, place["row"].get<uint64_t>(), place["position"].get<uint64_t>(), given) ==
                  one["tokens"][i].get<int64_t>());
        }
    }
    CHECK(count > 1000);
}

TEST_CASE("logits without a finite peak, and options that cannot be meant") {
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (const auto &values : {std::vector<float>{1, nan}, {1, infinity}, {-infinity, -infinity}, {}})
        CHECK_THROWS_AS(alize::sample(values, 0, 0, {}), alize::Error);
    const double bad = std::numeric_limits<double>::quiet_NaN();
    for (const alize::SamplingOptions &options : std::vector<alize::SamplingOptions>{{-1.0},
                                                                                     {bad},
                                                                                     {1, -1},
                                                                                     {1, 0, 0.0},
                                                                                     {1, 0, 1.5},
                                                                                     {1, 0, bad},
                                                                                     {1, 0, 1, -0.1},
                                                                                     {1, 0, 1, 1.1},
                                                                                     {1, 0, 1, bad}})
        CHECK_THROWS_AS(alize::check_sampling(options), alize::Error);
}
