// llama.cpp, measured as benchmarks/subjects/openvino_genai.py measures openvino-genai, through its C API and with its
// defaults:
//
//     llama-serve MODEL.gguf cold PROMPT | serve
//
// benchmarks/peers/install compiles it. ALIZE_BENCH_THREADS says how many threads (2); ALIZE_BENCH_CONTEXT how long a
// context (4096).

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds that all threads of this process have computed.
double computed() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

int setting(const char *name, int otherwise) {
    const char *text = std::getenv(name);
    return text == nullptr ? otherwise : std::atoi(text);
}

// MB of this process, as JSON members.
std::string memory() {
    std::ifstream status("/proc/self/status");
    std::ostringstream found;
    for (std::string line; std::getline(status, line);) {
        for (const auto &[field, name] :
             {std::pair{"VmRSS:", "rss_mb"}, {"RssAnon:", "anonymous_mb"}, {"VmHWM:", "peak_mb"}}) {
            if (line.rfind(field, 0) == 0) {
                found << ", \"" << name << "\": " << std::stod(line.substr(std::string(field).size())) * 1024 / 1e6;
            }
        }
    }
    return found.str();
}

class Subject {
public:
    explicit Subject(const char *file) {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        ggml_backend_load_all();
        model_.reset(llama_model_load_from_file(file, llama_model_default_params()));
        if (!model_) {
            throw std::runtime_error(std::string("llama.cpp cannot open ") + file);
        }
        llama_context_params params = llama_context_default_params();
        params.n_ctx = static_cast<uint32_t>(setting("ALIZE_BENCH_CONTEXT", 4096));
        params.n_threads = params.n_threads_batch = setting("ALIZE_BENCH_THREADS", 2);
        context_.reset(llama_init_from_model(model_.get(), params));
        if (!context_) {
            throw std::runtime_error("llama.cpp cannot make a context");
        }
        vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    }

    // `size` tokens of prompt and `count` greedy ones: what process.py's TokenClock says of them, as JSON.
    std::string decode(int size, int count, int seed) {
        std::vector<llama_token> tokens(static_cast<size_t>(size));
        for (int i = 0; i < size; ++i) {
            tokens[static_cast<size_t>(i)] = (7 * i + 101 * seed + 11) % vocabulary_;
        }
        llama_memory_clear(llama_get_memory(context_.get()), true);
        const double began = now();
        llama_token token = append(tokens);
        const double first = now();
        const double first_computed = computed();
        for (int i = 1; i < count; ++i) {
            tokens.assign(1, token);
            token = append(tokens);
        }
        const double rest = std::max(count - 1, 1);
        std::ostringstream found;
        found.precision(9);
        found << "{\"first_token_seconds\": " << first - began << ", \"token_seconds\": " << (now() - first) / rest
              << ", \"token_processor_seconds\": " << (computed() - first_computed) / rest
              << ", \"tokens_per_second\": " << count / (now() - began) << memory() << "}";
        return found.str();
    }

private:
    struct Free {
        void operator()(llama_model *model) const { llama_model_free(model); }
        void operator()(llama_context *context) const { llama_free(context); }
    };

    // Appends the tokens, as many together as the context takes, and returns the likeliest next one.
    llama_token append(std::vector<llama_token> &tokens) {
        const auto together = static_cast<size_t>(llama_n_batch(context_.get()));
        for (size_t at = 0; at < tokens.size(); at += together) {
            const auto part = static_cast<int32_t>(std::min(together, tokens.size() - at));
            if (llama_decode(context_.get(), llama_batch_get_one(tokens.data() + at, part)) != 0) {
                throw std::runtime_error("llama_decode failed");
            }
        }
        const float *logits = llama_get_logits_ith(context_.get(), -1);
        return static_cast<llama_token>(std::max_element(logits, logits + vocabulary_) - logits);
    }

    std::unique_ptr<llama_model, Free> model_;
    std::unique_ptr<llama_context, Free> context_;
    int vocabulary_ = 0;
};

int run(int count, char **words) {
    if (count < 3) {
        std::cerr << "llama-serve MODEL.gguf cold PROMPT | serve\n";
        return 2;
    }
    Subject subject(words[1]);
    if (std::string(words[2]) == "cold") {
        std::cout << subject.decode(std::stoi(words[3]), 1, 0) << std::endl;
        return 0;
    }
    for (std::string line; std::getline(std::cin, line);) {
        int size = 0, tokens = 0, sessions = 0, seed = 0;
        std::istringstream(line) >> size >> tokens >> sessions >> seed;
        std::cout << subject.decode(size, tokens, seed) << std::endl;
    }
    return 0;
}

}  // namespace

int main(int count, char **words) {
    try {
        return run(count, words);
    } catch (const std::exception &error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
