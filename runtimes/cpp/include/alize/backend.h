/* backend.h: what libalize_NAME.so offers to libalize. A C table, so that a back-end may come from another compiler.
 *
 * Each function returns 0, or a status of alize.h with the reason in `error`. libalize has checked every argument; a
 * runner is called by one thread at a time, except `cancel`. The meaning of step, drop_last, evict and cached is that
 * of Runner in runtimes/runner.py.
 */
#ifndef ALIZE_BACKEND_H
#define ALIZE_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ALIZE_BACKEND_ABI 2
#define ALIZE_BACKEND_ENTRY "alize_backend_entry"

typedef struct alize_backend_error {
    char message[2048];
} alize_backend_error;

/* A list of strings or pairs is passed out through a callback: nothing crosses that somebody must free. */
typedef void (*alize_backend_text)(void *user, const char *text, size_t length);
typedef void (*alize_backend_pair)(void *user, const char *key, const char *value);

typedef struct alize_backend_option {
    const char *name;
    char kind;        /* 's' text, 'i' integer, 'b' truth */
    const char *text; /* of 's' */
    int64_t number;   /* of 'i' and 'b' */
} alize_backend_option;

typedef struct alize_backend_model {
    const char *folder, *device;
    int64_t layers, key_value_heads, head_size, vocab_size;
    int64_t experts, experts_per_token; /* 0 without experts */
    int64_t bos_token_id;               /* -1 = none */
    const int64_t *windows;             /* [layers], 0 = full attention */
    const alize_backend_option *options;
    size_t option_count;
    const char *tokenizers_library; /* may be NULL */
} alize_backend_model;

typedef struct alize_backend {
    uint32_t abi;
    const char *name;
    int32_t (*devices)(alize_backend_text each, void *user, alize_backend_error *error);
    int32_t (*fingerprint)(const char *device, alize_backend_pair each, void *user, alize_backend_error *error);

    int32_t (*open)(const alize_backend_model *model, void **engine, alize_backend_error *error);
    void (*close)(void *engine);

    int32_t (*runner)(void *engine, int64_t batch, void **runner, alize_backend_error *error);
    /* keep > 0. Writes logits[B,keep,V], aligned on the right; what precedes a shorter row's first token is never read.
     */
    int32_t (*step)(void *runner, const int64_t *tokens, int64_t s, const int64_t *lengths, const int64_t *positions,
                    int64_t keep, float *logits, alize_backend_error *error);
    int32_t (*drop_last)(void *runner, int64_t n, alize_backend_error *error);
    int32_t (*evict)(void *runner, int64_t keep, alize_backend_error *error);
    int64_t (*cached)(void *runner);
    int32_t (*reset)(void *runner, alize_backend_error *error);
    void (*cancel)(void *runner); /* from any thread; the step inside returns ALIZE_CANCELLED soon. May be NULL */
    void (*free_runner)(void *runner);

    /* Text; NULL where the back-end has no tokenizer. Any thread. */
    int32_t (*encode)(void *engine, const char *text, size_t length, int32_t special_tokens, int64_t **tokens,
                      size_t *count, alize_backend_error *error);
    int32_t (*decode)(void *engine, const int64_t *tokens, size_t count, int32_t skip_special_tokens,
                      alize_backend_text text, void *user, alize_backend_error *error);
    void (*free_tokens)(int64_t *tokens);

    /* Tells `each` why a configuration with these options cannot run on this machine; nothing where it can. May be
     * NULL. */
    int32_t (*missing)(const alize_backend_option *options, size_t option_count, alize_backend_text each, void *user,
                       alize_backend_error *error);
} alize_backend;

/* The symbol ALIZE_BACKEND_ENTRY. */
typedef const alize_backend *(*alize_backend_entry_function)(void);

#ifdef __cplusplus
}
#endif
#endif
