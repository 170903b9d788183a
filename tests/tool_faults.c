/* tool_faults.c - the tools that write files where memory, disks and signals fail them
 *
 * Each call of convert, bake, export and chat that can fail does so in turn (tests/faults_preload.c); disks are full,
 * processes killed. However a run ends, what it was to replace is there as it was, or the whole new one in its place,
 * and nothing beside it; a failed run says why in one line. FAULTS=all in the environment tries every call, every
 * kill and every size; else a part that takes seconds. */
#include "tiny.h"

#include <signal.h>
#include <sys/resource.h>
#include <time.h>

/* Where another's malloc() can stand before a tool's, and strace behind it. */
#if defined(__linux__) && defined(__GLIBC__) && defined(__LP64__) && !defined(SANITIZED)
#define PRELOADS 1
#else
#define PRELOADS 0
#endif
static const char *const have_strace = PRELOADS ? "strace -o /dev/null true 2>/dev/null" : "false";

static bool everything; /* FAULTS=all */
static long tool_runs;

/* ---- what is run --------------------------------------------------------------------------------------- */

static char tiny_folder[PATH_ROOM], shards_folder[PATH_ROOM], lora_folder[PATH_ROOM], model_path[PATH_ROOM];
static char prompt_path[PATH_ROOM], place[PATH_ROOM], input_path[PATH_ROOM];

/* A tool that makes OUT, a file or a folder of `place`. */
typedef struct scenario {
    const char *name, *tool;
    const char *arguments[10]; /* OUT: its path */
    const char *out, *input;   /* input: NULL: none */
    bool folder, talks;        /* talks: goes on after a failure, which it reports */
    bool replaces;             /* what stands there */
} scenario;

static const char OUT[] = "OUT";

static const scenario scenarios[] = {
    { "convert", "convert", { tiny_folder, OUT, "--type", "q8", "--force" }, "out.jamba", NULL, false, false, true },
    { "convert shards", "convert", { shards_folder, OUT }, "out.jamba", NULL, false, false, false },
    { "convert --merge", "convert", { tiny_folder, OUT, "--merge", lora_folder, "--force" }, "out.jamba", NULL, false,
        false, true },
    { "convert --base", "convert", { lora_folder, OUT, "--base", model_path, "--force" }, "out.jamba-lora", NULL, false,
        false, true },
    { "bake", "bake", { model_path, prompt_path, OUT, "-t", "1", "--force" }, "out.state", NULL, false, false, true },
    { "export", "export", { model_path, OUT, "--force" }, "out", NULL, true, false, true },
    { "chat /save", "chat", { model_path, "-c", "64" }, "out.state", "/save ", false, true, false },
};
enum { SCENARIOS = sizeof scenarios / sizeof scenarios[0] };

/* PLACE/OUT */
static const char *scenario_out(const scenario *s)
{
    static char path[PATH_ROOM];
    return tiny_path(path, place, s->out);
}

/* NULL at the end. */
static void scenario_arguments(const scenario *s, const char *arguments[11])
{
    size_t i;
    for (i = 0; s->arguments[i]; i++) arguments[i] = s->arguments[i] == OUT ? scenario_out(s) : s->arguments[i];
    arguments[i] = NULL;
}

/* What is typed: a command with OUT behind it. */
static const char *scenario_input(const scenario *s)
{
    tiny_bytes text = { NULL, 0, 0 };
    if (!s->input) return "/dev/null";
    tiny_print(&text, "%s%s\n", s->input, scenario_out(s));
    file_write(input_path, text.data, text.size);
    free(text.data);
    return input_path;
}

/* ---- what is there afterwards -------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b)
{
    return strcmp((const char *)a, (const char *)b);
}

typedef char file_name[256];
enum { NAMES_MAX = 32 };

/* Names in a folder, sorted; how many. */
static size_t list_names(const char *folder, file_name names[NAMES_MAX])
{
    DIR *dir = opendir(folder);
    const struct dirent *entry;
    size_t count = 0;
    test_require(dir != NULL, "cannot read", folder);
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        test_require(count < NAMES_MAX, "too many files", folder);
        snprintf(names[count++], sizeof names[0], "%s", entry->d_name);
    }
    closedir(dir);
    qsort(names, count, sizeof names[0], compare_names);
    return count;
}

