/* tools.c - the command lines that are promised: what each tool writes, its exit codes, its messages */
#define SUPPORT_API_ONLY
#include "support.h"

static char model_path[PATH_ROOM], story_path[PATH_ROOM], in_path[PATH_ROOM], out_path[PATH_ROOM];
static char *output; /* of the last tool */
static size_t output_size;
static char errors[4000];

enum { ARGUMENTS = 14 };

/* Runs BUILD/tests' neighbour `tool` with blank separated arguments ("MODEL" and "STORY" stand for the
 * files) and `input`; returns its exit code. */
static int run_tool(const char *tool, const char *line, const void *input, size_t input_size)
{
    const char *argv[ARGUMENTS + 1];
    char copy[1000], *word;
    int count = 0, code;
    snprintf(copy, sizeof copy, "%s", line);
    for (word = strtok(copy, " "); word && count < ARGUMENTS; word = strtok(NULL, " "))
        argv[count++] = strcmp(word, "MODEL") == 0 ? model_path : strcmp(word, "STORY") == 0 ? story_path : word;
    argv[count] = NULL;
    file_write(in_path, input, input_size);
    free(output);
    code = tool_run_with(tool, argv, in_path, out_path, errors, sizeof errors);
    output = (char *)file_need(out_path, &output_size);
    return code;
}

static int run_text(const char *tool, const char *line, const char *input)
{
    return run_tool(tool, line, input, strlen(input));
}

/* One line that names what it should; 2 also shows the usage. */
static void check_failure(const char *tool, const char *line, const char *input, int code, const char *words)
{
    int got = run_text(tool, line, input);
    CHECK_THAT(got == code, "%s %s: exits %d, not %d: %s", tool, line, got, code, errors);
    CHECK_THAT(strstr(errors, words) != NULL, "%s %s: '%s' lacks '%s'", tool, line, errors, words);
    CHECK_THAT(code != 1 || strchr(errors, '\n') == errors + strlen(errors) - 1, "%s %s: more than one line: %s", tool,
        line, errors);
    CHECK_THAT(code != 2 || strstr(errors, "usage:") != NULL, "%s %s: no usage: %s", tool, line, errors);
}

static const char *const all_tools[] = { "logits", "tokenize", "inspect", "bench", "perplexity", "chat",
    "frame_budget", "npc", "bench_sessions" };
enum { ALL_TOOLS = sizeof all_tools / sizeof *all_tools };

static void test_usage(void)
{
    size_t i;
    for (i = 0; i < ALL_TOOLS; i++) {
        check_failure(all_tools[i], "", "", 2, all_tools[i]);
        check_failure(all_tools[i], "MODEL --no-such-option", "", 2, "--no-such-option");
        check_failure(all_tools[i], "MODEL MODEL MODEL", "", 2, all_tools[i]);
        check_failure(all_tools[i], "no/such/model.jamba", "", 1, "no/such/model.jamba");
        check_failure(all_tools[i], "tests", "", 1, "tests");
        check_failure(all_tools[i], "Makefile", "", 1, "Makefile");
    }
}

/* ---- logits -------------------------------------------------------------------------------------- */

static const char ids_text[] = "1 9 33\n127\t0 5 77 64  12 90 1 2 3 4 5 6 7 8\n";
static const int32_t ids[] = { 1, 9, 33, 127, 0, 5, 77, 64, 12, 90, 1, 2, 3, 4, 5, 6, 7, 8 };
enum { IDS = sizeof ids / sizeof ids[0] };

static void test_logits(void)
{
    static const char *const lines[] = { "MODEL", "MODEL --threads 3", "MODEL --cpu scalar", "MODEL --cpu best",
        "MODEL --chunk 5", "MODEL --step", "MODEL --kv f32", "MODEL --chunk 1 --threads 2 --cpu scalar" };
    jamba_model *model = load_for_cpu(model_path, JAMBA_CPU_BEST);
    jamba_session_params params;
    float *want;
    size_t size, i;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    want = model_logits(model, &params, ids, IDS, 0);
    size = IDS * (size_t)model_vocab(model) * sizeof *want;
    for (i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        CHECK_THAT(run_text("logits", lines[i], ids_text) == 0, "%s: %s", lines[i], errors);
        CHECK_THAT(output_size == size && memcmp(output, want, size) == 0, "%s: other bytes", lines[i]);
    }
    free(want);
    params.kv_type = JAMBA_KV_F16;
    want = model_logits(model, &params, ids, IDS, 0);
    CHECK(run_text("logits", "MODEL --kv f16", ids_text) == 0);
    CHECK_THAT(output_size == size && memcmp(output, want, size) == 0, "--kv f16: other bytes");
    free(want);
    params.kv_type = JAMBA_KV_Q8;
    want = model_logits(model, &params, ids, IDS, 0);
    CHECK(run_text("logits", "MODEL --kv q8", ids_text) == 0);
    CHECK_THAT(output_size == size && memcmp(output, want, size) == 0, "--kv q8: other bytes");
    CHECK(run_text("logits", "MODEL", "") == 0 && output_size == 0);
    check_failure("logits", "MODEL", "1 128", 1, "128");
    check_failure("logits", "MODEL", "1 -1", 1, "-1");
    check_failure("logits", "MODEL", "1 x2", 1, "x2");
    check_failure("logits", "MODEL", "1 99999999999999999999", 1, "99999999999999999999");
    check_failure("logits", "MODEL --threads 0", "1", 2, "--threads");
    check_failure("logits", "MODEL --chunk", "1", 2, "--chunk");
    check_failure("logits", "MODEL --cpu pentium", "1", 2, "pentium");
    check_failure("logits", "MODEL --kv q5", "1", 2, "q5");
#if defined(__x86_64__)
    check_failure("logits", "MODEL --cpu neon", "1", 1, model_path);
#endif
    jamba_model_free(model);
    free(want);
}

