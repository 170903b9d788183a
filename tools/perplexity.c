/* perplexity.c - how well a model predicts texts, and how far it is from another one */
#include "pack.h"
#include "run.h"

#include <inttypes.h>
#include <math.h>

static const char TOOL[] = "perplexity";
static const char USAGE[] =
    "usage: perplexity MODEL.jamba [--against OTHER.jamba | --ablate TYPE] [-t THREADS] < TEXTS\n"
    "Texts are separated by a line <|endoftext|>; the newline in front of it, and the last one of the input,\n"
    "belong to no text. Each text alone: the model's first token, if it has one, then the text's tokens; all\n"
    "of the text's are scored. Prints exp of the mean negative log probability, with f32 keys and values.\n"
    "  --against OTHER.jamba   also prints the mean Kullback-Leibler divergence of MODEL (q) from OTHER (p, the\n"
    "                          reference), sum of p log(p / q), in nats, and how often their likeliest tokens agree\n"
    "  --ablate TYPE           rounds the weights of one kind at a time to TYPE (q4, q8, bf16 or f16) and compares\n"
    "                          with MODEL, which must hold f32, f16 or bf16: a line each, with the bytes that this\n"
    "                          saves; then all kinds together, and as convert --type TYPE chooses for each\n"
    "  -t THREADS              (one per processor, at most 8; 1 for a model under 32 MB)\n";

static const char SEPARATOR[] = "<|endoftext|>";

/* Tokens evaluated before their logits are compared: bounds the rows that are kept. */
enum { PIECE = 64 };

typedef struct text {
    int32_t *tokens; /* the model's first token in front, if it has one */
    size_t count;
} text;

typedef struct score {
    run_context q, p; /* p.path NULL: nothing to compare with */
    text *texts;
    size_t text_count, longest;
    double log_loss, divergence;
    uint64_t tokens, agreed;
    uint32_t ablate; /* a type, or JMB_F32: no ablation */
    int threads;
} score;

static uint32_t argument_type(const char *name)
{
    for (uint32_t type = JMB_F32 + 1; name && type < JMB_TYPES; type++)
        if (strcmp(name, jmb_type_names[type]) == 0) return type;
    tool_usage(TOOL, USAGE, "--ablate needs f16, bf16, q8 or q4, not", name ? name : "nothing");
}

