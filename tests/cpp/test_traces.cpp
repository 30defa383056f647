// Calls of a session on the fake engine: every result to the last bit, every refusal to the letter.
#include <doctest/doctest.h>

#include "data.hpp"
#include "replay.hpp"

TEST_CASE("sessions do what Python's sessions do") {
    own_state("traces");
    for (const Json &trace : data("traces")) {
        CAPTURE(trace["artifact"]);
        CAPTURE(trace["configuration"]);
        replay(trace);
    }
}
