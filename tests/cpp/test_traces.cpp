// Calls of a session on the fake engine: every result to the last bit, every refusal to the letter.
#include <doctest/doctest.h>

#include "data.hpp"
#include "replay.hpp"

TEST_CASE("sessions do what Python's sessions do") {
    own_state("traces");
    for (const Json &trace : data("traces")) {
        CAPTURE(trace["artifact"]);
        CAPTURE(trace["configuration"]);
        replay(load_for(trace), trace);
    }
}

// The same calls through the TensorRT back-end, on the stand-in that computes the same model.
TEST_CASE("TensorRT's runner keeps its caches as the fake one does") {
    own_state("tensorrt");
    for (Json trace : data("traces")) {
        CAPTURE(trace["artifact"]);
        CAPTURE(trace["configuration"]);
        trace["artifact"] = trace["artifact"].get<std::string>() + " tensorrt";
        alize::LoadOptions options;
        options.backend_path = ALIZE_STUB;
        replay(load_for(trace, options), trace);
    }
}
