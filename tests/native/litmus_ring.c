// Message passing over the ring: the record is visible before the tail.
//
// FORBIDDEN: the consumer sees the tail that counts a record, but the record that lay there before, or part of it.
//
// -DBREAK_TAIL_FIRST: the tail is stored before the record.
#include "litmus.h"

#include "ring.h"

#define CAPACITY 2
#define IN_A_ROW 16

static struct ring_header *header;
static unsigned char *records;
static uint64_t num_records, num_empty;

static struct ring end_of_ring(void) { return (struct ring){header, records, CAPACITY, 0}; }

static int64_t push(struct ring *ring, const uint64_t *record)
{
#ifdef BREAK_TAIL_FIRST
    const uint64_t tail = atomic_load(&ring->header->tail);
    if (ring_room(ring, 1) <= 0)
        return 0;
    atomic_store(&ring->header->tail, tail + 1);
    memcpy(ring_record(ring, tail), record, RECORD_BYTES);
    return 1;
#else
    return ring_push(ring, record, 1);
#endif
}

static void *produce(void *argument)
{
    struct side *side = argument;
    struct ring ring = end_of_ring();
    uint64_t number = 0;
    for (uint64_t i = 0; meet(side, i); i++) {
        for (unsigned n = 0; n < IN_A_ROW; n++) {
            uint64_t record[RECORD_WORDS];
            number++;
            for (unsigned word = 0; word < RECORD_WORDS; word++)
                record[word] = number;
            for (unsigned looks = 0; push(&ring, record) == 0;)
                wait_a_little(&looks);
        }
    }
    return NULL;
}

static void *consume(void *argument)
{
    struct side *side = argument;
    struct ring ring = end_of_ring();
    uint64_t number = 0;
    for (uint64_t i = 0; meet(side, i); i++) {
        unsigned looks = 0;
        for (unsigned n = 0; n < IN_A_ROW;) {
            if (ring_pending(&ring, 1) == 0) {
                num_empty++;
                wait_a_little(&looks);
                continue;
            }
            // From the last word on: the one that is written last.
            const volatile uint64_t *record = (const volatile uint64_t *)ring_record(&ring, number);
            bool old = false;
            number++;
            for (unsigned word = RECORD_WORDS; word-- > 0;)
                old |= record[word] != number;
            if (old)
                atomic_fetch_add(&num_forbidden, 1);
            ring_commit(&ring, 1);
            n++;
            num_records++;
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    header = allocate(RING_HEADER_BYTES), records = allocate(CAPACITY * RECORD_BYTES);
    ring_format(header, CAPACITY);
    litmus(argc, argv, produce, consume);
    printf("records that came: %llu, looks at an empty ring: %llu\n", (ull)num_records, (ull)num_empty);
    return verdict();
}
