/* Continues a text:  cc minimal.c -o minimal -lm && ./minimal MODEL.jamba "Once upon a time" */
#define JAMBA_IMPLEMENTATION
#include "jamba.h"

#include <stdio.h>

static int fail(const jamba_error *error)
{
    fprintf(stderr, "minimal: %s\n", error->message);
    return 1;
}

int main(int argc, char **argv)
{
    jamba_model *model;
    jamba_session *session;
    jamba_sampler sampler = { 0 }; /* greedy; .temperature = 0.7f, .top_p = 0.9f for variety */
    jamba_text_stream stream = { 0 };
    jamba_error error;
    int32_t tokens[2048];
    size_t count;
    char text[JAMBA_TEXT_MAX];

    if (argc != 3) {
        fprintf(stderr, "usage: minimal MODEL.jamba PROMPT\n");
        return 2;
    }
    if (jamba_model_load(&model, jamba_from_file(argv[1]), NULL, &error) != JAMBA_OK) return fail(&error);
    if (jamba_session_create(&session, model, NULL, &error) != JAMBA_OK) return fail(&error);
    if (jamba_encode(model, argv[2], strlen(argv[2]), JAMBA_TEXT_BOS, tokens, 2048, &count, &error) != JAMBA_OK)
        return fail(&error);
    if (jamba_eval(session, tokens, count) != JAMBA_OK) return fail(jamba_session_error(session));

    /* The prompt goes through the stream too: what follows then joins it with the right spaces. */
    for (size_t i = 0; i < count; i++)
        fwrite(text, 1, jamba_decode_next(model, &stream, tokens[i], 0, text), stdout);
    for (int i = 0; i < 200; i++) {
        int32_t token = jamba_sample(session, &sampler);
        if (token < 0) return fail(jamba_session_error(session));
        if (jamba_token_is_end(model, token)) break;
        fwrite(text, 1, jamba_decode_next(model, &stream, token, 0, text), stdout);
        fflush(stdout);
        if (jamba_eval(session, &token, 1) != JAMBA_OK) return fail(jamba_session_error(session));
    }
    fwrite(text, 1, jamba_decode_next(model, &stream, -1, 0, text), stdout);
    puts("");

    jamba_session_free(session);
    jamba_model_free(model);
    return 0;
}
