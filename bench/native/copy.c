// copy HOW SEGMENT BYTES...: GB/s of moving SEGMENT bytes between two mappings, in scattered pieces of BYTES.
// HOW: memcpy, past_cache, or past_cache_2 (two threads, each half of every piece).
#include "common.h"
#include "copy.h"

#include <pthread.h>

struct part {
    unsigned char *to;
    const unsigned char *from;
    size_t bytes, segment, begin, end;
    bool past_cache;
};

static void *carry(void *argument)
{
    const struct part *part = argument;
    const size_t num = part->segment / part->bytes;
    for (size_t i = 0; i < num; i++) {
        const size_t at = i * 7919 % num * part->bytes + part->begin, bytes = part->end - part->begin;
        if (part->past_cache)
            copy_past_cache(part->to + at, part->from + at, bytes);
        else
            memcpy(part->to + at, part->from + at, bytes);
    }
    copy_finish();
    return NULL;
}

static double rate(const char *how, unsigned char *to, const unsigned char *from, size_t bytes, size_t segment)
{
    const bool two = strcmp(how, "past_cache_2") == 0;
    struct part part = {.to = to,
                        .from = from,
                        .bytes = bytes,
                        .segment = segment,
                        .end = two ? bytes / 2 : bytes,
                        .past_cache = strcmp(how, "memcpy") != 0};
    struct part other = part;
    other.begin = part.end;
    other.end = bytes;
    const int64_t begun = monotonic_ns();
    pthread_t thread;
    if (two && pthread_create(&thread, NULL, carry, &other) != 0)
        exit(1);
    carry(&part);
    if (two)
        pthread_join(thread, NULL);
    return (double)(segment / bytes * bytes) / (double)(monotonic_ns() - begun);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    const size_t segment = strtoull(argv[2], NULL, 10);
    unsigned char *to = shared_memory(segment), *from = shared_memory(segment);
    memset(from, 1, segment);
    for (int i = 3; i < argc; i++)
        printf("%s %.4f\n", argv[i], rate(argv[1], to, from, strtoull(argv[i], NULL, 10), segment));
    return 0;
}
