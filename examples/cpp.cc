// cpp.cc - jamba.h from C++11: handles that free themselves, a reply piece by piece, forks, going back
//
//     c++ -std=c++11 cpp.cc -o cpp -lm && ./cpp MODEL.jamba "Once upon a time"
//
// The library itself throws nothing and catches nothing; here a failed call turns into an exception.
#define JAMBA_IMPLEMENTATION
#include "jamba.h"

#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Free {
    void operator()(jamba_model *model) const { jamba_model_free(model); }
    void operator()(jamba_session *session) const { jamba_session_free(session); }
};

using Model = std::unique_ptr<jamba_model, Free>;
using Session = std::unique_ptr<jamba_session, Free>;  // goes before its model
using Show = std::function<void(const std::string &)>;

void check(jamba_result result, const jamba_error &error)
{
    if (result != JAMBA_OK) throw std::runtime_error(error.message);
}

// A result, or a token, of a call on a session.
int32_t check(int32_t result, const Session &session)
{
    if (result < 0) throw std::runtime_error(jamba_session_error(session.get())->message);
    return result;
}

Model load(const std::string &path)
{
    jamba_model *model;
    jamba_error error;
    check(jamba_model_load(&model, jamba_from_file(path.c_str()), nullptr, &error), error);
    return Model(model);
}

Session begin(const Model &model, const jamba_session_params &params)
{
    jamba_session *session;
    jamba_error error;
    check(jamba_session_create(&session, model.get(), &params, &error), error);
    return Session(session);
}

// Costs the state, and room for `tokens` more; what was read before is shared.
Session fork(const Session &source, int32_t tokens)
{
    jamba_session *session;
    jamba_error error;
    check(jamba_session_fork(&session, source.get(), tokens, &error), error);
    return Session(session);
}

std::vector<int32_t> encode(const Model &model, const std::string &text, unsigned flags)
{
    std::vector<int32_t> tokens(text.size() + 8);  // a token is at least a byte
    std::size_t count;
    jamba_error error;
    check(jamba_encode(model.get(), text.data(), text.size(), flags, tokens.data(), tokens.size(), &count, &error),
        error);
    tokens.resize(count);
    return tokens;
}

int32_t position(const Session &session)
{
    jamba_session_info info;
    jamba_session_describe(session.get(), &info);
    return info.position;
}

// The text of tokens one after the other: whole characters only, with the right spaces between words.
class Decoder {
public:
    explicit Decoder(const Model &model) : model_(model.get()), stream_() {}
    // -1: what is left of an unfinished character.
    std::string next(int32_t token)
    {
        char text[JAMBA_TEXT_MAX];
        return std::string(text, jamba_decode_next(model_, &stream_, token, 0, text));
    }

private:
    const jamba_model *model_;
    jamba_text_stream stream_;
};

// Goes on with what the session holds. `decoder` has seen the prompt; it is a copy, so that every ending has its own.
void write(
    const Model &model, const Session &session, jamba_sampler sampler, Decoder decoder, int most, const Show &show)
{
    for (int i = 0; i < most; i++) {
        const int32_t token = check(jamba_sample(session.get(), &sampler), session);
        if (jamba_token_is_end(model.get(), token)) break;
        show(decoder.next(token));
        check(jamba_eval(session.get(), &token, 1), session);
    }
    show(decoder.next(-1));
}

void run(const std::string &path, const std::string &prompt)
{
    const Show print = [](const std::string &text) { std::cout << text << std::flush; };
    jamba_session_params params = jamba_session_params();  // zero means default
    jamba_sampler sampler = jamba_sampler();
    params.marks = 1;
    sampler.temperature = 0.7f;
    sampler.top_p = 0.9f;

    const Model model = load(path);
    const Session story = begin(model, params);
    const std::vector<int32_t> tokens = encode(model, prompt, JAMBA_TEXT_BOS);
    Decoder decoder(model);
    for (int32_t token : tokens) decoder.next(token);

    // The prompt is read once. A mark makes going back to its end a copy of the state.
    check(jamba_eval(story.get(), tokens.data(), tokens.size()), story);
    check(jamba_session_mark(story.get()), story);
    const int32_t start = position(story);
    const Session other = fork(story, 100);

    sampler.seed = 1;
    print("--- one ending\n" + prompt);
    write(model, story, sampler, decoder, 60, print);

    sampler.seed = 2;
    print("\n--- another, from a fork\n" + prompt);
    write(model, other, sampler, decoder, 60, print);

    sampler.seed = 3;
    int32_t replay;
    check(jamba_session_rewind(story.get(), start, &replay), story);
    print("\n--- a third, gone back " + std::to_string(replay) + " tokens to read again\n" + prompt);
    write(model, story, sampler, decoder, 60, print);
    print("\n");
}

}  // namespace

int main(int argc, char **argv)
{
    if (argc != 3) {
        std::cerr << "usage: cpp MODEL.jamba PROMPT\n";
        return 2;
    }
    try {
        run(argv[1], argv[2]);
    } catch (const std::exception &error) {
        std::cerr << "cpp: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