/* ---- tokenize -------------------------------------------------------------------------------------- */

static void check_tokenize(const jamba_model *model, const char *line, unsigned flags, const char *text, size_t length)
{
    int32_t tokens[200];
    size_t count, i, at = 0;
    jamba_error error;
    CHECK_THAT(jamba_encode(model, text, length, flags, tokens, 200, &count, &error) == JAMBA_OK, "%s", error.message);
    CHECK_THAT(run_tool("tokenize", line, text, length) == 0, "%s: %s", line, errors);
    for (i = 0; i < count; i++) {
        char *end;
        long id = strtol(output + at, &end, 10);
        CHECK_THAT(id == tokens[i] && end > output + at, "%s: token %zu is %ld, not %d", line, i, id, (int)tokens[i]);
        at = (size_t)(end - output);
    }
    CHECK_THAT(strspn(output + at, " \n") == output_size - at, "%s: more than %zu ids", line, count);
}

static void test_tokenize(void)
{
    static const char text[] = "Once upon\0 a time,\r\n there was caf\xc3\xa9 <|im_end|> 123\n";
    jamba_model *model = load_for_cpu(story_path, JAMBA_CPU_BEST);
    check_tokenize(model, "STORY", 0, text, sizeof text - 1);
    check_tokenize(model, "STORY --bos", JAMBA_TEXT_BOS, text, sizeof text - 1);
    check_tokenize(model, "STORY --special", JAMBA_TEXT_SPECIAL, text, sizeof text - 1);
    check_tokenize(model, "STORY --special --bos", JAMBA_TEXT_SPECIAL | JAMBA_TEXT_BOS, text, sizeof text - 1);
    CHECK(run_text("tokenize", "STORY", "") == 0 && output_size == 0);
    check_failure("tokenize", "STORY", "ab\xff", 1, "UTF-8");
    check_failure("tokenize", "MODEL", "ab", 1, "tokenizer");
    check_failure("tokenize", "STORY --decode", "5 9999", 1, "9999");
    check_failure("tokenize", "STORY --decode", "5 five", 1, "five");
    jamba_model_free(model);
}

static void test_detokenize(void)
{
    static const char text[] = "Hello! How\nare you? caf\xc3\xa9 \xf0\x9f\x98\x80 42\n";
    char *tokens;
    CHECK(run_text("tokenize", "STORY", text) == 0);
    tokens = output;
    output = NULL;
    CHECK(run_text("tokenize", "STORY --decode", tokens) == 0);
    CHECK_THAT(output_size == sizeof text - 1 && memcmp(output, text, output_size) == 0, "decoded as '%s'", output);
    free(tokens);
    CHECK(run_text("tokenize", "STORY --decode --special", "4 5") == 0);
    CHECK_THAT(strstr(output, "<|im_start|><|im_end|>") == output, "'%s'", output);
    CHECK(run_text("tokenize", "STORY --decode", "") == 0 && output_size == 0);
}

/* ---- inspect and dry runs ---------------------------------------------------------------------------- */

/* The integer of a line "key: integer"; -1 when there is none. */
static long long listed(const char *key)
{
    char start[80];
    const char *at;
    snprintf(start, sizeof start, "%s: ", key);
    at = strncmp(output, start, strlen(start)) == 0 ? output : NULL;
    if (!at) {
        snprintf(start, sizeof start, "\n%s: ", key);
        at = strstr(output, start);
    }
    return at ? strtoll(at + strlen(start), NULL, 10) : -1;
}

static void check_listed(const char *key, uint64_t want)
{
    CHECK_THAT(listed(key) == (long long)want, "%s: %lld, not %lld", key, listed(key), (long long)want);
}

static void check_listing(const jamba_model *model, const char *path)
{
    jamba_model_info info;
    struct stat file;
    jamba_model_describe(model, &info);
    CHECK(stat(path, &file) == 0);
    check_listed("file_bytes", (uint64_t)file.st_size);
    check_listed("parameters", info.parameters);
    check_listed("parameters_active", info.parameters_active);
    check_listed("kv_bytes_per_token", info.kv_bytes_per_token);
    check_listed("state_bytes", info.state_bytes);
    CHECK(listed("tensors") > 10);
    CHECK(strstr(output, "attention") && strstr(output, "kv_heads"));
}

static void test_inspect(void)
{
    jamba_model *story = load_for_cpu(story_path, JAMBA_CPU_BEST);
    const char *line;
    size_t size, lines = 0;
    uint8_t *file;
    CHECK(run_text("inspect", "STORY", "") == 0);
    check_listing(story, story_path);
    CHECK(run_text("inspect", "STORY --verify", "") == 0);
    CHECK(run_text("inspect", "STORY --tensors", "") == 0);
    for (line = output; (line = strchr(line, '\n')) != NULL; line++) lines++;
    CHECK_THAT(lines > (size_t)listed("tensors"), "%zu lines", lines);
    file = file_need(story_path, &size);
    file[size - 1000] ^= 4;
    file_write(out_path, file, size);
    free(file);
    {
        char damaged[PATH_ROOM], arguments[PATH_ROOM + 20];
        CHECK(rename(out_path, temp_path(damaged, "damaged.jamba")) == 0);
        snprintf(arguments, sizeof arguments, "%s --verify", damaged);
        check_failure("inspect", arguments, "", 1, "damaged");
        CHECK(run_text("inspect", damaged, "") == 0);
        remove(damaged);
    }
    CHECK(run_text("convert", "examples/storyteller --dry-run --type q8", "") == 0);
    check_listing(story, story_path);
    jamba_model_free(story);
}

