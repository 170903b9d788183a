/* user.c - a translation unit that only uses the library. Valid as C99 and C++11; compile.sh links it with
 * implementation.c built by the same and by the other compiler and language. */
#include "jamba.h"

#include <string.h>

int main(void)
{
    jamba_model *model;
    jamba_error error;
    if (jamba_version() != JAMBA_VERSION) return 1;
    if (strcmp(jamba_result_name(JAMBA_ERR_NUMERIC), "a logit is not a finite number") != 0) return 2;
    if (jamba_model_load(&model, jamba_from_file("no/such/file"), NULL, &error) != JAMBA_ERR_IO) return 3;
    return model || !strstr(error.message, "no/such/file") ? 4 : 0;
}
