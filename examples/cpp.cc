// cpp.cc - jamba.h from C++11: handles that free themselves, a reply piece by piece, choices, forks, going back
//
//     c++ -std=c++11 cpp.cc -o cpp -lm && ./cpp MODEL.jamba "Tell me a story about a dog."
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

void check(jamba_result result, const Session &session)
{
    if (result != JAMBA_OK) throw std::runtime_error(jamba_session_error(session.get())->message);
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

// Queues what the model is to answer; one without a chat format goes on with the text instead.
void say(const Model &model, const Session &session, const std::string &text)
{
    const jamba_result result = jamba_say(session.get(), "user", text.c_str());
    if (result != JAMBA_ERR_UNSUPPORTED) {
        check(result, session);
        return;
    }
    std::vector<int32_t> tokens(text.size() + 8);  // a token is at least a byte
    std::size_t count;
    jamba_error error;
    check(jamba_encode(model.get(), text.data(), text.size(), JAMBA_TEXT_BOS, tokens.data(), tokens.size(), &count,
              &error),
        error);
    check(jamba_feed(session.get(), tokens.data(), count), session);
}

// Shows the reply piece by piece; each is whole characters.
void reply(const Session &session, uint64_t seed, const Show &show)
{
    jamba_sampler sampler = jamba_sampler();  // zero means default
    jamba_reply_params params = jamba_reply_params();
    const char *text;
    std::size_t length;
    sampler.temperature = 0.7f;
    sampler.top_p = 0.9f;
    sampler.seed = seed;
    params.sampler = &sampler;
    params.max_tokens = 60;
    do {
        check(jamba_reply(session.get(), &params, &text, &length), session);
        show(std::string(text, length));
    } while (length > 0);
}

// The likeliest of these beginnings of the reply. They are read on forks: the session stays as it is.
std::string choose(const Session &session, const std::vector<const char *> &options)
{
    int32_t choice;
    check(jamba_choose(session.get(), options.data(), options.size(), nullptr, nullptr, &choice), session);
    return options[static_cast<std::size_t>(choice)];
}

// Where the last reply begins.
int32_t reply_position(const Session &session)
{
    std::vector<jamba_turn> turns(jamba_turns(session.get(), nullptr, 0));
    jamba_turns(session.get(), turns.data(), turns.size());
    return turns.empty() ? 0 : turns.back().position;
}

void run(const std::string &path, const std::string &prompt)
{
    const Show print = [](const std::string &text) { std::cout << text << std::flush; };
    const Model model = load(path);
    jamba_session_params params = jamba_session_params();
    params.marks = 4;  // the session marks where each message and each reply begins
    const Session session = begin(model, params);

    // The prompt is read here, and never again.
    say(model, session, prompt);
    check(jamba_step(session.get(), 0), session);
    const Session other = fork(session, 200);

    print("--- which action does she take? " + choose(session, {"I go home.", "I stay here.", "I run away!"}) + "\n");
    print("--- one reply\n");
    reply(session, 1, print);
    print("\n--- another, from a fork\n");
    reply(other, 2, print);

    int32_t replay;
    check(jamba_session_rewind(session.get(), reply_position(session), &replay), session);
    print("\n--- a third, gone back; tokens to read again: " + std::to_string(replay) + "\n");
    reply(session, 3, print);
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
        if (!std::cout.flush()) throw std::runtime_error("standard output: cannot write");
    } catch (const std::exception &error) {
        std::cerr << "cpp: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
