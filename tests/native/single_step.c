// usage: single_step boundaries|kills|rivals|nested [LIMIT] [INNER] [PREFIX]
//
// SIGKILL between any two instructions of the core's operations. Each scene is one operation from one state; a line is
// printed for each, and the exit status is 0 if nothing but the deliberately broken ones broke a promise, and they all
// did.
//
// With a PREFIX, only the scenes whose names begin with it.
//
//   boundaries   One walk through the operation, a step at a time. At each boundary what is shared is copied: that is
//                what a death there leaves. What the last instruction changed must be allowed; recovery is run on the
//                copy, and judged. Then recovery itself is walked from each state so reached, and the states in which
//                it can die are recovered and judged, and so on until no new state appears: any number of deaths.
//   kills        The process is really killed. It must have left what the walk saw at that boundary.
//   rivals       The process is stopped, another one does all of its own operation, and the first goes on.
//   nested       The process is really killed, then its recovery, and recovery is run again.
//
// kills and rivals come to every boundary, or with a LIMIT to as many, evenly spread, as take that many steps a scene.
// Without one, a rival's victim goes on a step at a time and may die anywhere. nested kills at every boundary, or with
// a LIMIT at about that many, and recovery at all of its own, or about INNER; without a LIMIT it walks through
// recovery, too.
#include "scenes_broken.h"
#include "scenes_shelf.h"
#include "scenes_untold.h"

#define FEW_STEPS 20000

struct tally {
    const struct scene *scene;
    uint64_t num_boundaries, num_states, num_kills, num_inner, num_violations;
    char first[320];
};

static void complain(struct tally *tally, const char *where, uint64_t at, const char *what)
{
    if (what && tally->num_violations++ == 0)
        snprintf(tally->first, sizeof tally->first, "%s %llu: %s", where, (ull)at, what);
}

// A deliberately broken one has been found out, which is all that is asked of it.
static bool is_done(const struct tally *tally) { return tally->scene->broken_in && tally->num_violations; }

// ---- what recovery makes of a state: a function of that state alone, so it is asked once

struct state {
    struct world world;
    unsigned deaths; // inside recovery, before it was first seen
    char *wrong;
};

static struct state *states;
static uint32_t num_states, room_for_states;

static const char *recover_and_judge(const struct scene *scene, const struct world *root, const struct world *killed)
{
    static struct world copy;
    memcpy((void *)&copy, killed, sizeof copy);
    scene->recover(scene, &copy);
    return scene->judge(scene, root, &copy);
}

static uint32_t state_of(const struct scene *scene, const struct world *world, unsigned deaths)
{
    for (uint32_t i = num_states; i-- > 0;)
        if (memcmp(&states[i].world, world, sizeof *world) == 0)
            return i;
    if (num_states == room_for_states) {
        room_for_states = room_for_states * 2 + 64;
        struct state *more = allocate(room_for_states * sizeof *states);
        memcpy((void *)more, states, num_states * sizeof *states);
        free(states);
        states = more;
    }
    struct state *state = &states[num_states];
    memcpy((void *)&state->world, world, sizeof *world);
    state->deaths = deaths;
    const char *wrong = recover_and_judge(scene, &state->world, &state->world);
    state->wrong = wrong ? strdup(wrong) : NULL;
    return num_states++;
}

static void forget_states(void)
{
    while (num_states > 0)
        free(states[--num_states].wrong);
}

static void copy_world(struct world *world) { memcpy((void *)world, &stage->world, sizeof *world); }

static void clear(const struct scene *scene)
{
    if (scene->clear)
        scene->clear();
}

// ---- the modes

static uint32_t path[MAX_STEPS]; // the state at each boundary of the operation

// Walk through the operation from what stands on the stage.
static void walk(struct tally *tally, pid_t child, uint64_t at)
{
    const struct scene *scene = tally->scene;
    struct world last;
    copy_world(&last);
    for (;; at++) {
        CHECK(at < MAX_STEPS, "%s does not end", scene->name);
        tally->num_boundaries++;
        complain(tally, "boundary", at, scene->inspect(scene, false, &last, &stage->world));
        if (!scene->live) {
            path[at] = state_of(scene, &stage->world, 0);
            complain(tally, "recovered from boundary", at, states[path[at]].wrong);
        }
        copy_world(&last);
        if (has_ended())
            break;
        step(child);
    }
}

static void walk_alone(struct tally *tally)
{
    const struct scene *scene = tally->scene;
    scene->prepare(scene, &stage->world);
    const pid_t child = begin(scene, scene->operate);
    walk(tally, child, 0);
    complain(tally, "outcome at", tally->num_boundaries - 1, scene->outcome(scene, NULL, &stage->world));
    kill_it(child);
    clear(scene);
}

