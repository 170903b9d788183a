/* api_second.c - the translation unit with the implementation, for api.c */
#define JAMBA_IMPLEMENTATION
#include "jamba.h"
