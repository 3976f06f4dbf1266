// Posts: how a scheduler and an encoder of one host find each other.
//
//   posts  [bucket][8]  grant  0:1 | tag:17 | slot:16 | epoch:28
//                       offer  1:1 | tag:17 | entry:8 | generation:24
//
// `allocator/posts.py` tells of them. A post is one word, entered and taken off by compare-and-swap, and a hint: the
// tag is a part of the room's hash, and a full bucket takes no more. So whatever a death leaves of them misleads
// nobody.
#ifndef EMBRIDGE_NATIVE_POSTS_H
#define EMBRIDGE_NATIVE_POSTS_H

#include "shared.h"

#define BUCKET_POSTS 8 // a line
#define POST_TAG_BITS 17
#define POST_SLOT_BITS 16
#define POST_EPOCH_BITS 28
#define POST_KEY_BITS (POST_SLOT_BITS + POST_EPOCH_BITS)
#define POST_OFFER (UINT64_C(1) << POST_TAG_BITS)
#define POST_SPREAD UINT64_C(0x9E3779B97F4A7C15)

// The bucket of a room, and the room's tag.
static inline word64 *post_bucket(word64 *posts, uint64_t num_buckets, uint64_t room, uint64_t *tag)
{
    const uint64_t spread = room * POST_SPREAD;
    *tag = spread >> (64 - POST_TAG_BITS);
    return posts + (spread & UINT32_MAX) % num_buckets * BUCKET_POSTS;
}

static inline uint64_t post_of_grant(uint64_t tag, uint64_t slot, uint64_t epoch)
{
    return tag << POST_KEY_BITS | slot << POST_EPOCH_BITS | epoch;
}

// False: the bucket is full.
static inline bool post_enter(word64 *bucket, uint64_t post)
{
    for (size_t k = 0; k < BUCKET_POSTS; k++) {
        uint64_t found = 0;
        if (atomic_load_explicit(&bucket[k], memory_order_relaxed) != 0)
            continue;
        // SYNC post: sequentially consistent, as the look for the other side's that follows it: of two who cross, one
        // sees the other (R37).
        if (atomic_compare_exchange_strong_explicit(&bucket[k], &found, post, memory_order_seq_cst,
                                                    memory_order_seq_cst))
            return true;
    }
    return false;
}

static inline void post_take_off(word64 *bucket, uint64_t post)
{
    for (size_t k = 0; k < BUCKET_POSTS; k++) {
        uint64_t found = post;
        if (atomic_load_explicit(&bucket[k], memory_order_acquire) == post)
            atomic_compare_exchange_strong_explicit(&bucket[k], &found, 0, memory_order_acq_rel, memory_order_acquire);
    }
}

// Whether an encoder may wait for a grant of the room with this tag.
static inline bool post_has_offer(const word64 *bucket, uint64_t tag)
{
    for (size_t k = 0; k < BUCKET_POSTS; k++)
        // SYNC post: sequentially consistent.
        if (atomic_load_explicit(&bucket[k], memory_order_seq_cst) >> POST_KEY_BITS == (POST_OFFER | tag))
            return true;
    return false;
}

#endif
