// The examples of FIPS 180-4's predecessors (NIST's CSRC), and every way of cutting a text into pieces.
#include <doctest/doctest.h>

#include "sha256.hpp"

TEST_CASE("sha256 of NIST's examples") {
    CHECK(alize::sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(alize::sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(alize::sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(alize::sha256(std::string(1000000, 'a')) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("pieces give what the whole gives") {
    const std::string text(200, 'x');
    for (size_t size = 0; size <= text.size(); size++) {
        for (const size_t cut : {size_t{0}, size / 3, size}) {
            alize::Sha256 hash;
            hash.update(text.data(), cut);
            hash.update(text.data() + cut, size - cut);
            CHECK(hash.hex() == alize::sha256(std::string_view(text).substr(0, size)));
        }
    }
}
