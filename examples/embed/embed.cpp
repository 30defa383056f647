// A program with a language model in it: loads a sealed artifact, asks a question, streams the answer.
#include <alize/alize.hpp>
#include <cstdio>
#include <string>

int main(int count, char **words) {
    if (count != 3) {
        std::fprintf(stderr, "usage: embed ARTIFACT QUESTION\n");
        return 2;
    }
    try {
        // Refuses what was changed, never proven, or says something else on this machine.
        const alize::Model model = alize::Model::load(words[1]);
        alize::Session session = model.session();

        alize::GenerationOptions options;
        options.max_new_tokens = 64;
        options.temperature = 0.7;
        options.top_p = 0.9;
        options.seed = 1;  // the same tokens every time, here and in Python
        options.stop_token_ids = model.eos_token_ids();

        alize::Stream stream = model.stream();
        session.generate(model.encode_chat({{"user", words[2]}}), options, [&](int64_t token) {
            std::printf("%s", stream.push(token).c_str());
            std::fflush(stdout);
            return true;  // false would end it here; session.cancel() ends it from another thread
        });
        std::printf("%s\n", stream.flush().c_str());
        return 0;
    } catch (const alize::error &error) {
        std::fprintf(stderr, "%s: %s\n", error.name(), error.what());
        return error.exit_code();
    }
}
