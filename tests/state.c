/* state.c - saved states: whatever was saved goes on as if never interrupted, and nothing else gets in
 *
 * Every family and type of KV cache, from one instruction set, chunk, context and executor to another; queues,
 * marks, compact forms; equal contents make equal bytes. Then every prefix and every byte of a small state changed,
 * with the hash stale and repaired, other models, failing reads and memory: an error, and a session that has not
 * changed. Meant to run under the sanitizers too. */
#include "tiny.h"

#include <fenv.h>

enum { TOKENS = 45, MORE = 6, LONG_RUN = 530, ROOM = 64 };

static const char *const kv_names[] = { "f16", "f32", "q8" };

typedef struct blob {
    uint8_t *data;
    size_t size;
} blob;

/* Memory that ends with the last byte, so that a sanitizer sees a write behind it. */
static blob save_as(const jamba_session *session, const jamba_save_params *params)
{
    blob b;
    b.size = jamba_session_save_as(session, params, NULL, 0);
    b.data = (uint8_t *)malloc(b.size + 1);
    memset(b.data, 0x5a, b.size + 1);
    CHECK(b.size > 0 && jamba_session_save_as(session, params, b.data, b.size - 1) == b.size && b.data[0] == 0x5a);
    CHECK(jamba_session_save_as(session, params, b.data, b.size) == b.size && b.data[b.size] == 0x5a);
    return b;
}

static blob save(const jamba_session *session)
{
    return save_as(session, NULL);
}