static bool is_folder(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), size = strlen(end);
    return length >= size && strcmp(name + length - size, end) == 0;
}

/* Names, sizes and bytes of all files below a folder, those that only a killed run leaves left out if `loose`. */
static void add_files(tiny_bytes *all, const char *folder, bool loose)
{
    file_name *names = (file_name *)malloc(NAMES_MAX * sizeof *names);
    size_t count = list_names(folder, names), i;
    for (i = 0; i < count; i++) {
        char path[PATH_ROOM];
        uint8_t *data;
        size_t size;
        if (loose && (ends_with(names[i], ".part") || ends_with(names[i], ".old"))) continue;
        tiny_path(path, folder, names[i]);
        tiny_print(all, "%s\n", names[i]);
        if (is_folder(path)) {
            add_files(all, path, loose);
            continue;
        }
        data = file_need(path, &size);
        tiny_print(all, "%zu\n", size);
        tiny_add(all, data, size);
        free(data);
    }
    free(names);
}

static tiny_bytes place_bytes(bool loose)
{
    tiny_bytes all = { NULL, 0, 0 };
    tiny_print(&all, "files\n");
    add_files(&all, place, loose);
    return all;
}

static bool place_is(const tiny_bytes *want, bool loose)
{
    tiny_bytes now = place_bytes(loose);
    bool same = now.size == want->size && memcmp(now.data, want->data, now.size) == 0;
    free(now.data);
    return same;
}

static void empty_folder(const char *folder)
{
    file_name *names = (file_name *)malloc(NAMES_MAX * sizeof *names);
    size_t count = list_names(folder, names), i;
    for (i = 0; i < count; i++) {
        char path[PATH_ROOM];
        tiny_path(path, folder, names[i]);
        if (is_folder(path)) empty_folder(path);
        remove(path);
    }
    free(names);
}

/* What the scenario is to replace, or nothing; whatever else lies in `place` stays unless `clean`. */
static void place_old(const scenario *s, bool clean)
{
    char path[PATH_ROOM];
    const char *out = scenario_out(s);
    if (clean) empty_folder(place);
    if (is_folder(out)) {
        empty_folder(out);
        rmdir(out);
    }
    remove(out);
    if (!s->replaces) return;
    if (s->folder) mkdir(out, 0777);
    file_write(s->folder ? tiny_path(path, out, "config.json") : out, "old", 3);
}

/* A scenario with what it finds and what it makes. */
typedef struct play {
    const scenario *s;
    tiny_bytes old, made;
    char errors[4000];
    int code;
} play;

static void play_run(play *p)
{
    const char *arguments[11];
    tool_runs++;
    scenario_arguments(p->s, arguments);
    p->code = tool_run_with(p->s->tool, arguments, scenario_input(p->s), "/dev/null", p->errors, sizeof p->errors);
}

/* False with a failed check: it does not work without any fault. */
static bool play_open(play *p, const scenario *s)
{
    memset(p, 0, sizeof *p);
    p->s = s;
    place_old(s, true);
    p->old = place_bytes(false);
    play_run(p);
    p->made = place_bytes(false);
    place_old(s, true);
    return CHECK_THAT(p->code == 0 && !ends_with((const char *)p->made.data, "old"), "%s: exits %d: %s", s->name,
        p->code, p->errors);
}

static void play_close(play *p)
{
    empty_folder(place);
    free(p->old.data);
    free(p->made.data);
}

