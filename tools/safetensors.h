/* safetensors.h - the tensors of a checkpoint folder: one safetensors file, or shards with an index.
 *
 * Headers are read and checked whole, data is only read in the pieces asked for. A file is accepted
 * when its header is strict JSON of at most 100,000,000 bytes, every tensor's bytes agree with its
 * shape and type, and the tensors cover the data without holes, overlap or remainder.
 */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "json.h"
#include "pack.h"

#include <fcntl.h>

enum { ST_MAX_RANK = 8, ST_MAX_NAME = 1024, ST_MAX_SHARDS = 1000, ST_MAX_HEADER = 100000000 };

typedef enum st_dtype { ST_F32, ST_F16, ST_BF16, ST_DTYPES } st_dtype;
static const char *const st_dtype_names[] = { "F32", "F16", "BF16" };

typedef struct st_tensor {
    char *name;
    uint32_t shard;
    st_dtype dtype;
    uint32_t rank;
    uint64_t shape[ST_MAX_RANK];
    uint64_t offset, bytes; /* in the file */
    bool used;              /* the converter has found a place for it */
} st_tensor;

typedef struct st_shard {
    char *name, *path;
    int file;
    dev_t device;
    ino_t inode;
} st_shard;

typedef struct st_checkpoint {
    const char *dir;
    st_shard *shards;
    st_tensor *tensors; /* sorted by name */
    size_t shard_count, count;
} st_checkpoint;

static uint32_t st_dtype_bytes(st_dtype dtype)
{
    return dtype == ST_F32 ? 4 : 2;
}

static void st_close(st_checkpoint *c)
{
    size_t i;
    for (i = 0; i < c->count; i++) free(c->tensors[i].name);
    for (i = 0; i < c->shard_count; i++) {
        if (c->shards[i].file >= 0) close(c->shards[i].file);
        free(c->shards[i].name);
        free(c->shards[i].path);
    }
    free(c->tensors);
    free(c->shards);
    memset(c, 0, sizeof *c);
}

/* "[128, 1, 4]" */
static void st_format_shape(char *text, size_t capacity, const uint64_t *shape, uint32_t rank)
{
    size_t used = 1;
    uint32_t i;
    snprintf(text, capacity, "[");
    for (i = 0; i < rank && used < capacity; i++)
        used += (size_t)snprintf(text + used, capacity - used, "%s%llu", i ? ", " : "", (unsigned long long)shape[i]);
    if (used < capacity) snprintf(text + used, capacity - used, "]");
}

/* ---- data ---------------------------------------------------------------------------------- */

