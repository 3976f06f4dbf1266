// An encoder's client that releases an untold request at its end; it may die between any two steps, and its node may be
// told meanwhile. What holds at every boundary: only one of the two has the request, and a room counts as succeeded, as
// one that is not in use, and its epoch as released, only when the client has released it (R78, R80).
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_UNTOLD_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_UNTOLD_H

#include "scenes_grant.h"
#include "untold.h"

#define LEAVE_INCARNATION 7
#define LEAVE_COUNTED 2 // another request shares the word

static void leave_it(const struct scene *scene, struct world *world)
{
    (void)scene;
    const struct status_table status = table_of(world);
    const struct status_table there = {.words = world->there, .stamps = world->stamps_there,
                                       .dirty = world->dirty_there, .num_slots = SLOTS_PER_PAGE,
                                       .num_views = NUM_VIEWS};
    const struct room_words finished = {world->blank, 1}, untold = {world->blank + 1, 1};
    struct sender_leave leave = {.status = &status, .there = &there, .record = world->record,
                                 .destination = world->destinations, .meetings = world->bind.meeting,
                                 .finished = &finished, .untold = &untold, .num_slots_there = 1, .room = GRANT_ROOM,
                                 .epoch = GRANT_EPOCH, .incarnation = LEAVE_INCARNATION};
    sender_leave(&leave);
}

static void prepare_leave(const struct scene *scene, struct world *world)
{
    (void)scene;
    memset((void *)world, 0, sizeof *world);
    world->words[0] = status_word(GRANT_EPOCH, PHASE_SUCCESS, GRANT_TOKENS);
    world->there[0] = status_word(GRANT_EPOCH, PHASE_SUCCESS, GRANT_TOKENS);
    world->record[SLOT_TOLD] = IS_UNTOLD;
    world->record[SLOT_JOINED_BY] = JOINED_BY_CLIENT;
    world->record[SLOT_RELEASED_EPOCH] = GRANT_EPOCH - 1;
    world->destinations[DESTINATION_REMOTE_EPOCH] = GRANT_EPOCH;
    world->destinations[DESTINATION_INCARNATION] = LEAVE_INCARNATION;
    world->bind.meeting[MEETING_TOLD] = GRANT_EPOCH - 1;
    world->blank[1] = LEAVE_COUNTED;
}

// The node, of a dead client: what that has not released is the node's now, and is counted no more.
static void recover_leave(const struct scene *scene, struct world *world)
{
    (void)scene;
    bind_move(&world->record[SLOT_TOLD], IS_UNTOLD, IS_TOLD);
}

static const char *inspect_leave(const struct scene *scene, bool recovering, const struct world *from,
                                 const struct world *to)
{
    (void)scene, (void)recovering;
    const bool is_released = to->record[SLOT_TOLD] == IS_RELEASED;
    if (from->record[SLOT_TOLD] != IS_UNTOLD && to->record[SLOT_TOLD] != from->record[SLOT_TOLD])
        return fault("one takes over what the other has");
    if (!is_released && (to->blank[0] != 0 || to->blank[1] != LEAVE_COUNTED ||
                         to->record[SLOT_RELEASED_EPOCH] == GRANT_EPOCH))
        return fault("it counts as released, and is not");
    if (to->blank[1] != LEAVE_COUNTED && to->blank[0] != GRANT_ROOM + 1)
        return fault("the room is counted no more before it is known to have succeeded");
    if (to->record[SLOT_RELEASED_EPOCH] == GRANT_EPOCH && to->blank[1] != LEAVE_COUNTED - 1)
        return fault("the epoch is released before the room is counted no more");
    return NULL;
}

static const char *outcome_of_leave(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    (void)scene;
    if (!rival && ended->record[SLOT_RELEASED_EPOCH] != GRANT_EPOCH)
        return fault("it is not released");
    return ended->record[SLOT_TOLD] == IS_UNTOLD ? fault("nobody has it") : NULL;
}

static const char *judge_leave(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)scene, (void)killed;
    return recovered->record[SLOT_TOLD] == IS_UNTOLD ? fault("nobody has what the dead had") : NULL;
}


static const struct scene untold_scenes[] = {
    {"leave", .followed = UINT32_MAX, .prepare = prepare_leave, .operate = leave_it, .recover = recover_leave,
     .inspect = inspect_leave, .outcome = outcome_of_leave, .judge = judge_leave, .rivals = who_tells},
};

#endif
