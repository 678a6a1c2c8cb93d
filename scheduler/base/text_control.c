/* Apart from text.c, as the CUDA library takes err.c and this along and no other library. */
#include "scheduler/base/text.h"

#include <string.h>

size_t text_control_step(const char *s)
{
    const unsigned char *u = (const unsigned char *)s;

    if (u[0] == '\0')
        return 0;
    if (u[0] < 0x20 || u[0] == 0x7f)
        return 1;
    if (u[0] == 0xc2)
        return u[1] >= 0x80 && u[1] <= 0x9f ? 2 : 0;
    if (u[0] != 0xe2)
        return 0;
    return (u[1] == 0x80 && u[2] >= 0xa8 && u[2] <= 0xae) || (u[1] == 0x81 && u[2] >= 0xa6 && u[2] <= 0xa9)
               ? 3
               : 0;
}

void text_flatten(char *s)
{
    for (size_t n; *s; s += n ? n : 1)
        if ((n = text_control_step(s)))
            memset(s, ' ', n);
}