// The same for the path alone: what is wrong is for the caller to find in its own way. Returns the boundaries.
static uint64_t look_ahead(const struct tally *tally)
{
    struct tally apart = {.scene = tally->scene};
    walk_alone(&apart);
    return apart.num_boundaries;
}

// At every how many boundaries to stop, so that walking there takes `limit` steps.
static uint64_t every_within(uint64_t limit, uint64_t num_boundaries)
{
    return limit ? num_boundaries * num_boundaries / 2 / limit + 1 : 1;
}

// Walk through the recovery of `root`, and judge the recovery of what a death there leaves.
static void walk_recovery(struct tally *tally, const struct world *root, unsigned deaths)
{
    const struct scene *scene = tally->scene;
    struct world last, seen;
    memcpy((void *)&stage->world, root, sizeof last);
    memcpy((void *)&last, root, sizeof last);
    const pid_t child = begin(scene, scene->recover);
    const char *wrong = NULL;
    for (uint64_t at = 0;; at++) {
        CHECK(at < MAX_STEPS, "the recovery of %s does not end", scene->name);
        tally->num_inner++;
        complain(tally, "boundary in recovery", at, scene->inspect(scene, true, &last, &stage->world));
        copy_world(&seen);
        if (at == 0 || memcmp(&seen, &last, sizeof seen) != 0) {
            wrong = recover_and_judge(scene, root, &seen);
            const uint32_t known = deaths ? state_of(scene, &seen, deaths) : 0;
            if (!wrong && deaths)
                wrong = states[known].wrong;
        }
        complain(tally, "recovered from recovery's boundary", at, wrong);
        memcpy((void *)&last, &seen, sizeof last);
        if (has_ended())
            break;
        step(child);
    }
    kill_it(child);
}

static void run_boundaries(struct tally *tally)
{
    walk_alone(tally);
    for (uint32_t i = 0; i < num_states && !is_done(tally); i++) {
        const unsigned deaths = states[i].deaths;
        if (deaths < tally->scene->followed || deaths == 0) {
            const struct world root = states[i].world; // `states` may move
            walk_recovery(tally, &root, deaths + 1);
        }
    }
}

// Kill it at boundary `at`, or at its end. Returns where it was.
static uint64_t kill_at(struct tally *tally, void (*run)(const struct scene *, struct world *), uint64_t at)
{
    const pid_t child = begin(tally->scene, run);
    uint64_t steps = 0;
    for (; steps < at && !has_ended(); steps++)
        step(child);
    kill_it(child);
    tally->num_kills++;
    return steps;
}

static void run_kills(struct tally *tally, uint64_t limit)
{
    const struct scene *scene = tally->scene;
    const uint64_t num_boundaries = look_ahead(tally), every = every_within(limit, num_boundaries);
    for (uint64_t at = 0; at < num_boundaries && !is_done(tally); at += every) {
        struct world killed;
        scene->prepare(scene, &stage->world);
        kill_at(tally, scene->operate, at);
        copy_world(&killed);
        tally->num_boundaries++;
        if (!scene->live && memcmp(&killed, &states[path[at]].world, sizeof killed) != 0)
            complain(tally, "killed at", at, "it left something else than the walk saw there");
        scene->recover(scene, &stage->world);
        complain(tally, "killed at", at, scene->judge(scene, &killed, &stage->world));
        clear(scene);
    }
}

static void run_rivals(struct tally *tally, uint64_t limit)
{
    const struct scene *scene = tally->scene;
    const uint64_t every = every_within(limit, look_ahead(tally));
    for (const struct rival *rival = scene->rivals; rival->name; rival++) {
        bool ended = false;
        for (uint64_t at = 0; !ended && !is_done(tally); at += every) {
            scene->prepare(scene, &stage->world);
            const pid_t child = begin(scene, scene->operate);
            for (uint64_t i = 0; i < at && !has_ended(); i++)
                step(child);
            rival->act(&stage->world);
            ended = has_ended();
            if (limit && !ended) {
                let_go(child);
                tally->num_boundaries++;
            } else {
                walk(tally, child, at);
                kill_it(child);
            }
            complain(tally, rival->name, at, scene->outcome(scene, rival, &stage->world));
            complain(tally, rival->name, at, recover_and_judge(scene, &stage->world, &stage->world));
        }
    }
}