static int lines_of(const char *text)
{
    int lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

/* A folder that has stepped aside and cannot go back, which the tool says: goes back now. */
static void put_back(const play *p)
{
    char aside[PATH_ROOM + 8];
    const char *out = scenario_out(p->s);
    snprintf(aside, sizeof aside, "%s.old", out);
    if (p->s->folder && strstr(p->errors, "the old folder is now")) CHECK(rename(aside, out) == 0);
}

/* Done, with the new file; or failed, with the old one and one line that says why. Puts the old one back. */
static bool play_check(play *p, const char *what, bool loose)
{
    bool whole, old, told = lines_of(p->errors) >= 1, ok;
    put_back(p);
    whole = place_is(&p->made, loose);
    old = place_is(&p->old, loose);
    if (!p->s->talks) told = told && lines_of(p->errors) == 1;
    if (p->code == 0) ok = whole || (p->s->talks && old && p->errors[0]);
    else ok = p->code == 1 && old && told;
    CHECK_THAT(ok, "%s, %s: exits %d, %s: %s", p->s->name, what, p->code,
        whole ? "with the new file" : old ? "with the old file" : "with something else", p->errors);
    if (!old || loose) place_old(p->s, true);
    return ok;
}

/* ---- calls that fail ----------------------------------------------------------------------------------- */

/* Old or new, after a kill. A folder may just have stepped aside. */
static bool is_whole(const play *p)
{
    char aside[PATH_ROOM + 8];
    const char *out = scenario_out(p->s);
    snprintf(aside, sizeof aside, "%s.old", out);
    if (p->s->folder && !file_exists(out) && CHECK(file_exists(aside))) {
        bool whole = rename(aside, out) == 0 && place_is(&p->old, true);
        return rename(out, aside) == 0 && whole;
    }
    return place_is(&p->old, true) || place_is(&p->made, true);
}

#if PRELOADS
enum { HOW_SHORT = -1, HOW_KILL = -2, HOW_TERMINATE = -3 };

typedef struct fault_kind {
    const char *call;
    int how;
    const char *name;
} fault_kind;

static const fault_kind fault_kinds[] = {
    { "malloc", ENOMEM, "ENOMEM" }, { "calloc", ENOMEM, "ENOMEM" }, { "realloc", ENOMEM, "ENOMEM" },
    { "mmap", ENOMEM, "ENOMEM" },
    { "open", EIO, "EIO" }, { "open", EMFILE, "EMFILE" }, { "open", EINTR, "EINTR" },
    { "stat", EIO, "EIO" },
    { "read", EIO, "EIO" }, { "read", EINTR, "EINTR" }, { "read", HOW_SHORT, "half" },
    { "write", ENOSPC, "ENOSPC" }, { "write", EIO, "EIO" }, { "write", EINTR, "EINTR" }, { "write", HOW_SHORT, "half" },
    { "lseek", EIO, "EIO" },
    { "sync", EIO, "EIO" }, { "sync", EINTR, "EINTR" },
    { "close", EIO, "EIO" }, { "close", EINTR, "EINTR" },
    { "rename", EIO, "EIO" }, { "mkdir", ENOSPC, "ENOSPC" },
    { "unlink", EIO, "EIO" }, { "rmdir", EIO, "EIO" },
};
enum { FAULT_KINDS = sizeof fault_kinds / sizeof fault_kinds[0] };

static const char *const killing_calls[] = { "open", "write", "sync", "close", "rename", "mkdir", "unlink", "rmdir" };
enum { KILLING_CALLS = sizeof killing_calls / sizeof killing_calls[0] };

static char preload_path[PATH_ROOM];
static int told_read, told_write; /* a pipe: a byte for each fault that happened */

static void fault_number(const char *name, long value)
{
    char text[24];
    snprintf(text, sizeof text, "%ld", value);
    setenv(name, text, 1);
}

/* The next run has this fault. An interrupted call comes to an end. */
static void fault_set(const char *call, int how, long at, bool stay)
{
    setenv("LD_PRELOAD", preload_path, 1);
    setenv("FAULT_CALL", call, 1);
    fault_number("FAULT_HOW", how);
    fault_number("FAULT_AT", at);
    fault_number("FAULT_LAST", !stay ? 0 : how == EINTR ? at + 20 : 1L << 30);
    fault_number("FAULT_TOLD", told_write);
}

/* Whether it happened. */
static bool fault_clear(void)
{
    char byte;
    unsetenv("LD_PRELOAD");
    unsetenv("FAULT_CALL");
    return read(told_read, &byte, 1) == 1;
}

static bool fault_run(play *p, const char *call, int how, long at, bool stay)
{
    fault_set(call, how, at, stay);
    play_run(p);
    return fault_clear();
}

/* The call after the n-th that is tried, `some` of the first ones each. */
static long fault_next(long n, long some)
{
    return everything || n < some ? n + 1 : 2 * n;
}

static long fault_runs;

/* Each call of one kind fails. Whether there is any. */
static bool play_faults(play *p, const fault_kind *kind, bool stay)
{
    bool loose = strcmp(kind->call, "unlink") == 0 || strcmp(kind->call, "rmdir") == 0; /* then something may stay */
    char what[120];
    long n, some = stay || strcmp(kind->call, "malloc") == 0 ? 3 : 24;
    for (n = 1; n < 100000 && fault_run(p, kind->call, kind->how, n, stay); n = fault_next(n, some)) {
        snprintf(what, sizeof what, "%s %ld%s: %s", kind->call, n, stay ? " and later" : "", kind->name);
        play_check(p, what, loose);
        fault_runs++;
    }
    place_old(p->s, true); /* the last one has met no fault */
    return n > 1;
}

static void test_faults(const scenario *s)
{
    long before = fault_runs;
    size_t i;
    play p;
    if (play_open(&p, s)) {
        for (i = 0; i < FAULT_KINDS; i++) {
            bool any = play_faults(&p, &fault_kinds[i], false);
            if (any) play_faults(&p, &fault_kinds[i], true);
        }
    }
    CHECK_THAT(fault_runs > before + 40, "only %ld faults: is %s built?", fault_runs - before, preload_path);
    play_close(&p);
}

/* Files that only a killed run may leave. */
static int count_parts(void)
{
    file_name *names = (file_name *)malloc(NAMES_MAX * sizeof *names);
    size_t count = list_names(place, names), i;
    int parts = 0;
    for (i = 0; i < count; i++) parts += ends_with(names[i], ".part");
    free(names);
    return parts;
}

/* Ended by a signal at one call; then a run that is not. */
static void check_ended(play *p, const char *what, bool killed)
{
    fault_runs++;
    CHECK_THAT(p->code == -1, "%s, %s: exits %d", p->s->name, what, p->code);
    CHECK_THAT(is_whole(p), "%s, %s: a broken file", p->s->name, what);
    CHECK_THAT(killed || count_parts() == 0, "%s, %s: leaves a file", p->s->name, what);
    place_old(p->s, false);
    if (!killed) return;
    play_run(p);
    CHECK_THAT(p->code == 0 && place_is(&p->made, false), "%s, after %s: exits %d: %s", p->s->name, what, p->code,
        p->errors);
    place_old(p->s, true);
}

/* At each call that changes what is on disk. */
static void test_ended(const scenario *s, int how, const char *title)
{
    char what[120];
    size_t i;
    play p;
    long n;
    bool ok = play_open(&p, s);
    for (i = 0; ok && i < KILLING_CALLS; i++)
        for (n = 1; fault_run(&p, killing_calls[i], how, n, false); n = fault_next(n, 3)) {
            snprintf(what, sizeof what, "%s at %s %ld", title, killing_calls[i], n);
            check_ended(&p, what, how == HOW_KILL);
        }
    play_close(&p);
}

static void test_killed_calls(const scenario *s)
{
    test_ended(s, HOW_KILL, "killed");
}

static void test_terminated_calls(const scenario *s)
{
    test_ended(s, HOW_TERMINATE, "terminated");
}

/* A storm of signals changes nothing. */
static void test_storm(const scenario *s)
{
    play p;
    if (play_open(&p, s)) {
        setenv("LD_PRELOAD", preload_path, 1);
        setenv("FAULT_STORM", "100", 1);
        play_run(&p);
        unsetenv("FAULT_STORM");
        unsetenv("LD_PRELOAD");
        CHECK_THAT(p.code == 0 && place_is(&p.made, false), "%s: exits %d: %s", s->name, p.code, p.errors);
    }
    play_close(&p);
}

static void open_preload(void)
{
    int ends[2];
    test_require(pipe(ends) == 0, "no pipe", "");
    told_read = ends[0];
    told_write = ends[1];
    fcntl(told_read, F_SETFL, O_NONBLOCK);
    fcntl(told_read, F_SETFD, FD_CLOEXEC);
    snprintf(preload_path, sizeof preload_path, "%s/faults_preload.so", test_state.build);
    test_require(file_exists(preload_path), "missing, see Makefile", preload_path);
}
#endif

/* ---- full disks ---------------------------------------------------------------------------------------- */

/* Runs the scenario where no file may be larger than `limit`; `ignored`: SIGXFSZ already is. */
static void run_limited(play *p, size_t limit, bool ignored)
{
    const char *arguments[11], *input = scenario_input(p->s); /* which is written here */
    struct rlimit before, now;
    test_require(getrlimit(RLIMIT_FSIZE, &before) == 0, "getrlimit", "");
    now = before;
    now.rlim_cur = (rlim_t)limit;
    signal(SIGXFSZ, ignored ? SIG_IGN : SIG_DFL);
    tool_runs++;
    scenario_arguments(p->s, arguments);
    test_require(setrlimit(RLIMIT_FSIZE, &now) == 0, "setrlimit", "");
    p->code = tool_run_with(p->s->tool, arguments, input, "/dev/null", p->errors, sizeof p->errors);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
}

/* At sizes from nothing to all that is made, and a little more. */
static void test_limits(const scenario *s)
{
    int steps = everything ? 64 : 4, i, ignored, done = 0;
    char what[80];
    play p;
    if (play_open(&p, s))
        for (ignored = 0; ignored < 2; ignored++)
            for (i = 0; i <= steps + 1; i++) {
                size_t limit = p.made.size * (size_t)i / (size_t)steps;
                run_limited(&p, limit, ignored == 1);
                snprintf(what, sizeof what, "files of at most %zu bytes", limit);
                done += p.code == 0 && place_is(&p.made, false);
                play_check(&p, what, false);
            }
    CHECK_THAT(done >= 2 && done < 2 * steps, "%s: done %d times", s->name, done);
    play_close(&p);
}

#if defined(__linux__)
static bool have_program(const char *command)
{
    return system(command) == 0;
}

/* `command` in a shell; what it prints on stderr goes to p->errors. */
static void run_shell(play *p, const char *command)
{
    char log[PATH_ROOM];
    uint8_t *text;
    size_t size;
    int status;
    fflush(stdout);
    tool_runs++;
    status = system(command);
    text = file_read(temp_path(log, "log"), &size);
    snprintf(p->errors, sizeof p->errors, "%s", text ? (const char *)text : "");
    free(text);
    p->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A disk of so many bytes at `place` while the tool runs, with the old file on it; afterwards all that is there is
 * copied to where the disk was. */
static void run_on_disk(play *p, size_t bytes)
{
    char log[PATH_ROOM], copy[PATH_ROOM];
    const char *arguments[11], *input;
    tiny_bytes command = { NULL, 0, 0 };
    size_t i;
    input = scenario_input(p->s);
    mkdir(temp_path(copy, "copy"), 0777);
    empty_folder(copy);
    tiny_print(&command, "unshare -rm sh -c 'cp -a %s/. %s/ && mount -t tmpfs -o size=%zu none %s && cp -a %s/. %s/ "
        "&& { rm -rf %s/* && %s/%s", place, copy, bytes, place, copy, place, copy, test_state.build, p->s->tool);
    scenario_arguments(p->s, arguments);
    for (i = 0; arguments[i]; i++) tiny_print(&command, " %s", arguments[i]);
    tiny_print(&command, " <%s >/dev/null 2>%s; code=$?; cp -a %s/. %s/; exit $code; }'", input,
        temp_path(log, "log"), place, copy);
    tiny_add(&command, "", 1);
    run_shell(p, (const char *)command.data);
    free(command.data);
    empty_folder(place);
    rename(copy, place);
}

static void test_disk(const scenario *s)
{
    int steps = everything ? 64 : 4, i, done = 0;
    char what[80];
    play p;
    if (play_open(&p, s))
        for (i = 1; i <= steps; i++) {
            size_t bytes = 4096 + (p.made.size + 12288) * (size_t)(i - 1) / (size_t)(steps - 1);
            run_on_disk(&p, bytes);
            snprintf(what, sizeof what, "a disk of %zu bytes", bytes);
            done += p.code == 0;
            play_check(&p, what, false);
        }
    /* what fits into one page fits on any disk */
    CHECK_THAT(done >= 1 && (done < steps || p.made.size < 4096), "%s: done %d times", s->name, done);
    play_close(&p);
}
#endif

static void test_full_output(void)
{
    static const struct {
        const char *tool, *arguments[4], *input;
    } tools[] = {
        { "inspect", { model_path, "--tensors" }, "" },
        { "tokenize", { model_path }, "abcd ef gh" },
        { "tokenize", { model_path, "--decode" }, "5 6 7" },
        { "logits", { model_path }, "1 5 3" },
        { "perplexity", { model_path }, "abcd efgh ijkl" },
        { "convert", { tiny_folder, "--dry-run" }, "" },
        { "bench", { model_path, "-p", "4" }, "" },
        { "chat", { model_path, "-p", "abcd" }, "" },
    };
    char errors[2000];
    size_t i;
    for (i = 0; i < sizeof tools / sizeof tools[0]; i++) {
        int code;
        file_write(input_path, tools[i].input, strlen(tools[i].input));
        code = tool_run_with(tools[i].tool, tools[i].arguments, input_path, "/dev/full", errors, sizeof errors);
        CHECK_THAT(code == 1 && strstr(errors, "annot write"), "%s to /dev/full: exits %d: %s", tools[i].tool, code,
            errors);
    }
}

/* ---- kills --------------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Kills a run after that many seconds. Whether it had not ended before. */
static bool run_and_kill(const play *p, double seconds)
{
    struct timespec wait;
    char program[PATH_ROOM];
    const char *arguments[12];
    const char *input = scenario_input(p->s);
    int status;
    pid_t child;
    snprintf(program, sizeof program, "%s/%s", test_state.build, p->s->tool);
    arguments[0] = program;
    scenario_arguments(p->s, arguments + 1);
    wait.tv_sec = (time_t)seconds;
    wait.tv_nsec = (long)((seconds - (double)wait.tv_sec) * 1e9);
    fflush(stdout);
    tool_runs++;
    child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(open(input, O_RDONLY), 0);
        dup2(null, 1);
        dup2(null, 2);
        execv(program, (char *const *)arguments);
        _exit(127);
    }
    nanosleep(&wait, NULL);
    kill(child, SIGKILL);
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status);
}