static bool same_bytes(blob a, blob b)
{
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

/* Whether a session saves as these bytes; with `marks` those too. */
static bool saves_as(const jamba_session *session, blob want, bool marks)
{
    jamba_save_params params;
    blob got;
    bool same;
    memset(&params, 0, sizeof params);
    params.marks = marks;
    got = save_as(session, &params);
    same = same_bytes(got, want);
    free(got.data);
    return same;
}

static jamba_session *open_session(const jamba_model *model, const jamba_session_params *params)
{
    jamba_session *session = NULL;
    jamba_error error;
    CHECK_THAT(jamba_session_create(&session, model, params, &error) == JAMBA_OK, "%s", error.message);
    return session;
}

static jamba_session_params params_of(jamba_kv_type kv, int32_t context, int32_t chunk, int32_t marks)
{
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    params.kv_type = kv;
    params.context = context;
    params.chunk = chunk;
    params.marks = marks;
    params.threads = 1;
    return params;
}

static bool restore(jamba_session *session, blob b)
{
    jamba_result result = jamba_session_restore(session, b.data, b.size);
    return CHECK_THAT(result == JAMBA_OK, "restore: %s", jamba_session_error(session)->message);
}

static bool same_logits(const jamba_session *a, const jamba_session *b, size_t vocab)
{
    const float *x = jamba_logits(a), *y = jamba_logits(b);
    return (!x && !y) || (x && y && memcmp(x, y, vocab * sizeof *x) == 0);
}

/* Both go on with the same tokens, one by one and then together, to the same bits. */
static void check_go_on(jamba_session *a, jamba_session *b, const int32_t *tokens, size_t vocab, const char *what)
{
    size_t i;
    CHECK_THAT(same_logits(a, b, vocab), "%s: other logits at once", what);
    for (i = 0; i < MORE; i++) {
        size_t count = i < MORE - 1 ? 1 : 3;
        CHECK(jamba_eval(a, tokens, count) == JAMBA_OK && jamba_eval(b, tokens, count) == JAMBA_OK);
        CHECK_THAT(same_logits(a, b, vocab), "%s: other logits after %zu tokens", what, i + 1);
        tokens += count;
    }
}

/* ---- there and back, on every family ----------------------------------------------------------------- */

typedef struct family {
    jamba_model *model, *plain; /* plain: on the plain C kernels */
    int32_t *tokens;
    size_t vocab;
} family;

static void check_elsewhere(const family *f, jamba_kv_type kv)
{
    jamba_session_params here = params_of(kv, ROOM, 0, 0), there = params_of(kv, ROOM - 7, 3, 2);
    jamba_executor reversed = { run_reversed, NULL, 3, false };
    jamba_session *a, *b;
    uint8_t *odd;
    blob saved;
    there.executor = &reversed;
    a = open_session(f->model, &here);
    b = open_session(f->plain, &there);
    CHECK(jamba_eval(a, f->tokens, TOKENS) == JAMBA_OK);
    CHECK(jamba_eval(b, f->tokens + 5, 20) == JAMBA_OK && jamba_session_mark(b) == JAMBA_OK);
    saved = save(a);
    odd = (uint8_t *)malloc(saved.size + 1); /* of no alignment */
    memcpy(odd + 1, saved.data, saved.size);
    CHECK_THAT(jamba_session_restore(b, odd + 1, saved.size) == JAMBA_OK, "%s", jamba_session_error(b)->message);
    CHECK_THAT(saves_as(b, saved, true), "%s: other bytes when saved again", kv_names[kv]);
    check_go_on(a, b, f->tokens + TOKENS, f->vocab, kv_names[kv]);
    free(odd);
    free(saved.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

/* The same content by another way: other chunks, kernels, a rewind, marks, a fork. */
static void check_history(const family *f, jamba_kv_type kv)
{
    jamba_session_params plain = params_of(kv, ROOM, 0, 0), other = params_of(kv, ROOM - 3, 7, 3);
    jamba_session *a = open_session(f->model, &plain), *b = open_session(f->plain, &other), *fork = NULL;
    blob saved;
    /* lanes that nobody sets are NaN */
    memset(b->pass.scratch, 0xff, (size_t)f->model->plan.row_floats * b->chunk * sizeof(float));
    CHECK(jamba_eval(a, f->tokens, TOKENS) == JAMBA_OK);
    saved = save(a);
    CHECK(jamba_eval(b, f->tokens, 30) == JAMBA_OK && jamba_session_mark(b) == JAMBA_OK);
    CHECK(jamba_eval(b, f->tokens + 3, 10) == JAMBA_OK && jamba_session_rewind(b, 28, NULL) == JAMBA_OK);
    CHECK(jamba_eval(b, f->tokens + 28, TOKENS - 28) == JAMBA_OK);
    CHECK_THAT(saves_as(b, saved, false), "%s: the way shows in the bytes", kv_names[kv]);
    CHECK(jamba_session_fork(&fork, b, 1, NULL) == JAMBA_OK);
    CHECK_THAT(fork && saves_as(fork, saved, false), "%s: a fork saves other bytes", kv_names[kv]);
    jamba_session_free(fork);
    free(saved.data);
    CHECK(jamba_session_rewind(a, 31, NULL) == JAMBA_OK && jamba_step(a, 0) == JAMBA_OK);
    saved = save(a);
    CHECK(jamba_session_rewind(b, 28, NULL) == JAMBA_OK && jamba_step(b, 0) == JAMBA_OK);
    CHECK(jamba_session_mark(b) == JAMBA_OK && jamba_eval(b, f->tokens + 3, 10) == JAMBA_OK);
    CHECK(jamba_session_rewind(b, 28, NULL) == JAMBA_OK && jamba_eval(b, f->tokens + 28, 3) == JAMBA_OK);
    CHECK_THAT(saves_as(b, saved, false), "%s: what was taken back shows in the bytes", kv_names[kv]);
    jamba_session_free(b);
    jamba_session_free(a);
    free(saved.data);
}

static void check_queue(const family *f, jamba_kv_type kv)
{
    jamba_session_params params = params_of(kv, ROOM, 0, 0), other = params_of(kv, ROOM, 2, 0);
    jamba_session *a = open_session(f->model, &params), *b = open_session(f->plain, &other);
    jamba_session_info info;
    size_t count;
    blob saved;
    CHECK(jamba_eval(a, f->tokens, 20) == JAMBA_OK && jamba_feed(a, f->tokens + 20, 9) == JAMBA_OK);
    saved = save(a);
    if (restore(b, saved)) {
        jamba_session_describe(b, &info);
        CHECK(info.position == 20 && info.pending == 9 && jamba_logits(b) == NULL && b->reply.at == 0);
        CHECK(memcmp(jamba_session_tokens(b, &count), f->tokens, 29 * sizeof *f->tokens) == 0 && count == 29);
        CHECK(jamba_session_rewind(b, 20, NULL) == JAMBA_OK && jamba_logits(b) != NULL);
        CHECK(restore(b, saved) && jamba_step(a, 0) == JAMBA_OK && jamba_step(b, 0) == JAMBA_OK);
        check_go_on(a, b, f->tokens + 29, f->vocab, "a queue");
    }
    free(saved.data);
    jamba_session_reset(a);
    saved = save(a); /* nothing at all */
    CHECK(restore(b, saved) && jamba_logits(b) == NULL && saves_as(b, saved, false));
    jamba_session_reset(b);
    check_go_on(a, b, f->tokens, f->vocab, "nothing");
    free(saved.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

/* Marks at 8, 16, 24, 32 and 40 tokens, restored where there is room for `room` of them. */
static void check_marks(const family *f, int32_t room)
{
    jamba_session_params all = params_of(JAMBA_KV_F16, ROOM, 8, 5), some = params_of(JAMBA_KV_F16, ROOM, 8, room);
    jamba_session *a, *same, *b;
    jamba_save_params with;
    jamba_session_info info;
    int32_t to, replay, wanted;
    blob saved;
    memset(&with, 0, sizeof with);
    with.marks = true;
    all.mark_every = some.mark_every = 8;
    a = open_session(f->model, &all);
    b = open_session(room == 3 ? f->plain : f->model, &some); /* plain C is slow */
    CHECK(jamba_eval(a, f->tokens, 40) == JAMBA_OK);
    saved = save_as(a, &with);
    for (to = 40; to > 0; to--) {
        same = open_session(f->model, &some); /* made its marks itself */
        CHECK(jamba_eval(same, f->tokens, 40) == JAMBA_OK && restore(b, saved));
        jamba_session_describe(b, &info);
        CHECK_THAT(info.marks == (room < 5 ? room : 5), "%d marks, with room for %d", (int)info.marks, (int)room);
        if (room >= 5) CHECK(saves_as(b, saved, true));
        CHECK(jamba_session_rewind(same, to, &wanted) == JAMBA_OK && jamba_session_rewind(b, to, &replay) == JAMBA_OK);
        CHECK_THAT(replay == wanted, "back to %d takes %d tokens, not %d", (int)to, (int)replay, (int)wanted);
        CHECK(jamba_step(same, 0) == JAMBA_OK && jamba_step(b, 0) == JAMBA_OK && same_logits(same, b, f->vocab));
        jamba_session_free(same);
        if (to > 33) to = 34;
        else if (to > 10) to -= 6;
    }
    free(saved.data);
    saved = save(a);
    CHECK(restore(b, saved));
    jamba_session_describe(b, &info);
    CHECK_THAT(info.marks == 0, "%d marks left from before", (int)info.marks);
    free(saved.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

/* Without what may be left out. */
static void check_less(const family *f)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, ROOM, 0, 2);
    jamba_session *a = open_session(f->model, &params), *b = open_session(f->plain, &params);
    jamba_save_params less;
    jamba_sampler sampler;
    size_t count, i;
    blob saved, before;
    memset(&less, 0, sizeof less);
    memset(&sampler, 0, sizeof sampler);
    less.no_tokens = less.marks = true;
    sampler.repeat_penalty = 1.5f;
    CHECK(jamba_eval(a, f->tokens, 1) == JAMBA_OK && jamba_session_mark(a) == JAMBA_OK);
    CHECK(jamba_eval(a, f->tokens + 1, 19) == JAMBA_OK && jamba_session_mark(a) == JAMBA_OK);
    CHECK(jamba_eval(a, f->tokens + 20, 10) == JAMBA_OK && jamba_feed(a, f->tokens + 30, 2) == JAMBA_OK);
    saved = save_as(a, &less);
    CHECK(restore(b, saved) && jamba_step(a, 0) == JAMBA_OK && jamba_step(b, 0) == JAMBA_OK);
    CHECK(same_logits(a, b, f->vocab) && jamba_sample(b, &sampler) >= 0);
    for (i = 0; i < 30; i++) CHECK(jamba_session_tokens(b, &count)[i] == -1);
    CHECK(count == 32 && memcmp(jamba_session_tokens(b, NULL) + 30, f->tokens + 30, 2 * sizeof *f->tokens) == 0);
    less.no_tokens = false;
    before = save_as(b, &less);
    CHECK(jamba_session_rewind(b, 25, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK_THAT(strstr(jamba_session_error(b)->message, "left out") != NULL, "%s", jamba_session_error(b)->message);
    CHECK(jamba_session_rewind(b, 5, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK_THAT(saves_as(b, before, true), "a rewind that failed changed something");
    free(before.data);
    CHECK(jamba_session_rewind(a, 20, NULL) == JAMBA_OK && jamba_session_rewind(b, 20, NULL) == JAMBA_OK);
    check_go_on(a, b, f->tokens + 20, f->vocab, "a mark among unknown tokens");
    free(saved.data);
    less.no_tokens = less.no_logits = true;
    saved = save_as(a, &less);
    CHECK(restore(b, saved) && jamba_logits(b) == NULL && jamba_sample(b, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_mark(b) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_eval(a, f->tokens, 1) == JAMBA_OK && jamba_eval(b, f->tokens, 1) == JAMBA_OK);
    CHECK(same_logits(a, b, f->vocab) && jamba_session_rewind(b, 0, NULL) == JAMBA_OK);
    free(saved.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

/* One compact form, saved and restored under other floating-point settings. a and b hold the same. */
static void check_form(const family *f, jamba_session *a, jamba_session *b, jamba_form state, jamba_form kv)
{
    jamba_save_params compact;
    jamba_state_info info;
    blob one, other;
    int rounding = fegetround();
    memset(&compact, 0, sizeof compact);
    compact.state = state;
    compact.kv = kv;
    compact.marks = true;
    one = save_as(a, &compact);
    fesetround(FE_UPWARD);
    other = save_as(b, &compact);
    CHECK(restore(b, one));
    fesetround(rounding);
    CHECK_THAT(same_bytes(one, other), "forms %d and %d: other bytes from plain C", (int)state, (int)kv);
    CHECK(jamba_state_describe(one.data, one.size, &info, NULL) == JAMBA_OK && info.state == state);
    CHECK(restore(a, one));
    free(other.data);
    other = save_as(b, &compact);
    if (state != JAMBA_Q8 && kv != JAMBA_Q8)
        CHECK_THAT(same_bytes(one, other), "forms %d and %d drift when saved again", (int)state, (int)kv);
    check_go_on(a, b, f->tokens, f->vocab, "a compact form");
    CHECK(jamba_session_rewind(a, 23, NULL) == JAMBA_OK && jamba_session_rewind(b, 23, NULL) == JAMBA_OK);
    check_go_on(a, b, f->tokens, f->vocab, "a mark of a compact form");
    free(one.data);
    free(other.data);
}

static void check_forms(const family *f, jamba_kv_type kv)
{
    jamba_session_params params = params_of(kv, ROOM, 0, 1);
    jamba_session *sessions[2];
    jamba_save_params marks;
    blob exact[2];
    int form, i;
    memset(&marks, 0, sizeof marks);
    marks.marks = true;
    for (i = 0; i < 2; i++) {
        sessions[i] = open_session(i ? f->plain : f->model, &params);
        CHECK(jamba_eval(sessions[i], f->tokens, 23) == JAMBA_OK && jamba_session_mark(sessions[i]) == JAMBA_OK);
        exact[i] = save_as(sessions[i], &marks);
    }
    for (form = 1; form < 9; form++) {
        for (i = 0; i < 2; i++) CHECK(restore(sessions[i], exact[i]));
        check_form(f, sessions[0], sessions[1], (jamba_form)(form % 3), (jamba_form)(form / 3));
    }
    for (i = 0; i < 2; i++) {
        free(exact[i].data);
        jamba_session_free(sessions[i]);
    }
}

static bool family_open(family *f, const char *name, const char *type)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    memset(f, 0, sizeof *f);
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (!convert(folder, name, type, path)) return false;
    f->model = load_for_cpu(path, JAMBA_CPU_BEST);
    f->plain = load_for_cpu(path, JAMBA_CPU_SCALAR);
    if (!CHECK(f->model && f->plain)) return false;
    f->tokens = golden_tokens(name, LONG_RUN + ROOM);
    f->vocab = (size_t)model_vocab(f->model);
    return true;
}

static void family_close(family *f)
{
    jamba_model_free(f->model);
    jamba_model_free(f->plain);
    free(f->tokens);
}

static void test_family(const char *name, const char *type)
{
    static const int32_t rooms[] = { 0, 1, 2, 3, 5, 9 };
    family f;
    size_t i;
    int kv;
    if (!family_open(&f, name, type)) return;
    for (kv = 0; kv < 3; kv++) {
        check_elsewhere(&f, (jamba_kv_type)kv);
        check_history(&f, (jamba_kv_type)kv);
        check_queue(&f, (jamba_kv_type)kv);
        check_forms(&f, (jamba_kv_type)kv);
    }
    for (i = 0; i < sizeof rooms / sizeof *rooms; i++) check_marks(&f, rooms[i]);
    check_less(&f);
    family_close(&f);
}

/* ---- keys and values: several pages, from every type to every other ---------------------------------- */

/* Saved in a type, or restored into a session of that type and saved from there: the same rounding. */
static void check_conversion(const family *f, jamba_kv_type from, jamba_form form, jamba_kv_type to)
{
    jamba_session_params params = params_of(from, LONG_RUN, 0, 0), other = params_of(to, LONG_RUN + 1, 0, 0);
    jamba_session *a = open_session(f->model, &params), *b = open_session(f->plain, &other);
    jamba_save_params narrow;
    blob direct, whole, turned;
    memset(&narrow, 0, sizeof narrow);
    narrow.kv = form;
    CHECK(jamba_eval(a, f->tokens, LONG_RUN) == JAMBA_OK);
    direct = save_as(a, &narrow);
    whole = save(a);
    CHECK(restore(b, whole));
    turned = save_as(b, &narrow);
    CHECK_THAT(same_bytes(direct, turned), "%s restored as %s: other bytes", kv_names[from], kv_names[to]);
    free(whole.data);
    CHECK(restore(b, direct));
    whole = save_as(b, &narrow);
    CHECK_THAT(same_bytes(direct, whole), "%s drifts when saved again", kv_names[from]);
    free(direct.data);
    free(whole.data);
    free(turned.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

/* The first block's keys and values come from the same numbers, whatever the cache: turned into a type they are what a
 * session of that type holds. Of a model without recurrent state. */
static void check_like_evaluated(const family *f, jamba_kv_type type, jamba_form form)
{
    jamba_session_params wide = params_of(JAMBA_KV_F32, LONG_RUN, 0, 0), own = params_of(type, LONG_RUN, 0, 0);
    jamba_session *a = open_session(f->model, &wide), *b = open_session(f->model, &own);
    size_t first = JMB_SAVED_BYTES + (LONG_RUN + f->vocab) * 4;
    const jmb_block *block = &f->model->metadata.blocks[0];
    size_t size = block->kv_heads * ((LONG_RUN + 15) / 16)
        * (2 * 16 * block->head_dim * (type == JAMBA_KV_F16 ? 2 : 1) + (type == JAMBA_KV_F16 ? 0 : 128));
    jamba_save_params narrow;
    blob turned, held;
    memset(&narrow, 0, sizeof narrow);
    narrow.kv = form;
    CHECK(block->kind == JMB_ATTENTION && block->head_dim % 16 == 0 && f->model->plan.state_floats == 0);
    CHECK(jamba_eval(a, f->tokens, LONG_RUN) == JAMBA_OK && jamba_eval(b, f->tokens, LONG_RUN) == JAMBA_OK);
    turned = save_as(a, &narrow);
    held = save(b);
    CHECK(turned.size == held.size && first + size < held.size);
    CHECK_THAT(memcmp(turned.data + first, held.data + first, size) == 0, "%s is not what evaluation makes",
        kv_names[type]);
    free(turned.data);
    free(held.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

/* Over more than two pages; from a session whose forks hold them. */
static void check_pages(const family *f, jamba_kv_type kv)
{
    jamba_session_params params = params_of(kv, LONG_RUN + ROOM, 0, 0);
    jamba_session *a = open_session(f->model, &params), *b = open_session(f->model, &params), *fork = NULL;
    jamba_session_info info;
    blob saved, before;
    CHECK(jamba_eval(a, f->tokens, LONG_RUN) == JAMBA_OK && jamba_eval(b, f->tokens + 1, LONG_RUN) == JAMBA_OK);
    CHECK(jamba_session_fork(&fork, b, ROOM, NULL) == JAMBA_OK);
    saved = save(a);
    before = save(b);
    jamba_session_describe(b, &info);
    if (info.memory.kv) {
        CHECK(jamba_session_restore(b, saved.data, saved.size) == JAMBA_ERR_CONTEXT && saves_as(b, before, false));
        CHECK_THAT(strstr(jamba_session_error(b)->message, "fork") != NULL, "%s", jamba_session_error(b)->message);
    }
    jamba_session_free(fork);
    CHECK(restore(b, saved));
    check_go_on(a, b, f->tokens + LONG_RUN, f->vocab, "pages");
    free(saved.data);
    free(before.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

static void test_cache(const char *name)
{
    family f;
    int kv;
    if (!family_open(&f, name, "q8")) return;
    for (kv = 0; kv < 3; kv++) check_pages(&f, (jamba_kv_type)kv);
    check_conversion(&f, JAMBA_KV_F32, JAMBA_F16, JAMBA_KV_F16);
    check_conversion(&f, JAMBA_KV_F32, JAMBA_Q8, JAMBA_KV_Q8);
    check_conversion(&f, JAMBA_KV_F16, JAMBA_Q8, JAMBA_KV_Q8);
    check_conversion(&f, JAMBA_KV_F16, JAMBA_F16, JAMBA_KV_F32);
    check_conversion(&f, JAMBA_KV_F32, JAMBA_EXACT, JAMBA_KV_F32);
    if (f.model->plan.state_floats == 0) {
        check_like_evaluated(&f, JAMBA_KV_F16, JAMBA_F16);
        check_like_evaluated(&f, JAMBA_KV_Q8, JAMBA_Q8);
    }
    family_close(&f);
}

/* ---- what is no number --------------------------------------------------------------------------------- */

static void check_bad_number(const family *f, float bad, jamba_form form)
{
    jamba_session_params params = params_of(JAMBA_KV_F32, ROOM, 0, 0);
    jamba_session *a = open_session(f->model, &params), *b = open_session(f->model, &params);
    jamba_save_params compact;
    bool fits = form != JAMBA_F16 || !jmb_finite(bad) || fabsf(bad) < 65504;
    blob saved;
    memset(&compact, 0, sizeof compact);
    compact.state = form;
    CHECK(jamba_eval(a, f->tokens, 9) == JAMBA_OK);
    a->own.state[17] = bad;
    saved.size = jamba_session_save_as(a, &compact, NULL, 0);
    saved.data = (uint8_t *)malloc(saved.size);
    CHECK(jamba_session_save_as(a, &compact, saved.data, saved.size) == (fits ? saved.size : 0));
    if (fits && restore(b, saved)) {
        float got = b->own.state[17];
        if (form == JAMBA_EXACT) CHECK(jmb_bits_of(got) == jmb_bits_of(bad));
        else if (!jmb_finite(bad)) CHECK_THAT(!jmb_finite(got), "%g became %g", (double)bad, (double)got);
        else CHECK_NEAR((double)got, (double)bad, fabs((double)bad) / 127 + 1e-30);
    }
    free(saved.data);
    jamba_session_free(a);
    jamba_session_free(b);
}

/* One number among the keys or the values that f16 cannot hold. */
static void check_far_number(const family *f, const jmb_op *op, size_t key, bool value)
{
    jamba_session_params params = params_of(JAMBA_KV_F32, ROOM, 0, 0);
    jamba_session *a = open_session(f->model, &params);
    jmb_kv_tile tile;
    jamba_save_params narrow;
    size_t size;
    uint8_t *room, *at;
    memset(&narrow, 0, sizeof narrow);
    narrow.kv = JAMBA_F16;
    CHECK(jamba_eval(a, f->tokens, TOKENS) == JAMBA_OK);
    size = jamba_session_save_as(a, &narrow, NULL, 0);
    room = (uint8_t *)malloc(size);
    CHECK(jamba_session_save_as(a, &narrow, room, size) == size);
    tile = jmb_tile_of(a, op, key / 16 * 16, 0);
    at = value ? tile.v + (key % 16 * tile.stride + tile.dim - 1) * 4 : tile.k + ((tile.dim - 1) * 16 + key % 16) * 4;
    jmb_store_f32(at, 65600.0f);
    CHECK_THAT(jamba_session_save_as(a, &narrow, room, size) == 0, "%s %zu: saved as infinite",
        value ? "value" : "key", key);
    jmb_store_f32(at, 65504.0f);
    CHECK(jamba_session_save_as(a, &narrow, room, size) == size);
    free(room);
    jamba_session_free(a);
}

static void test_far_numbers(void)
{
    static const size_t keys[] = { 0, 3, 16, TOKENS - 1 };
    family f;
    size_t i, k;
    if (!family_open(&f, "llama-llama3", "f32")) return;
    for (i = 0; i < f.model->plan.count; i++) {
        if (f.model->plan.ops[i].kind != JMB_OP_ATTEND) continue;
        for (k = 0; k < sizeof keys / sizeof *keys; k++) {
            check_far_number(&f, &f.model->plan.ops[i], keys[k], false);
            check_far_number(&f, &f.model->plan.ops[i], keys[k], true);
        }
    }
    family_close(&f);
}

static void test_bad_numbers(void)
{
    static const uint32_t bits[] = { 0x7f800000u, 0xff800000u, 0x7fc12345u, 0x7f812345u, 0x7f600000u, 0x47800000u,
        0x00000001u, 0x80000000u, 0x3f800000u };
    family f;
    size_t i;
    int form;
    if (!family_open(&f, "jamba-dense", "q8")) return;
    for (i = 0; i < sizeof bits / sizeof *bits; i++)
        for (form = 0; form < 3; form++) check_bad_number(&f, jmb_float_of(bits[i]), (jamba_form)form);
    family_close(&f);
}

/* ---- damage -------------------------------------------------------------------------------------------- */

/* A session with something in it, and a small state to do it harm with. */
typedef struct victim {
    jamba_model *model;
    jamba_session *session;
    blob before, good;
} victim;

static jamba_sampler some_sampler(void)
{
    jamba_sampler sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 0.5f;
    sampler.top_k = 40;
    sampler.top_p = 0.75f;
    sampler.min_p = 0.125f;
    sampler.repeat_penalty = 1.25f;
    sampler.repeat_window = 9;
    sampler.seed = 0x123456789abcdefu;
    return sampler;
}

static int32_t tiny_token(int i)
{
    return (int32_t)(3 + i * 7 % 250);
}

static void tiny_tokens(int32_t *tokens, int count)
{
    int i;
    for (i = 0; i < count; i++) tokens[i] = tiny_token(i);
}

/* A clock that goes on with each token fed. */
static uint64_t clock_of_tokens(void *user)
{
    return (uint64_t)(*(jamba_session **)user)->fed * 1000;
}

/* A reply with text that is held back: what the model says is the beginning of a stop string. */
static void begin_reply(jamba_session *session)
{
    jamba_reply_params reply;
    const char *text, *stop;
    char piece[JAMBA_STOP_MAX + 1];
    size_t length;
    int32_t fed;
    memset(&reply, 0, sizeof reply);
    jamba_session_tokens(session, &length);
    fed = (int32_t)length;
    CHECK(jamba_reply(session, &reply, &text, &length) == JAMBA_OK && length > 0 && length < JAMBA_STOP_MAX - 3);
    snprintf(piece, sizeof piece, "%.*sabc", (int)length, text);
    stop = piece;
    reply.stops = &stop;
    reply.stop_count = 1;
    reply.budget_us = 500;
    CHECK(jamba_session_rewind(session, fed, NULL) == JAMBA_OK && jamba_step(session, 0) == JAMBA_OK);
    CHECK(jamba_reply(session, &reply, &text, &length) == JAMBA_PENDING && length == 0);
    CHECK(session->reply.size > session->reply.given && session->reply.at == session->fed);
}

/* Everything that a state can hold: a queue, marks, a sampler, turns, a reply. */
static blob victim_state(jamba_model *model, jamba_form form)
{
    jamba_session_params params = params_of(JAMBA_KV_Q8, 40, 0, 2);
    jamba_session *session;
    jamba_sampler sampler = some_sampler();
    jamba_save_params with;
    int32_t tokens[13];
    blob b;
    params.now_us = clock_of_tokens;
    params.now_user = &session;
    session = open_session(model, &params);
    memset(&with, 0, sizeof with);
    with.state = form;
    with.marks = true;
    with.sampler = &sampler;
    tiny_tokens(tokens, 13);
    CHECK(jamba_eval(session, tokens, 4) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
    CHECK(jamba_eval(session, tokens + 4, 6) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
    CHECK(jamba_eval(session, tokens + 10, 2) == JAMBA_OK);
    begin_reply(session); /* leaves its token in the queue */
    b = save_as(session, &with);
    jamba_session_free(session);
    return b;
}

static bool victim_open(victim *v, jamba_form form)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, 20, 0, 2);
    char folder[PATH_ROOM], path[PATH_ROOM];
    int32_t tokens[17];
    memset(v, 0, sizeof *v);
    tiny_write(temp_path(folder, "tiny"), false);
    if (!convert(folder, "tiny", "q8", path)) return false;
    v->model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (!CHECK(v->model != NULL)) return false;
    v->session = open_session(v->model, &params);
    tiny_tokens(tokens, 17);
    CHECK(jamba_eval(v->session, tokens + 2, 14) == JAMBA_OK && jamba_session_mark(v->session) == JAMBA_OK);
    CHECK(jamba_feed(v->session, tokens, 1) == JAMBA_OK);
    v->good = victim_state(v->model, form);
    {
        jamba_save_params all;
        memset(&all, 0, sizeof all);
        all.marks = true;
        v->before = save_as(v->session, &all);
    }
    return true;
}

static void victim_close(victim *v)
{
    jamba_session_free(v->session);
    jamba_model_free(v->model);
    free(v->before.data);
    free(v->good.data);
}

static void repair_hash(uint8_t *data, size_t size)
{
    if (size >= JMB_SAVED_BYTES && size % 8 == 0) jmb_store_u64(data + 24, jmb_saved_hash(data, size));
}

/* Whatever has been restored, the session must bear to be used. */
static void use_session(victim *v, const char *what)
{
    jamba_session_info info;
    int32_t token = 5, position;
    jamba_reply_params reply;
    jamba_result result;
    const char *text;
    size_t count;
    memset(&reply, 0, sizeof reply);
    reply.max_tokens = 2;
    jamba_session_describe(v->session, &info);
    CHECK_THAT(info.position + info.pending <= info.context, "%s: %d tokens", what, (int)info.position);
    CHECK(jamba_session_tokens(v->session, &count) != NULL && count == (size_t)(info.position + info.pending));
    jamba_step(v->session, 0);
    result = jamba_eval(v->session, &token, 1);
    CHECK_THAT(result == JAMBA_OK || result == JAMBA_ERR_CONTEXT, "%s: %d", what, (int)result);
    CHECK(jamba_turns(v->session, NULL, 0) <= 3 * count + 6);
    if (jamba_session_restart(v->session, 1, NULL) == JAMBA_OK) jamba_step(v->session, 0);
    for (position = (int32_t)count; position >= 0; position -= 3) {
        if (jamba_session_rewind(v->session, position, NULL) != JAMBA_OK) continue;
        jamba_reply(v->session, &reply, &text, &count);
        jamba_reply(v->session, &reply, &text, &count);
    }
    jamba_session_reset(v->session);
    CHECK(restore(v->session, v->before));
}

/* Whether `size` bytes are restored; if not, the error is `want` (0: any) and nothing has changed. */
static bool try_restore(victim *v, const uint8_t *data, size_t size, jamba_result want, const char *what)
{
    uint8_t *copy = (uint8_t *)malloc(size ? size : 1); /* ends with its last byte */
    jamba_state_info info;
    jamba_error error;
    jamba_result result, described;
    if (size) memcpy(copy, data, size);
    memset(&error, 0, sizeof error);
    described = jamba_state_describe(copy, size, &info, &error);
    result = jamba_session_restore(v->session, copy, size);
    free(copy);
    if (result == JAMBA_OK) {
        CHECK_THAT(described == JAMBA_OK, "%s: restored, and described as %s", what, error.message);
        use_session(v, what);
        return true;
    }
    CHECK_THAT(want == 0 || result == want, "%s: %s", what, jamba_session_error(v->session)->message);
    CHECK_THAT(result == jamba_session_error(v->session)->code && jamba_session_error(v->session)->message[0],
        "%s: code %d", what, (int)result);
    CHECK_THAT(described == JAMBA_OK || (described == result && error.code == result), "%s: described with %d", what,
        (int)described);
    CHECK_THAT(saves_as(v->session, v->before, true), "%s: the session has changed", what);
    return false;
}

static victim swept; /* by the sweep that runs */
static size_t sweep_accepted, sweep_refused;

static void may_restore(void *user, const uint8_t *data, size_t size, const char *what)
{
    (void)user;
    if (try_restore(&swept, data, size, JAMBA_OK, what)) sweep_accepted++;
    else sweep_refused++;
}

/* The hash sees every change; the header's fields are checked before it, and of those the version first. */
static void must_fail(void *user, const uint8_t *data, size_t size, const char *what)
{
    bool version = size == swept.good.size && memcmp(data + 8, swept.good.data + 8, 4) != 0;
    jamba_result want = version ? JAMBA_ERR_UNSUPPORTED : JAMBA_ERR_FORMAT;
    (void)user;
    CHECK_THAT(!try_restore(&swept, data, size, want, what), "%s: restored", what);
}

static void announce(uint8_t *data, size_t size)
{
    if (size >= JMB_SAVED_BYTES) jmb_store_u64(data + 16, size);
    if (size % 8 == 0) repair_hash(data, size);
}

static sweep sweep_of(void (*test)(void *, const uint8_t *, size_t, const char *), void (*repair)(uint8_t *, size_t))
{
    sweep w;
    w.good = swept.good.data;
    w.size = swept.good.size;
    w.test = test;
    w.repair = repair;
    w.user = NULL;
    sweep_accepted = sweep_refused = 0;
    return w;
}

static void test_prefixes(void)
{
    uint8_t *data;
    char what[60];
    sweep w;
    size_t n;
    if (!victim_open(&swept, JAMBA_EXACT)) return;
    w = sweep_of(must_fail, NULL);
    sweep_prefixes(&w, 0, 1);
    w.repair = announce;
    sweep_prefixes(&w, 0, 1);
    data = (uint8_t *)calloc(1, swept.good.size + 64);
    for (n = 1; n < 64; n++) {
        snprintf(what, sizeof what, "%zu bytes more", n);
        memcpy(data, swept.good.data, swept.good.size);
        must_fail(NULL, data, swept.good.size + n, what);
        announce(data, swept.good.size + n);
        must_fail(NULL, data, swept.good.size + n, what);
    }
    CHECK(try_restore(&swept, swept.good.data, swept.good.size, JAMBA_OK, "whole"));
    free(data);
    victim_close(&swept);
}

static void test_stale(void)
{
    sweep w;
    if (!victim_open(&swept, JAMBA_EXACT)) return;
    w = sweep_of(must_fail, NULL);
    sweep_bytes(&w, 0, JMB_SAVED_BYTES, SWEEP_CHANGES, SWEEP_CHANGES);
    sweep_bytes(&w, JMB_SAVED_BYTES, w.size, SWEEP_CHANGES, 2);
    if (sweep_all()) sweep_values(&w, 0, 4096, 256);
    victim_close(&swept);
}

/* Somebody who knows the hash may put in any numbers, and no more than numbers. */
static void test_repaired(jamba_form form)
{
    sweep w;
    if (!victim_open(&swept, form)) return;
    w = sweep_of(may_restore, repair_hash);
    sweep_bytes(&w, 0, w.size, SWEEP_CHANGES, 4);
    if (sweep_all()) sweep_values(&w, 0, 4096, 256);
    CHECK_THAT(sweep_accepted > w.size && sweep_refused > 400, "%zu accepted, %zu refused", sweep_accepted,
        sweep_refused);
    sweep_mutations(&w, 1024, form == JAMBA_EXACT ? 7000 : 1000);
    w.repair = announce;
    sweep_mutations(&w, 1024, 1000);
    victim_close(&swept);
}

/* Each field of the header to its extremes, with all lengths of bytes that could then be meant. */
static void test_hostile(void)
{
    static const uint32_t values[] = { 0, 1, 2, 3, 0x7fffffffu, 0x80000000u, 0xffffffffu, 0xfffffff0u, 1u << 24,
        (1u << 24) + 1, 65536, 65537 };
    victim v;
    uint8_t *data;
    char what[80];
    size_t at, i, extra;
    if (!victim_open(&v, JAMBA_EXACT)) return;
    data = (uint8_t *)calloc(1, v.good.size + 4096);
    for (at = 8; at < JMB_SAVED_BYTES; at += 4) {
        for (i = 0; i < sizeof values / sizeof *values + 2; i++) {
            uint32_t old = jmb_load_u32(v.good.data + at), value = i < 12 ? values[i] : i == 12 ? old + 1 : old - 1;
            if (at == 16 || at == 24 || at == 28) continue;
            for (extra = 0; extra <= 4096; extra += extra < 64 ? 8 : 504) {
                memcpy(data, v.good.data, v.good.size);
                memset(data + v.good.size, 0, 4096);
                jmb_store_u32(data + at, value);
                jmb_store_u64(data + 16, v.good.size + extra);
                repair_hash(data, v.good.size + extra);
                snprintf(what, sizeof what, "header word %zu is %u, %zu bytes more", at, (unsigned)value, extra);
                try_restore(&v, data, v.good.size + extra, JAMBA_OK, what);
            }
        }
    }
    for (extra = 0; extra < 8; extra++) { /* the size itself */
        memcpy(data, v.good.data, v.good.size);
        jmb_store_u64(data + 16, extra < 4 ? extra * 0x5555555555555555u : v.good.size + (extra % 2 ? 1 : (size_t)-8));
        repair_hash(data, v.good.size);
        CHECK(!try_restore(&v, data, v.good.size, JAMBA_ERR_FORMAT, "another size"));
    }
    free(data);
    victim_close(&v);
}

/* The same state with bytes taken out and put in; zeros at its end that it needs then. */
static blob spliced(const victim *v, size_t at, size_t out, size_t in)
{
    jmb_saved h;
    jmb_walk w;
    blob b;
    CHECK(jmb_read_saved(&h, v->good.data, v->good.size, NULL) == JAMBA_OK);
    w = jmb_walk_of(v->session, &h, NULL, false);
    jmb_walk_all(&w);
    b.size = (size_t)jmb_round_up(w.at - out + in, 8);
    b.data = (uint8_t *)calloc(1, b.size);
    memcpy(b.data, v->good.data, at);
    memset(b.data + at, 'a', in);
    memcpy(b.data + at + in, v->good.data + at + out, (size_t)w.at - at - out);
    jmb_store_u64(b.data + 16, b.size);
    return b;
}

/* Text of a reply just as long as can be held back, and longer; turns among tokens that are left out. */
static void test_hostile_talk(void)
{
    victim v;
    blob b;
    size_t tokens, turns, text, more;
    if (!victim_open(&v, JAMBA_EXACT)) return;
    tokens = jmb_load_u32(v.good.data + 64) + jmb_load_u32(v.good.data + 68);
    turns = JMB_SAVED_BYTES + tokens * 4 + (size_t)jmb_load_u32(v.good.data + 76) * 4;
    text = turns + (size_t)jmb_load_u32(v.good.data + 92) * 8 + 12;
    CHECK(jmb_load_u32(v.good.data + 88) > 1 && jmb_load_u32(v.good.data + 92) > 0);
    for (more = 1; more < 90; more++) {
        uint32_t size = jmb_load_u32(v.good.data + 88) + (uint32_t)more;
        b = spliced(&v, text, 0, more);
        jmb_store_u32(b.data + 88, size);
        repair_hash(b.data, b.size);
        CHECK_THAT(try_restore(&v, b.data, b.size, JAMBA_ERR_FORMAT, "a longer reply") == (size <= JAMBA_STOP_MAX),
            "a reply of %u bytes", (unsigned)size);
        free(b.data);
    }
    b = spliced(&v, JMB_SAVED_BYTES, 8 * 4, 16); /* 8 tokens unknown, two turns more */
    memmove(b.data + JMB_SAVED_BYTES, b.data + JMB_SAVED_BYTES + 16, turns - 8 * 4 - JMB_SAVED_BYTES);
    jmb_store_u32(b.data + 72, 8);
    jmb_store_u32(b.data + 92, jmb_load_u32(v.good.data + 92) + 2);
    for (more = 0; more < 2; more++) {
        uint8_t *turn = b.data + turns - 8 * 4 + more * 8;
        jmb_store_u32(turn, 4 + (uint32_t)more * 2); /* behind the mark at 4 */
        jmb_store_u32(turn + 4, JMB_TURN_SAID | JMB_TURN_PROPER);
    }
    repair_hash(b.data, b.size);
    CHECK(!try_restore(&v, b.data, b.size, JAMBA_ERR_FORMAT, "turns among unknown tokens"));
    CHECK_THAT(strstr(jamba_session_error(v.session)->message, "turn 0") != NULL, "%s",
        jamba_session_error(v.session)->message);
    free(b.data);
    victim_close(&v);
}

/* A mapped file that somebody writes to between the checks and the reading: every number in front of the logits. */
static void test_written_meanwhile(void)
{
    static const uint32_t values[] = { 0, 3, 21, 300, 0x7fffffffu, 0x80000000u, 0xffffffffu };
    victim v;
    jmb_saved h;
    uint8_t *data;
    char what[80];
    size_t at, i, end;
    if (!victim_open(&v, JAMBA_EXACT)) return;
    CHECK(jmb_read_saved(&h, v.good.data, v.good.size, NULL) == JAMBA_OK && h.text > 1 && h.turns > 0 && h.marks > 0);
    end = JMB_SAVED_BYTES + 4 * ((size_t)jmb_saved_tokens(&h) + h.marks + 2 * h.turns + 3) + h.text - 1;
    data = (uint8_t *)malloc(v.good.size);
    for (at = JMB_SAVED_BYTES; at + 4 <= end; at += 4)
        for (i = 0; i < sizeof values / sizeof *values; i++) {
            memcpy(data, v.good.data, v.good.size);
            jmb_store_u32(data + at, values[i]);
            jmb_take_saved(v.session, &h, data);
            snprintf(what, sizeof what, "byte %zu turned into %u", at, (unsigned)values[i]);
            use_session(&v, what);
        }
    free(data);
    victim_close(&v);
}

/* ---- other models, versions, sessions ------------------------------------------------------------------- */

/* The same file but for one weight. */
static jamba_model *other_weights(const jamba_model *model, uint8_t **data)
{
    const jmb_metadata *m = &model->metadata;
    const jmb_tensor *t = &m->tensors[m->header.tensors - 1];
    uint8_t *entry;
    *data = (uint8_t *)aligned_take(64, (size_t)model->size);
    test_require(*data != NULL, "out of memory", "");
    memcpy(*data, model->data, (size_t)model->size);
    (*data)[t->offset] ^= 1;
    entry = *data + m->parts.directory + (size_t)(m->header.tensors - 1) * JMB_ENTRY_BYTES;
    jmb_store_u64(entry + 32, jmb_hash64(JMB_HASH_SEED, *data + t->offset, (size_t)t->bytes));
    jmb_identity(*data, m->header.data_offset, *data + 32);
    return load_model(jamba_from_memory(*data, (size_t)model->size), NULL);
}

static void check_foreign(victim *v)
{
    uint8_t *file;
    jamba_model *other = other_weights(v->model, &file);
    blob foreign;
    if (!CHECK(other != NULL)) return;
    foreign = victim_state(other, JAMBA_EXACT);
    CHECK(foreign.size == v->good.size);
    CHECK(!try_restore(v, foreign.data, foreign.size, JAMBA_ERR_MISMATCH, "the state of other weights"));
    free(foreign.data);
    jamba_model_free(other);
    aligned_free(file);
}

static void check_versions(victim *v)
{
    static const uint32_t versions[] = { 0, 2, 0x10001, 0xffffffffu };
    size_t i;
    for (i = 0; i < 4; i++) {
        blob other = victim_state(v->model, JAMBA_EXACT);
        jmb_store_u32(other.data + 8, versions[i]);
        repair_hash(other.data, other.size);
        CHECK(!try_restore(v, other.data, other.size, JAMBA_ERR_UNSUPPORTED, "another version"));
        CHECK(strstr(jamba_session_error(v->session)->message, "format") != NULL);
        free(other.data);
    }
}

/* Into a session with room for one token too few. */
static void check_small(victim *v)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, 12, 0, 0);
    victim small = *v;
    small.session = open_session(v->model, &params);
    small.before = save(small.session);
    CHECK(!try_restore(&small, v->good.data, v->good.size, JAMBA_ERR_CONTEXT, "too many tokens"));
    free(small.before.data);
    jamba_session_free(small.session);
}

static void check_described(const victim *v)
{
    jamba_sampler sampler = some_sampler();
    jamba_state_info info;
    jamba_model_info model;
    jamba_model_describe(v->model, &model);
    CHECK(jamba_state_describe(v->good.data, v->good.size, &info, NULL) == JAMBA_OK);
    CHECK(info.version == 1 && memcmp(info.identity, model.identity, 32) == 0);
    CHECK(info.position == 12 && info.pending == 1 && info.marks == 2 && info.tokens && info.logits);
    CHECK(info.state == JAMBA_EXACT && info.kv_type == JAMBA_KV_Q8 && info.has_sampler);
    CHECK(info.sampler.temperature == sampler.temperature && info.sampler.top_k == sampler.top_k
        && info.sampler.top_p == sampler.top_p && info.sampler.min_p == sampler.min_p
        && info.sampler.repeat_penalty == sampler.repeat_penalty
        && info.sampler.repeat_window == sampler.repeat_window && info.sampler.seed == sampler.seed
        && !info.sampler.filter);
    CHECK(jamba_state_describe(NULL, 200, &info, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_state_describe(v->good.data, v->good.size, NULL, NULL) == JAMBA_ERR_ARGUMENT);
}

static void save_inside(void *user, int32_t position, const float *logits)
{
    jamba_session **session = (jamba_session **)user;
    uint8_t byte = 0;
    (void)position;
    (void)logits;
    CHECK(jamba_session_save(*session, NULL, 0) == 0);
    CHECK(jamba_session_restore(*session, &byte, 1) == JAMBA_ERR_ARGUMENT);
}

/* From a callback, and in the middle of a token: nothing is saved, but anything restored. */
static void check_moments(victim *v)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, 20, 0, 2);
    jamba_session *session, *pair[2];
    uint64_t ticks = 0;
    int32_t tokens[5];
    tiny_tokens(tokens, 5);
    params.on_logits = save_inside;
    params.logits_user = &session;
    params.now_us = clock_tick;
    params.now_user = &ticks;
    session = open_session(v->model, &params);
    CHECK(jamba_eval(session, tokens, 2) == JAMBA_OK && jamba_feed(session, tokens + 2, 3) == JAMBA_OK);
    CHECK(jamba_step(session, 1) == JAMBA_PENDING && jamba_session_save(session, NULL, 0) == 0);
    CHECK(restore(session, v->before) && saves_as(session, v->before, true) && jamba_step(session, 0) == JAMBA_OK);
    pair[0] = session;
    pair[1] = v->session;
    CHECK(jamba_feed(session, tokens, 2) == JAMBA_OK && jamba_step_batch(pair, 2, 1) == JAMBA_PENDING);
    CHECK(jamba_session_save(v->session, NULL, 0) == 0);
    CHECK(restore(v->session, v->before) && saves_as(v->session, v->before, true));
    jamba_session_free(session);
}

static void check_arguments(victim *v)
{
    jamba_save_params params;
    jamba_source none;
    memset(&params, 0, sizeof params);
    memset(&none, 0, sizeof none);
    CHECK(jamba_session_save(NULL, NULL, 0) == 0);
    params.state = (jamba_form)3;
    CHECK(jamba_session_save_as(v->session, &params, NULL, 0) == 0);
    params.state = JAMBA_EXACT;
    params.kv = (jamba_form)-1;
    CHECK(jamba_session_save_as(v->session, &params, NULL, 0) == 0);
    CHECK(jamba_session_restore(NULL, v->good.data, v->good.size) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_restore(v->session, NULL, v->good.size) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_load(v->session, none) == JAMBA_ERR_ARGUMENT);
    CHECK(saves_as(v->session, v->before, true));
}

static void test_refusals(void)
{
    victim v;
    if (!victim_open(&v, JAMBA_EXACT)) return;
    check_foreign(&v);
    check_versions(&v);
    check_small(&v);
    check_described(&v);
    check_moments(&v);
    check_arguments(&v);
    victim_close(&v);
}

/* ---- sources -------------------------------------------------------------------------------------------- */

typedef struct reading {
    const blob *from;
    int calls, fail_at; /* the call that comes back short */
} reading;

static size_t read_blob(void *user, uint64_t offset, void *dst, size_t size)
{
    reading *r = (reading *)user;
    if (++r->calls == r->fail_at) return size - 1;
    if (offset > r->from->size || size > r->from->size - offset) return 0;
    memcpy(dst, r->from->data + offset, size);
    return size;
}

static void check_io(victim *v, jamba_session *session)
{
    reading r;
    jamba_io io;
    blob empty = { v->good.data, 0 };
    memset(&r, 0, sizeof r);
    r.from = &v->good;
    io.read = read_blob;
    io.user = &r;
    io.size = v->good.size;
    CHECK(jamba_session_load(session, jamba_from_io(io)) == JAMBA_OK && r.calls == 2);
    CHECK(restore(session, v->before));
    for (r.fail_at = 1; r.fail_at <= 2; r.fail_at++) {
        r.calls = 0;
        CHECK(jamba_session_load(session, jamba_from_io(io)) == JAMBA_ERR_IO && saves_as(session, v->before, true));
    }
    r.fail_at = 0;
    io.size = UINT64_MAX; /* must not be allocated */
    CHECK(jamba_session_load(session, jamba_from_io(io)) == JAMBA_ERR_FORMAT && saves_as(session, v->before, true));
    r.from = &empty;
    io.size = 0;
    CHECK(jamba_session_load(session, jamba_from_io(io)) == JAMBA_ERR_FORMAT);
}

static void test_sources(void)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, 20, 0, 2);
    counter c;
    jamba_allocator allocator = counter_open(&c);
    jamba_session *session;
    char path[PATH_ROOM];
    size_t bytes;
    victim v;
    int calls;
    if (!victim_open(&v, JAMBA_EXACT)) return;
    params.allocator = &allocator;
    session = open_session(v.model, &params);
    CHECK(restore(session, v.before));
    bytes = c.bytes;
    calls = c.calls;
    file_write(temp_path(path, "good.state"), v.good.data, v.good.size);
    CHECK(jamba_session_load(session, jamba_from_file(path)) == JAMBA_OK);
    CHECK(restore(session, v.before) && (!FILES_MAP || c.calls == calls)); /* a mapped file takes no memory */
    file_write(path, v.good.data, v.good.size - 8);
    CHECK(jamba_session_load(session, jamba_from_file(path)) == JAMBA_ERR_FORMAT);
    file_write(path, "", 0);
    CHECK(jamba_session_load(session, jamba_from_file(path)) == JAMBA_ERR_FORMAT);
    CHECK(jamba_session_load(session, jamba_from_file("no/such/file")) == JAMBA_ERR_IO);
    CHECK_THAT(strstr(jamba_session_error(session)->message, "no/such/file") != NULL, "%s",
        jamba_session_error(session)->message);
    CHECK(saves_as(session, v.before, true));
    check_io(&v, session);
    CHECK(c.calls > calls && c.bytes == bytes);
    c.fail_at = c.calls + 1;
    {
        reading r;
        jamba_io io;
        memset(&r, 0, sizeof r);
        r.from = &v.good;
        io.read = read_blob;
        io.user = &r;
        io.size = v.good.size;
        CHECK(jamba_session_load(session, jamba_from_io(io)) == JAMBA_ERR_MEMORY);
    }
    jamba_session_free(session);
    CHECK(c.live == 0 && c.wrong == 0);
    victim_close(&v);
}

/* ---- a state of version 1, which is loaded for ever ---------------------------------------------------- */

/* Of jamba-flags in f32, cache in q8: all of the prompt but its last two tokens evaluated, those queued; marks after 5
 * and 20 tokens; a sampler. `form` of the state. */
static blob version_1_state(const family *f, size_t prompt, jamba_form form)
{
    jamba_session_params params = params_of(JAMBA_KV_Q8, ROOM, 0, 2);
    jamba_session *session = open_session(f->model, &params);
    jamba_sampler sampler = some_sampler();
    jamba_save_params with;
    blob b;
    memset(&with, 0, sizeof with);
    with.state = form;
    with.marks = true;
    with.sampler = &sampler;
    CHECK(jamba_eval(session, f->tokens, 5) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
    CHECK(jamba_eval(session, f->tokens + 5, 15) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
    CHECK(jamba_eval(session, f->tokens + 20, prompt - 22) == JAMBA_OK);
    CHECK(jamba_feed(session, f->tokens + prompt - 2, 2) == JAMBA_OK);
    b = save_as(session, &with);
    jamba_session_free(session);
    return b;
}

/* The file of tests/states, with the identity of this model: that depends on its converter too, which may change.
 * Otherwise it holds the bytes of now. */
static blob kept_state(const family *f, const char *file, blob now)
{
    char path[PATH_ROOM];
    blob stored;
    file_write(temp_path(path, file), now.data, now.size);
    snprintf(path, sizeof path, "tests/states/%s", file);
    stored.data = file_need(path, &stored.size);
    CHECK_THAT(stored.size == now.size, "%s has %zu bytes, not %zu", file, stored.size, now.size);
    CHECK(jmb_saved_hash(stored.data, stored.size) == jmb_load_u64(stored.data + 24));
    memcpy(stored.data + 32, f->model->metadata.header.identity, 32);
    repair_hash(stored.data, stored.size);
    CHECK_THAT(stored.size == now.size && memcmp(stored.data, now.data, now.size) == 0, "%s: other bytes", file);
    return stored;
}

/* Two turns and a reply of which a letter is held back, and the first byte of a character. */
static void check_version_1_reply(const family *f)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, ROOM, 0, 0);
    jamba_session *session = open_session(f->model, &params);
    jamba_turn turns[3];
    blob now, stored;
    CHECK(jamba_eval(session, f->tokens, 9) == JAMBA_OK);
    jmb_set_turn(session, 2, JMB_TURN_SAID);
    jmb_set_turn(session, 7, JMB_TURN_REPLY);
    session->reply.at = session->fed;
    session->reply.given = 1;
    session->reply.size = 2;
    memcpy(session->reply.text, "xy", 2);
    session->reply.stream.held_count = 1;
    session->reply.stream.held[0] = 0xc3;
    session->reply.stream.started = 1;
    now = save(session);
    stored = kept_state(f, "version-1-reply.state", now);
    jamba_session_reset(session);
    if (restore(session, stored)) {
        const jmb_reply *r = &session->reply;
        CHECK(r->at == 9 && r->given == 0 && r->size == 1 && r->text[0] == 'y');
        CHECK(r->stream.held_count == 1 && r->stream.held[0] == 0xc3 && r->stream.started == 1);
        CHECK(jamba_turns(session, turns, 3) == 2 && turns[0].position == 2 && turns[1].position == 7);
        CHECK(turns[0].kind == JAMBA_TURN_SAID && turns[1].kind == JAMBA_TURN_REPLY);
    }
    free(now.data);
    free(stored.data);
    jamba_session_free(session);
}

static void check_version_1(const family *f, const char *file, size_t prompt, jamba_form form)
{
    jamba_session_params params = params_of(JAMBA_KV_Q8, ROOM, 0, 2);
    jamba_session *session = open_session(f->model, &params);
    blob now = version_1_state(f, prompt, form), stored = kept_state(f, file, now);
    size_t i;
    if (restore(session, stored)) {
        CHECK(jamba_step(session, 0) == JAMBA_OK);
        for (i = 0; i < GOLDEN_GREEDY; i++) {
            int32_t token = jamba_sample(session, NULL);
            if (form == JAMBA_EXACT)
                CHECK_THAT(token == f->tokens[prompt + i], "token %zu is %d, not %d", i, (int)token,
                    (int)f->tokens[prompt + i]);
            CHECK(jamba_eval(session, f->tokens + prompt + i, 1) == JAMBA_OK);
        }
        CHECK(jamba_session_rewind(session, 20, NULL) == JAMBA_OK && jamba_logits(session) != NULL);
        CHECK(jamba_session_rewind(session, 5, NULL) == JAMBA_OK && jamba_logits(session) != NULL);
    }
    jamba_session_free(session);
    free(stored.data);
    free(now.data);
}

static void test_version_1(void)
{
    family f;
    size_t prompt;
    if (!family_open(&f, "jamba-flags", "f32")) return;
    free(golden_read("jamba-flags", "prompt.i32", &prompt));
    check_version_1(&f, "version-1.state", prompt, JAMBA_EXACT);
    check_version_1(&f, "version-1-q8.state", prompt, JAMBA_Q8);
    check_version_1_reply(&f);
    family_close(&f);
}

/* ---- drift of compact forms ------------------------------------------------------------------------------ */

enum { DRIFT_PROMPT = 200, DRIFT_MORE = 64 };

typedef struct drift {
    double worst, divergence; /* largest difference of a logit; mean KL divergence in nats */
    int agree;                /* of DRIFT_MORE greedy tokens */
} drift;

/* KL(p || q) of the distributions of two rows of logits. */
static double divergence(const float *p, const float *q, size_t vocab)
{
    double top_p = (double)p[0], top_q = (double)q[0], sum_p = 0, sum_q = 0, sum = 0;
    size_t i;
    for (i = 0; i < vocab; i++) {
        if ((double)p[i] > top_p) top_p = (double)p[i];
        if ((double)q[i] > top_q) top_q = (double)q[i];
    }
    for (i = 0; i < vocab; i++) {
        sum_p += exp((double)p[i] - top_p);
        sum_q += exp((double)q[i] - top_q);
    }
    for (i = 0; i < vocab; i++) {
        double log_p = (double)p[i] - top_p - log(sum_p), log_q = (double)q[i] - top_q - log(sum_q);
        sum += exp(log_p) * (log_p - log_q);
    }
    return sum;
}

/* Both go on with the tokens that a chooses. */
static drift measure_drift(jamba_session *a, jamba_session *b, size_t vocab)
{
    drift d;
    int i;
    memset(&d, 0, sizeof d);
    for (i = 0; i < DRIFT_MORE; i++) {
        int32_t token = jamba_sample(a, NULL);
        d.agree += token == jamba_sample(b, NULL);
        CHECK(jamba_eval(a, &token, 1) == JAMBA_OK && jamba_eval(b, &token, 1) == JAMBA_OK);
        d.worst = fmax(d.worst, test_worst(jamba_logits(b), jamba_logits(a), vocab));
        d.divergence += divergence(jamba_logits(a), jamba_logits(b), vocab) / DRIFT_MORE;
    }
    return d;
}

/* Of a session that is restored from a form, against one that goes on. */
static drift drift_of_form(
    const jamba_model *model, const int32_t *prompt, jamba_form state, jamba_form kv, size_t *bytes)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, DRIFT_PROMPT + DRIFT_MORE, 0, 0);
    jamba_session *a = open_session(model, &params), *b = open_session(model, &params);
    jamba_save_params compact;
    drift d;
    blob saved;
    memset(&compact, 0, sizeof compact);
    compact.state = state;
    compact.kv = kv;
    CHECK(jamba_eval(a, prompt, DRIFT_PROMPT) == JAMBA_OK);
    saved = save_as(a, &compact);
    *bytes = saved.size;
    CHECK(restore(b, saved));
    d = measure_drift(a, b, (size_t)model_vocab(model));
    free(saved.data);
    jamba_session_free(a);
    jamba_session_free(b);
    return d;
}

/* Of the same model with its weights in q8, the default of build/convert. */
static drift drift_of_weights(const jamba_model *model, const jamba_model *q8, const int32_t *prompt)
{
    jamba_session_params params = params_of(JAMBA_KV_F16, DRIFT_PROMPT + DRIFT_MORE, 0, 0);
    jamba_session *a = open_session(model, &params), *b = open_session(q8, &params);
    drift d;
    CHECK(jamba_eval(a, prompt, DRIFT_PROMPT) == JAMBA_OK && jamba_eval(b, prompt, DRIFT_PROMPT) == JAMBA_OK);
    d = measure_drift(a, b, (size_t)model_vocab(model));
    jamba_session_free(a);
    jamba_session_free(b);
    return d;
}

static jamba_model *storyteller(const char *type)
{
    char path[PATH_ROOM];
    jamba_model *model = NULL;
    if (convert("examples/storyteller", "storyteller", type, path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    CHECK(model != NULL);
    return model;
}

/* No form may cost a tenth of what weights in q8 do, which everybody accepts. */
static void test_drift(void)
{
    static const char *const names[] = { "exact", "f16", "q8" };
    jamba_model *model = storyteller("f32"), *q8 = storyteller("q8");
    int32_t prompt[4096];
    size_t size, count, bytes;
    char *text = (char *)file_need("examples/storyteller/held.txt", &size);
    drift weights;
    int form;
    if (!model || !q8) return;
    CHECK(size > 3000 && jamba_encode(model, text, 3000, JAMBA_TEXT_BOS, prompt, 4096, &count, NULL) == JAMBA_OK
        && count >= DRIFT_PROMPT);
    weights = drift_of_weights(model, q8, prompt);
    printf("state: weights in q8 instead: logits off by %.2e, KL %.2e, %d of %d tokens the same\n", weights.worst,
        weights.divergence, weights.agree, (int)DRIFT_MORE);
    for (form = 0; form < 9; form++) {
        drift d = drift_of_form(model, prompt, (jamba_form)(form % 3), (jamba_form)(form / 3), &bytes);
        printf("state: %-5s cache %-5s %7zu bytes, logits off by %.2e, KL %.2e, %d of %d tokens the same\n",
            names[form % 3], names[form / 3], bytes, d.worst, d.divergence, d.agree, (int)DRIFT_MORE);
        if (form % 3 == 0 && form < 6) CHECK(d.worst == 0 && d.divergence == 0); /* the cache is f16 anyway */
        else CHECK_THAT(d.divergence > 0 && d.divergence < weights.divergence / 10, "KL %g, weights in q8 have %g",
            d.divergence, weights.divergence);
    }
    free(text);
    jamba_model_free(model);
    jamba_model_free(q8);
}

int main(int argc, char **argv)
{
    static const char *const types[] = { "f32", "q8", "q4" };
    static const char *const paged[] = { "llama-llama3", "jamba-moe", "zamba" };
    static const char *const forms[] = { "exact", "f16", "q8" };
    int i;
    test_start(argc, argv);
    for (i = 0; i < GOLDEN_CASES; i++) {
        const char *name = golden_cases[i].name, *type = types[i % 3];
        if (!test_begin("%s %s", name, type)) continue;
        test_family(name, type);
        test_end();
    }
    for (i = 0; i < 3; i++) {
        if (!test_begin("%s, pages and types", paged[i])) continue;
        test_cache(paged[i]);
        test_end();
    }
    if (test_begin("what is no number")) {
        test_bad_numbers();
        test_end();
    }
    if (test_begin("what f16 cannot hold")) {
        test_far_numbers();
        test_end();
    }
    if (test_begin("prefixes, and bytes behind the end")) {
        test_prefixes();
        test_end();
    }
    if (test_begin("bytes changed")) {
        test_stale();
        test_end();
    }
    for (i = 0; i < 3; i++) {
        if (!test_begin("bytes changed, hash repaired, state %s", forms[i])) continue;
        test_repaired((jamba_form)i);
        test_end();
    }
    if (test_begin("header fields at their extremes")) {
        test_hostile();
        test_end();
    }
    if (test_begin("hostile turns and replies")) {
        test_hostile_talk();
        test_end();
    }
    if (test_begin("written to while it is read")) {
        test_written_meanwhile();
        test_end();
    }
    if (test_begin("what is refused")) {
        test_refusals();
        test_end();
    }
    if (test_begin("files, memory, callbacks")) {
        test_sources();
        test_end();
    }
    if (test_begin("version 1")) {
        test_version_1();
        test_end();
    }
    if (test_begin("drift of compact forms")) {
        test_drift();
        test_end();
    }
    return test_summary();
}