/* ---- bench, perplexity, chat --------------------------------------------------------------------------- */

/* The number of "key":number in a line of output; -1 when there is none. */
static double json_number(const char *line, const char *key)
{
    char start[60];
    const char *at;
    snprintf(start, sizeof start, "\"%s\":", key);
    at = strstr(line, start);
    return at ? atof(at + strlen(start)) : -1;
}

/* Runs bench with --json; every object must have what is promised. Returns how many there are, in lines[]. */
static int bench_lines(const char *arguments, char *lines[], int capacity)
{
    static const char *const strings[] = { "\"cpu\":\"", "\"isa\":\"", "\"file\":\"", "\"type\":\"" };
    static const char *const numbers[] = { "threads", "load_ms", "read_1_gb_per_s", "read_4_gb_per_s", "file_bytes",
        "state_bytes", "kv_bytes", "scratch_bytes", "context", "batch", "repeats", "tokens", "min", "max" };
    int count = 0;
    size_t i;
    CHECK_THAT(run_text("bench", arguments, "") == 0, "%s: %s", arguments, errors);
    for (char *line = strtok(output, "\n"); line && count < capacity; line = strtok(NULL, "\n")) {
        double prompt = json_number(line, "prompt_tokens_per_s"), decode = json_number(line, "decode_tokens_per_s");
        double rate = prompt > decode ? prompt : decode;
        CHECK_THAT(line[0] == '{' && line[strlen(line) - 1] == '}', "'%s'", line);
        CHECK_THAT(rate > 0 && (prompt < 0) != (decode < 0), "'%s'", line);
        CHECK_THAT(json_number(line, "min") <= rate && rate <= json_number(line, "max"), "'%s'", line);
        CHECK_THAT(json_number(line, "read_4_gb_per_s") > 0, "'%s'", line);
        for (i = 0; i < 4; i++) CHECK_THAT(strstr(line, strings[i]) != NULL, "no %s in '%s'", strings[i], line);
        for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
            CHECK_THAT(json_number(line, numbers[i]) >= 0, "no %s in '%s'", numbers[i], line);
        lines[count++] = line;
    }
    return count;
}

static void check_number(const char *line, const char *key, double want)
{
    CHECK_THAT(json_number(line, key) == want, "%s is %g, not %g, in '%s'", key, json_number(line, key), want, line);
}

static void test_bench(void)
{
    char *lines[8];
    CHECK(bench_lines("STORY -p 8 -n 4 -r 1 -t 1 --json", lines, 8) == 2);
    check_number(lines[0], "context", 0);
    check_number(lines[0], "tokens", 8);
    check_number(lines[1], "tokens", 4);
    CHECK_THAT(json_number(lines[1], "decode_fraction") > 0, "'%s'", lines[1]);
    /* A fraction for the prompt where the int8 operations were measured and the weights are integers. */
    CHECK_THAT((json_number(lines[0], "prompt_fraction") > 0) == (json_number(lines[0], "int8_gop_per_s") > 0), "'%s'",
        lines[0]);
    CHECK_THAT(json_number(lines[0], "int8_gop_per_s") > 0 || strstr(lines[0], "\"isa\":\"scalar\"") ||
            strstr(lines[0], "\"isa\":\"wasm-simd\""), "'%s'", lines[0]);
    CHECK_THAT(run_text("bench", "MODEL -p 3 -n 2 -r 1 -t 2 --context 20", "") == 0 && output_size > 0, "%s", errors);
    CHECK(strstr(output, "context  20 tokens") && strstr(output, "read ") && strstr(output, "load "));
    CHECK(bench_lines("MODEL -p 3 -n 0 -r 3 --json", lines, 8) == 1);
    check_number(lines[0], "repeats", 3);
    check_number(lines[0], "prompt_fraction", -1); /* f32 weights */
}

/* Depths that are not computed, more than the model was trained for among them; batches of sessions. */
static void test_bench_depths(void)
{
    static const double depths[] = { 0, 300, 9000 };
    char *lines[8];
    int i;
    CHECK(bench_lines("STORY -p 5 -n 3 -r 1 -t 2 --context 0,300,9000 --kv f32 --json", lines, 8) == 6);
    for (i = 0; i < 6; i++) check_number(lines[i], "context", depths[i / 2]);
    CHECK(json_number(lines[4], "kv_bytes") > 20 * json_number(lines[2], "kv_bytes") / 2);
    CHECK(json_number(lines[4], "state_bytes") == json_number(lines[0], "state_bytes"));
    CHECK(bench_lines("STORY -p 0 -n 2 -r 1 --context 40,500 --batch 3 --kv q8 --json", lines, 8) == 4);
    check_number(lines[0], "batch", 1);
    for (i = 1; i < 4; i += 2) {
        check_number(lines[i], "batch", 3);
        CHECK_THAT(json_number(lines[i], "ratio_to_one") > 0, "'%s'", lines[i]);
    }
}

static void test_bench_usage(void)
{
    static const char *const wrong[][2] = { { "-p x", "-p" }, { "-n -1", "-n" }, { "-r 0", "-r" }, { "-t 0", "-t" },
        { "-p 0 -n 0", "-n 0" }, { "--context", "--context" }, { "--context -5", "--context" },
        { "--context 5,", "--context" }, { "--context ,5", "--context" }, { "--context 5,x", "--context" },
        { "--context 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "--context" }, { "--batch 0", "--batch" },
        { "--batch 2 -n 0", "--batch" }, { "--kv f64", "f64" } };
    char line[100];
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        snprintf(line, sizeof line, "MODEL %s", wrong[i][0]);
        check_failure("bench", line, "", 2, wrong[i][1]);
    }
    check_failure("bench", "MODEL --context 16777216", "", 1, model_path);
}

