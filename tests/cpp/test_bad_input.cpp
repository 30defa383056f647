// Nothing that a host passes brings it down: a status and a message, whatever it was.
#include <doctest/doctest.h>

#include <array>
#include <filesystem>

#include "data.hpp"

namespace {

alize::Model uniform() { return alize::Model::load(data_folder() + "/artifacts/uniform"); }

int never(const int64_t *, void *) { return 1; }

}  // namespace

TEST_CASE("null handles and arguments") {
    int64_t number = 0;
    size_t size = 0;
    const char *text = nullptr;
    char *owned = nullptr;
    int64_t *tokens = nullptr;
    alize_model *model = nullptr;
    alize_session *session = nullptr;
    alize_stream *stream = nullptr;
    alize_info info = {};
    const alize_message message = {nullptr, nullptr};
    const std::array<alize_status, 24> found = {
        alize_load(nullptr, nullptr, &model),
        alize_load("x", nullptr, nullptr),
        alize_model_close(nullptr),
        alize_model_info(nullptr, &info),
        alize_session_open(nullptr, 1, &session),
        alize_session_close(nullptr),
        alize_session_append(nullptr, &number, 1, nullptr, 1, nullptr, 0),
        alize_session_rewind(nullptr, 1),
        alize_session_reset(nullptr),
        alize_session_rewindable(nullptr, &number),
        alize_session_positions(nullptr, &number, 1),
        alize_session_room(nullptr, &number),
        alize_session_cancel(nullptr),
        alize_sample(nullptr, 1, 0, 0, nullptr, &number),
        alize_generate(nullptr, &number, 1, nullptr, nullptr, never, nullptr, nullptr),
        alize_encode(nullptr, "x", 1, 1, &tokens, &size),
        alize_decode(nullptr, &number, 1, 1, &owned, &size),
        alize_render_chat(nullptr, &message, 1, 1, &owned, &size),
        alize_stream_open(nullptr, nullptr, 0, &stream),
        alize_stream_push(nullptr, 1, &text, &size),
        alize_stream_flush(nullptr, &text, &size),
        alize_stream_stopped(nullptr, &text),
        alize_sample(nullptr, 1, 0, 0, nullptr, nullptr),
        alize_load(nullptr, nullptr, nullptr),
    };
    for (const alize_status status : found) CHECK(status == ALIZE_USAGE);
    CHECK(std::string(alize_error_message()) == "alize_load was given a null handle or argument");
    alize_model_free(nullptr);
    alize_session_free(nullptr);
    alize_stream_free(nullptr);
    alize_free(nullptr);
}

TEST_CASE("a closed session, a closed model, and what outlives it") {
    own_state("closed");
    alize::Model model = uniform();
    alize::Session session = model.session();
    session.close();
    session.close();
    const std::vector<int64_t> token = {1};
    CHECK(refusal([&] { session.append(token); })["message"] ==
          "this session is closed: open another with model.session()");
    CHECK(refusal([&] { session.reset(); })["name"] == "SessionClosed");
    CHECK(refusal([&] { session.positions(); })["name"] == "SessionClosed");
    session.cancel();
    alize::Session other = model.session();
    model.close();
    model.close();
    CHECK(refusal([&] { other.append(token); })["name"] == "SessionClosed");
    CHECK(refusal([&] { model.session(); })["message"] == "this model is closed: load it again");
    CHECK(refusal([&] { model.encode("x"); })["name"] == "SessionClosed");
}

TEST_CASE("a session outlives its model's handle") {
    own_state("outlives");
    auto model = std::make_unique<alize::Model>(uniform());
    alize::Session session = model->session(2);
    model.reset();
    CHECK(session.append(std::vector<int64_t>{1, 2}).size() == 2 * 61);
}

TEST_CASE("batches, options and buffers of a wrong size") {
    own_state("sizes");
    const alize::Model model = uniform();
    CHECK(refusal([&] { model.session(0); })["message"] == "batch 0 must be at least 1");
    alize_model *handle = nullptr;
    alize_load_options options = ALIZE_LOAD_OPTIONS_INIT;
    options.size = 3;
    CHECK(alize_load("x", &options, &handle) == ALIZE_USAGE);
    options.size = sizeof(options) + 8;
    CHECK(alize_load("x", &options, &handle) == ALIZE_USAGE);
    options.size = sizeof(size_t);  // an older host, which knows no option at all
    CHECK(alize_load((data_folder() + "/artifacts/uniform").c_str(), &options, &handle) == ALIZE_OK);
    alize_info info = {};
    CHECK(alize_model_info(handle, &info) == ALIZE_USAGE);
    alize_session *session = nullptr;
    REQUIRE(alize_session_open(handle, 1, &session) == ALIZE_OK);
    std::array<float, 3> logits;
    const int64_t token = 1;
    CHECK(alize_session_append(session, &token, 1, nullptr, 1, logits.data(), logits.size()) == ALIZE_USAGE);
    int64_t position = -1;
    CHECK(alize_session_positions(session, &position, 1) == ALIZE_OK);
    CHECK(position == 0);  // a refused call changes nothing
    CHECK(alize_session_positions(session, &position, 2) == ALIZE_USAGE);
    alize_generation_options generation = ALIZE_GENERATION_OPTIONS_INIT;
    generation.max_new_tokens = 0;
    CHECK(alize_generate(session, &token, 1, nullptr, &generation, never, nullptr, nullptr) == ALIZE_USAGE);
    generation = ALIZE_GENERATION_OPTIONS_INIT;
    generation.stop_count = 2;
    CHECK(alize_generate(session, &token, 1, nullptr, &generation, never, nullptr, nullptr) == ALIZE_USAGE);
    alize_session_free(session);
    alize_model_free(handle);
}

