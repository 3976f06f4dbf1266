"""`workers/web/`, what a node's log says, and how ends are counted."""

from typing import Final

from ..mutant import Mutant

_SERVER: Final = "tests/workers/web/test_web_server.py"
_LINES: Final = "tests/workers/test_log_lines.py"
_METRICS: Final = "tests/workers/web/test_metrics.py"

WEB: Final = [
    Mutant(
        "peer-writes-log-lines", "P16", "what a peer says of a request can be a line of the log by itself",
        "workers/log_lines.py",
        "return one_line(super().formatMessage(record))",
        "return super().formatMessage(record)",
        (f"{_LINES}::test_a_record_is_one_line_whoever_has_written_parts_of_it",),
    ),
    Mutant(
        "silent-askers-stay", "P21, P12", "who connects to the HTTP port and says nothing stays",
        "workers/web/server.py",
        "for it in [it for it in self._connections if it.until_ns <= now]:",
        "for it in [it for it in self._connections if it.until_ns <= 0]:",
        (f"{_SERVER}::test_who_says_nothing_is_let_go_and_holds_nobody_up",),
    ),
    Mutant(
        "askers-without-bound", "P12", "the web process keeps as many connections as anybody opens",
        "workers/web/server.py",
        "        if len(self._connections) >= MAX_CONNECTIONS:\n            self._pause(0.0)\n",
        "",
        (f"{_SERVER}::test_who_says_nothing_is_let_go_and_holds_nobody_up",),
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