static void test_perplexity(void)
{
    static const char text[] = "Once upon a time there was a dog.\n<|endoftext|>\nThe dog had a boat.\n";
    CHECK_THAT(run_text("perplexity", "STORY", text) == 0, "%s", errors);
    CHECK(strstr(output, "perplexity: ") && listed("texts") == 2 && listed("tokens") > 8);
    CHECK_THAT(run_text("perplexity", "STORY --against STORY", text) == 0, "%s", errors);
    CHECK_THAT(strstr(output, "perplexity: ") != NULL, "%s", output);
    check_failure("perplexity", "MODEL", text, 1, "tokenizer");
    check_failure("perplexity", "STORY --against MODEL", text, 1, model_path);
}

/* A line of --ablate without its name and sizes, "" when there is none. */
static const char *ablated(const char *name, char line[200])
{
    const char *at = output;
    size_t length = strlen(name);
    while (at && (strncmp(at, name, length) != 0 || at[length] != ' ')) {
        at = strchr(at, '\n');
        if (at) at++;
    }
    if (!at || sscanf(at, "%*s %*s %*s %*s %199[^\n]", line) != 1) line[0] = 0;
    return line;
}

/* The storyteller's weights are bf16: rounding to it changes nothing, rounding to q8 is what q8 files hold. */
static void test_ablate(void)
{
    static const char text[] = "Once upon a time there was a dog.\n<|endoftext|>\nThe dog had a boat.\n";
    char path[PATH_ROOM], bf16[2 * PATH_ROOM], q8[2 * PATH_ROOM], line[200], other[200];
    if (!CHECK(convert("examples/storyteller", "storyteller", "bf16", path))) return;
    snprintf(bf16, sizeof bf16, "%s --ablate bf16", path);
    snprintf(q8, sizeof q8, "%s --ablate q8 -t 1", path);
    CHECK_THAT(run_text("perplexity", bf16, text) == 0, "%s", errors);
    CHECK_THAT(strncmp(ablated("embed", line), "0.000000000  1.000000 ", 22) == 0, "embed '%s'", line);
    CHECK_THAT(strncmp(ablated("all", line), "0.000000000  1.000000 ", 22) == 0, "all '%s'", line);
    CHECK_THAT(run_text("perplexity", q8, text) == 0, "%s", errors);
    CHECK_THAT(atof(ablated("gate_up", line)) > 0 && atof(ablated("embed", line)) > 0, "%s", output);
    CHECK_THAT(strcmp(ablated("all", line), ablated("convert", other)) == 0, "'%s', '%s'", line, other);
    CHECK_THAT(atof(line) > atof(ablated("gate_up", other)), "'%s', gate_up alone '%s'", line, other);
    check_failure("perplexity", bf16, "", 1, "no text");
    CHECK_THAT(output_size == 0, "%s", output);
    check_failure("perplexity", "STORY --ablate q4", text, 1, "bf16");
    check_failure("perplexity", "STORY --ablate q5", text, 2, "q5");
    check_failure("perplexity", "STORY --ablate q4 --against STORY", text, 2, "--ablate");
}

/* The output is one line three times. */
static void check_three_lines(void)
{
    size_t length = strcspn(output, "\n") + 1;
    CHECK_THAT(length > 2 && output_size == 3 * length && memcmp(output, output + length, length) == 0
        && memcmp(output, output + 2 * length, length) == 0, "'%s'", output);
}

static void test_chat(void)
{
    CHECK_THAT(run_text("chat", "STORY -p Hello! -n 12 --temp 0", "") == 0, "%s", errors);
    CHECK_THAT(output_size > 3, "the reply is '%s'", output);
    CHECK(run_text("chat", "STORY -n 6 --temp 0", "Hello!\n/reset\nHow are you?\n/quit\nignored\n") == 0);
    CHECK(output_size > 0);
    CHECK(run_text("chat", "STORY -n 20 --temp 0", "Hello!\n/retry\n/undo\nHello!\n/undo\n/undo\n/retry\n") == 0);
    check_three_lines();
    CHECK_THAT(strstr(errors, "nothing to forget") && strstr(errors, "nothing to answer"), "%s", errors);
    CHECK(run_text("chat", "STORY -n 40 --temp 0 -c 60 -s Short.", "Hello!\nYes?\nAnd then?\nWhat?\nWhy?\n") == 0);
    CHECK_THAT(strstr(errors, "the context is full") && strstr(errors, "are read again"), "%s", errors);
    CHECK_THAT(!strstr(errors, "the reply ends here"), "%s", errors);
    check_failure("chat", "STORY -c 8 -p Hello!", "", 1, "-c");
    check_failure("chat", "MODEL -p Hello!", "", 1, "tokenizer");
    check_failure("chat", "STORY -p \xff", "", 1, "UTF-8");
    check_failure("chat", "STORY -p Hello! --temp -1", "", 2, "--temp");
}

/* The output of chat; free it. */
static char *chat_reply(const char *options, const char *input)
{
    char line[4 * PATH_ROOM];
    snprintf(line, sizeof line, "STORY -n 9 %s", options);
    CHECK_THAT(run_text("chat", line, input) == 0, "chat %s: %s", options, errors);
    CHECK_THAT(output_size > 3, "chat %s: the reply is '%s'", options, output);
    return strdup(output);
}

