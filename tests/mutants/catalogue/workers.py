"""What all roles have in common, and `workers/wire/`."""

from typing import Final

from ..mutant import Mutant
from .files import ADDRESSES, BAD_ITEMS, FORMS, INHERITS, LOOKING, RUN_DIR, SEVERAL, STRANGERS

WORKERS: Final = [
    Mutant(
        "one-bug-ends-the-process", "D4", "an exception in one item ends the process, and so every request",
        "workers/bootstrap/encode.py",
        "            except Exception as error:\n                self._ctx.broke(\"message\", error)\n",
        "            except KeyError as error:\n                self._ctx.broke(\"message\", error)\n",
        (f"{BAD_ITEMS}::test_an_exception_in_one_item_ends_that_request_and_not_the_process",),
    ),
    Mutant(
        "allow-list-not-checked", "D15", "a stranger's key is let in",
        "workers/wire/zap.py",
        "        if key in self._allow.list.keys:\n            return key\n",
        "        if key:\n            return key\n",
        (f"{STRANGERS}::test_a_stranger_reaches_no_role_and_a_listed_node_is_served_meanwhile",),
    ),
    Mutant(
        "delisted-key-may-speak", "D15", "a connection outlives the line of the allow-list that let it in",
        "workers/wire/loop.py",
        "return self._keys is None or (len(identity) == KEY_LENGTH and self._keys.is_listed(identity))",
        "return self._keys is None or len(identity) == KEY_LENGTH",
        (f"{STRANGERS}::test_a_key_that_is_taken_off_the_list_is_not_heard_any_more",),
    ),
    Mutant(
        "floods-are-read-at-once", "P16", "a flood of refused messages takes all of a process",
        "workers/wire/reader.py",
        "            if self.is_resting():\n                return\n",
        "",
        (f"{STRANGERS}::test_a_flood_of_what_is_refused_is_read_slowly_and_whoever_else_is_there_is_served",),
    ),
    Mutant(
        "stderr-without-bound", "P21, P12", "texts are kept without a bound while nobody reads them",
        "workers/stderr.py",
        "        if self._queue.qsize() >= MAX_TEXTS or not (self._is_started or self.start()):\n",
        "        if not (self._is_started or self.start()):\n",
        ("tests/workers/test_stderr.py::test_who_writes_into_a_full_pipe_goes_on_and_what_was_dropped_is_counted",),
    ),
    Mutant(
        "name-at-a-socket", "P21",
        "whatever an address holds is given to libzmq, which looks names up in its one I/O thread",
        "workers/wire/dealers.py",
        "            numeric(address)  # a name",
        "            str(address)  # a name",
        (f"{FORMS}::test_no_name_reaches_a_socket",),
    ),
    Mutant(
        "hung-names-have-all", "P21, P12", "names whose look-ups hang again and again may hold every thread",
        "workers/addresses.py",
        "for address in self._begun]) < MAX_THREADS // 2\n",
        "for address in self._begun]) < MAX_THREADS\n",
        (f"{LOOKING}::test_names_that_have_hung_before_have_half_of_the_places_however_many_they_are",),
    ),
    Mutant(
        "who-listens-unasked", "D5", "any node that listens at a run socket is taken for the one that names the socket",
        "workers/run_socket.py",
        'if (frame.node_id, frame.incarnation) == self._meant:',
        'if (frame.node_id, frame.incarnation) != (0, 0):',
        (f"{ADDRESSES}::test_a_node_at_whose_path_another_listens_is_not_taken_for_one_of_this_host",),
    ),
    Mutant(
        "launch-low-descriptor", "P13", "a descriptor that is handed over may be that of standard output",
        "workers/files.py",
        "    if fd > 2:",
        "    if fd > -1:",
        (f"{INHERITS}::test_descriptors_that_whoever_launches_has_closed_are_not_used_for_anything_else[(0, 1, 2)]",),
    ),
    Mutant(
        "launch-any-file", "P8, P13", "a FIFO is read as if it were a file",
        "workers/files.py",
        "    if not stat.S_ISREG(",
        "    if stat.S_ISSOCK(",
        (f"{RUN_DIR}::test_an_identity_that_is_none_is_named_with_the_remedy[a FIFO]",),
    ),
    Mutant(
        "engine-of-anybody", "R10, R14", "every peer has the engine that this node offers first",
        "workers/role.py",
        "        return next((engine for engine in self.engines if engine.number == number), None)",
        "        return next((engine for engine in self.engines if number), None)",
        (f"{SEVERAL}::test_the_engine_that_was_agreed_stays_whoever_asks_and_when",),
    ),
    Mutant(
        "sessions-if-all-have-them", "R11, P7", "where one engine of a node has no sessions, nothing is fenced",
        "workers/role.py",
        "        self.has_sessions = any(engine.has_sessions for engine in engines)\n",
        "        self.has_sessions = all(engine.has_sessions for engine in engines)\n",
        (f"{SEVERAL}::test_one_engine_with_sessions_is_enough_for_a_fence",),
    ),
]
