"""What is between nodes and engines."""

from typing import Final

from ..mutant import Mutant

FOLDER: Final = "embridge/integrations/sglang"
PARTS: Final = f"{FOLDER}/parts.py"
ROOMS: Final = f"{FOLDER}/rooms.py"
PARTS_TESTS: Final = "tests/integrations/test_sglang_parts.py"
ROOMS_TESTS: Final = "tests/integrations/test_sglang_rooms.py"
INTERRUPTED: Final = "test_what_is_interrupted_is_failed_on_both_sides_with_the_reason"
ANY_LENGTH: Final = "test_a_request_of_any_length_arrives_in_the_rounds_that_its_scheduler_grants"

ENGINES: Final = [
    Mutant(
        "turn-left-to-a-thread", "P6", "a sender that is cancelled lets others call the client that its thread calls",
        "embridge/integrations/dynamo.py",
        "await asyncio.shield(self._publish(key, rows))",
        "await self._publish(key, rows)",
        ("tests/integrations/test_dynamo.py::"
         "test_a_sender_that_is_cancelled_keeps_its_turn_until_its_thread_is_done",),
    ),
    Mutant(
        "engine-logs-left-behind", "P9", "what an engine's library has written outlives the run directory of a node",
        "pipeline/node/claim.py",
        "for name in (*logs, SOCKET_NAME,",
        "for name in (*logs[:0], SOCKET_NAME,",
        ("tests/integrations/test_membership.py::"
         "test_the_run_directory_of_a_launched_node_goes_with_it_but_not_what_is_a_user_s",),
    ),
    Mutant(
        "no-cache-ends-scheduler", "P21", "a node that is back without a cache ends the scheduler of its requests",
        "pipeline/client/renewed_cache.py",
        "        except (EmbridgeError, RuntimeError, ValueError) as error:  # it is gone again",
        "        except KeyError as error:  # it is gone again",
        (f"{PARTS_TESTS}::"
         "test_a_node_that_has_come_back_and_has_no_cache_fails_requests_and_not_their_scheduler[gone]",),
    ),
    Mutant(
        "parts-from-anywhere", "P16", "a part is fetched from wherever its message says",
        PARTS,
        "            if why := self._allowed.why_not(part.address, caches.client):\n",
        "            if why := '':\n",
        (f"{PARTS_TESTS}::test_a_request_whose_parts_cannot_be_had_is_told_why",),
    ),
    Mutant(
        "part-of-any-shape", "P6", "rows of another shape than the message tells of are handed on",
        PARTS,
        "            if (item.shape, item.dtype) != (part.shape, part.dtype):\n",
        "            if item.dtype != part.dtype:\n",
        (f"{PARTS_TESTS}::test_a_request_whose_parts_cannot_be_had_is_told_why",),
    ),
    Mutant(
        "parts-never-given-back", "R65, P8", "a request that has left keeps its parts, and others wait for ever",
        PARTS,
        "                self._caches.last.end(rid)\n",
        "",
        (f"{PARTS_TESTS}::test_a_request_has_its_parts_until_it_has_left_and_then_others_have_the_memory",),
    ),
    Mutant(
        "followers-not-told", "D16, P8", "ranks that follow are not told where the rows lie",
        PARTS,
        "            self._news[rid] = placed\n",
        "            self._news[rid] = {}\n",
        (
            f"{PARTS_TESTS}::test_parts_of_any_width_and_dtype_come_as_they_were_and_all_ranks_read_one_copy[one host]",
        ),
    ),
    Mutant(
        "dropped-and-told", "P5", "an encoder tells of a part that its shelf has dropped",
        f"{FOLDER}/published.py",
        "                if done.status == PublishStatus.DROPPED:\n",
        "                if done.status == PublishStatus.FILLING:\n",
        (f"{PARTS_TESTS}::test_what_cannot_be_published_goes_by_sglangs_own_way",),
    ),
    Mutant(
        "failed-is-the-highest", "P5", "a failure has our number in SGLang, where it is a success",
        ROOMS,
        "        Phase.Failed: KVPoll.Failed,\n",
        "        Phase.Failed: int(Phase.Failed),\n",
        (f"{ROOMS_TESTS}::{INTERRUPTED}[sender]",),
    ),
    Mutant(
        "taken-and-not-freed", "R3, P8", "rows are copied out, and their blocks are kept",
        ROOMS,
        "        handle.release_drained(end)\n",
        "        handle.release_drained(first)\n",
        (f"{ROOMS_TESTS}::{ANY_LENGTH}[scenario 4]",),
    ),
    Mutant(
        "ready-before-the-handshake", "P5", "blocks are asked for before the encode node is known",
        ROOMS,
        "(self._has_metadata or handle.handshake_done)",
        "(self._has_metadata or handle.opened_ns)",
        (f"{ROOMS_TESTS}::test_blocks_are_taken_only_for_a_node_that_is_there",),
    ),
]
