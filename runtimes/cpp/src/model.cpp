#include "model.hpp"

#include <algorithm>

#include "error.hpp"
#include "golden.hpp"
#include "json.hpp"
#include "log.hpp"
#include "state.hpp"
#include "verify.hpp"

namespace alize {
namespace {

// An artifact, a device and a configuration that belong together.
struct Place {
    std::filesystem::path folder;
    Manifest manifest;
    const Backend &backend;
    std::string device;
    Configuration configuration;
    DeviceState state;
    std::string tokenizers_library;

    std::shared_ptr<Model> open() const {
        auto engine = std::make_shared<const Engine>(backend, folder, manifest, device, configuration.options,
                                                     tokenizers_library);
        return std::make_shared<Model>(folder, manifest, device, configuration, std::move(engine));
    }
};

// Before a back-end is opened.
void check_name(const std::filesystem::path &folder, const Manifest &manifest, const std::string &name) {
    const auto &known = manifest.configurations;
    if (known.empty())
        fail(ALIZE_NOT_VALIDATED, folder.string(),
             " has no runtime configuration with a passing verdict: rebuild with `", manifest.rebuild, "`");
    std::string listed;
    for (const Configuration &one : known) {
        if (one.name == name) return;
        listed += (listed.empty() ? "" : ", ") + one.name;
    }
    if (!name.empty() && name != kTuned)
        fail(ALIZE_USAGE, folder.string(), " has no configuration ", repr(std::string_view(name)), ": use one of ",
             listed);
}

Configuration configuration_of(const std::filesystem::path &path, const Manifest &manifest, const std::string &name,
                               const Backend &backend, const DeviceState &state) {
    const std::string folder = path.string();
    if (name.empty() || name == kTuned) {
        if (const std::optional<Configuration> tuned = state.tuned()) {
            // asked for by name it is refused when it is opened
            const std::string why = name.empty() ? backend.missing(tuned->options) : "";
            if (why.empty() && state.verdict(tuned->name) != "fail") return *tuned;
            warn(why.empty() ? text(folder, " was tuned here, and what was chosen fails its replay: `alize tune ",
                                    folder, "` chooses again")
                             : text(folder, " was tuned here, and what was chosen cannot run any more: ", why));
        }
    }
    if (name == kTuned) fail(ALIZE_USAGE, folder, " was not tuned on this device: `alize tune ", folder, "` does that");
    for (const Configuration &one : manifest.configurations) {
        if (!name.empty() && one.name != name) continue;
        const std::string why = name.empty() ? backend.missing(one.options) : "";
        if (why.empty()) return one;
        warn(text(folder, ": configuration ", one.name, " cannot run here: ", why));
    }
    fail(ALIZE_BACKEND_UNAVAILABLE, folder, ": none of its configurations can run here: rebuild with `",
         manifest.rebuild, "`");
}

Place find(const std::filesystem::path &folder, const LoadOptions &options) {
    Manifest manifest = read_manifest(folder, options.expect);
    check_name(folder, manifest, options.configuration);
    const Backend &backend = Backend::open(manifest.backend, options.backend_path);
    const std::string device = options.device.empty() ? manifest.device : options.device;
    backend.check_device(device);
    DeviceState state(manifest.digest, backend.fingerprint(device));
    Configuration configuration = configuration_of(folder, manifest, options.configuration, backend, state);
    return {folder,           std::move(manifest),       backend, device, std::move(configuration),
            std::move(state), options.tokenizers_library};
}

void check_manifest(const Place &place) {
    const Manifest &manifest = place.manifest;
    if (manifest.verdict == "pass") return;
    std::string left_out;
    for (const std::string &one : manifest.left_out) left_out += (left_out.empty() ? ", left out: " : ", ") + one;
    fail(ALIZE_NOT_VALIDATED, place.folder.string(), " has the verdict ", repr(std::string_view(manifest.verdict)),
         ", not 'pass'", left_out, ": rebuild with `", manifest.rebuild, "`");
}

void check_known(const Place &place) {
    if (place.state.verdict(place.configuration.name) != "fail") return;
    const std::string folder = place.folder.string();
    fail(ALIZE_NOT_VALIDATED, folder, " failed its replay on ", place.device, " before: `alize validate ", folder,
         "` repeats it, `", place.manifest.rebuild, "` rebuilds");
}

Verdict replay(Place &place, Model &model) {
    const std::string folder = place.folder.string();
    const auto &files = place.manifest.files;
    if (std::none_of(files.begin(), files.end(), [](const FileEntry &entry) { return entry.path == kGolden; }))
        fail(ALIZE_NOT_VALIDATED, folder, " has no ", kGolden, " to replay on ", place.device, ": rebuild with `",
             place.manifest.rebuild, "`");
    try {
        const std::shared_ptr<Session> session = model.session(1);
        const Verdict verdict = replay_golden(*session, place.folder / kGolden);
        session->close();
        place.state.record_verdict(place.configuration.name, verdict.passed ? "pass" : "fail", verdict.figures);
        return verdict;
    } catch (const Error &error) {  // without a replay there is no verdict
        fail(ALIZE_NOT_VALIDATED, "the replay of ", folder, " cannot run on ", place.device, " (", error.what(),
             "): `alize validate ", folder, "` repeats it, `", place.manifest.rebuild, "` rebuilds");
    }
}

void check_here(Place &place, Model &model) {
    if (place.state.verdict(place.configuration.name) == "pass") return;
    const Verdict verdict = replay(place, model);
    if (verdict.passed) return;
    std::string failures;
    for (const std::string &failure : verdict.failures) failures += (failures.empty() ? "" : "; ") + failure;
    const std::string folder = place.folder.string();
    fail(ALIZE_NOT_VALIDATED, folder, " does not say on ", place.device, " what the reference says (", failures,
         "): `alize validate ", folder, "` repeats this, `", place.manifest.rebuild, "` rebuilds");
}

}  // namespace

Model::Model(std::filesystem::path folder, Manifest manifest, std::string device, Configuration configuration,
             std::shared_ptr<const Engine> engine)
    : folder_(std::move(folder)),
      manifest_(std::move(manifest)),
      device_(std::move(device)),
      configuration_(std::move(configuration)),
      limits_(session_limits(manifest_.model, configuration_.options)),
      engine_(std::move(engine)) {}

std::shared_ptr<const Engine> Model::engine() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (engine_ == nullptr) fail(ALIZE_SESSION_CLOSED, "this model is closed: load it again");
    return engine_;
}