/* Killed at random moments: the old file or the new one; what is left over is gone after a run that ends. */
static void test_kills(const scenario *s, int rounds)
{
    uint64_t random = 1;
    int i, killed = 0;
    double begun, took;
    play p;
    if (!play_open(&p, s)) return;
    begun = now();
    play_run(&p);
    took = now() - begun;
    place_old(s, true);
    for (i = 0; i < rounds; i++) {
        bool in_time = run_and_kill(&p, took * (double)(random_next(&random) >> 11) / 9007199254740992.0);
        killed += in_time;
        took *= in_time ? 1.02 : 0.95; /* the machine may be busy at one time and idle at another */
        CHECK_THAT(is_whole(&p), "%s: a broken file after kill %d", s->name, i);
        place_old(s, false);
        if (i % 25 != 24) continue;
        play_run(&p);
        CHECK_THAT(p.code == 0 && place_is(&p.made, false), "%s: after kill %d exits %d: %s", s->name, i, p.code,
            p.errors);
        place_old(s, true);
    }
    CHECK_THAT(killed > rounds / 3, "%s: only %d of %d runs were killed in time", s->name, killed, rounds);
    play_close(&p);
}

/* ---- what the kernel sees ------------------------------------------------------------------------------ */

#if defined(__linux__)
/* The first line from `at` on that has both words; NULL with a failed check. */
static const char *trace_line(const scenario *s, const char *at, const char *first, const char *second)
{
    while (at && *at) {
        const char *end = strchr(at, '\n');
        const char *a = strstr(at, first), *b = strstr(at, second);
        if (!end) break;
        if (a && a < end && b && b < end) return at;
        at = end + 1;
    }
    CHECK_THAT(false, "%s: no %s %s in its place", s->name, first, second);
    return NULL;
}

