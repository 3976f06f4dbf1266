"""Requests between two clients of one host, of which their nodes hear only where they must."""

from typing import Final

from ..mutant import Mutant

UNTOLD = "tests/transfers/test_untold.py"

CLIENT_RENDEZVOUS: Final = [
    Mutant(
        "grant-unposted", "R37", "a scheduler's grant is sent to the encode node, and stands nowhere else",
        "pipeline/client/posting.py",
        "        return self._posts.post_grant(room, slot, epoch) and not self._posts.offers(room)\n",
        "        return False\n",
        (f"{UNTOLD}::test_requests_that_go_well_cost_no_process_of_either_node_a_kick",),
    ),
    Mutant(
        "late-ones-stay-untold", "R37, R78", "a request that takes long is never told to its node",
        "pipeline/client/untold.py",
        "            if not is_over:\n                handle.tell()\n",
        "            if not is_over:\n                handle.progress()\n",
        ("tests/transfers/test_failures.py",),
    ),
]
