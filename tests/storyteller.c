/* storyteller.c - the trained model in examples/: perplexity and greedy continuations against the
 * reference implementation's, through the tokenizer and the chat format */
#define SUPPORT_API_ONLY
#include "support.h"

static const char folder[] = "examples/storyteller";
static char *expected; /* expected.json */

/* ---- expected.json: a few numbers after their keys ------------------------------------------------- */

/* Behind the next "key": after `from`. */
static const char *find_key(const char *from, const char *key)
{
    char quoted[60];
    const char *at;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    at = from ? strstr(from, quoted) : NULL;
    return at ? at + strlen(quoted) : NULL;
}

static double expected_number(const char *key)
{
    const char *at = find_key(expected, key);
    test_require(at != NULL, "expected.json lacks", key);
    return strtod(at, NULL);
}

/* Integers of the array behind `at`; returns how many. */
static size_t read_integers(const char *at, int32_t *out, size_t room)
{
    size_t count = 0;
    at = strchr(at, '[') + 1;
    while (count < room) {
        char *end;
        long value = strtol(at, &end, 10);
        if (end == at) break;
        out[count++] = (int32_t)value;
        at = end + strspn(end, ", \n");
    }
    return count;
}

/* ---- perplexity -------------------------------------------------------------------------------------- */

typedef struct score {
    const int32_t *tokens;
    size_t count, vocab;
    double loss; /* of all texts so far */
    size_t scored;
} score;

/* -log of the probability of the token that follows. */
static void score_token(void *user, int32_t position, const float *logits)
{
    score *s = (score *)user;
    double top = (double)logits[0], sum = 0;
    size_t i;
    if ((size_t)position + 1 >= s->count) return;
    for (i = 1; i < s->vocab; i++)
        if ((double)logits[i] > top) top = (double)logits[i];
    for (i = 0; i < s->vocab; i++) sum += exp((double)logits[i] - top);
    s->loss += log(sum) + top - (double)logits[s->tokens[position + 1]];
    s->scored++;
}

static void score_text(const jamba_model *model, score *s, const char *text, size_t length)
{
    int32_t tokens[4096];
    jamba_session_params params;
    jamba_session *session;
    jamba_error error;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    params.on_logits = score_token;
    params.logits_user = s;
    s->tokens = tokens;
    CHECK_THAT(jamba_encode(model, text, length, JAMBA_TEXT_BOS, tokens, 4096, &s->count, &error) == JAMBA_OK, "%s",
        error.message);
    if (!CHECK(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK)) return;
    CHECK(jamba_eval(session, tokens, s->count) == JAMBA_OK);
    jamba_session_free(session);
}

/* exp of the mean loss over all tokens of all texts, each text on its own. */
static double perplexity(const jamba_model *model, size_t *scored)
{
    static const char separator[] = "\n<|endoftext|>\n";
    char path[PATH_ROOM], *text;
    const char *at, *end;
    size_t size;
    score s;
    memset(&s, 0, sizeof s);
    s.vocab = (size_t)model_vocab(model);
    snprintf(path, sizeof path, "%s/held.txt", folder);
    text = (char *)file_need(path, &size);
    if (size > 0 && text[size - 1] == '\n') text[size - 1] = 0; /* ends the file, not the last text */
    for (at = text; at; at = end ? end + sizeof separator - 1 : NULL) {
        end = strstr(at, separator);
        score_text(model, &s, at, end ? (size_t)(end - at) : strlen(at));
    }
    free(text);
    *scored = s.scored;
    return exp(s.loss / (double)s.scored);
}

static void test_perplexity(const char *type, double allowed)
{
    char path[PATH_ROOM];
    jamba_model *model = NULL;
    if (convert(folder, "storyteller", type, path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (CHECK(model != NULL)) {
        size_t scored;
        double got = perplexity(model, &scored), want = expected_number("perplexity"), off = got / want - 1;
        CHECK_THAT(scored == (size_t)expected_number("tokens"), "%zu tokens scored", scored);
        CHECK_THAT(fabs(off) <= allowed, "perplexity %.4f, the reference has %.4f", got, want);
        printf("storyteller: %-4s perplexity %.5f, reference %.5f (%+.4f %%)\n", type, got, want, 100 * off);
    }
    jamba_model_free(model);
}

/* ---- greedy continuations ------------------------------------------------------------------------------ */

enum { PROMPT_ROOM = 256, REPLY_ROOM = 512 };

/* The "prompt" string of an example, as JSON has it: none holds an escape. */
static void read_prompt(const char *at, char *out, size_t room)
{
    const char *start = strchr(at, '"') + 1, *end = strchr(start, '"');
    snprintf(out, room, "%.*s", (int)(end - start), start);
}

static void check_prompt_ids(const jamba_model *model, const char *prompt, const int32_t *want, size_t want_count)
{
    jamba_message message;
    jamba_error error;
    jamba_result result;
    int32_t got[PROMPT_ROOM];
    size_t count = 0;
    message.role = "user";
    message.content = prompt;
    result = jamba_chat_encode(
        model, &message, 1, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY, got, PROMPT_ROOM, &count, &error);
    CHECK_THAT(result == JAMBA_OK, "%s", error.message);
    CHECK_THAT(count == want_count && memcmp(got, want, count * sizeof *got) == 0, "'%s': other prompt ids", prompt);
}

static void check_reply(const jamba_model *model, const char *example, const int32_t *prompt, size_t prompt_count)
{
    int32_t want[REPLY_ROOM];
    size_t want_count = read_integers(find_key(example, "greedy_ids"), want, REPLY_ROOM), i;
    jamba_session_params params;
    jamba_session *session;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    params.context = PROMPT_ROOM + REPLY_ROOM;
    if (!CHECK(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK)) return;
    CHECK(want_count > 5 && jamba_eval(session, prompt, prompt_count) == JAMBA_OK);
    for (i = 0; i < want_count; i++) {
        int32_t got = jamba_sample(session, NULL);
        CHECK_THAT(got == want[i], "token %zu of the reply is %d, the reference has %d", i, (int)got, (int)want[i]);
        if (got != want[i]) break;
        CHECK(jamba_eval(session, &got, 1) == JAMBA_OK);
    }
    jamba_session_free(session);
}

static void test_continuations(void)
{
    char path[PATH_ROOM], prompt[200];
    const char *example = find_key(expected, "examples");
    jamba_model *model = NULL;
    int examples = 0;
    if (convert(folder, "storyteller", "f32", path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (!CHECK(model != NULL)) return;
    while ((example = find_key(example, "prompt")) != NULL) {
        int32_t ids[PROMPT_ROOM];
        size_t count = read_integers(find_key(example, "prompt_ids"), ids, PROMPT_ROOM);
        read_prompt(example, prompt, sizeof prompt);
        check_prompt_ids(model, prompt, ids, count);
        check_reply(model, example, ids, count);
        examples++;
    }
    CHECK_THAT(examples == 3, "%d examples", examples);
    jamba_model_free(model);
}

int main(int argc, char **argv)
{
    char path[PATH_ROOM];
    size_t size;
    test_start(argc, argv);
    snprintf(path, sizeof path, "%s/expected.json", folder);
    expected = (char *)file_need(path, &size);
    if (test_begin("perplexity at f32")) {
        test_perplexity("f32", 0.001);
        test_end();
    }
    if (test_begin("perplexity at q8")) {
        test_perplexity("q8", 0.01);
        test_end();
    }
    if (test_begin("greedy continuations")) {
        test_continuations();
        test_end();
    }
    free(expected);
    return test_summary();
}
