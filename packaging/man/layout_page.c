/* Writes dtx.layout(5), which is made from the table of the tree, to standard output; with the argument
 * "conf" the keys of dtxd.conf(5), which are made from the table of the configuration. */
#include <stdio.h>
#include <string.h>

#include "mnt-layout/layout.h"
#include "mnt-layout/spec.h"
#include "scheduler/base/buf.h"

static const char conf_head[] = ".TH DTXD.CONF 5 \"\" DTX \"File formats\"\n"
                                ".SH NAME\ndtxd.conf \\- the administrator's configuration of dtxd\n"
                                ".SH SYNOPSIS\n.EX\ndtxd \\-\\-config /etc/dtxd.conf ...\n.EE\n"
                                ".SH DESCRIPTION\nA JSON object. Every key may be left out. The file is read "
                                "at start and whenever it changes. A "
                                "file with an error changes nothing: what was read before stays, and the log "
                                "says file, line, column, what was "
                                "found and what was expected.\n.PP\nSizes are numbers of bytes, or a number "
                                "and a unit: K, M, G, T, P (or KiB, MiB, "
                                "GiB, TiB, PiB) of 1024, KB, MB, GB, TB, PB of 1000.\n"
                                ".SH KEYS\n";
static const char conf_tail[] =
    ".SH HOW SPACE IS COUNTED\nA file counts for its owner with the blocks that it has on the disk (holes "
    "count "
    "nothing, an empty file or a folder 1 KiB); hard links count once; files of training (checkpoints, token "
    "caches) "
    "count for the owner of the experiment. What comes to the store past the mount is counted by a scan, "
    "within about a "
    "minute.\n.PP\nA write, copy, fallocate, growing truncate or new file that would pass a limit fails at "
    "once: with "
    "EDQUOT (Disk quota exceeded) for a quota, with ENOSPC (No space left on device) for the store's limits. "
    "The log and "
    "the object's NAME.status say how much is used and what takes most of it; an object that was cut off so "
    "is REJECTED "
    "until it is copied again. The jobs of an owner whose quota is used up wait; running ones end as they "
    "would.\n.PP\n"
    "The files status, status.json and metrics.prom of the mount show who uses how much. df(1) on the mount "
    "shows the "
    "caller's own limit.\n"
    ".SH EXAMPLES\n.EX\n{\n  \"admins\": [\"alice\"],\n  \"quotas\": {\"default\": \"50 GiB\", \"alice\": "
    "null},\n  \"store_reserve\": \"20 GiB\"\n}\n.EE\n"
    ".SH SEE ALSO\n.BR dtxd (8),\n.BR dtx.layout (5)\n";

int main(int argc, char **argv)
{
    struct buf b = BUF_INIT;

    if (argc > 1 && strcmp(argv[1], "conf") == 0) {
        buf_adds(&b, conf_head);
        spec_man_keys(SPEC_CONFIG, &b);
        buf_adds(&b, conf_tail);
    } else {
        layout_man_page(&b);
    }
    if (b.failed || fwrite(b.p, 1, b.len, stdout) != b.len)
        return 1;
    buf_release(&b);
    return 0;
}