std::shared_ptr<Session> Model::session(int64_t batch) {
    const auto shared = engine();
    if (batch < 1) fail(ALIZE_USAGE, "batch ", batch, " must be at least 1");
    auto session = std::make_shared<Session>(shared, shared->runner(batch), manifest_.model, batch, limits_);
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(sessions_, [](const auto &one) { return one.expired(); });
    sessions_.push_back(session);
    return session;
}

void Model::close() {
    std::vector<std::weak_ptr<Session>> sessions;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        sessions = sessions_;
    }
    for (const auto &one : sessions) {
        if (const auto session = one.lock()) session->close();
    }
    std::shared_ptr<const Engine> released;  // outside the lock: it may take long
    const std::lock_guard<std::mutex> lock(mutex_);
    released.swap(engine_);
}

std::vector<int64_t> Model::encode(std::string_view text, bool special_tokens) const {
    if (not_utf8(text) != std::string_view::npos)
        fail(ALIZE_USAGE, "the prompt is not UTF-8 at byte ", not_utf8(text), ": convert it first");
    return engine()->encode(text, special_tokens);
}

std::string Model::decode(const std::vector<int64_t> &tokens, bool skip_special_tokens) const {
    return engine()->decode(tokens, skip_special_tokens);
}

std::string Model::render_chat(const std::vector<Message> &messages, bool add_generation_prompt) const {
    engine();
    return ChatForm::read(folder_).render(messages, add_generation_prompt);
}

StreamDecoder Model::stream(std::vector<std::string> stops) const {
    return {[shared = engine()](const std::vector<int64_t> &tokens) { return shared->decode(tokens, true); },
            std::move(stops)};
}

std::shared_ptr<Model> load(const std::filesystem::path &folder, const LoadOptions &options) {
    Place place = find(folder, options);
    if (options.unsafe_skip_validation) {
        warn(text(folder.string(), " runs WITHOUT VALIDATION on ", place.device,
                  ": nothing says that its output is right"));
        verify(place.folder, place.manifest, place.state, options.verify_full);
        if (place.state.verdict(place.configuration.name) != "pass")
            place.state.record_verdict(place.configuration.name, "skipped", {});
        return place.open();
    }
    check_manifest(place);
    check_known(place);
    verify(place.folder, place.manifest, place.state, options.verify_full);
    const std::shared_ptr<Model> model = place.open();
    check_here(place, *model);
    return model;
}

}  // namespace alize