/* Reads `size` bytes at `offset`, all of them. */
static bool st_read_at(const st_shard *shard, uint64_t offset, void *out, size_t size, tool_error *error)
{
    size_t done = 0;
    while (done < size) {
        ssize_t got = pread(shard->file, (uint8_t *)out + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return tool_error_set(error, "%s: cannot read: %s", shard->path, strerror(errno));
        if (got == 0) return tool_error_set(error, "%s: shorter than it was: something changes it", shard->path);
        done += (size_t)got;
    }
    return true;
}

/* Bytes [from, from + size) of the tensor's data. */
static bool st_read_data(
    const st_checkpoint *c, const st_tensor *t, uint64_t from, void *out, size_t size, tool_error *error)
{
    return st_read_at(&c->shards[t->shard], t->offset + from, out, size, error);
}

static bool st_same_piece(const st_checkpoint *c, const st_tensor *a, const st_tensor *b, uint8_t *room, size_t half,
    bool *same, tool_error *error)
{
    uint64_t done = 0;
    while (done < a->bytes && *same) {
        size_t part = a->bytes - done < half ? (size_t)(a->bytes - done) : half;
        if (!st_read_data(c, a, done, room, part, error) || !st_read_data(c, b, done, room + half, part, error))
            return false;
        *same = memcmp(room, room + half, part) == 0;
        done += part;
    }
    return true;
}

/* Whether two tensors are copies of each other, to the byte. Reads no further than to the first difference. */
static bool st_same(const st_checkpoint *c, const st_tensor *a, const st_tensor *b, bool *same, tool_error *error)
{
    enum { PIECE = 1 << 18 };
    uint8_t *room;
    bool ok;
    *same = a->dtype == b->dtype && a->rank == b->rank && memcmp(a->shape, b->shape, sizeof a->shape) == 0;
    if (!*same) return true;
    room = (uint8_t *)malloc(2 * PIECE);
    if (!room) return tool_no_memory(error);
    ok = st_same_piece(c, a, b, room, PIECE, same, error);
    free(room);
    return ok;
}

/* ---- numbers to floats --------------------------------------------------------------------- */

static void pack_floats_block(float *out, const uint8_t *raw, st_dtype dtype)
{
    uint16_t half[PACK_BLOCK];
    uint32_t bits[PACK_BLOCK];
    int i;
    if (dtype == ST_F32) {
        memcpy(out, raw, sizeof bits);
        pack_swap_bytes((uint8_t *)out, PACK_BLOCK, 4);
        return;
    }
    memcpy(half, raw, sizeof half);
    pack_swap_bytes((uint8_t *)half, PACK_BLOCK, 2);
    if (dtype == ST_F16) {
        for (i = 0; i < PACK_BLOCK; i++) out[i] = jmb_f16_to_float(half[i]);
        return;
    }
    for (i = 0; i < PACK_BLOCK; i++) bits[i] = (uint32_t)half[i] << 16;
    memcpy(out, bits, sizeof bits);
}

/* One row of `cols` numbers; fills up to a multiple of 64 with zeros. */
static void pack_floats(float *out, const uint8_t *raw, st_dtype dtype, size_t cols)
{
    size_t size = st_dtype_bytes(dtype), i;
    uint8_t tail[PACK_BLOCK * 4];
    for (i = 0; i + PACK_BLOCK <= cols; i += PACK_BLOCK) pack_floats_block(out + i, raw + i * size, dtype);
    if (i == cols) return;
    memset(tail, 0, sizeof tail);
    memcpy(tail, raw + i * size, (cols - i) * size);
    pack_floats_block(out + i, tail, dtype);
}

/* ---- the header of one file ---------------------------------------------------------------- */

static bool st_parse_dtype(const st_shard *shard, st_tensor *t, const json_value *v, tool_error *error)
{
    int i;
    for (i = 0; i < ST_DTYPES; i++)
        if (json_is_string(v, st_dtype_names[i])) {
            t->dtype = (st_dtype)i;
            return true;
        }
    if (json_kind(v) != JSON_STRING)
        return tool_error_set(error, "%s: tensor %s has no dtype: the file is damaged", shard->path, t->name);
    return tool_error_set(error,
        "%s: tensor %s has type %.32s; F32, F16 and BF16 can be converted: save the model in one of them",
        shard->path, t->name, json_string(v, NULL));
}

static bool st_parse_shape(const st_shard *shard, st_tensor *t, const json_value *v, tool_error *error)
{
    uint64_t bytes = st_dtype_bytes(t->dtype);
    const json_value *item;
    if (json_kind(v) != JSON_ARRAY || json_count(v) > ST_MAX_RANK)
        return tool_error_set(error, "%s: tensor %s has no shape of at most %d sizes", shard->path, t->name,
            (int)ST_MAX_RANK);
    for (item = json_first(v); item; item = json_next(item)) {
        int64_t size;
        if (!json_int(item, &size) || size < 0)
            return tool_error_set(error, "%s: tensor %s has a size that is no whole number", shard->path, t->name);
        t->shape[t->rank++] = (uint64_t)size;
        bytes = jmb_mul(bytes, (uint64_t)size);
    }
    t->bytes = bytes;
    return true;
}

static bool st_parse_offsets(
    const st_shard *shard, st_tensor *t, const json_value *v, uint64_t start, uint64_t size, tool_error *error)
{
    int64_t begin, end;
    if (json_kind(v) != JSON_ARRAY || json_count(v) != 2 || !json_int(json_at(v, 0), &begin)
        || !json_int(json_at(v, 1), &end) || begin < 0 || end < begin || (uint64_t)end > size)
        return tool_error_set(error, "%s: tensor %s has data_offsets outside the file: it is damaged or cut short",
            shard->path, t->name);
    if ((uint64_t)(end - begin) != t->bytes)
        return tool_error_set(error, "%s: tensor %s has %lld bytes, its shape and type need %llu", shard->path, t->name,
            (long long)(end - begin), (unsigned long long)t->bytes);
    t->offset = start + (uint64_t)begin;
    return true;
}

/* `v` is the member "name": {"dtype", "shape", "data_offsets"}. The data of `size` bytes begins at `start`. */
static bool st_parse_tensor(
    const st_shard *shard, st_tensor *t, const json_value *v, uint64_t start, uint64_t size, tool_error *error)
{
    size_t length;
    const char *name = json_key(v, &length);
    if (length == 0 || length > ST_MAX_NAME || strlen(name) != length)
        return tool_error_set(error, "%s: a tensor name is empty, longer than %d bytes or holds NUL", shard->path,
            (int)ST_MAX_NAME);
    t->name = (char *)malloc(length + 1);
    if (!t->name) return tool_no_memory(error);
    memcpy(t->name, name, length + 1);
    if (json_kind(v) != JSON_OBJECT || json_count(v) != 3)
        return tool_error_set(error, "%s: tensor %s is not described by dtype, shape and data_offsets", shard->path,
            t->name);
    return st_parse_dtype(shard, t, json_get(v, "dtype"), error)
        && st_parse_shape(shard, t, json_get(v, "shape"), error)
        && st_parse_offsets(shard, t, json_get(v, "data_offsets"), start, size, error);
}

static int st_compare_offsets(const void *a, const void *b)
{
    const st_tensor *x = (const st_tensor *)a, *y = (const st_tensor *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes == y->bytes ? 0 : x->bytes < y->bytes ? -1 : 1;
}

/* Nothing may hide between, below or after the tensors. */
static bool st_check_cover(
    const st_shard *shard, st_tensor *tensors, size_t count, uint64_t at, uint64_t end, tool_error *error)
{
    size_t i;
    qsort(tensors, count, sizeof *tensors, st_compare_offsets);
    for (i = 0; i < count; i++) {
        if (tensors[i].offset != at)
            return tool_error_set(error, "%s: there is %s before tensor %s: the file is damaged", shard->path,
                tensors[i].offset < at ? "an overlap" : "a hole", tensors[i].name);
        at += tensors[i].bytes;
    }
    if (at != end)
        return tool_error_set(error, "%s: %llu bytes follow the last tensor: the file is damaged", shard->path,
            (unsigned long long)(end - at));
    return true;
}

static bool st_check_metadata(const st_shard *shard, const json_value *v, tool_error *error)
{
    const json_value *item;
    bool ok = json_kind(v) == JSON_OBJECT;
    for (item = json_first(v); item; item = json_next(item)) ok = ok && json_kind(item) == JSON_STRING;
    return ok || tool_error_set(error, "%s: __metadata__ is not an object of strings", shard->path);
}

/* Adds the tensors that the header `root`, an object, describes. */
static bool st_add_tensors(
    st_checkpoint *c, uint32_t shard_index, const json_value *root, uint64_t start, uint64_t end, tool_error *error)
{
    const st_shard *shard = &c->shards[shard_index];
    size_t first = c->count, total = c->count + json_count(root);
    const json_value *v;
    st_tensor *grown;
    grown = (st_tensor *)realloc(c->tensors, (total + 1) * sizeof *grown);
    if (!grown) return tool_no_memory(error);
    c->tensors = grown;
    for (v = json_first(root); v; v = json_next(v)) {
        st_tensor *t = &c->tensors[c->count];
        if (strcmp(json_key(v, NULL), "__metadata__") == 0) {
            if (!st_check_metadata(shard, v, error)) return false;
            continue;
        }
        memset(t, 0, sizeof *t);
        t->shard = shard_index;
        c->count++; /* before parsing, so that closing frees the name */
        if (!st_parse_tensor(shard, t, v, start, end - start, error)) return false;
    }
    return st_check_cover(shard, c->tensors + first, c->count - first, start, end, error);
}

/* Only regular files (links to them included): opening anything else could block. */
static bool st_open_file(st_shard *shard, uint64_t *size, tool_error *error)
{
    struct stat info;
    if (stat(shard->path, &info) != 0)
        return tool_error_set(error, "%s: cannot open: %s", shard->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return tool_error_set(error, "%s: not a regular file", shard->path);
    shard->file = open(shard->path, O_RDONLY);
    if (shard->file < 0 || fstat(shard->file, &info) != 0)
        return tool_error_set(error, "%s: cannot open: %s", shard->path, strerror(errno));
    shard->device = info.st_dev;
    shard->inode = info.st_ino;
    *size = (uint64_t)info.st_size;
    return true;
}

static bool st_parse_header(
    st_checkpoint *c, uint32_t index, const char *text, uint64_t length, uint64_t size, tool_error *error)
{
    json_doc doc;
    tool_error inner;
    bool ok;
    if (!json_parse(&doc, text, (size_t)length, &inner))
        return tool_error_set(error, "%s: header: %s", c->shards[index].path, inner.message);
    ok = st_add_tensors(c, index, json_root(&doc), 8 + length, size, error);
    json_free(&doc);
    return ok;
}

static bool st_read_header(st_checkpoint *c, uint32_t index, tool_error *error)
{
    st_shard *shard = &c->shards[index];
    uint8_t start[8];
    uint64_t size = 0, length;
    char *text;
    bool ok;
    if (!st_open_file(shard, &size, error)) return false;
    if (size < 8) return tool_error_set(error, "%s: too short for a safetensors file", shard->path);
    if (!st_read_at(shard, 0, start, 8, error)) return false;
    length = jmb_load_u64(start);
    if (length > ST_MAX_HEADER || length > size - 8)
        return tool_error_set(error, "%s: not a safetensors file, or cut short (a header of %llu bytes in %llu)",
            shard->path, (unsigned long long)length, (unsigned long long)size);
    text = (char *)malloc((size_t)length + 1);
    if (!text) return tool_no_memory(error);
    ok = st_read_at(shard, 8, text, (size_t)length, error);
    if (ok && (length == 0 || text[0] != '{'))
        ok = tool_error_set(error, "%s: the header does not begin with {: not a safetensors file", shard->path);
    ok = ok && st_parse_header(c, index, text, length, size, error);
    free(text);
    return ok;
}

/* ---- the folder ---------------------------------------------------------------------------- */

/* The index of the shard called `name`, added when new. */
static bool st_add_shard(st_checkpoint *c, const char *name, uint32_t *index, tool_error *error)
{
    st_shard *grown;
    for (*index = 0; *index < c->shard_count; ++*index)
        if (strcmp(c->shards[*index].name, name) == 0) return true;
    if (c->shard_count == ST_MAX_SHARDS)
        return tool_error_set(error, "%s: more than %d shards", c->dir, (int)ST_MAX_SHARDS);
    grown = (st_shard *)realloc(c->shards, (c->shard_count + 1) * sizeof *grown);
    if (!grown) return tool_no_memory(error);
    c->shards = grown;
    memset(&grown[*index], 0, sizeof *grown);
    grown[*index].file = -1;
    grown[*index].path = tool_path_join(c->dir, name);
    grown[*index].name = (char *)malloc(strlen(name) + 1);
    c->shard_count++;
    if (!grown[*index].path || !grown[*index].name) return tool_no_memory(error);
    strcpy(grown[*index].name, name);
    return true;
}

/* An index comes from the same stranger as the weights: it must not lead out of the folder. */
static bool st_is_base_name(const json_value *v)
{
    size_t length;
    const char *name = json_string(v, &length);
    return name && length > 0 && length < 256 && strlen(name) == length && !strpbrk(name, "/\\:") && !strstr(name, "..")
        && name[0] != '-';
}

static int st_compare_names(const void *a, const void *b)
{
    const st_tensor *x = (const st_tensor *)a, *y = (const st_tensor *)b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : (x->shard > y->shard) - (x->shard < y->shard);
}

static st_tensor *st_find(const st_checkpoint *c, const char *name)
{
    size_t low = 0, high = c->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(c->tensors[middle].name, name);
        if (order == 0) return &c->tensors[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

static bool st_sort(st_checkpoint *c, tool_error *error)
{
    size_t i;
    if (c->count == 0) return tool_error_set(error, "%s: the checkpoint has no tensors", c->dir);
    qsort(c->tensors, c->count, sizeof *c->tensors, st_compare_names);
    for (i = 1; i < c->count; i++)
        if (strcmp(c->tensors[i - 1].name, c->tensors[i].name) == 0)
            return tool_error_set(error, "%s: tensor %s is in two shards, %s and %s", c->dir, c->tensors[i].name,
                c->shards[c->tensors[i - 1].shard].name, c->shards[c->tensors[i].shard].name);
    return true;
}

static bool st_open_shards(st_checkpoint *c, const char *path, const json_value *map, tool_error *error)
{
    const json_value *v;
    uint32_t index;
    if (json_count(map) == 0 || json_kind(map) != JSON_OBJECT)
        return tool_error_set(error, "%s: weight_map is missing or empty", path);
    for (v = json_first(map); v; v = json_next(v)) {
        if (!st_is_base_name(v))
            return tool_error_set(error, "%s: weight_map: %.128s does not name a file of this folder", path,
                json_key(v, NULL));
        if (!st_add_shard(c, json_string(v, NULL), &index, error)) return false;
    }
    for (index = 0; index < c->shard_count; index++)
        if (!st_read_header(c, index, error)) return false;
    return st_sort(c, error);
}

/* Every entry of the map is in its shard, and the shards hold nothing else. */
static bool st_check_map(const st_checkpoint *c, const char *path, const json_value *map, tool_error *error)
{
    const json_value *v;
    size_t i;
    for (v = json_first(map); v; v = json_next(v)) {
        const char *name = json_key(v, NULL), *shard = json_string(v, NULL);
        st_tensor *t = st_find(c, name);
        if (!t || strcmp(c->shards[t->shard].name, shard) != 0)
            return tool_error_set(error,
                "%s: tensor %.128s is not in %s as weight_map says: download the folder again", path, name, shard);
        t->used = true;
    }
    for (i = 0; i < c->count; i++) {
        if (!c->tensors[i].used)
            return tool_error_set(error, "%s: tensor %s of %s is not in weight_map: download the folder again", path,
                c->tensors[i].name, c->shards[c->tensors[i].shard].name);
        c->tensors[i].used = false;
    }
    return true;
}

static bool st_open_index(st_checkpoint *c, const char *path, tool_error *error)
{
    json_doc doc;
    const json_value *map;
    bool ok;
    if (!json_read_file(&doc, path, error)) return false;
    map = json_get(json_root(&doc), "weight_map");
    ok = st_open_shards(c, path, map, error) && st_check_map(c, path, map, error);
    json_free(&doc);
    return ok;
}

static bool st_open_paths(st_checkpoint *c, const char *single, const char *index_path, tool_error *error)
{
    uint32_t index;
    if (!single || !index_path) return tool_no_memory(error);
    if (tool_file_exists(single))
        return st_add_shard(c, "model.safetensors", &index, error) && st_read_header(c, index, error)
            && st_sort(c, error);
    if (tool_file_exists(index_path)) return st_open_index(c, index_path, error);
    return tool_error_set(error,
        "%s: neither model.safetensors nor model.safetensors.index.json is there: give the folder of a "
        "Hugging Face checkpoint in safetensors form", c->dir);
}

/* One file of the folder. `dir` must outlive the checkpoint. On failure nothing stays open. */
static bool st_open_single(st_checkpoint *c, const char *dir, const char *name, tool_error *error)
{
    uint32_t index;
    bool ok;
    memset(c, 0, sizeof *c);
    c->dir = dir;
    ok = st_add_shard(c, name, &index, error) && st_read_header(c, index, error) && st_sort(c, error);
    if (!ok) st_close(c);
    return ok;
}

/* Reads and checks every header. `dir` must outlive the checkpoint. On failure nothing stays open. */
static bool st_open(st_checkpoint *c, const char *dir, tool_error *error)
{
    char *single = tool_path_join(dir, "model.safetensors");
    char *index = tool_path_join(dir, "model.safetensors.index.json");
    bool ok;
    memset(c, 0, sizeof *c);
    c->dir = dir;
    ok = st_open_paths(c, single, index, error);
    free(single);
    free(index);
    if (!ok) st_close(c);
    return ok;
}

#endif