/* The last reply of a kept conversation can be written anew without reading anything again. */
static void check_kept_marks(const char *kept)
{
    jamba_model *model = load_for_cpu(story_path, JAMBA_CPU_BEST);
    jamba_session_params params;
    jamba_session *session;
    jamba_turn turns[8];
    size_t count;
    int32_t replay = -1;
    memset(&params, 0, sizeof params);
    params.context = 200;
    params.marks = 3;
    test_require(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK, "no session", kept);
    CHECK(jamba_session_load(session, jamba_from_file(kept)) == JAMBA_OK);
    count = jamba_turns(session, turns, 8);
    CHECK(count > 0 && count <= 8 && turns[count - 1].kind == JAMBA_TURN_REPLY);
    CHECK(jamba_session_rewind(session, turns[count - 1].position, &replay) == JAMBA_OK);
    CHECK_THAT(replay == 0, "%d tokens are read again", (int)replay);
    jamba_session_free(session);
    jamba_model_free(model);
}

/* A conversation kept in a file goes on with the same words, sampled ones too. */
static void test_chat_kept(void)
{
    static const char first[] = "Tell me a story about a dog.\n", second[] = "What is its name?\n";
    char kept[PATH_ROOM], options[2 * PATH_ROOM], input[2 * PATH_ROOM];
    char *whole, *before, *after, *inside;
    remove(temp_path(kept, "kept.state"));
    snprintf(input, sizeof input, "%s%s", first, second);
    whole = chat_reply("--seed 7", input);
    snprintf(input, sizeof input, "%s/save %s\n", first, kept);
    before = chat_reply("--seed 7", input);
    check_kept_marks(kept);
    snprintf(options, sizeof options, "--load %s", kept);
    after = chat_reply(options, second);
    snprintf(input, sizeof input, "Hello!\n/load %s\n%s", kept, second);
    inside = chat_reply("", input);
    CHECK_THAT(strlen(whole) == strlen(before) + strlen(after) && strncmp(whole, before, strlen(before)) == 0
        && strcmp(whole + strlen(before), after) == 0, "'%s' then '%s', not '%s'", before, after, whole);
    CHECK_THAT(strlen(inside) > strlen(after) && strcmp(inside + strlen(inside) - strlen(after), after) == 0,
        "'%s' does not end with '%s'", inside, after);
    snprintf(input, sizeof input, "/save %s\n/load no/such/file\n/load Makefile\n", kept);
    CHECK(run_text("chat", "STORY", input) == 0);
    CHECK_THAT(strstr(errors, "exists\n") && !strstr(errors, "--force") && strstr(errors, "no/such/file: ")
        && strstr(errors, "Makefile: not a saved"), "%s", errors);
    snprintf(options, sizeof options, "STORY -s Hello! --load %s", kept);
    check_failure("chat", options, "", 2, "-s");
    check_failure("chat", "STORY --load no/such/file -p Hello!", "", 1, "no/such/file");
    free(whole);
    free(before);
    free(after);
    free(inside);
}

/* Starting from a baked system message is starting with that message. */
static void test_bake(void)
{
    static const char system[] = "You are a dog.";
    char text[PATH_ROOM], out[PATH_ROOM], line[4 * PATH_ROOM], *plain, *baked;
    const char *argv[] = { story_path, "-s", system, "-p", "Who are you?", "-n", "9", "--temp", "0", NULL };
    size_t exact, compact;
    file_write(temp_path(text, "prompt.txt"), "You are a dog.\n", 15);
    remove(temp_path(out, "baked.state"));
    snprintf(line, sizeof line, "STORY %s %s --system", text, out);
    CHECK_THAT(run_text("bake", line, "") == 0 && output_size == 0 && strstr(errors, " tokens, "), "%s", errors);
    free(file_need(out, &exact));
    check_failure("bake", line, "", 1, "--force");
    CHECK(tool_run_with("chat", argv, "/dev/null", out_path, errors, sizeof errors) == 0);
    plain = (char *)file_need(out_path, &output_size);
    snprintf(line, sizeof line, "--temp 0 --load %s", out);
    baked = chat_reply(line, "Who are you?\n");
    CHECK_THAT(strcmp(plain, baked) == 0, "'%s', not '%s'", baked, plain);
    snprintf(line, sizeof line, "STORY %s %s --state q8 --kv q8 --kv-type f32 -t 2 --force", text, out);
    CHECK_THAT(run_text("bake", line, "") == 0, "%s", errors);
    free(file_need(out, &compact));
    CHECK(compact < exact / 2);
    free(plain);
    free(baked);
}

static void test_bake_refusals(void)
{
    static const char *const wrong[] = { "--state f32", "--kv", "--kv exactly", "--kv-type exact", "-t 0", "four" };
    char text[PATH_ROOM], out[PATH_ROOM], line[4 * PATH_ROOM];
    size_t i;
    file_write(temp_path(text, "prompt.txt"), "Once", 4);
    remove(temp_path(out, "refused.state"));
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        snprintf(line, sizeof line, "STORY %s %s %s", text, out, wrong[i]);
        check_failure("bake", line, "", 2, "bake");
    }
    snprintf(line, sizeof line, "MODEL %s %s", text, out);
    check_failure("bake", line, "", 1, "tokenizer");
    snprintf(line, sizeof line, "MODEL %s %s --system", text, out);
    check_failure("bake", line, "", 1, "--system");
    check_failure("bake", "", "", 2, "bake");
    check_failure("bake", "MODEL x", "", 2, "needs a model");
    check_failure("bake", "MODEL x y --no-such-option", "", 2, "--no-such-option");
    check_failure("bake", "no/such/model.jamba x no/such/out", "", 1, "no/such/model.jamba");
    snprintf(line, sizeof line, "STORY %s %s --force", text, text);
    check_failure("bake", line, "", 1, "prompt.txt: is part of the input");
    snprintf(line, sizeof line, "STORY %s STORY --force", text);
    check_failure("bake", line, "", 1, "is part of the input");
    snprintf(line, sizeof line, "STORY no/such/text %s", out);
    check_failure("bake", line, "", 1, "no/such/text");
    snprintf(line, sizeof line, "STORY %s tests --force", text);
    check_failure("bake", line, "", 1, "tests");
    snprintf(line, sizeof line, "STORY %s no/such/folder/x", text);
    check_failure("bake", line, "", 1, "no/such/folder/x");
    file_write(text, "\n", 1);
    snprintf(line, sizeof line, "STORY %s %s", text, out);
    check_failure("bake", line, "", 1, "no text");
    file_write(text, "a\0b", 3);
    check_failure("bake", line, "", 1, "zero byte");
    file_write(text, "a\xff", 2);
    check_failure("bake", line, "", 1, "UTF-8");
    CHECK_THAT(!file_exists(out), "%s was left behind", out);
}

