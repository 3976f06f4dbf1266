"""How a scheduler withdraws a grant to which nobody has come, in `direct_told_model` (R34).

The grant is kept from all encoders by the word to which one of them would bind it. Its blocks go back, and the request
is opened anew in the next epoch of its slot: with nothing granted, and told.
"""

from __future__ import annotations

from collections.abc import Iterator

from direct_told_world import FREE, SHUT, TOLD, UNTOLD, Language, Rules, Step, World


def withdraw_steps(rules: Rules, world: World) -> Iterator[Step]:
    me = world.language
    if me.told != UNTOLD:
        return
    if not me.withdraws and me.posted and me.claim == FREE and not me.bound:
        kept = me._replace(bound=rules.r34_kept_from_all_before_it_is_withdrawn, withdraws="kept")
        yield "the scheduler keeps the grant from all", world._replace(language=kept)
    elif me.withdraws == "kept":
        claim = SHUT if me.claim == FREE else me.claim
        yield "the scheduler ends the claim", world._replace(language=me._replace(claim=claim, withdraws="ended"))
    elif me.withdraws == "ended":
        freed = me._replace(freed=True, posted=False, withdraws="freed")
        yield "the scheduler gives blocks and post back", world._replace(language=freed)
    elif me.withdraws == "freed":
        told = TOLD if rules.r34_opened_anew_it_is_told else UNTOLD
        anew = Language(at="open", told=told, claim=FREE, renewed=True)
        yield "the scheduler releases its slot, and opens it anew", world._replace(language=anew)
