/* Writes dtx.layout(5), which is made from the table of the tree, to standard output. */
#include <stdio.h>

#include "mnt-layout/layout.h"
#include "scheduler/base/buf.h"

int main(void)
{
    struct buf b = BUF_INIT;

    layout_man_page(&b);
    if (b.failed || fwrite(b.p, 1, b.len, stdout) != b.len)
        return 1;
    buf_release(&b);
    return 0;
}
