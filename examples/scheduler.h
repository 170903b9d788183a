/* scheduler.h - lets a crowd of characters speak at once, within so many microseconds a frame
 *
 *     scheduler crowd;
 *     scheduler_open(&crowd, model, &params, 16, &error);   once; params.now_us must be set
 *     crowd.say = show;                                     gets every piece of text
 *
 *     jamba_feed(mia.session, turn, count);                 what she is to answer
 *     mia.left = 40;                                        at most so many tokens
 *     scheduler_add(&crowd, &mia);
 *
 *     scheduler_frame(&crowd, 2000);                        in each frame: 2 ms of work
 *
 * Whoever speaks stands in a queue. The first `width` of them go through the model together, so that its
 * weights are read once for all; who has got a token goes to the end of the queue. Time runs out in the middle
 * of a token, and the next frame goes on there.
 *     What somebody says depends on what its session was fed, and on its own sampler: not on the budget, the
 * frames, the width, or who else speaks. That is why a game that runs on it can be replayed.
 *     Nothing is allocated but by scheduler_open(). Include it after jamba.h.
 */
#ifndef JAMBA_SCHEDULER_H
#define JAMBA_SCHEDULER_H

#include <stdio.h>
#include <string.h>

enum {
    SCHEDULER_WIDTH = 64,    /* most sessions in a batch */
    SCHEDULER_ROWS = 32,     /* tokens that go through the model together: more are faster, and stop less often */
    SCHEDULER_SLICE_US = 250 /* so often it looks whose turn it is */
};

/* Why nothing more is said. */
typedef enum scheduler_ending {
    SCHEDULER_SPEAKS = 0, /* there may be more */
    SCHEDULER_ENDED,      /* the model has come to the end */
    SCHEDULER_LONGEST,    /* `left` tokens were said */
    SCHEDULER_STOPPED,    /* by say(), or scheduler_stop() */
    SCHEDULER_FAILED      /* the session's context is full, or its numbers are not finite: jamba_session_error() */
} scheduler_ending;

/* Somebody who is to speak, one for each session; it must stay where it is as long as it is in the queue. */
typedef struct scheduler_speaker {
    jamba_session *session;   /* with what it answers queued, or read already */
    jamba_sampler sampler;    /* its own */
    int32_t left;             /* tokens that it may still say */
    jamba_text_stream stream; /* all zero before a text begins */
    void *user;
    struct scheduler_speaker *next; /* in the queue */
} scheduler_speaker;

/* Takes a piece of text, not terminated, `length` may be 0. `ending` comes with the last piece; the speaker has then
 * left the queue, and may be added again. Returns whether to go on: if not, the token of this piece is not fed, and a
 * last call with SCHEDULER_STOPPED follows. */
typedef bool (*scheduler_say)(
    void *user, scheduler_speaker *speaker, const char *text, size_t length, scheduler_ending ending);

typedef struct scheduler {
    const jamba_model *model;
    jamba_session *desk;      /* is fed nothing: the sessions work in its scratch, on its executor, by its clock */
    uint64_t (*now_us)(void *user);
    void *now_user;
    scheduler_say say;
    void *user;
    int width;                /* sessions in a batch */
    scheduler_speaker *first; /* of the queue */
    uint64_t said;            /* tokens sampled so far */
} scheduler;

/* `params` are those of the other sessions: executor, threads and now_us count. width: 1 to SCHEDULER_WIDTH. */
static inline jamba_result scheduler_open(
    scheduler *s, const jamba_model *model, const jamba_session_params *params, int width, jamba_error *error)
{
    jamba_session_params desk = *params;
    memset(s, 0, sizeof *s);
    if (!params->now_us || width < 1 || width > SCHEDULER_WIDTH) {
        if (!error) return JAMBA_ERR_ARGUMENT;
        memset(error, 0, sizeof *error);
        error->code = JAMBA_ERR_ARGUMENT;
        snprintf(error->message, sizeof error->message, "a scheduler needs now_us, and a width from 1 to %d",
            (int)SCHEDULER_WIDTH);
        return JAMBA_ERR_ARGUMENT;
    }
    desk.context = desk.chunk = SCHEDULER_ROWS;
    desk.marks = 0;
    s->model = model;
    s->now_us = params->now_us;
    s->now_user = params->now_user;
    s->width = width;
    return jamba_session_create(&s->desk, model, &desk, error);
}

/* Before the sessions of the speakers and the model are freed. */
static inline void scheduler_close(scheduler *s)
{
    jamba_session_free(s->desk);
    memset(s, 0, sizeof *s);
}

