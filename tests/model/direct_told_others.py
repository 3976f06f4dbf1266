"""Another sender of the room of `direct_told_model`, which finds the grant by itself: later, or at the same time.

Where the sender that the node knows has a door, it is bound to the grant as the other is, and that must do: the model
has no tombstone there. Where it has none (`doorless`), the other one marks the grant as found before it looks at the
tombstone, and the bootstrap, which has raised that, looks at the mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from direct_told_world import FREE, REVOKED, SHUT, WRITING, Rules, Setting, Step, World
from phases import FAILED, OPEN, SUCCESS

BOUND: Final = ("bound", "claimed", "done")


def _of_language(world: World, **words: Any) -> World:
    return world._replace(language=world.language._replace(**words))


def later_steps(setting: Setting, rules: Rules, world: World) -> Iterator[Step]:
    language = world.language
    is_offered = language.posted and language.claim == FREE and not language.bound
    if world.later == "none" and setting.doorless and is_offered and not world.stale:
        marked = world._replace(marked=rules.r81_who_finds_a_grant_marks_it_first, later="marked")
        yield "a second sender marks the grant as found", marked
    elif world.later == "none" and not setting.doorless and is_offered:
        yield "a later sender binds itself", _of_language(world, bound=True)._replace(later="bound")
    elif world.later == "marked":
        yield "a second sender looks whether it is over", world._replace(later="gone" if world.stale else "looked")
    elif world.later == "looked":
        bound = _of_language(world, bound=True)._replace(later="holding")
        yield "a second sender binds the grant", bound if is_offered else world._replace(later="gone")
    elif world.later == "holding":
        let_go = _of_language(world, bound=False)._replace(later="gone")
        yield "a second sender binds itself", let_go if world.kept_off else world._replace(later="bound")
    elif world.later == "bound" and language.claim == FREE:
        yield "a later sender claims", _of_language(world, claim=WRITING)._replace(later="claimed")
    elif world.later == "claimed":
        claim = {WRITING: FREE, REVOKED: SHUT}.get(language.claim, language.claim)
        copied = _of_language(world, claim=claim)._replace(later="done")
        encoder = world.encoder
        if language.phase == SUCCESS or language.freed:
            copied = copied._replace(fault="stray: a later sender writes into a request that has ended")
        elif encoder.at in ("noted", "claimed", "copied") or encoder.worker in ("writing", "done"):
            copied = copied._replace(fault="twice: two senders of a room write")
        yield "a later sender copies, and gives the claim back", copied


def looked(rules: Rules, world: World) -> World:
    """The encode bootstrap looks who else has found the grant, and keeps that one off, or fails its own."""
    encoder = world.encoder
    if world.marked and world.later in BOUND:
        phase = FAILED if encoder.phase == OPEN else encoder.phase
        return world._replace(encoder=encoder._replace(worker="idle", phase=phase))
    is_kept_off = world.marked and rules.r81_a_finder_is_kept_off
    return world._replace(kept_off=is_kept_off, encoder=encoder._replace(worker="asked"))
