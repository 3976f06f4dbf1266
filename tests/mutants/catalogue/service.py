"""`pipeline/cli/`, settings as files, and a node as a service."""

from typing import Final

from ..mutant import Mutant
from .files import (
    COMMANDS,
    PROBES,
    SERVICE,
    SERVICE_MANAGER,
    SETTINGS_FILES,
    START_CHECKS,
    STORIES,
    TOP,
    TOP_TERMINAL,
)

SERVICE_MUTANTS: Final = [
    Mutant(
        "story-of-two-requests", "P17", "a slot that is being opened is told of with the words of two requests",
        "pipeline/inspection/stories.py",
        "split(control.status.load(slot)).epoch == epoch and get(slot, Slot.EPOCH) == epoch",
        "split(control.status.load(slot)).epoch == epoch",
        (f"{STORIES}::test_a_request_that_is_just_being_opened_is_not_told_of_by_the_words_of_the_last_one",),
    ),
    Mutant(
        "terminal-kept", "P9", "a command that ends with an exception leaves the terminal as it had it",
        "pipeline/cli/terminal.py",
        "            stack.callback(self._give_back)\n",
        "",
        (f"{TOP_TERMINAL}::test_whatever_ends_the_block_the_terminal_is_as_it_was",),
    ),
    Mutant(
        "texts-command-the-terminal", "P21", "the reason that another node gives is obeyed by an operator's terminal",
        "pipeline/cli/layout.py",
        'else "?" for char',
        "else char for char",
        (f"{TOP}::test_what_others_say_cannot_command_the_terminal",),
    ),
    Mutant(
        "role-guessed", "P13", "a node of which nobody said the role starts as one",
        "pipeline/config.py",
        "        if not self.role:\n",
        "        if self.role == 'neither':\n",
        (f"{COMMANDS}::test_a_wrong_setting_is_one_line_that_names_it_and_status_2",),
    ),
    Mutant(
        "node-guessed", "P18", "a command about a node takes the first of two that run",
        "pipeline/cli/options.py",
        "    if len(running) > 1:",
        "    if len(running) > 2:",
        (f"{COMMANDS}::test_which_node_is_meant_is_not_guessed",),
    ),
    Mutant(
        "variable-unnamed", "P13", "a variable that no setting has is passed over in silence",
        "pipeline/unknown_variables.py",
        "        _told.add(variable)\n",
        "        continue\n",
        (f"{SETTINGS_FILES}::test_a_variable_that_no_setting_has_is_named_once_with_the_nearest",),
    ),
    Mutant(
        "printed-pool-without-origin", "P13", "the pool in tokens is not said to be where the blocks come from",
        "pipeline/config.py",
        "            if key == POOL_TOKENS:\n                names",
        "            if key == '':\n                names",
        (f"{SETTINGS_FILES}::test_what_is_printed_names_each_origin_and_is_the_same_configuration_again",),
    ),
    Mutant(
        "check-without-lock", "P13", "a run directory in which a node runs counts as free",
        "pipeline/node/start_checks.py",
        "            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        "            fcntl.flock(fd, fcntl.LOCK_UN)\n",
        (f"{SERVICE}::test_check_says_that_a_node_runs_there_already",),
    ),
    Mutant(
        "check-makes-folders", "P13", "who asks whether a node could start makes its run directory",
        "pipeline/node/start_checks.py",
        "open_run_dir(path)",
        "open_run_dir(path, create=True)",
        (f"{START_CHECKS}::test_where_a_node_could_start_nothing_fails",),
    ),
    Mutant(
        "reload-launcher-alone", "P18", "another level of the log reaches the launcher and none of its processes",
        "pipeline/node/launcher.py",
        "        self._supervisor.take_log_level()\n",
        "",
        (f"{SERVICE}::test_sighup_takes_over_the_level_of_the_log_and_the_allow_list_and_names_what_needs_a_restart",),
    ),
    Mutant(
        "reload-kills", "P18", "a process that is told of another level of the log dies of that",
        "workers/start.py",
        "    signal.signal(signal.SIGHUP, take_log_level)\n",
        "    signal.signal(signal.SIGHUP, signal.SIG_DFL)\n",
        (f"{SERVICE}::test_sighup_takes_over_the_level_of_the_log_and_the_allow_list_and_names_what_needs_a_restart",),
    ),
    Mutant(
        "reload-key-unsaid", "P18", "nobody is told that another secret key needs a restart",
        "pipeline/node/reloading.py",
        "read_key_file(running.key_file) != keys:",
        "read_key_file(running.key_file) == '':",
        (f"{SERVICE}::test_what_cannot_be_used_on_sighup_changes_nothing",),
    ),
    Mutant(
        "drain-twice-stops", "P18", "a second `embridge drain` ends a node that drains at once",
        "pipeline/node/ending.py",
        "self._look.control.state < NodeState.DRAINING:",
        "self._look.control.state < NodeState.STOPPED:",
        (f"{SERVICE}::test_drain_waits_for_requests_in_flight_and_stop_does_not",),
    ),
    Mutant(
        "watchdog-of-the-command", "D4", "the service manager hears that a node lives whose launcher hangs",
        "pipeline/cli/foreground.py",
        '        return "launcher" not in dict(silent)\n',
        '        return "nobody" not in dict(silent)\n',
        (f"{SERVICE}::test_only_the_launchers_beats_count_for_the_manager",),
    ),
    Mutant(
        "manager-inherited", "D4", "processes of a node may speak to the service manager, too",
        "pipeline/node/service_manager.py",
        'environ.pop("NOTIFY_SOCKET", "")',
        'environ.get("NOTIFY_SOCKET", "")',
        (f"{SERVICE_MANAGER}::test_the_variables_are_taken_out_of_the_environment",),
    ),
    Mutant(
        "live-means-all", "D4", "a node is restarted as a whole for a process that its launcher would mend",
        "workers/web/probes.py",
        '.get("launcher")',
        '.get("poller")',
        (f"{PROBES}::test_a_process_that_is_silent_makes_a_node_unready_and_only_the_launcher_makes_it_dead",),
    ),
    Mutant(
        "ready-while-draining", "P18", "a node that drains is said to be ready",
        "workers/web/probes.py",
        "if view.control.state == NodeState.READY else",
        "if view.control.state >= NodeState.READY else",
        (f"{PROBES}::test_a_node_that_starts_or_drains_lives_and_is_not_ready",),
    ),
]