/* The number after `name` in the output. */
static double number_after(const char *name)
{
    const char *at = strstr(output, name);
    return at ? atof(at + strlen(name)) : -1;
}

/* What is printed; figures but for times. */
static void test_bench_sessions(void)
{
    static const char *const keys[] = { "prompt", "threads", "bytes_exact", "bytes_f16", "bytes_q8", "fork_bytes",
        "state_bytes", "read_ms", "mark_ms", "rewind_ms", "fork_ms", "save_ms", "restore_ms", "load_ms", "save_q8_ms",
        "restore_q8_ms" };
    static const char *const labels[] = { "cpu ", "file ", "prompt   20 tokens, 1 thread\n", "values exact\n",
        "values f16\n", "values q8\n", "fork  ", "read the prompt", "rewind to a mark", "start from a file",
        "restore, q8" };
    CHECK_THAT(run_text("bench_sessions", "STORY -p 20 -r 2 -t 1 --json", "") == 0, "%s", errors);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        CHECK_THAT(json_number(output, keys[i]) >= 0, "no %s in '%s'", keys[i], output);
    CHECK(json_number(output, "bytes_exact") > json_number(output, "bytes_f16"));
    CHECK(json_number(output, "bytes_f16") > json_number(output, "bytes_q8"));
    CHECK_THAT(run_text("bench_sessions", "STORY -p 20 -r 1 -t 1 --kv q8", "") == 0, "%s", errors);
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++)
        CHECK_THAT(strstr(output, labels[i]) != NULL, "no '%s' in '%s'", labels[i], output);
    check_failure("bench_sessions", "STORY -p 0", "", 2, "-p");
    check_failure("bench_sessions", "STORY -r 101", "", 2, "-r");
    check_failure("bench_sessions", "STORY --kv exact", "", 2, "exact");
}

/* How long anything takes is not tested: the frames are so long that each ends with its work. */
static void test_frame_budget(void)
{
    CHECK_THAT(run_text("frame_budget", "STORY --budget 60000000 --frames 50 -p 20", "") == 0, "%s", errors);
    CHECK_THAT(number_after("reading ") > 0 && number_after("writing ") > 0, "%s", output);
    CHECK_THAT(strstr(output, "50 frames of 60000.000 ms") && strstr(output, "p99"), "%s", output);
    CHECK_THAT(run_text("frame_budget", "STORY --budget 1 --frames 30 -t 2", "") == 0, "%s", errors);
    check_failure("frame_budget", "STORY --budget 0", "", 2, "--budget");
    check_failure("frame_budget", "STORY --frames x", "", 2, "--frames");
    check_failure("frame_budget", "STORY -t", "", 2, "-t");
}

/* ---- examples ------------------------------------------------------------------------------------------ */

/* Failures after the model is there would leak, as nothing is freed on the way out. */
static void test_minimal(void)
{
    check_failure("minimal", "", "", 2, "minimal");
    check_failure("minimal", "no/such/model.jamba Once", "", 1, "no/such/model.jamba");
    CHECK_THAT(run_text("minimal", "STORY Once", "") == 0, "%s", errors);
    CHECK_THAT(strncmp(output, "Once upon a time", 16) == 0 && output_size > 100, "'%s'", output);
}

/* The length of the reply behind a title; 0 when there is none. */
static size_t reply_after(const char *title)
{
    const char *at = strstr(output, title), *next;
    if (!at) return 0;
    at += strlen(title);
    next = strstr(at, "\n---");
    return next ? (size_t)(next - at) : strlen(at);
}

static void test_cpp(void)
{
    check_failure("cpp", "", "", 2, "cpp");
    check_failure("cpp", "no/such/model.jamba Once", "", 1, "no/such/model.jamba");
    check_failure("cpp", "STORY \xff", "", 1, "UTF-8");
    check_failure("cpp", "MODEL Once", "", 1, "tokenizer");
    CHECK_THAT(run_text("cpp", "STORY Hello!", "") == 0, "%s", errors);
    CHECK_THAT(strncmp(output, "--- which action does she take? I ", 34) == 0, "'%s'", output);
    CHECK_THAT(reply_after("--- one reply\n") > 2 && reply_after("--- another, from a fork\n") > 2
            && reply_after("--- a third, gone back; tokens to read again: 0\n") > 2, "'%s'", output);
}

/* What a town said, in order of the lines' text, without the frames in which they ended. */
typedef struct dialogue {
    char *text; /* of the lines */
    size_t size, count;
    char *lines[1000];
} dialogue;

