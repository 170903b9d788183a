/* implementation.c - the library as an object of its own, C99 and C++11 */
#define JAMBA_IMPLEMENTATION
#include "jamba.h"
