/* mutate_words.h - a mutator that knows numbers of 32 and 64 bits at places of 4 bytes, as all files of ours hold them
 *
 * Half of the mutations stay libFuzzer's own. */
#ifndef MUTATE_WORDS_H
#define MUTATE_WORDS_H

#include "fuzz.h"

static const uint32_t word_values[] = { 0, 1, 2, 3, 4, 15, 16, 17, 64, 255, 256, 1u << 16, 1u << 20, 1u << 30,
    0x7f800000u, 0x7fc00000u, 0x7fffffffu, 0x80000000u, 0x80000001u, 0xfffffffeu, 0xffffffffu };
enum { WORD_VALUES = sizeof word_values / sizeof word_values[0], WORD_HEAD = 512 };

static uint32_t word_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void word_store(uint8_t *p, uint32_t value)
{
    int i;
    for (i = 0; i < 4; i++) p[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t word_load(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Another number in place of one, mostly in the head of the file: a telling one, one nearby, the size of the file, or
 * what stands elsewhere. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    uint32_t random = seed, value, old;
    size_t words = size / 4, range, at;
    if (words == 0 || word_random(&random) % 2) return LLVMFuzzerMutate(data, size, max_size);
    range = word_random(&random) % 4 && words > WORD_HEAD / 4 ? WORD_HEAD / 4 : words;
    at = word_random(&random) % range * 4;
    old = word_load(data + at);
    switch (word_random(&random) % 4) {
    case 0: value = word_values[word_random(&random) % WORD_VALUES]; break;
    case 1: value = old + word_random(&random) % 9 - 4; break;
    case 2: value = word_load(data + word_random(&random) % words * 4); break;
    default: value = (uint32_t)size - word_random(&random) % 3 * 8; break;
    }
    word_store(data + at, value);
    return size;
}

#endif