// Kill it at boundary `at`, and recovery at its boundary `in`. Returns how many steps recovery took.
static uint64_t kill_twice(struct tally *tally, uint64_t at, uint64_t in, struct world *killed)
{
    const struct scene *scene = tally->scene;
    scene->prepare(scene, &stage->world);
    kill_at(tally, scene->operate, at);
    copy_world(killed);
    const uint64_t num_steps = kill_at(tally, scene->recover, in);
    tally->num_inner++;
    scene->recover(scene, &stage->world);
    complain(tally, "killed, and killed in recovery, at", at, scene->judge(scene, killed, &stage->world));
    clear(scene);
    return num_steps;
}

static void run_nested(struct tally *tally, uint64_t limit, uint64_t inner)
{
    const uint64_t num_boundaries = look_ahead(tally), every = limit ? num_boundaries / limit + 1 : 1;
    for (uint64_t at = 0; at < num_boundaries && !is_done(tally); at += every) {
        struct world killed;
        const uint64_t num_inner = kill_twice(tally, at, MAX_STEPS, &killed), apart = inner ? num_inner / inner + 1 : 1;
        for (uint64_t in = at % apart; in < num_inner; in += apart)
            kill_twice(tally, at, in, &killed);
        tally->num_boundaries++;
        if (limit == 0 && !tally->scene->live)
            walk_recovery(tally, &killed, 0);
    }
}

static bool run_scene(const struct scene *scene, enum mode mode, uint64_t limit, uint64_t inner)
{
    struct tally tally = {.scene = scene};
    if (scene->broken_in) { // it must be found out for sure
        limit = scene->shows_anywhere ? FEW_STEPS : 0;
        inner = 0;
    }
    if (mode == BOUNDARIES)
        run_boundaries(&tally);
    else if (mode == KILLS)
        run_kills(&tally, limit);
    else if (mode == RIVALS)
        run_rivals(&tally, limit);
    else
        run_nested(&tally, limit, inner);
    printf("%s: %llu boundaries, %u states, %llu kills, %llu boundaries in recovery, %llu violations\n", scene->name,
           (ull)tally.num_boundaries, num_states, (ull)tally.num_kills, (ull)tally.num_inner,
           (ull)tally.num_violations);
    if (tally.num_violations)
        printf("    first: %s\n", tally.first);
    forget_states();
    return (tally.num_violations > 0) == (scene->broken_in > 0);
}

static enum mode mode_of(const char *name)
{
    const char *const names[] = {"boundaries", "kills", "rivals", "nested"};
    for (unsigned i = 0; i < 4; i++)
        if (strcmp(names[i], name) == 0)
            return 1u << i;
    CHECK(false, "no mode: %s", name);
}

int main(int argc, char **argv)
{
    static const struct {
        const struct scene *scenes;
        size_t num;
    } all[] = {
        {block_scenes, sizeof block_scenes / sizeof *block_scenes},
        {ring_scenes, sizeof ring_scenes / sizeof *ring_scenes},
        {status_scenes, sizeof status_scenes / sizeof *status_scenes},
        {slot_scenes, sizeof slot_scenes / sizeof *slot_scenes},
        {bell_scenes, sizeof bell_scenes / sizeof *bell_scenes},
        {direct_scenes, sizeof direct_scenes / sizeof *direct_scenes},
        {bind_scenes, sizeof bind_scenes / sizeof *bind_scenes},
        {grant_scenes, sizeof grant_scenes / sizeof *grant_scenes},
        {untold_scenes, sizeof untold_scenes / sizeof *untold_scenes},
        {shelf_scenes, sizeof shelf_scenes / sizeof *shelf_scenes},
        {broken_scenes, sizeof broken_scenes / sizeof *broken_scenes},
        {broken_shelf_scenes, sizeof broken_shelf_scenes / sizeof *broken_shelf_scenes},
    };
    const enum mode mode = mode_of(argc > 1 ? argv[1] : "boundaries");
    const uint64_t limit = argument(argc, argv, 2, 0), inner = argument(argc, argv, 3, 0);
    bool good = true;
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *reason = why_not();
    if (reason) {
        puts(reason);
        return CANNOT;
    }
    set_up_stage();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (size_t k = 0; k < all[i].num; k++) {
            const struct scene *scene = &all[i].scenes[k];
            const bool is_asked = argc <= 4 || strncmp(argv[4], scene->name, strlen(argv[4])) == 0;
            if (is_asked && (scene->broken_in == 0 || scene->broken_in & mode) && (mode != RIVALS || scene->rivals))
                good &= run_scene(scene, mode, limit, inner);
        }
    return !good;
}