/* A new file beside `out`, written, synced, closed, renamed, and the folder synced: in that order. What follows. */
static const char *trace_file(const scenario *s, const char *at, const char *out, const char *folder)
{
    char part[2 * PATH_ROOM], call[40];
    int file = -1;
    snprintf(part, sizeof part, "\"%s.part\"", out);
    at = trace_line(s, at, part, "O_CREAT|O_EXCL");
    if (!at || !CHECK(sscanf(strstr(at, " = "), " = %d", &file) == 1 && file > 2)) return NULL;
    snprintf(call, sizeof call, "pwrite64(%d,", file);
    at = trace_line(s, at, call, " = ");
    snprintf(call, sizeof call, "fsync(%d)", file);
    at = trace_line(s, at, call, " = 0");
    snprintf(call, sizeof call, "close(%d)", file);
    at = trace_line(s, at, call, " = 0");
    at = trace_line(s, at, "rename(", part);
    snprintf(part, sizeof part, "\"%s\"", folder);
    at = trace_line(s, at, "openat(", part);
    return trace_line(s, at, "fsync(", " = 0");
}

static void check_trace(const scenario *s, const char *trace)
{
    char part[PATH_ROOM + 8], file[PATH_ROOM + 40];
    const char *out = scenario_out(s), *at;
    if (!s->folder) {
        at = trace_file(s, trace, out, place);
        CHECK_THAT(!at || !strstr(at, "pwrite64("), "%s: writes once it is done", s->name);
        return;
    }
    snprintf(part, sizeof part, "%s.part", out);
    snprintf(file, sizeof file, "%s/model.safetensors", part);
    at = trace_file(s, trace, file, part);
    snprintf(file, sizeof file, "%s/config.json", part);
    at = trace_file(s, at, file, part);
    snprintf(file, sizeof file, "\"%s\"", part);
    at = trace_line(s, at, "rename(", file);
    CHECK_THAT(!at || !strstr(at, "pwrite64("), "%s: writes once it is done", s->name);
    snprintf(file, sizeof file, "\"%s\"", place);
    at = trace_line(s, at, "openat(", file);
    trace_line(s, at, "fsync(", " = 0");
}