TEST_CASE("tokens out of range, and more rows than any memory holds") {
    own_state("range");
    const alize::Model model = uniform();
    alize::Session session = model.session();
    for (const int64_t token : {INT64_MIN, int64_t{-1}, int64_t{61}, INT64_MAX}) {
        CAPTURE(token);
        const Json found = refusal([&] { session.append(std::vector<int64_t>{1, token}); });
        CHECK(found["name"] == "TokenOutOfRange");
        CHECK(found["message"] ==
              "token " + std::to_string(token) +
                  " at index 1 of row 0 is outside 0..60 (vocabulary of 61): use this model's tokenizer");
    }
    CHECK(session.positions()[0] == 0);
    CHECK(refusal([&] { model.session(INT64_MAX); })["message"] ==
          "no memory left: free some, or ask for less at once");
}

TEST_CASE("names that are no UTF-8") {
    own_state("no-utf8");
    for (const std::string name : {"\xff", "x\xf0", "\xe2\x82", "\x80"}) {
        alize::LoadOptions device, configuration;
        device.device = configuration.configuration = name;
        const std::string folder = data_folder() + "/artifacts/uniform";
        CHECK(refusal([&] { alize::Model::load(folder, device); })["name"] == "DeviceUnavailable");
        CHECK(refusal([&] { alize::Model::load(folder, configuration); })["name"] == "UsageError");
        CHECK(refusal([&] { alize::Model::load(name); })["name"] == "ArtifactError");
        CHECK(refusal([&] { uniform().render_chat({{name, name}}); })["name"] == "UsageError");
    }
}

TEST_CASE("an artifact in a folder of any name") {
    own_state("names");
    for (const char *name : {"with spaces", "été 冬 ہے", "\xff\xfe no UTF-8", "'quoted' \"twice\""}) {
        CAPTURE(name);
        const std::filesystem::path folder = std::filesystem::path(data_folder()) / "names" / name;
        std::filesystem::remove_all(folder);
        std::filesystem::create_directories(folder.parent_path());
        std::filesystem::copy(data_folder() + "/artifacts/uniform", folder, std::filesystem::copy_options::recursive);
        alize::Session session = alize::Model::load(folder.string()).session();
        CHECK(session.append(std::vector<int64_t>{1, 2}).size() == 61);
        std::filesystem::remove(folder / "golden.safetensors");
        CHECK(refusal([&] { alize::Model::load(folder.string()); })["name"] == "TamperedArtifact");
    }
}

TEST_CASE("the fake engine has no text, and says so") {
    own_state("text");
    const alize::Model model = uniform();
    CHECK(refusal([&] { model.encode("x"); })["message"] == "back-end fake has no tokenizer: pass token ids");
    CHECK(refusal([&] { model.encode("\xff"); })["name"] == "UsageError");
    CHECK(refusal([&] { model.render_chat({{"user", "x"}}); })["name"] == "UsageError");
    CHECK(refusal([&] { model.stream({""}); })["message"] == "a stop string is empty: give at least one character");
}

TEST_CASE("back-ends that are not there") {
    own_state("backends");
    alize::LoadOptions options;
    options.backend_path = data_folder();
    const Json found = refusal([&] { alize::Model::load(data_folder() + "/artifacts/uniform", options); });
    CHECK(found["name"] == "BackendUnavailable");
    CHECK(found["message"].get<std::string>().find("libalize_fake.so") != std::string::npos);
}

TEST_CASE("an exception of the host's callback comes back to the host") {
    own_state("callback");
    const alize::Model model = uniform();
    alize::Session session = model.session();
    const std::vector<int64_t> token = {1};
    CHECK_THROWS_WITH(session.generate(token, {}, [](int64_t) -> bool { throw std::runtime_error("the host's own"); }),
                      "the host's own");
    CHECK(session.positions()[0] == 1);  // whole: the session goes on
    CHECK(session.generate(token, {}, [](int64_t) { return false; }) == ALIZE_RUNNING);
}

TEST_CASE("a session may be used by the callback that it runs, and closed only afterwards") {
    own_state("nested");
    const alize::Model model = uniform();
    alize::Session session = model.session();
    const std::vector<int64_t> token = {1};
    session.generate(token, {}, [&](int64_t) { return session.positions()[0] < 5; });
    CHECK(session.positions()[0] == 5);
    session.generate(token, {}, [&](int64_t) {
        session.close();
        return false;
    });
    CHECK(refusal([&] { session.reset(); })["name"] == "SessionClosed");
}
