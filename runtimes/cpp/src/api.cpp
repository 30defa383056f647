// The C ABI over the classes of this folder. No exception leaves a function, and no argument is trusted to be there.
#include <cstring>

#include "api.hpp"
#include "generate.hpp"
#include "log.hpp"

using alize::api::guarded;
using alize::api::message;
using alize::api::require;

namespace {

std::string or_empty(const char *text) { return text == nullptr ? "" : text; }

// Copies what the caller's version of a structure has; what it lacks keeps its default.
template <typename Options>
Options sized(const Options *given, const Options &defaults, const char *call) {
    Options found = defaults;
    if (given == nullptr) return found;
    if (given->size < sizeof(size_t) || given->size > sizeof(Options))
        alize::fail(ALIZE_USAGE, call, ": options of ", given->size, " bytes are not of this libalize, which has ",
                    sizeof(Options), ": compile with its alize.h and set `size`");
    std::memcpy(&found, given, given->size);
    return found;
}

alize::GenerationOptions generation(const alize_generation_options *given, const char *call) {
    const alize_generation_options options = sized(given, alize_generation_options ALIZE_GENERATION_OPTIONS_INIT, call);
    alize::GenerationOptions found;
    found.temperature = options.temperature, found.top_k = options.top_k, found.top_p = options.top_p;
    found.min_p = options.min_p, found.seed = options.seed, found.max_new_tokens = options.max_new_tokens;
    if (options.stop_count > 0) require(call, options.stop_token_ids);
    if (options.stop_count > 0)
        found.stop_token_ids.assign(options.stop_token_ids, options.stop_token_ids + options.stop_count);
    return found;
}

}  // namespace

uint32_t alize_abi_version(void) { return ALIZE_ABI_VERSION; }

const char *alize_version(void) { return ALIZE_VERSION; }

const char *alize_status_name(alize_status status) {
    switch (status) {
        case ALIZE_OK:
            return "OK";
        case ALIZE_USAGE:
            return "UsageError";
        case ALIZE_OUTPUT:
            return "OutputError";
        case ALIZE_ARTIFACT:
            return "ArtifactError";
        case ALIZE_TAMPERED:
            return "TamperedArtifact";
        case ALIZE_UNKNOWN_SCHEMA:
            return "UnknownSchema";
        case ALIZE_NOT_VALIDATED:
            return "NotValidated";
        case ALIZE_BACKEND_UNAVAILABLE:
            return "BackendUnavailable";
        case ALIZE_DEVICE_UNAVAILABLE:
            return "DeviceUnavailable";
        case ALIZE_SESSION:
            return "SessionError";
        case ALIZE_TOKEN_OUT_OF_RANGE:
            return "TokenOutOfRange";
        case ALIZE_CONTEXT_EXCEEDED:
            return "ContextExceeded";
        case ALIZE_REWIND_TOO_FAR:
            return "RewindTooFar";
        case ALIZE_SESSION_CLOSED:
            return "SessionClosed";
        case ALIZE_CANCELLED:
            return "Cancelled";
        default:
            return "Defect";
    }
}

const char *alize_error_message(void) { return message().c_str(); }

void alize_set_log(alize_log log, void *user) { alize::set_log(log, user); }

alize_status alize_load(const char *folder, const alize_load_options *options, alize_model **model) {
    return guarded([&] {
        require("alize_load", folder, model);
        *model = nullptr;
        const alize_load_options given = sized(options, alize_load_options ALIZE_LOAD_OPTIONS_INIT, "alize_load");
        alize::LoadOptions found{or_empty(given.device),
                                 or_empty(given.expect),
                                 or_empty(given.configuration),
                                 or_empty(given.backend_path),
                                 or_empty(given.tokenizers_library),
                                 given.verify_full != 0,
                                 given.unsafe_skip_validation != 0};
        *model = new alize_model{alize::load(folder, found)};
    });
}

alize_status alize_model_close(alize_model *model) {
    return guarded([&] {
        require("alize_model_close", model);
        model->model->close();
    });
}

void alize_model_free(alize_model *model) {
    guarded([&] { delete model; });
}