/* The tool under strace; the trace goes to `log`. */
static void run_traced(play *p, const char *options, const char *log)
{
    const char *arguments[11];
    tiny_bytes command = { NULL, 0, 0 };
    size_t i;
    tiny_print(&command, "strace -f -qq -s 16 -o %s %s %s/%s", log, options, test_state.build, p->s->tool);
    scenario_arguments(p->s, arguments);
    for (i = 0; arguments[i]; i++) tiny_print(&command, " %s", arguments[i]);
    tiny_print(&command, " <%s >/dev/null 2>/dev/null", scenario_input(p->s));
    tiny_add(&command, "", 1);
    run_shell(p, (const char *)command.data);
    free(command.data);
}

static void test_protocol(const scenario *s)
{
    char log[PATH_ROOM];
    uint8_t *trace;
    size_t size;
    play p;
    if (play_open(&p, s)) {
        run_traced(&p, "-e trace=openat,write,pwrite64,fsync,close,rename,unlink", temp_path(log, "trace"));
        trace = file_need(log, &size);
        if (CHECK(p.code == 0)) check_trace(s, (const char *)trace);
        free(trace);
    }
    play_close(&p);
}

/* The name of the call in a line of a trace, and how often it has been called from `trace` on. */
static int trace_call(const char *trace, const char *line, char name[40])
{
    const char *begin = line + strspn(line, "0123456789 "), *at;
    size_t size = strcspn(begin, "(\n");
    int calls = 1;
    if (begin[size] != '(' || size == 0 || size >= 39) return 0; /* the end of a process */
    memcpy(name, begin, size);
    name[size] = 0;
    for (at = trace; at < line; at = strchr(at, '\n') + 1) {
        const char *other = at + strspn(at, "0123456789 ");
        calls += strncmp(other, name, size) == 0 && other[size] == '(';
    }
    return calls;
}

