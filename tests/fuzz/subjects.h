/* subjects.h - the models that a target works on, and a session of each, made once */
#ifndef SUBJECTS_H
#define SUBJECTS_H

#include "fuzz.h"
#include "jamba.h"
#include "models.h"

typedef struct subject {
    jamba_model *model;
    jamba_session *session;
    uint8_t identity[32];
    int32_t vocab;
} subject;

static const jamba_allocator subject_allocator = { fuzz_alloc, fuzz_free, NULL };

/* `params` NULL: without a session. */
FUZZ_UNUSED static void subject_open(subject *s, int which, const jamba_session_params *params)
{
    jamba_model_params model;
    jamba_model_info info;
    size_t size;
    uint8_t *bytes = fuzz_model(which, &size), *odd = (uint8_t *)malloc(size + 1);
    memset(&model, 0, sizeof model);
    model.allocator = &subject_allocator;
    memcpy(odd + 1, bytes, size); /* of no alignment: the model keeps a copy */
    FUZZ_CHECK(jamba_model_load(&s->model, jamba_from_memory(odd + 1, size), &model, NULL) == JAMBA_OK);
    free(odd);
    free(bytes);
    jamba_model_describe(s->model, &info);
    memcpy(s->identity, info.identity, 32);
    s->vocab = info.vocab;
    s->session = NULL;
    if (params) FUZZ_CHECK(jamba_session_create(&s->session, s->model, params, NULL) == JAMBA_OK);
}

/* Which of the models a file of these bytes is for, whose identity stands at 32; 0 when it is none of them. */
FUZZ_UNUSED static int subject_named(const subject *subjects, int count, const uint8_t *data, size_t size)
{
    int i;
    for (i = 0; i < count; i++)
        if (size >= 64 && memcmp(data + 32, subjects[i].identity, 32) == 0) return i;
    return 0;
}

#endif