static int compare_lines(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Runs npc with blank separated arguments, and adds what it prints. */
static void town_play(dialogue *d, const char *arguments)
{
    char line[1000];
    snprintf(line, sizeof line, "STORY %s", arguments);
    CHECK_THAT(run_text("npc", line, "") == 0, "npc %s: %s", arguments, errors);
    d->text = (char *)realloc(d->text, d->size + output_size + 1);
    test_require(d->text != NULL, "out of memory", "");
    memcpy(d->text + d->size, output, output_size + 1);
    d->size += output_size;
}

static void dialogue_sort(dialogue *d)
{
    for (char *line = strtok(d->text, "\n"); line && d->count < 1000; line = strtok(NULL, "\n"))
        d->lines[d->count++] = line + strspn(line, " 0123456789");
    qsort(d->lines, d->count, sizeof *d->lines, compare_lines);
}

/* Both were played; frees `got`. */
static void check_dialogue(dialogue *got, const dialogue *want, const char *what)
{
    dialogue_sort(got);
    CHECK_THAT(got->count == want->count, "%s: %zu lines, not %zu", what, got->count, want->count);
    for (size_t i = 0; i < got->count && i < want->count; i++)
        CHECK_THAT(strcmp(got->lines[i], want->lines[i]) == 0, "%s: '%s', not '%s'", what, got->lines[i],
            want->lines[i]);
    free(got->text);
    memset(got, 0, sizeof *got);
}

static size_t lines_ending(const dialogue *d, const char *end)
{
    size_t count = 0, i;
    for (i = 0; i < d->count; i++) {
        size_t length = strlen(d->lines[i]);
        count += length > strlen(end) && strcmp(d->lines[i] + length - strlen(end), end) == 0;
    }
    return count;
}

/* Plays the same town in several ways; `d` is for what each says, `want` what it must be. */
static void check_town(const char *options, const char *saved)
{
    static dialogue want, d;
    char line[2 * PATH_ROOM];
    memset(&want, 0, sizeof want);
    memset(&d, 0, sizeof d);
    snprintf(line, sizeof line, "%s --frames 90 --simulate 20", options);
    town_play(&want, line);
    dialogue_sort(&want);
    CHECK_THAT(want.count == 45 && strstr(want.lines[0], "[") && strstr(want.lines[44], "] "), "%zu lines", want.count);
    snprintf(line, sizeof line, "%s --frames 90 --simulate 150 --budget 100", options);
    town_play(&d, line);
    check_dialogue(&d, &want, "another budget");
    snprintf(line, sizeof line, "%s --frames 41 --simulate 20 --save %s", options, saved);
    town_play(&d, line);
    CHECK_THAT(d.size < want.size, "all was said before it was saved");
    snprintf(line, sizeof line, "--load %s --every 2 --frames 49 --simulate 30", saved);
    town_play(&d, line);
    check_dialogue(&d, &want, "saved and loaded");
    free(want.text);
}

/* Interrupted at places that depend on the clock; a replay with another one says the same. */
static void check_replay(const char *log)
{
    static dialogue want, d;
    char line[2 * PATH_ROOM];
    memset(&want, 0, sizeof want);
    memset(&d, 0, sizeof d);
    snprintf(line, sizeof line, "--characters 40 --every 2 --bell 30 --frames 90 --simulate 1 --record %s", log);
    town_play(&want, line);
    dialogue_sort(&want);
    CHECK_THAT(lines_ending(&want, " --") > 3 && lines_ending(&want, ".") > 3, "%zu lines of %zu broken off",
        lines_ending(&want, " --"), want.count);
    snprintf(line, sizeof line, "--replay %s --simulate 40 --budget 700", log);
    town_play(&d, line);
    check_dialogue(&d, &want, "replay");
    free(want.text);
}

enum { TOWN_HEAD = 36 }; /* bytes before the first session */

/* Every byte of the head, and samples of the rest; cut off, and longer. */
static void check_damaged_town(const char *saved)
{
    char damaged[PATH_ROOM], line[PATH_ROOM + 20];
    size_t size, at;
    uint8_t *file = file_need(saved, &size), *longer = (uint8_t *)calloc(1, size + 8);
    const size_t sizes[] = { 0, 7, 8, 15, 16, TOWN_HEAD, size / 2, size / 2 / 8 * 8, size - 8, size - 1 };
    test_require(longer != NULL, "out of memory", "");
    snprintf(line, sizeof line, "STORY --load %s", temp_path(damaged, "damaged.town"));
    for (at = 0; at < size; at += at < TOWN_HEAD ? 1 : size / 17) {
        file[at] ^= (uint8_t)(1 << at % 8);
        file_write(damaged, file, size);
        check_failure("npc", line, "", 1, "damaged.town: is damaged");
        file[at] ^= (uint8_t)(1 << at % 8);
    }
    for (at = 0; at < sizeof sizes / sizeof *sizes; at++) {
        file_write(damaged, file, sizes[at]);
        check_failure("npc", line, "", 1, "damaged.town: is damaged");
    }
    memcpy(longer, file, size);
    for (at = 1; at <= 8; at += 7) {
        file_write(damaged, longer, size + at);
        check_failure("npc", line, "", 1, "damaged.town: is damaged");
    }
    free(longer);
    free(file);
    check_failure("npc", "STORY --load Makefile", "", 1, "Makefile");
    check_failure("npc", "STORY --replay Makefile", "", 1, "Makefile");
    check_failure("npc", "STORY --frames 1 --save no/such/folder", "", 1, "no/such/folder");
    check_failure("npc", "STORY --record no/such/folder", "", 1, "no/such/folder");
    check_failure("npc", "STORY --load x --characters 3", "", 2, "--characters");
    check_failure("npc", "STORY --load x --record y", "", 2, "--record");
    check_failure("npc", "STORY --budget 0", "", 2, "--budget");
    check_failure("npc", "MODEL", "", 1, "tokenizer");
    remove(damaged);
}

/* A log whose places are not those of this model. */
static void check_foreign_log(const char *log)
{
    static const char text[] = "12 characters, seed 1\n3 5 hears Hello!\n";
    char line[PATH_ROOM + 20];
    snprintf(line, sizeof line, "STORY --replay %s", log);
    file_write(log, text, sizeof text - 1);
    check_failure("npc", line, "", 1, "not at 5");
}

/* What is heard may come from a stranger's log: the terminal gets no control characters of it. */
static void check_log_with_controls(const char *log)
{
    char line[PATH_ROOM + 80], *heard;
    size_t size;
    uint8_t *file;
    snprintf(line, sizeof line, "STORY --characters 1 --frames 1 --simulate 20 --record %s", log);
    CHECK_THAT(run_text("npc", line, "") == 0, "%s", errors);
    file = file_need(log, &size);
    heard = strstr((char *)file, "hears ");
    test_require(heard && strlen(heard) > 12, "no event in", log);
    memcpy(heard + 6, "\x1b[\xc2\x9b\x7f", 5);
    file_write(log, file, size);
    snprintf(line, sizeof line, "STORY --simulate 20 --replay %s", log);
    CHECK_THAT(run_text("npc", line, "") == 0, "%s", errors);
    CHECK_THAT(strstr(output, "[?[???") && !strpbrk(output, "\x1b\x7f") && !strstr(output, "\xc2\x9b"), "%s", output);
    free(file);
}

static void test_npc(void)
{
    char saved[PATH_ROOM], log[PATH_ROOM];
    temp_path(saved, "town");
    temp_path(log, "log");
    check_town("--characters 40 --every 2", saved);
    check_town("--characters 2 --every 2 --seed 7", saved); /* who forget, as they run out of room */
    check_replay(log);
    check_damaged_town(saved);
    check_foreign_log(log);
    check_log_with_controls(log);
    remove(saved);
}

/* The shipped character, in a chat and in the town; a town that was saved with it needs it again. */
static void test_lora(void)
{
    char lora[PATH_ROOM], saved[PATH_ROOM], line[4 * PATH_ROOM], *plain;
    snprintf(line, sizeof line, "examples/characters/pirate %s --base STORY --type f16 --force",
        temp_path(lora, "lora"));
    CHECK_THAT(run_text("convert", line, "") == 0, "%s", errors);
    snprintf(line, sizeof line, "STORY --temp 0 -p Hello! --lora %s:0", lora);
    CHECK_THAT(run_text("chat", line, "") == 0, "%s", errors);
    plain = strdup(output);
    CHECK(run_text("chat", "STORY --temp 0 -p Hello!", "") == 0 && strcmp(plain, output) == 0);
    snprintf(line, sizeof line, "STORY --temp 0 -p Hello! --lora %s", lora);
    CHECK(run_text("chat", line, "") == 0 && strcmp(plain, output) != 0);
    free(plain);
    check_failure("chat", "STORY --lora", "", 2, "--lora");
    check_failure("chat", "STORY --lora Makefile:x -p Hello!", "", 2, "--lora");
    check_failure("chat", "STORY --lora Makefile -p Hello!", "", 1, "Makefile");
    snprintf(line, sizeof line, "MODEL --lora %s", lora);
    check_failure("npc", line, "", 1, "another model");
    snprintf(line, sizeof line, "STORY --frames 60 --simulate 200 --lora %s --save %s", lora, temp_path(saved, "town"));
    remove(saved);
    CHECK_THAT(run_text("npc", line, "") == 0, "%s", errors);
    snprintf(line, sizeof line, "STORY --simulate 200 --load %s", saved);
    check_failure("npc", line, "", 1, "adapters");
    snprintf(line, sizeof line, "STORY --frames 80 --simulate 200 --load %s --lora %s", saved, lora);
    CHECK_THAT(run_text("npc", line, "") == 0, "%s", errors);
    remove(saved);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "wrong usage and no models", test_usage },
        { "logits", test_logits },
        { "tokenize", test_tokenize },
        { "tokenize --decode", test_detokenize },
        { "inspect and convert --dry-run", test_inspect },
        { "bench", test_bench },
        { "bench --context and --batch", test_bench_depths },
        { "bench: wrong usage", test_bench_usage },
        { "perplexity", test_perplexity },
        { "perplexity --ablate", test_ablate },
        { "chat", test_chat },
        { "chat: /save, /load and --load", test_chat_kept },
        { "bake", test_bake },
        { "bake: what is refused", test_bake_refusals },
        { "bench_sessions", test_bench_sessions },
        { "frame_budget", test_frame_budget },
        { "examples/minimal", test_minimal },
        { "examples/npc", test_npc },
        { "adapters in chat and npc", test_lora },
    };
    test_start(argc, argv);
    if (!test_state.list) {
        test_require(convert("tests/cases/llama-linear", "llama-linear", "f32", model_path), "convert", "llama-linear");
        test_require(convert("examples/storyteller", "storyteller", "q8", story_path), "convert", "storyteller");
        temp_path(in_path, "in");
        temp_path(out_path, "out");
    }
    test_run(tests, sizeof tests / sizeof tests[0]);
    if (test_begin("examples/cpp")) {
        char path[PATH_ROOM];
        snprintf(path, sizeof path, "%s/cpp", test_state.build);
        if (file_exists(path)) {
            test_cpp();
            test_end();
        } else test_skip("there was no C++ compiler to build it");
    }
    free(output);
    return test_summary();
}