/* Killed at one system call; whether it was. */
static bool check_killed_at(play *p, const char *name, int calls)
{
    char options[160];
    snprintf(options, sizeof options, "-e trace=%s -e inject=%s:signal=KILL:when=%d", name, name, calls);
    run_traced(p, options, "/dev/null");
    CHECK_THAT(is_whole(p), "%s: a broken file, killed at %s %d", p->s->name, name, calls);
    place_old(p->s, false);
    return p->code != 0;
}

/* Killed at each system call that there is. */
static void test_killed_anywhere(const scenario *s)
{
    char log[PATH_ROOM], name[40];
    const char *line;
    uint8_t *trace;
    size_t size;
    int seen = 0, tried = 0, killed = 0;
    play p;
    if (!play_open(&p, s)) return;
    run_traced(&p, "", temp_path(log, "trace"));
    trace = file_need(log, &size);
    place_old(s, true);
    for (line = (const char *)trace; *line; line = strchr(line, '\n') + 1) {
        int calls = trace_call((const char *)trace, line, name);
        if (calls == 0 || strcmp(name, "execve") == 0 || strcmp(name, "exit_group") == 0) continue; /* too soon, late */
        if (seen++ % 12 != 0 && !everything) continue;
        tried++;
        killed += check_killed_at(&p, name, calls);
    }
    CHECK_THAT(seen > 50 && killed == tried, "%s: %d of %d runs were killed", s->name, killed, tried);
    play_run(&p);
    CHECK_THAT(p.code == 0 && place_is(&p.made, false), "%s: exits %d: %s", s->name, p.code, p.errors);
    free(trace);
    play_close(&p);
}
#endif

