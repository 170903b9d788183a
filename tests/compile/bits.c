/* bits.c - writes the logits of MODEL for fixed tokens, raw. compile.sh links it with implementation.c built in many
 * ways, and every one of them must write the same bytes.
 *
 *     bits MODEL best|scalar > OUT
 */
#include "jamba.h"

#include <stdio.h>
#include <string.h>

enum { TOKENS = 40 };

static void write_logits(void *user, int32_t position, const float *logits)
{
    (void)position;
    fwrite(logits, sizeof *logits, *(const size_t *)user, stdout);
}

static int fail(const char *message)
{
    fprintf(stderr, "bits: %s\n", message);
    return 1;
}

int main(int argc, char **argv)
{
    jamba_model_params model_params;
    jamba_session_params params;
    jamba_model_info info;
    jamba_model *model;
    jamba_session *session;
    jamba_error error;
    int32_t tokens[TOKENS];
    size_t vocab, i;
    if (argc != 3) return fail("usage: bits MODEL best|scalar");
    memset(&model_params, 0, sizeof model_params);
    memset(&params, 0, sizeof params);
    model_params.cpu = strcmp(argv[2], "scalar") == 0 ? JAMBA_CPU_SCALAR : JAMBA_CPU_BEST;
    if (jamba_model_load(&model, jamba_from_file(argv[1]), &model_params, &error)) return fail(error.message);
    jamba_model_describe(model, &info);
    vocab = (size_t)info.vocab;
    for (i = 0; i < TOKENS; i++) tokens[i] = (int32_t)((i * 37 + 1) % vocab);
    params.context = TOKENS;
    params.on_logits = write_logits;
    params.logits_user = &vocab;
    if (jamba_session_create(&session, model, &params, &error)) return fail(error.message);
    if (jamba_eval(session, tokens, TOKENS)) return fail(jamba_session_error(session)->message);
    jamba_session_free(session);
    jamba_model_free(model);
    return fflush(stdout) ? fail("cannot write") : 0;
}
