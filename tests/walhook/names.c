/* Answers for the resolver of one process: loaded before the C library, it gives for every name that is no address what stands in
 * the file named by NAMES: "here" is 127.0.0.1, "none" that there is no such name, "again" that nobody could be asked, and "broken" the same for all names
 * but those that nobody has, as a resolver says that works while the servers of a name fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int lookup(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    lookup *real = (lookup *)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *path = getenv("NAMES");
    if (path == NULL || node == NULL || strspn(node, "0123456789.:abcdef") == strlen(node) || strcmp(node, "localhost") == 0)
        return real(node, service, hints, found);
    char says[16] = "";
    FILE *file = fopen(path, "r");
    if (file == NULL) abort();
    if (fgets(says, sizeof says, file) == NULL) abort();
    fclose(file);
    if (strcmp(says, "here") == 0) return real("127.0.0.1", service, hints, found);
    if (strcmp(says, "broken") == 0 && strstr(node, ".invalid") != NULL) return EAI_NONAME;
    return strcmp(says, "none") == 0 ? EAI_NONAME : EAI_AGAIN;
}
