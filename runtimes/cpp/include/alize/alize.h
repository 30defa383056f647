/* alize.h: loads and runs sealed artifacts. The C ABI of libalize.
 *
 * Every function that can fail returns a status; alize_error_message() then says what happened, which limit was met and
 * what mends it. No exception crosses this boundary. A null handle or argument is ALIZE_USAGE.
 *
 * Strings are UTF-8. Tokens are int64. Shapes use the letters B rows, S new tokens, V vocabulary.
 * A model may be used by any number of threads; a session by one at a time (alize_session_cancel excepted).
 */
#ifndef ALIZE_ALIZE_H
#define ALIZE_ALIZE_H

#include <stddef.h>
#include <stdint.h>

#if defined(ALIZE_BUILDING)
#define ALIZE_API __attribute__((visibility("default")))
#else
#define ALIZE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Rises when something here changes its meaning or goes away. Option structures grow at their end: `size` tells them
 * apart. */
#define ALIZE_ABI_VERSION 1

/* status / 10 is the exit code that the command line ends with; the names are those of Python's errors. */
typedef int32_t alize_status;
enum {
    ALIZE_OK = 0,
    ALIZE_DEFECT = 10,              /* a defect of alize, or no memory */
    ALIZE_USAGE = 20,               /* an argument that cannot be meant */
    ALIZE_OUTPUT = 40,              /* something cannot be written */
    ALIZE_ARTIFACT = 60,            /* `load` refuses */
    ALIZE_TAMPERED = 61,            /* a file or the manifest is not what was sealed */
    ALIZE_UNKNOWN_SCHEMA = 62,      /* written by a newer (or broken) alize */
    ALIZE_NOT_VALIDATED = 63,       /* no passing verdict for this device and configuration */
    ALIZE_BACKEND_UNAVAILABLE = 70, /* a library or driver is missing */
    ALIZE_DEVICE_UNAVAILABLE = 71,  /* the library is there, the device is not */
    ALIZE_SESSION = 80,             /* a session was asked for what it cannot do */
    ALIZE_TOKEN_OUT_OF_RANGE = 81,
    ALIZE_CONTEXT_EXCEEDED = 82, /* beyond the positions that the model was trained for */
    ALIZE_REWIND_TOO_FAR = 83,
    ALIZE_SESSION_CLOSED = 84,
    ALIZE_CANCELLED = 1300, /* alize_session_cancel; exit code 130, as Ctrl-C */
};

ALIZE_API uint32_t alize_abi_version(void);
ALIZE_API const char *alize_version(void);
/* The name of a status: "TamperedArtifact", ... */
ALIZE_API const char *alize_status_name(alize_status status);
/* What the last call that failed in this thread had to say; valid until this thread's next call. */
ALIZE_API const char *alize_error_message(void);

/* Where warnings go (a state that cannot be written, an unvalidated load); stderr unless set. NULL restores that. */
typedef void (*alize_log)(const char *line, void *user);
ALIZE_API void alize_set_log(alize_log log, void *user);

typedef struct alize_model alize_model;
typedef struct alize_session alize_session;
typedef struct alize_stream alize_stream;

/* ---- Model
 * ------------------------------------------------------------------------------------------------------------ */

typedef struct alize_load_options {
    size_t size;               /* sizeof(alize_load_options) */
    const char *device;        /* NULL = the one it was built for */
    const char *expect;        /* the digest that the manifest must have; NULL = any */
    const char *configuration; /* the name of a runtime configuration of the manifest, or "tuned"; NULL = what
                                  `alize tune` chose for this device, else the manifest's first */
    const char *backend_path;  /* folder of libalize_BACKEND.so; NULL = $ALIZE_BACKEND_PATH, else libalize's own */
    const char
        *tokenizers_library; /* openvino-tokenizers' extension; NULL = $ALIZE_TOKENIZERS, else beside the back-end */
    int32_t verify_full;     /* 1 hashes every file, 0 only those that changed since they were last hashed here */
    int32_t unsafe_skip_validation; /* 1 asks for no verdict: warns at every load and is recorded */
} alize_load_options;
#define ALIZE_LOAD_OPTIONS_INIT \
    { sizeof(alize_load_options), NULL, NULL, NULL, NULL, NULL, 0, 0 }

/* Opens an artifact after checking that it is what was sealed and says on this device what it should; see docs/cpp.md.
 */
ALIZE_API alize_status alize_load(const char *folder, const alize_load_options *options, alize_model **model);
/* Closes its sessions and releases the weights once no call is inside. The handle stays valid until alize_model_free.
 */
ALIZE_API alize_status alize_model_close(alize_model *model);
ALIZE_API void alize_model_free(alize_model *model);

typedef struct alize_info {
    size_t size; /* sizeof(alize_info) */
    int64_t layers, vocab_size, max_positions, widest_window, chunk, slack;
    int64_t bos_token_id; /* -1 = none */
    size_t eos_count;
    const int64_t *eos_token_ids; /* the model's */
    const char *digest, *backend, *device, *configuration, *architecture, *weights, *level, *rebuild;
} alize_info;
ALIZE_API alize_status alize_model_info(const alize_model *model, alize_info *info);

/* ---- Session
 * ---------------------------------------------------------------------------------------------------------- */