/* To the end of the queue. Nobody may be in it twice. */
static inline void scheduler_add(scheduler *s, scheduler_speaker *speaker)
{
    scheduler_speaker **at = &s->first;
    while (*at) at = &(*at)->next;
    *at = speaker;
    speaker->next = NULL;
}

/* ---- what one of them says --------------------------------------------------------------------- */

/* The last piece: what the stream holds back of an unfinished character. Always false. */
static inline bool scheduler_end(scheduler *s, scheduler_speaker *speaker, scheduler_ending ending)
{
    char text[JAMBA_TEXT_MAX];
    size_t length = jamba_decode_next(s->model, &speaker->stream, -1, 0, text);
    s->say(s->user, speaker, text, length, ending);
    return false;
}

/* Interrupts somebody, between frames; say() gets the last piece. False when it was not in the queue. What it has said
 * stays in its session; the token that this is at will be finished when somebody steps or frees it. */
static inline bool scheduler_stop(scheduler *s, scheduler_speaker *speaker)
{
    scheduler_speaker **at = &s->first;
    while (*at && *at != speaker) at = &(*at)->next;
    if (!*at) return false;
    *at = speaker->next;
    scheduler_end(s, speaker, SCHEDULER_STOPPED);
    return true;
}

/* The next token of somebody whose logits are there; false when it was the last. */
static inline bool scheduler_speak(scheduler *s, scheduler_speaker *speaker)
{
    char text[JAMBA_TEXT_MAX];
    size_t length;
    int32_t token;
    if (speaker->left <= 0) return scheduler_end(s, speaker, SCHEDULER_LONGEST);
    token = jamba_sample(speaker->session, &speaker->sampler);
    if (token < 0) return scheduler_end(s, speaker, SCHEDULER_FAILED);
    if (jamba_token_is_end(s->model, token)) return scheduler_end(s, speaker, SCHEDULER_ENDED);
    s->said++;
    speaker->left--;
    length = jamba_decode_next(s->model, &speaker->stream, token, 0, text);
    if (!s->say(s->user, speaker, text, length, SCHEDULER_SPEAKS)) return scheduler_end(s, speaker, SCHEDULER_STOPPED);
    if (jamba_feed(speaker->session, &token, 1) != JAMBA_OK) return scheduler_end(s, speaker, SCHEDULER_FAILED);
    return true;
}

/* All of the batch whose logits are there get a token, and go to the end of the queue. */
static inline void scheduler_serve(scheduler *s)
{
    scheduler_speaker *ready[SCHEDULER_WIDTH], **at = &s->first;
    int count = 0, seen;
    for (seen = 0; *at && seen < s->width; seen++) {
        if (jamba_logits((*at)->session)) {
            ready[count++] = *at;
            *at = (*at)->next;
        } else at = &(*at)->next;
    }
    for (seen = 0; seen < count; seen++)
        if (scheduler_speak(s, ready[seen])) scheduler_add(s, ready[seen]);
}

/* ---- one frame ---------------------------------------------------------------------------------- */

/* The desk and the first of the queue: those who are at a token of their reply before those who still read, so that a
 * long text to read does not keep the others waiting. Returns how many. */
static inline size_t scheduler_gather(const scheduler *s, jamba_session **batch)
{
    size_t count = 0;
    int reads, seen;
    batch[count++] = s->desk;
    for (reads = 0; reads < 2; reads++) {
        const scheduler_speaker *at = s->first;
        for (seen = 0; at && seen < s->width; seen++, at = at->next) {
            jamba_session_info info;
            jamba_session_describe(at->session, &info);
            if ((info.pending > 1) == (reads != 0)) batch[count++] = at->session;
        }
    }
    return count;
}

/* Works for about `budget_us`. JAMBA_OK: nobody is left in the queue. JAMBA_PENDING: there is more to say in the next
 * frame. Anything else: jamba_session_error(s->desk) tells what is wrong. */
static inline jamba_result scheduler_frame(scheduler *s, uint64_t budget_us)
{
    jamba_session *batch[SCHEDULER_WIDTH + 1];
    uint64_t start = s->now_us(s->now_user), spent = 0;
    while (s->first && spent < budget_us) {
        uint64_t slice = budget_us - spent;
        jamba_result result;
        if (slice > SCHEDULER_SLICE_US) slice = SCHEDULER_SLICE_US;
        result = jamba_step_batch(batch, scheduler_gather(s, batch), slice);
        if (result != JAMBA_OK && result != JAMBA_PENDING) return result;
        scheduler_serve(s);
        spent = s->now_us(s->now_user) - start;
    }
    return s->first ? JAMBA_PENDING : JAMBA_OK;
}

#endif /* JAMBA_SCHEDULER_H */
