/* models.h - small models, adapters and texts that fuzz targets and seeds are made of; hashes of changed ones mended.
 *
 * Nothing here depends on anything but this source, so that a saved corpus keeps fitting. */
#ifndef MODELS_H
#define MODELS_H

#include <stddef.h>
#include <stdint.h>

/* Blocks of every kind and type; the second is the first with other weights. The last three are only for text. */
enum {
    FUZZ_HYBRID, FUZZ_HYBRID_TWIN, FUZZ_ZAMBA, FUZZ_MAMBA2, FUZZ_LLAMA, FUZZ_Q8, FUZZ_Q4, FUZZ_HEADS, FUZZ_MODELS,
    FUZZ_TEXT_PIECES = FUZZ_MODELS, FUZZ_TEXT_BYTES, FUZZ_TEXT_WORDS, FUZZ_ALL_MODELS
};

/* The bytes of a model file. free() them. */
uint8_t *fuzz_model(int which, size_t *size);
/* An adapter for that model: of every third matrix, or of all. free() it. */
uint8_t *fuzz_adapter(int which, uint32_t type, uint32_t rank, int every, size_t *size);
/* tokenizer.json of a small vocabulary of one kind, 0 to FUZZ_TOKENIZERS - 1; with `whole` every byte is in it. */
enum { FUZZ_TOKENIZERS = 4 };
char *fuzz_tokenizer_json(int kind, int whole);
/* tokenizer.model; free() it. */
uint8_t *fuzz_sentencepiece(int kind, size_t *size);

/* Hashes set right, where there are any. */
void fuzz_mend_model(uint8_t *data, size_t size);
void fuzz_mend_state(uint8_t *data, size_t size);
void fuzz_mend_adapter(uint8_t *data, size_t size);

#endif
