/* shapes.c - the released checkpoints by their shapes: the converter reads a folder of each, without its weights
 *
 * A folder has the config and real safetensors headers, in shards of 5 GB where it is larger; the data are
 * holes. `convert --dry-run` must find a place for every tensor, and the sums that the config gives. */
#include "shapes.h"

#include <fcntl.h>

/* ---- what the converter says -------------------------------------------------------------------------- */

enum { KEYS = 6, CHECKED = 5 };
static const char *const keys[KEYS] = { "parameters", "parameters_active", "tensors", "kv_bytes_per_token",
    "state_bytes", "file_bytes" };

/* Runs convert --dry-run on the folder and reads those of its `key: integer` lines. */
static bool dry_run(uint64_t values[KEYS])
{
    char command[1000], line[300], want[40];
    FILE *pipe;
    int i, found = 0;
    snprintf(command, sizeof command, "'%s/convert' '%s' --dry-run 2>'%s/errors'", test_state.build, folder, folder);
    pipe = popen(command, "r");
    if (!CHECK(pipe != NULL)) return false;
    while (fgets(line, sizeof line, pipe)) {
        for (i = 0; i < KEYS; i++) {
            snprintf(want, sizeof want, "%s: ", keys[i]);
            if (strncmp(line, want, strlen(want)) != 0) continue;
            values[i] = strtoull(line + strlen(want), NULL, 10);
            found++;
        }
    }
    return CHECK_THAT(pclose(pipe) == 0, "convert --dry-run fails: see %s/errors", folder)
        && CHECK_THAT(found == KEYS, "%d of %d keys", found, (int)KEYS);
}

/* Published figures have two or three digits. */
static bool is_about(uint64_t value, double billions)
{
    return fabs((double)value / 1e9 - billions) <= 0.025 * billions;
}

static void check_values(const shape *s, const checkpoint *c, const uint64_t values[KEYS])
{
    const uint64_t want[CHECKED] = { s->parameters, s->active, s->tensors, s->kv_bytes_per_token, s->state_bytes };
    uint64_t idle = s->experts ? c->experts / s->experts * (s->experts - s->top_k) : 0;
    int i;
    for (i = 0; i < CHECKED; i++)
        CHECK_THAT(values[i] == want[i], "%s: %" PRIu64 ", should be %" PRIu64, keys[i], values[i], want[i]);
    CHECK_THAT(c->numbers == s->parameters, "the tensors hold %" PRIu64 " numbers", c->numbers);
    CHECK_THAT(c->numbers - idle == s->active, "%" PRIu64 " of them are active", c->numbers - idle);
    CHECK_THAT(c->count == s->tensors, "there are %zu tensors", c->count);
    if (s->billions > 0) CHECK_THAT(is_about(values[0], s->billions), "published as %g billion", s->billions);
    if (s->active_billions > 0)
        CHECK_THAT(is_about(values[1], s->active_billions), "published as %g billion active", s->active_billions);
}

static void test_shape(const shape *s)
{
    checkpoint c;
    char path[400];
    uint64_t values[KEYS];
    if (!write_shape(&c, s)) test_skip("the file system refuses files of that size");
    else {
        if (dry_run(values)) {
            check_values(s, &c, values);
            printf("shapes: %-18s %4d shards %5zu tensors %7.2f billion (%6.2f active), %7.2f GiB at q8, "
                "%6.2f GiB of KV at 256K, %7.2f MiB of state\n", s->name, c.shards, c.count, (double)values[0] / 1e9,
                (double)values[1] / 1e9, (double)values[5] / 1073741824, (double)values[3] * 262144 / 1073741824,
                (double)values[4] / 1048576);
        }
        test_end();
    }
    remove_checkpoint(&c);
    remove(in_folder(path, "errors"));
}

/* The point of hybrid models: at 256K tokens Jamba needs an eighth of what attention in every layer does. */
static void test_kv(void)
{
    const shape *jamba = &shapes[0], *mixtral = &shapes[SHAPES - 1];
    const uint64_t gib = 1073741824, context = 262144;
    CHECK(strcmp(jamba->name, "Jamba-v0.1") == 0 && strcmp(mixtral->name, "Mixtral-8x7B") == 0);
    CHECK(jamba->kv_bytes_per_token * context == 4 * gib);
    CHECK(mixtral->kv_bytes_per_token * context == 32 * gib);
    printf("shapes: KV of 256K tokens at 16 bits: %s %" PRIu64 " GiB, %s %" PRIu64 " GiB\n", jamba->name,
        jamba->kv_bytes_per_token * context / gib, mixtral->name, mixtral->kv_bytes_per_token * context / gib);
    test_end();
}

/* Whether a file of 64 MiB that nothing was written to takes next to no room. */
static bool has_holes(void)
{
    char path[400];
    struct stat info;
    int file = open(in_folder(path, "hole"), O_RDWR | O_CREAT | O_TRUNC, 0666);
    bool ok = file >= 0 && ftruncate(file, 64 << 20) == 0 && fstat(file, &info) == 0 && info.st_blocks * 512 < 1 << 20;
    if (file >= 0) close(file);
    remove(path);
    return ok;
}

int main(int argc, char **argv)
{
    int i;
    bool holes;
    test_start(argc, argv);
    snprintf(folder, sizeof folder, "%s/tmp", test_state.build);
    mkdir(folder, 0777);
    snprintf(folder, sizeof folder, "%s/tmp/shapes", test_state.build);
    mkdir(folder, 0777);
    holes = has_holes();
    for (i = 0; i < SHAPES; i++) {
        if (!test_begin("%s", shapes[i].name)) continue;
        if (holes) test_shape(&shapes[i]);
        else test_skip("the file system has no sparse files");
    }
    if (test_begin("KV cache at 256K tokens")) test_kv();
    rmdir(folder);
    return test_summary();
}