/* ---- the program --------------------------------------------------------------------------------------- */

/* An adapter of the tiny folder: one matrix of rank 2. */
static void write_lora(const char *folder)
{
    static const char config[] = "{\"peft_type\": \"LORA\", \"bias\": \"none\", \"lora_alpha\": 2, \"r\": 2, "
        "\"target_modules\": [\"q_proj\"]}";
    tiny_checkpoint c = { { NULL, 0, 0 }, { NULL, 0, 0 }, 3 };
    char path[PATH_ROOM];
    mkdir(folder, 0777);
    file_write(tiny_path(path, folder, "adapter_config.json"), config, strlen(config));
    tiny_matrix(&c, "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", 2, TINY_HIDDEN);
    tiny_matrix(&c, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight", TINY_HIDDEN, 2);
    tiny_write_checkpoint(tiny_path(path, folder, "adapter_model.safetensors"), &c);
}

static void make_files(void)
{
    tiny_write(temp_path(tiny_folder, "tiny"), false);
    tiny_write(temp_path(shards_folder, "shards"), true);
    write_lora(temp_path(lora_folder, "lora"));
    test_require(convert(tiny_folder, "tiny", "bf16", model_path), "cannot convert", tiny_folder);
    file_write(temp_path(prompt_path, "prompt.txt"), "abcd efgh", 9);
    temp_path(input_path, "input");
    mkdir(temp_path(place, "out"), 0777);
}

static void each(const char *name, void (*test)(const scenario *))
{
    size_t i;
    for (i = 0; i < SCENARIOS; i++) {
        if (!test_begin("%s: %s", name, scenarios[i].name)) continue;
        test(&scenarios[i]);
        test_end();
    }
}

/* The converter where writing takes longest, and what saves a state. */
static void each_kill(void)
{
    static const scenario large = { "convert, large", "convert", { "examples/storyteller", OUT, "--type", "f32",
        "--force" }, "out.jamba", NULL, false, false, true };
    const scenario *killed[] = { &large, &scenarios[4], &scenarios[6] };
    int rounds = everything ? 500 : 50;
    size_t i;
    for (i = 0; i < 3; i++) {
        if (!test_begin("%d kills: %s", rounds, killed[i]->name)) continue;
        test_kills(killed[i], rounds);
        test_end();
    }
}

/* Tests that need a program of the system. */
static void each_with(const char *name, const char *probe, const char *why, void (*test)(const scenario *))
{
#if defined(__linux__)
    if (have_program(probe)) {
        each(name, test);
        return;
    }
#else
    (void)probe;
    (void)test;
#endif
    if (test_begin("%s", name)) test_skip(why);
}

int main(int argc, char **argv)
{
    const char *wanted = getenv("FAULTS");
    test_start(argc, argv);
    everything = wanted && strcmp(wanted, "all") == 0;
    if (!test_state.list) make_files();
#if PRELOADS
    if (!test_state.list) open_preload();
    each("faults", test_faults);
    each("killed calls", test_killed_calls);
    each("terminated calls", test_terminated_calls);
    each("a storm of signals", test_storm);
    if (fault_runs > 0) printf("%ld runs with a fault\n", fault_runs);
#else
    if (test_begin("faults")) test_skip("needs glibc on a 64-bit Linux, and no sanitizer");
#endif
    each("large files", test_limits);
    if (test_begin("full standard output")) {
        if (file_exists("/dev/full")) {
            test_full_output();
            test_end();
        } else test_skip("no /dev/full");
    }
    each_kill();
#if defined(__linux__)
    each_with("full disks", "unshare -rm mount -t tmpfs none /tmp 2>/dev/null", "no user namespaces", test_disk);
    each_with("the order of writing", have_strace, "no strace, or a sanitizer", test_protocol);
    each_with("killed anywhere", have_strace, "no strace, or a sanitizer", test_killed_anywhere);
#endif
    if (tool_runs > 0) printf("%ld runs of tools\n", tool_runs);
    return test_summary();
}
