// Loads that Python refuses, in Python's words; and what a load leaves in the device's state.
#include <doctest/doctest.h>

#include <filesystem>

#include "data.hpp"

namespace {

// Without the folder of the states, and without what the parser said where the words are its own.
std::vector<std::string> apart_from(std::vector<std::string> lines, const std::string &states, bool own_words) {
    for (std::string &line : lines) {
        if (const size_t at = line.find(states); at != std::string::npos) line.erase(at, states.size());
        if (const size_t from = line.find('('); own_words && from != std::string::npos)
            line.erase(from, line.rfind(')') - from);
    }
    return lines;
}

}  // namespace

TEST_CASE("every load that Python refuses, with the same status and message") {
    own_state("loading");
    for (const Json &one : data("refusals")) {
        CAPTURE(one["case"]);
        alize::LoadOptions options;
        options.expect = one["options"].value("expect", "");
        options.configuration = one["options"].value("configuration", "");
        options.device = one["options"].value("device", "");
        CHECK(refusal([&] { alize::Model::load(one["folder"], options); }) == refusal_of(one));
    }
}

TEST_CASE("every manifest that Python refuses, with the same status and message") {
    own_state("manifests");
    const std::filesystem::path folder = data_folder() + "/manifest with spaces é";
    std::filesystem::create_directories(folder);
    for (const Json &one : data("manifests")) {
        CAPTURE(one["case"]);
        std::ofstream(folder / "manifest.json") << one["text"].get<std::string>();
        // A manifest that reads ends at the pin, before anything else is looked at.
        alize::LoadOptions options;
        options.expect = std::string(64, '0');
        const Json found = refusal([&] { alize::Model::load(folder.string(), options); });
        if (one["name"].is_null()) {
            const bool passed = found["name"] == "TamperedArtifact" ||
                                found["message"].get<std::string>().find("sizes that no model") != std::string::npos;
            CHECK(passed);
            continue;
        }
        const std::string remedy =
            one["name"] == "ArtifactError" ? ": restore the file, or build the artifact again" : "";
        CHECK(found["name"] == one["name"]);
        CHECK(found["message"] ==
              (folder / "manifest.json").string() + ": " + one["message"].get<std::string>() + remedy);
    }
}

TEST_CASE("the device's state is Python's: a verdict of either spares the other the replay") {
    const Json state = data("state");
    ::setenv("ALIZE_STATE_DIR", (data_folder() + "/python-state").c_str(), 1);
    const std::filesystem::path file = state["folder"].get<std::string>() + "/state.json";
    const auto before = std::filesystem::last_write_time(file);
    alize::Model::load(data_folder() + "/artifacts/uniform");
    CHECK(std::filesystem::last_write_time(file) == before);  // nothing was left to do
}

TEST_CASE("what was tuned, and what can run here, is chosen as Python chooses") {
    for (const Json &one : data("chosen")) {
        CAPTURE(one["case"]);
        own_state("chosen");
        const std::filesystem::path states = ::getenv("ALIZE_STATE_DIR");
        std::filesystem::remove_all(states);
        for (const auto &[name, bytes] : one["files"].items()) {
            std::filesystem::create_directories((states / name).parent_path());
            const auto content = bytes.get<std::vector<char>>();
            std::ofstream(states / name).write(content.data(), static_cast<std::streamsize>(content.size()));
        }
        std::vector<std::string> lines;
        const auto take = [](const char *line, void *user) {
            static_cast<std::vector<std::string> *>(user)->emplace_back(line);
        };
        alize_set_log(take, &lines);
        alize::LoadOptions options;
        options.configuration = one["configuration"];
        const Json refused = refusal([&] {
            const alize::Model model = alize::Model::load(one["artifact"], options);
            CHECK(model.info().configuration == one["loaded"].get<std::string>());
            CHECK(model.info().chunk == one["chunk"].get<int64_t>());
            CHECK(model.info().slack == one["slack"].get<int64_t>());
        });
        alize_set_log(nullptr, nullptr);
        CHECK(refused == refusal_of(one));
        CHECK(apart_from(lines, states, one["own_words"]) == apart_from(one["lines"], one["states"], one["own_words"]));
    }
}

TEST_CASE("a state that cannot be written is said once, and loading goes on") {
    std::vector<std::string> lines;
    const auto take = [](const char *line, void *user) {
        static_cast<std::vector<std::string> *>(user)->emplace_back(line);
    };
    alize_set_log(take, &lines);
    ::setenv("ALIZE_STATE_DIR", "/proc/nothing can be made here", 1);
    for (int i = 0; i < 3; i++) alize::Model::load(data_folder() + "/artifacts/uniform");
    alize_set_log(nullptr, nullptr);
    REQUIRE(lines.size() == 1);
    CHECK(lines[0].find("checks are repeated at every load; set ALIZE_STATE_DIR") != std::string::npos);
}

TEST_CASE("an unvalidated load is loud and recorded, and counts as no verdict") {
    own_state("unsafe");
    std::vector<std::string> lines;
    const auto take = [](const char *line, void *user) {
        static_cast<std::vector<std::string> *>(user)->emplace_back(line);
    };
    alize_set_log(take, &lines);
    alize::LoadOptions options;
    options.unsafe_skip_validation = true;
    const std::string wrong = data_folder() + "/artifacts/wrong";
    alize::Model::load(wrong, options);
    alize_set_log(nullptr, nullptr);
    REQUIRE(lines.size() == 1);
    CHECK(lines[0] == wrong + " runs WITHOUT VALIDATION on cpu: nothing says that its output is right");
    CHECK(refusal([&] { alize::Model::load(wrong); })["name"] == "NotValidated");
}
