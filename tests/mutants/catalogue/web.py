"""`workers/web/`, what a node's log says, and how ends are counted."""

from typing import Final

from ..mutant import Mutant

_SERVER: Final = "tests/workers/web/test_web_server.py"
_LINES: Final = "tests/workers/test_log_lines.py"
_METRICS: Final = "tests/workers/web/test_metrics.py"

_STATUS: Final = "tests/workers/web/test_told_status.py"
_PROBES: Final = "tests/workers/web/test_probes.py"
_PAGE: Final = "tests/workers/web/test_status_page.py"
_DISCOVERY: Final = "tests/workers/discovery/test_discovery_server.py"

WEB: Final = [
    Mutant(
        "peer-writes-log-lines", "P16", "what a peer says of a request can be a line of the log by itself",
        "workers/log_lines.py",
        "return one_line(super().formatMessage(record))",
        "return super().formatMessage(record)",
        (f"{_LINES}::test_a_record_is_one_line_whoever_has_written_parts_of_it",),
    ),
    Mutant(
        "all-requests-told", "P12", "the status of a node grows with what is in flight",
        "workers/web/status.py",
        "oldest = heapq.nsmallest(MAX_REQUESTS, slots,",
        "oldest = heapq.nsmallest(len(slots), slots,",
        (f"{_STATUS}::test_the_oldest_requests_are_told_and_how_many_there_are",),
    ),
    Mutant(
        "room-as-a-number", "P8", "a browser shows the number of another room",
        "workers/web/status.py",
        'shown = request | {"room": str(request["room"])}',
        'shown = dict(request)',
        (f"{_STATUS}::test_a_request_that_waits_says_for_whom_and_why_and_its_room_is_whole",),
    ),
    Mutant(
        "released-slots-told", "R78", "requests that only their client had, and has released, are said to be in flight",
        "workers/inspection/open_slots.py",
        "if epoch <= gone or told == epoch << TOLD_BITS | Told.RELEASED:",
        "if epoch <= gone:",
        (f"{_STATUS}::test_what_is_released_is_not_told_by_whichever_side_and_what_has_ended_is_no_load",),
    ),
    Mutant(
        "released-slots-counted", "R78", "metrics count as in flight what only its client had, and has released",
        "workers/inspection/open_slots.py",
        "and word >> EPOCH_SHIFT == epoch and told != epoch << TOLD_BITS | Told.RELEASED",
        "and word >> EPOCH_SHIFT == epoch",
        (f"{_STATUS}::test_what_is_released_is_not_told_by_whichever_side_and_what_has_ended_is_no_load",),
    ),
    Mutant(
        "page-runs-any-script", "P16", "the status page may run a script that somebody has got into it",
        "workers/status_page.py",
        "script-src {script};",
        "script-src {script} 'unsafe-inline';",
        (f"{_PAGE}::test_the_policy_names_the_one_script_and_the_one_style_of_the_page",),
    ),
    Mutant(
        "status-without-token", "D15", "the discovery server tells its nodes to who has no token",
        "workers/discovery/server.py",
        "request.match_info.handler != self._page",
        "request.match_info.handler not in (self._page, self._status)",
        (f"{_DISCOVERY}::test_the_status_page_is_shown_to_anybody_and_what_it_asks_for_only_with_the_token",),
    ),
    Mutant(
        "any-name-of-a-node", "D15", "a stranger's page whose name leads to a node reads its requests",
        "workers/web/routes.py",
        "if path in BY_ANY_NAME else",
        "if path in ROUTES else",
        (f"{_PROBES}::test_what_tells_of_requests_and_processes_is_answered_by_a_name_of_the_node_alone",),
    ),
    Mutant(
        "names-that-begin-as-addresses", "D15", "a stranger's name that begins with a good address is answered",
        "workers/web/hosts.py",
        "found = _HOST.fullmatch(host)",
        "found = _HOST.match(host.removesuffix('.evil.example'))",
        ("tests/workers/web/test_hosts.py::test_a_node_answers_to_no_other_name",),
    ),
    Mutant(
        "any-name-of-the-discovery-server", "D15", "a stranger's page registers nodes at a server without a token",
        "workers/discovery/server.py",
        "if not self._expected and (name",
        "if self._expected and (name",
        (f"{_DISCOVERY}::test_without_a_token_a_name_that_is_not_the_servers_own_reads_and_changes_nothing",),
    ),
    Mutant(
        "silent-askers-stay", "P21, P12", "who connects to the HTTP port and says nothing stays",
        "workers/web/server.py",
        "for it in [it for it in self._connections if it.until_ns <= now]:",
        "for it in [it for it in self._connections if it.until_ns <= 0]:",
        (f"{_SERVER}::test_who_says_nothing_holds_nobody_up",),
    ),
    Mutant(
        "askers-without-bound", "P12", "the web process keeps as many connections as anybody opens",
        "workers/web/server.py",
        "        if len(self._connections) >= MAX_CONNECTIONS:\n            self._pause(0.0)\n",
        "",
        (f"{_SERVER}::test_who_does_not_read_is_let_go_and_as_many_as_may_connect_have_others_wait",),
    ),
    Mutant(
        "silent-askers-hold-probes-up", "P21", "as many silent askers as may connect have a probe wait",
        "workers/web/server.py",
        "            self._make_room()\n",
        "            pass\n",
        (f"{_SERVER}::test_who_says_nothing_holds_nobody_up",),
    ),
    Mutant(
        "handler-ends-the-process", "D4", "a bug in one answer ends the web process",
        "workers/web/server.py",
        "        except Exception:\n            log.exception(\"%s cannot be answered\"",
        "        except KeyError:\n            log.exception(\"%s cannot be answered\"",
        (f"{_SERVER}::test_what_cannot_be_answered_is_said_and_the_next_is_served",),
    ),
    Mutant(
        "web-may-write", "B13", "who answers on the HTTP port could change the node",
        "workers/web/process.py",
        "spec.control_bytes, writable=False))",
        "spec.control_bytes))",
        ("tests/workers/web/test_web_process.py",),
    ),
    Mutant(
        "ends-of-another-epoch", "P17, R16", "a request is counted with the times of the next one in its slot",
        "allocator/native/ends.h",
        "if (status_epoch(word) != epoch || entered[PHASE_SUCCESS] == 0)",
        "if (entered[PHASE_SUCCESS] == 0)",
        (f"{_METRICS}::test_a_late_count_of_a_slot_that_is_open_again_counts_nothing",),
    ),
    Mutant(
        "failures-without-limit", "P12, P21", "requests that fail fill the log",
        "workers/poller/base.py",
        ", extra={MOST_LINES: FAILURES_A_CAUSE})",
        ")",
        (f"{_LINES}::test_failed_requests_are_warned_of_each_code_by_itself_and_not_without_end",),
    ),
]