alize_status alize_model_info(const alize_model *model, alize_info *info) {
    return guarded([&] {
        require("alize_model_info", model, info);
        const alize::Model &one = *model->model;
        const alize::Manifest &manifest = one.manifest();
        const alize::ModelInfo &sizes = manifest.model;
        const alize_info found = {sizeof(alize_info),
                                  sizes.layers,
                                  sizes.vocab_size,
                                  sizes.max_positions,
                                  sizes.widest_window(),
                                  one.limits().chunk,
                                  one.limits().slack,
                                  sizes.bos_token_id.value_or(-1),
                                  sizes.eos_token_ids.size(),
                                  sizes.eos_token_ids.data(),
                                  manifest.digest.c_str(),
                                  manifest.backend.c_str(),
                                  one.device().c_str(),
                                  one.configuration().name.c_str(),
                                  manifest.architecture.c_str(),
                                  manifest.weights.c_str(),
                                  manifest.level.c_str(),
                                  manifest.rebuild.c_str()};
        const size_t size = info->size;
        if (size < sizeof(size_t) || size > sizeof(found))
            alize::fail(ALIZE_USAGE, "alize_model_info: info of ", size, " bytes is not of this libalize: set `size`");
        std::memcpy(info, &found, size);
        info->size = size;
    });
}

alize_status alize_session_open(alize_model *model, int64_t batch, alize_session **session) {
    return guarded([&] {
        require("alize_session_open", model, session);
        *session = nullptr;
        *session = new alize_session{model->model->session(batch)};
    });
}

alize_status alize_session_close(alize_session *session) {
    return guarded([&] {
        require("alize_session_close", session);
        session->session->close();
    });
}

void alize_session_free(alize_session *session) {
    guarded([&] { delete session; });
}

alize_status alize_session_append(alize_session *session, const int64_t *tokens, int64_t s, const int64_t *lengths,
                                  int64_t keep, float *logits, size_t logits_count) {
    return guarded([&] {
        require("alize_session_append", session, tokens);
        session->session->append(tokens, s, lengths, keep, logits, logits_count);
    });
}

alize_status alize_session_rewind(alize_session *session, int64_t n) {
    return guarded([&] {
        require("alize_session_rewind", session);
        session->session->rewind(n);
    });
}

alize_status alize_session_reset(alize_session *session) {
    return guarded([&] {
        require("alize_session_reset", session);
        session->session->reset();
    });
}

alize_status alize_session_rewindable(alize_session *session, int64_t *n) {
    return guarded([&] {
        require("alize_session_rewindable", session, n);
        *n = session->session->rewindable();
    });
}

alize_status alize_session_positions(alize_session *session, int64_t *positions, size_t count) {
    return guarded([&] {
        require("alize_session_positions", session, positions);
        const std::vector<int64_t> found = session->session->positions();
        if (count != found.size())
            alize::fail(ALIZE_USAGE, "positions have room for ", count, ", not for the ", found.size(), " rows");
        std::copy(found.begin(), found.end(), positions);
    });
}

alize_status alize_session_room(alize_session *session, int64_t *room) {
    return guarded([&] {
        require("alize_session_room", session, room);
        *room = session->session->room().value_or(-1);
    });
}

alize_status alize_session_cancel(alize_session *session) {
    return guarded([&] {
        require("alize_session_cancel", session);
        session->session->cancel();
    });
}

alize_status alize_sample(const float *logits, int64_t vocab_size, uint64_t row, uint64_t position,
                          const alize_generation_options *options, int64_t *token) {
    return guarded([&] {
        require("alize_sample", logits, token);
        const alize::GenerationOptions found = generation(options, "alize_sample");
        alize::check_sampling(found);
        if (vocab_size < 1) alize::fail(ALIZE_USAGE, "vocab_size ", vocab_size, " must be 1 or more");
        *token = alize::sample({logits, static_cast<size_t>(vocab_size)}, row, position, found);
    });
}

alize_status alize_generate(alize_session *session, const int64_t *tokens, int64_t s, const int64_t *lengths,
                            const alize_generation_options *options, alize_on_tokens on_tokens, void *user,
                            int32_t *reasons) {
    return guarded([&] {
        require("alize_generate", session, tokens, on_tokens);
        const auto take = [&](std::span<const int64_t> drawn) { return on_tokens(drawn.data(), user) == 0; };
        const auto found =
            alize::generate(*session->session, tokens, s, lengths, generation(options, "alize_generate"), take);
        if (reasons != nullptr) std::copy(found.begin(), found.end(), reasons);
    });
}