static void parse_arguments(score *s, char **argv)
{
    for (char **arg = argv + 1; *arg; arg++) {
        if (strcmp(*arg, "--against") == 0) {
            s->p.path = *++arg;
            if (!s->p.path) tool_usage(TOOL, USAGE, "a model file is missing after --against", NULL);
        } else if (strcmp(*arg, "--ablate") == 0) {
            s->ablate = argument_type(*++arg);
        } else if (strcmp(*arg, "-t") == 0) {
            arg++;
            s->threads = run_argument_threads(TOOL, USAGE, "-t", *arg);
        } else if ((*arg)[0] == '-') tool_usage(TOOL, USAGE, "unknown option", *arg);
        else if (s->q.path) tool_usage(TOOL, USAGE, "one model is enough, there is also", *arg);
        else s->q.path = *arg;
    }
    if (!s->q.path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
    if (s->ablate && s->p.path) tool_usage(TOOL, USAGE, "--ablate compares with MODEL itself, not with", s->p.path);
    if (s->ablate) s->p.path = s->q.path;
}

/* ---- texts --------------------------------------------------------------------------------- */

static int32_t *encode(const run_context *run, const char *bytes, size_t size, size_t *count)
{
    jamba_error error;
    int32_t *tokens = NULL;
    jamba_result result = jamba_encode(run->model, bytes, size, JAMBA_TEXT_BOS, NULL, 0, count, &error);
    if (result == JAMBA_OK) {
        tokens = (int32_t *)malloc((*count + 1) * sizeof *tokens);
        if (!tokens) tool_die(TOOL, "out of memory for a text of %zu tokens", *count);
        result = jamba_encode(run->model, bytes, size, JAMBA_TEXT_BOS, tokens, *count, count, &error);
    }
    if (result != JAMBA_OK) tool_die(TOOL, "%s: standard input: %s", run->path, error.message);
    return tokens;
}

static void check_same_tokens(const score *s, const text *t, const char *bytes, size_t size)
{
    size_t count;
    int32_t *tokens;
    if (!s->p.model) return;
    tokens = encode(&s->p, bytes, size, &count);
    if (count != t->count || memcmp(tokens, t->tokens, count * sizeof *tokens) != 0)
        tool_die(TOOL, "%s: has another tokenizer than %s, so they cannot be compared", s->p.path, s->q.path);
    free(tokens);
}

static void add_text(score *s, const char *bytes, size_t size)
{
    text *grown = (text *)realloc(s->texts, (s->text_count + 1) * sizeof *grown);
    text *t;
    if (!grown) tool_die(TOOL, "out of memory for %zu texts", s->text_count + 1);
    s->texts = grown;
    t = &s->texts[s->text_count++];
    t->tokens = encode(&s->q, bytes, size, &t->count);
    check_same_tokens(s, t, bytes, size);
    if (t->count > s->longest) s->longest = t->count;
}

/* Start of the first separator line at or after `from`, or `end`. */
static const char *find_separator(const char *from, const char *end)
{
    const size_t length = sizeof SEPARATOR - 1;
    while (from < end) {
        const char *newline = (const char *)memchr(from, '\n', (size_t)(end - from));
        size_t size = (size_t)((newline ? newline : end) - from);
        if (size > 0 && from[size - 1] == '\r') size--;
        if (size == length && memcmp(from, SEPARATOR, length) == 0) return from;
        from = newline ? newline + 1 : end;
    }
    return end;
}

static void split_texts(score *s, const char *bytes, size_t size)
{
    const char *from = bytes, *end = bytes + size;
    while (from < end) {
        const char *separator = find_separator(from, end), *newline;
        size_t length = (size_t)(separator - from);
        if (length > 0 && from[length - 1] == '\n') length--;
        if (length > 0 && from[length - 1] == '\r') length--;
        if (length > 0) add_text(s, from, length);
        newline = separator < end ? (const char *)memchr(separator, '\n', (size_t)(end - separator)) : NULL;
        from = newline ? newline + 1 : end;
    }
}

/* ---- scores -------------------------------------------------------------------------------- */

typedef struct distribution {
    double maximum, log_sum; /* log probability = logit - maximum - log_sum */
    int32_t likeliest;
} distribution;

static distribution distribution_of(const float *logits, int32_t vocab)
{
    distribution d = { (double)logits[0], 0, 0 };
    double sum = 0;
    for (int32_t i = 1; i < vocab; i++)
        if ((double)logits[i] > d.maximum) {
            d.maximum = (double)logits[i];
            d.likeliest = i;
        }
    for (int32_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - d.maximum);
    d.log_sum = log(sum);
    return d;
}

static double log_probability(const distribution *d, const float *logits, int32_t token)
{
    return (double)logits[token] - d->maximum - d->log_sum;
}

static void score_row(score *s, const float *q, const float *p, int32_t target)
{
    int32_t vocab = s->q.info.vocab;
    distribution dq = distribution_of(q, vocab), dp;
    s->log_loss -= log_probability(&dq, q, target);
    s->tokens++;
    if (!p) return;
    dp = distribution_of(p, vocab);
    s->agreed += dp.likeliest == dq.likeliest;
    for (int32_t i = 0; i < vocab; i++) {
        double log_p = log_probability(&dp, p, i);
        s->divergence += exp(log_p) * (log_p - log_probability(&dq, q, i));
    }
}

/* Where on_logits puts rows: each session its own. */
typedef struct row_sink {
    const run_context *run;
    float *rows; /* [PIECE][vocab] */
    int32_t next;
} row_sink;

static void keep_row(void *user, int32_t position, const float *logits)
{
    row_sink *sink = (row_sink *)user;
    size_t vocab = (size_t)sink->run->info.vocab;
    run_check_logits(sink->run, position, logits);
    memcpy(sink->rows + vocab * (size_t)sink->next++, logits, vocab * sizeof *logits);
}

/* One stretch that fits the context, its first token unscored. */
static void score_stretch(score *s, row_sink *q, row_sink *p, const int32_t *tokens, size_t count)
{
    size_t vocab = (size_t)s->q.info.vocab;
    jamba_session_reset(s->q.session);
    if (s->p.model) jamba_session_reset(s->p.session);
    for (size_t from = 0; from + 1 < count; from += PIECE) {
        size_t n = count - 1 - from < PIECE ? count - 1 - from : PIECE;
        q->next = p->next = 0;
        run_check(&s->q, jamba_eval(s->q.session, tokens + from, n));
        if (s->p.model) run_check(&s->p, jamba_eval(s->p.session, tokens + from, n));
        for (size_t i = 0; i < n; i++)
            score_row(s, q->rows + i * vocab, s->p.model ? p->rows + i * vocab : NULL, tokens[from + i + 1]);
    }
}

/* Cuts a text that is longer than the context, each piece with the first token in front again. */
static void score_text(score *s, row_sink *q, row_sink *p, const text *t, size_t context)
{
    size_t first = s->q.info.token_bos >= 0 && t->count > 0 && t->tokens[0] == s->q.info.token_bos ? 1 : 0;
    for (size_t from = first; from < t->count; from += context - first) {
        /* What stands before a later piece was scored already, so the first token may take its place. */
        size_t start = from - first, rest = t->count - start;
        int32_t before = t->tokens[start];
        if (first) t->tokens[start] = s->q.info.token_bos;
        score_stretch(s, q, p, t->tokens + start, rest < context ? rest : context);
        t->tokens[start] = before;
    }
}

static void score_texts(score *s, row_sink *q, row_sink *p, size_t context)
{
    tool_progress progress = { 0, false };
    size_t cut = 0;
    for (size_t i = 0; i < s->text_count; i++) {
        tool_progress_show(&progress, "scoring", i, s->text_count);
        cut += s->texts[i].count > context;
        score_text(s, q, p, &s->texts[i], context);
    }
    tool_progress_end(&progress);
    if (cut > 0)
        fprintf(stderr, "%s: %zu texts are longer than the context and were cut into pieces of %zu tokens\n", TOOL, cut,
            context);
}

/* ---- models and sessions ------------------------------------------------------------------- */

static void load_models(score *s)
{
    s->q.tool = s->p.tool = TOOL;
    run_load(&s->q, JAMBA_CPU_BEST);
    if (!s->p.path) return;
    run_load(&s->p, JAMBA_CPU_BEST);
    if (s->p.info.vocab != s->q.info.vocab)
        tool_die(TOOL, "%s: has %d tokens and %s %d, so they cannot be compared", s->p.path, (int)s->p.info.vocab,
            s->q.path, (int)s->q.info.vocab);
}

static size_t choose_context(const score *s)
{
    size_t context = (size_t)(s->q.info.context > 2 ? s->q.info.context : 2);
    if (s->p.model && s->p.info.context > 1 && (size_t)s->p.info.context < context)
        context = (size_t)s->p.info.context;
    return s->longest < context ? s->longest : context;
}

static void create_session(run_context *run, row_sink *sink, size_t context, int threads)
{
    jamba_session_params params;
    sink->run = run;
    sink->rows = (float *)calloc(PIECE, (size_t)run->info.vocab * sizeof *sink->rows);
    if (!sink->rows) tool_die(TOOL, "out of memory for %d rows of logits", PIECE);
    memset(&params, 0, sizeof params);
    params.context = (int32_t)context;
    params.chunk = PIECE;
    params.kv_type = JAMBA_KV_F32;
    params.on_logits = keep_row;
    params.logits_user = sink;
    run_create(run, &params, threads);
}

static void print_scores(const score *s)
{
    double count = (double)s->tokens;
    printf("perplexity: %.6f\n", exp(s->log_loss / count));
    if (s->p.model) {
        printf("kl_divergence: %.9f\n", s->divergence / count);
        printf("top1_agreement: %.6f\n", (double)s->agreed / count);
    }
    printf("tokens: %llu\n", (unsigned long long)s->tokens);
    printf("texts: %zu\n", s->text_count);
}

/* ---- one kind of weights rounded at a time ------------------------------------------------- */

/* 16 rows of f32 as they are after storing them in `type`, in place. `rows` and `panel` are room for them. */
static void round_panel(float *out, size_t cols, uint32_t type, float *rows, uint8_t *panel, pack_report *report)
{
    size_t stride = jmb_pad64(cols), r, c;
    jmb_tensor view;
    memset(&view, 0, sizeof view);
    view.type = type;
    view.cols = (uint32_t)cols;
    view.data = panel;
    memset(rows, 0, PACK_ROWS * stride * sizeof *rows);
    for (c = 0; c < cols; c++)
        for (r = 0; r < PACK_ROWS; r++) rows[r * stride + c] = out[c * PACK_ROWS + r];
    pack_panel(panel, type, rows, cols, report);
    for (c = 0; c < cols; c++)
        for (r = 0; r < PACK_ROWS; r++) out[c * PACK_ROWS + r] = jmb_weight(&view, r, c);
}

/* A copy of a tensor's panels in f32. */
static float *copy_panels(const jmb_tensor *t)
{
    size_t panels = (size_t)(t->bytes / jmb_panel_bytes(t->type, t->cols)), row, c;
    jmb_tensor flat = *t; /* alternating panels are as good as following ones */
    uint64_t size = jmb_mul(panels, jmb_panel_bytes(JMB_F32, t->cols));
    float *out = size > SIZE_MAX ? NULL : (float *)jmb_default_alloc(NULL, (size_t)size, JMB_ALIGN);
    if (!out) tool_die(TOOL, "out of memory for a copy of %u x %u weights", t->rows, t->cols);
    for (row = 0; row < panels * PACK_ROWS; row++)
        for (c = 0; c < t->cols; c++)
            out[(row / PACK_ROWS * t->cols + c) * PACK_ROWS + row % PACK_ROWS] = jmb_weight(&flat, row, c);
    return out;
}

/* Gives the tensor rounded weights: they stay f32 in memory, so that activations are not rounded too. */
static void round_tensor(const score *s, jmb_tensor *t, uint32_t type)
{
    size_t panels = (size_t)(t->bytes / jmb_panel_bytes(t->type, t->cols)), i;
    float *data = copy_panels(t), *rows = (float *)malloc(PACK_ROWS * jmb_pad64(t->cols) * sizeof *rows);
    uint8_t *panel = (uint8_t *)malloc((size_t)jmb_panel_bytes(type, t->cols));
    pack_report report = { 0, 0 };
    char name[64];
    if (!rows || !panel) tool_die(TOOL, "out of memory for 16 rows of %u weights", t->cols);
    for (i = 0; i < panels; i++) round_panel(data + i * t->cols * PACK_ROWS, t->cols, type, rows, panel, &report);
    if (report.not_finite || report.too_large)
        tool_die(TOOL, "%s: tensor %s holds numbers that %s cannot", s->q.path, jmb_tensor_name(t, name),
            jmb_type_names[type]);
    free(rows);
    free(panel);
    pack_swap_bytes((uint8_t *)data, panels * t->cols * PACK_ROWS, 4);
    t->type = JMB_F32;
    t->data = (const uint8_t *)data;
}

/* Which tensors to round: those of one role, or all; and no further than convert would, or all to one type. */
typedef struct choice {
    const char *name;
    uint32_t role; /* JMB_ROLE_COUNT: all */
    bool as_convert;
} choice;

/* The type to round to; JMB_F32: not at all. Vectors, routers and what else is always f32 never are. */
static uint32_t chosen_type(const score *s, const choice *c, const jmb_tensor *t)
{
    if (jmb_roles[t->role].lowest == JMB_F32 || (c->role != JMB_ROLE_COUNT && c->role != t->role)) return JMB_F32;
    return c->as_convert ? jmb_role_type(t->role, s->ablate) : s->ablate;
}

static uint64_t bytes_as(const jmb_tensor *t, uint32_t type)
{
    return t->bytes / jmb_panel_bytes(t->type, t->cols) * jmb_panel_bytes(type, t->cols);
}

/* Rounds, scores, prints a line and puts the weights back. Nothing when the model has no such tensor. */
static void ablate(score *s, row_sink *q, row_sink *p, size_t context, const choice *c)
{
    jmb_tensor *tensors = s->q.model->metadata.tensors;
    const jmb_tensor *before = s->p.model->metadata.tensors;
    uint32_t count = s->q.model->metadata.header.tensors, i;
    uint64_t weights = 0, bytes = 0, whole = 0;
    for (i = 0; i < count; i++) {
        uint32_t type = chosen_type(s, c, &tensors[i]);
        if (type == JMB_F32) continue;
        weights += (uint64_t)before[i].rows * before[i].cols * (jmb_roles[before[i].role].paired ? 2 : 1);
        bytes += bytes_as(&before[i], type);
        whole += before[i].bytes;
        round_tensor(s, &tensors[i], type);
    }
    s->log_loss = s->divergence = 0;
    s->tokens = s->agreed = 0;
    if (weights > 0) {
        score_texts(s, q, p, context);
        printf("%-10s %12" PRIu64 " %12" PRIu64 " %12" PRId64 " %13.9f %9.6f %11.6f\n", c->name, weights, bytes,
            (int64_t)(whole - bytes), s->divergence / (double)s->tokens, (double)s->agreed / (double)s->tokens,
            exp(s->log_loss / (double)s->tokens));
        fflush(stdout);
    }
    for (i = 0; i < count; i++) {
        if (chosen_type(s, c, &before[i]) == JMB_F32) continue;
        jmb_default_free(NULL, (void *)(uintptr_t)tensors[i].data, 0);
        tensors[i].type = before[i].type;
        tensors[i].data = s->q.model->data + before[i].offset;
    }
}

static void ablate_all(score *s, row_sink *q, row_sink *p, size_t context)
{
    choice c = { NULL, 0, false };
    printf("%-10s %12s %12s %12s %13s %9s %11s\n", "weights", "count", "bytes", "saved", "kl_divergence", "top1",
        "perplexity");
    for (c.role = 0; c.role < JMB_ROLE_COUNT; c.role++) {
        c.name = jmb_roles[c.role].name;
        ablate(s, q, p, context, &c);
    }
    c.name = "all";
    ablate(s, q, p, context, &c);
    c.name = "convert";
    c.as_convert = true;
    ablate(s, q, p, context, &c);
}

static void check_ablatable(const score *s)
{
    const jmb_metadata *m = &s->q.model->metadata;
    for (uint32_t i = 0; i < m->header.tensors; i++)
        if (m->tensors[i].type > JMB_BF16)
            tool_die(TOOL, "%s: is of type %s: --ablate needs a file made with --type f32, f16 or bf16", s->q.path,
                jmb_type_names[m->header.type]);
}

/* ---- the program --------------------------------------------------------------------------- */

static void close_all(score *s, row_sink *q, row_sink *p)
{
    for (size_t i = 0; i < s->text_count; i++) free(s->texts[i].tokens);
    free(s->texts);
    free(q->rows);
    free(p->rows);
    run_close(&s->q);
    run_close(&s->p);
}

int main(int argc, char **argv)
{
    score s;
    row_sink q, p;
    tool_error error;
    uint8_t *bytes;
    size_t size, context;
    (void)argc;
    memset(&s, 0, sizeof s);
    memset(&q, 0, sizeof q);
    memset(&p, 0, sizeof p);
    parse_arguments(&s, argv);
    load_models(&s);
    if (s.ablate) check_ablatable(&s);
    if (!tool_read_stream(stdin, "standard input", SIZE_MAX / 2, &bytes, &size, &error))
        tool_die(TOOL, "%s", error.message);
    split_texts(&s, (const char *)bytes, size);
    free(bytes);
    if (s.longest < 2) tool_die(TOOL, "standard input: holds no text with a token to score");
    context = choose_context(&s);
    create_session(&s.q, &q, context, s.threads);
    if (s.p.model) create_session(&s.p, &p, context, s.threads);
    if (s.ablate) ablate_all(&s, &q, &p, context);
    else score_texts(&s, &q, &p, context);
    if (!s.ablate) print_scores(&s);
    close_all(&s, &q, &p);
    if (fflush(stdout) != 0) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
