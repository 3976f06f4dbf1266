"""`workers/discovery/`: nodes that register in an etcd, and what is kept while the server is away."""

from typing import Final

from ..mutant import Mutant

_ETCD: Final = "tests/workers/discovery/test_etcd_client.py"
_GATEWAY: Final = "tests/workers/discovery/test_etcd_gateway.py"
_REGISTRAR: Final = "tests/workers/discovery/test_registrar.py"

DISCOVERY: Final = [
    Mutant(
        "routes-of-a-young-server-alone", "D3", "what a server that has just started does not list is taken away",
        "workers/discovery/registrar.py",
        "            routes = self._known | routes\n",
        "            routes = {**routes}\n",
        (f"{_REGISTRAR}::test_what_a_young_server_does_not_list_is_kept_and_what_an_old_one_does_not_list_is_gone",),
    ),
    Mutant(
        "young-without-a-margin", "D3", "a node whose pause was the longest is taken away before it is back",
        "workers/discovery/registrar.py",
        "timing.discovery_ttl_s + timing.discovery_timeout_s:",
        "timing.discovery_ttl_s:",
        (f"{_REGISTRAR}::test_what_a_young_server_does_not_list_is_kept_and_what_an_old_one_does_not_list_is_gone",),
    ),
    Mutant(
        "empty-etcd-believed", "D3", "an etcd that comes back empty takes all nodes away",
        "workers/discovery/etcd.py",
        "            self._since_ns = None\n        if not is_kept and not due:",
        "            pass\n        if not is_kept and not due:",
        (f"{_ETCD}::test_an_etcd_that_was_away_or_comes_back_empty_counts_as_one_that_has_just_started",),
    ),
    Mutant(
        "etcd-s-gap-not-noticed", "D3", "an etcd that stood still between two exchanges takes nodes away",
        "workers/discovery/etcd.py",
        "now - self._answered_ns > self._longest_gap_ns:",
        "now < self._answered_ns:",
        (f"{_ETCD}::test_an_etcd_that_was_away_or_comes_back_empty_counts_as_one_that_has_just_started",),
    ),
    Mutant(
        "lost-key-not-put-again", "D3", "a node whose key somebody has deleted is not listed any more",
        "workers/discovery/etcd.py",
        "        if not is_kept and not due:\n",
        "        if not is_kept and not due and not self._lease:\n",
        (f"{_ETCD}::test_an_etcd_that_was_away_or_comes_back_empty_counts_as_one_that_has_just_started",),
    ),
    Mutant(
        "every-report-put", "P12", "each report grows the history of etcd, though it says what the one before said",
        "workers/discovery/etcd.py",
        "        due = value != self._put or ",
        "        due = value != b'' or ",
        (f"{_ETCD}::test_a_value_is_put_when_it_has_changed_or_is_a_time_to_live_old",),
    ),
    Mutant(
        "lease-not-kept-alive", "D3", "the lease of a node that lives runs out",
        "workers/discovery/etcd.py",
        "        if self._lease and not await self._gateway.keep_alive(self._lease):\n",
        "        if self._lease < 0:\n",
        (f"{_ETCD}::test_a_value_is_put_when_it_has_changed_or_is_a_time_to_live_old",),
    ),
    Mutant(
        "pauses-longer-than-leases", "D3", "a lease runs out in a pause while only values are refused",
        "workers/discovery/etcd.py",
        "        self.longest_pause_s = timing.discovery_ttl_s / 2\n",
        "        self.longest_pause_s = timing.discovery_ttl_s\n",
        (f"{_ETCD}::test_while_values_are_refused_the_lease_is_kept_and_routes_are_read",),
    ),
    Mutant(
        "older-incarnation-registers", "D5", "an older incarnation of a node registers beside the newer one",
        "workers/discovery/etcd.py",
        "    if newest and newest[0].key > key:\n",
        "    if newest and newest[0].key < key:\n",
        (f"{_ETCD}::test_a_newer_incarnation_counts_and_its_node_of_before_is_refused_and_writes_nothing",),
    ),
    Mutant(
        "older-incarnation-listed", "D5", "of two incarnations the older one is listed",
        "workers/discovery/etcd.py",
        "before.incarnation < value.incarnation",
        "before.incarnation > value.incarnation",
        (f"{_ETCD}::test_a_newer_incarnation_counts_and_its_node_of_before_is_refused_and_writes_nothing",),
    ),
    Mutant(
        "value-of-another-key", "P12, D5", "a key stands for a node that is not its own",
        "workers/discovery/etcd.py",
        "    if value.role != role or kv.key != under",
        "    if value.role != role or kv.key < under",
        (f"{_ETCD}::test_what_is_no_node_is_left_out_counted_once_and_logged_with_a_limit",),
    ),
    Mutant(
        "silent-member-asked-again", "D3, P8", "only the member that does not answer is asked",
        "workers/discovery/etcd_gateway.py",
        "                self._current = (self._current + 1) % len(self._endpoints)\n",
        "",
        (f"{_GATEWAY}::test_a_member_that_does_not_answer_or_has_no_leader_is_passed_over",),
    ),
    Mutant(
        "forgotten-login", "P8", "an etcd that has forgotten a token is not logged in to again",
        "workers/discovery/etcd_gateway.py",
        "            if not self._token or error.status not in NEEDS_LOGIN:\n",
        "            if error.status:\n",
        (f"{_GATEWAY}::test_who_logs_in_does_so_once_and_again_when_etcd_has_forgotten_the_token",),
    ),
    Mutant(
        "answers-without-bound", "P12", "an answer of discovery takes as much memory as it wants",
        "workers/discovery/http.py",
        "        if len(data) > msg.MAX_ANSWER_BYTES:\n",
        "        if len(data) > msg.MAX_ANSWER_BYTES << 20:\n",
        (f"{_GATEWAY}::test_every_other_answer_is_an_error_that_says_what_came",),
    ),
]