ALIZE_API alize_status alize_session_open(alize_model *model, int64_t batch, alize_session **session);
/* Releases the engine's state; every later call but alize_session_free is ALIZE_SESSION_CLOSED. May be called again. */
ALIZE_API alize_status alize_session_close(alize_session *session);
ALIZE_API void alize_session_free(alize_session *session);

/* Appends tokens[B,S]; lengths[B] says how many of each row count (NULL = all), the rest is padding on the right.
 * logits (NULL = none wanted) takes float32[B,keep,V] of the last `keep` tokens of each row; keep 0 is all S, 0 where a
 * row is padding; logits_count is how many floats it holds. A refused call changes nothing. */
ALIZE_API alize_status alize_session_append(alize_session *session, const int64_t *tokens, int64_t s,
                                            const int64_t *lengths, int64_t keep, float *logits, size_t logits_count);
/* Drops the last n tokens of every row; n is at most what alize_session_rewindable says. */
ALIZE_API alize_status alize_session_rewind(alize_session *session, int64_t n);
ALIZE_API alize_status alize_session_reset(alize_session *session);
ALIZE_API alize_status alize_session_rewindable(alize_session *session, int64_t *n);
/* positions[B]: the absolute position of each row's next token. */
ALIZE_API alize_status alize_session_positions(alize_session *session, int64_t *positions, size_t count);
/* How many more tokens the longest row can take; -1 = endless (every layer has a window). */
ALIZE_API alize_status alize_session_room(alize_session *session, int64_t *room);
/* From any thread: the call that is inside returns ALIZE_CANCELLED soon; nothing where no call is inside. Generation
 * stops between two tokens and the session stays usable; an append that was stopped half-way asks for
 * alize_session_reset. */
ALIZE_API alize_status alize_session_cancel(alize_session *session);

/* ---- Sampling and generation (docs/sampling.md)
 * ------------------------------------------------------------------------- */

typedef struct alize_generation_options {
    size_t size;         /* sizeof(alize_generation_options) */
    double temperature;  /* 0 = greedy */
    int64_t top_k;       /* 0 = off */
    double top_p, min_p; /* 1 and 0 = off */
    uint64_t seed;
    int64_t max_new_tokens;
    const int64_t *stop_token_ids; /* a row ends behind any of these */
    size_t stop_count;
} alize_generation_options;
#define ALIZE_GENERATION_OPTIONS_INIT \
    { sizeof(alize_generation_options), 0.0, 0, 1.0, 0.0, 0, 256, NULL, 0 }

/* Draws the token that row `row` will have at absolute position `position` from its logits[V]. */
ALIZE_API alize_status alize_sample(const float *logits, int64_t vocab_size, uint64_t row, uint64_t position,
                                    const alize_generation_options *options, int64_t *token);

#define ALIZE_ENDED (-1) /* the token of a row that has ended while others go on */
enum { ALIZE_RUNNING = 0, ALIZE_STOP = 1, ALIZE_LENGTH = 2, ALIZE_CONTEXT = 3 };
/* Takes the next token of each row, tokens[B]. Another return value than 0 ends the generation. */
typedef int (*alize_on_tokens)(const int64_t *tokens, void *user);
/* Appends tokens[B,S] and generates. reasons[B] (may be NULL) says how each row ended. The session then holds the
 * prompt and every token but the last one. */
ALIZE_API alize_status alize_generate(alize_session *session, const int64_t *tokens, int64_t s, const int64_t *lengths,
                                      const alize_generation_options *options, alize_on_tokens on_tokens, void *user,
                                      int32_t *reasons);

/* ---- Text
 * --------------------------------------------------------------------------------------------------------------- */

/* The lists and strings below are the caller's to free with alize_free. */
ALIZE_API void alize_free(void *memory);
/* special_tokens 1 adds those that the model expects around a raw prompt (BOS, often). */
ALIZE_API alize_status alize_encode(alize_model *model, const char *text, size_t length, int32_t special_tokens,
                                    int64_t **tokens, size_t *count);
ALIZE_API alize_status alize_decode(alize_model *model, const int64_t *tokens, size_t count,
                                    int32_t skip_special_tokens, char **text, size_t *length);

typedef struct alize_message {
    const char *role, *content;
} alize_message;
/* The text of a conversation by the model's chat template, which writes the special tokens itself. */
ALIZE_API alize_status alize_render_chat(alize_model *model, const alize_message *messages, size_t count,
                                         int32_t add_generation_prompt, char **text, size_t *length);

/* Text that grows token by token: whole UTF-8 characters only, ended before the first stop string. */
ALIZE_API alize_status alize_stream_open(alize_model *model, const char *const *stop, size_t stop_count,
                                         alize_stream **stream);
/* The text that is certain now; valid until the stream's next call. */
ALIZE_API alize_status alize_stream_push(alize_stream *stream, int64_t token, const char **text, size_t *length);
ALIZE_API alize_status alize_stream_flush(alize_stream *stream, const char **text, size_t *length);
/* The stop string that ended the text, or NULL. */
ALIZE_API alize_status alize_stream_stopped(alize_stream *stream, const char **stop);
ALIZE_API void alize_stream_free(alize_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
