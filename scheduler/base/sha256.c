#include "scheduler/base/sha256.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"

struct sha256 *sha256_new(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();

    if (c && !EVP_DigestInit_ex(c, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(c);
        return NULL;
    }
    return (struct sha256 *)c;
}

void sha256_add(struct sha256 *s, const void *data, size_t n)
{
    EVP_DigestUpdate((EVP_MD_CTX *)s, data, n);
}

void sha256_finish(struct sha256 *s, char hex[65])
{
    unsigned char d[EVP_MAX_MD_SIZE];
    unsigned n = 0;

    EVP_DigestFinal_ex((EVP_MD_CTX *)s, d, &n);
    EVP_MD_CTX_free((EVP_MD_CTX *)s);
    for (unsigned i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", d[i]);
}

void sha256_text(const void *data, size_t n, char hex[65])
{
    struct sha256 *s = sha256_new();

    hex[0] = '\0';
    if (!s)
        return;
    sha256_add(s, data, n);
    sha256_finish(s, hex);
}

int sha256_file(int dirfd, const char *path, char hex[65], struct dtx_err *e)
{
    char chunk[65536];
    int fd = fd_open_file(dirfd, path, e);
    struct sha256 *s;
    ssize_t got;

    if (fd < 0)
        return fd;
    s = sha256_new();
    if (!s) {
        close(fd);
        return dtx_fail(e, -ENOMEM, "out of memory");
    }
    while ((got = read(fd, chunk, sizeof(chunk))) > 0)
        sha256_add(s, chunk, (size_t)got);
    sha256_finish(s, hex);
    if (got < 0) {
        int rc = dtx_fail_errno(e, "cannot read %s", path);
        close(fd);
        return rc;
    }
    close(fd);
    return 0;
}
