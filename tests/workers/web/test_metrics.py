"""What a node's `/metrics` says, and that it says it as Prometheus wants it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from support.alone import EncodeAlone, LanguageAlone
from support.simulation import segment

from embridge.allocator.control import Control, format_control
from embridge.allocator.ends import Counter
from embridge.allocator.ends import Path as Way
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import SLOTS_PER_PAGE, Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.metrics import Metric
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.metrics_page import page
from embridge.workers.discovery import metrics as discovery
from embridge.workers.exposition import OPEN_METRICS, PLAIN, Family, content_type, exposition
from embridge.workers.timing import NS, Timing
from embridge.workers.web.families import NODE, families
from embridge.workers.web.scene import Scene

ROOT = Path(__file__).parents[3]
FAMILIES = [*(it.family for it in NODE), *discovery.FAMILIES.values()]


def control_of(role: Role, **limits: int) -> Control:
    """A fresh control segment."""
    geometry = Geometry(hidden_size=8, num_blocks=4)
    few = {"num_slots": 128, "max_clients": 2, "ring_records": 16, "max_peers": 2, "max_peer_slots": 64}
    of = Limits(**few | {"max_routes": 1, "has_web": 1, "shelf_bytes": 1 if role == Role.ENCODE else 0} | limits)
    mapping = segment(ControlLayout.of(role, geometry, of).size)
    format_control(mapping, role, geometry, of, node_id=1, incarnation=1, now_ns=NS)
    return Control(mapping)


def text_of(control: Control, kind: str = PLAIN) -> str:
    return exposition(families(Scene(control, Timing()).at(10 * NS)), kind).decode()


def samples(control: Control) -> dict[str, float]:
    """Each sample as it stands, with its value."""
    lines = (line.rpartition(" ") for line in text_of(control).splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


# ---- names


@pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)
def test_a_family_is_named_as_prometheus_has_it(family: Family) -> None:
    """Base units, `_total` for counters alone, one sentence of help, labels whose values have an end."""
    assert re.fullmatch(r"embridge(_[a-z]+)+", family.name)
    assert not re.search(r"_(total|count|sum|bucket|created|ms|ns|us|milliseconds|kb|kib|mib|percent)$", family.name)
    assert family.help.endswith(".")
    assert family.kind not in family.name.split("_")
    if family.kind == "histogram":
        assert family.unit
    assert not {"room", "peer", "pid", "client", "slot", "incarnation", "key", "le", "quantile"} & set(family.labels)
    assert all(re.fullmatch(r"[a-z_]+", label) for label in family.labels)


def test_no_name_stands_for_two_things() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)


def test_the_page_is_what_the_families_say() -> None:
    """`make metrics` writes it."""
    assert (ROOT / "docs" / "metrics.md").read_text() == page()


def test_every_counter_is_seen_on_a_node_of_some_role() -> None:
    seen: set[Metric] = set()
    for role in Role:
        control = control_of(role)
        for metric in Metric:
            before = text_of(control)
            for row in range(len(control.metrics.names)):
                control.metrics.add(row, metric)
            if text_of(control) != before:
                seen.add(metric)
    assert set(Metric) - seen == {Metric.SUCCEEDED, Metric.FAILED}


# ---- the format


def expositions() -> Iterator[tuple[str, str]]:
    """(format, text) of nodes."""
    for kind in (PLAIN, OPEN_METRICS):
        for role in Role:
            control = control_of(role)
            control.ends.failed(Counter.CLIENTS, FailureCode.TIMEOUT)
            yield kind, text_of(control, kind)


def test_parsers_read_each_format() -> None:
    """That of OpenMetrics refuses wrong units, suffixes, orders, and histograms that do not add up."""
    for kind, text in expositions():
        parse = open_metrics.text_string_to_metric_families if kind == OPEN_METRICS else text_string_to_metric_families
        found = {family.name: family for family in parse(text)}
        known = {it.family.name: it.family for it in NODE}
        assert set(found) <= set(known)
        assert len(found) > 40
        for name, family in found.items():
            assert (family.type, family.documentation) == (known[name].kind, known[name].help)
            assert kind == PLAIN or family.unit == known[name].unit
            assert family.samples


def test_what_a_label_holds_is_escaped() -> None:
    family = Family("embridge_x", "gauge", "A \\ and\na line.", ("name",))
    text = exposition([(family, {('a"b\\c\nd',): 1.5})]).decode()
    (found,) = text_string_to_metric_families(text)
    assert found.samples[0].labels == {"name": 'a"b\\c\nd'}
    assert found.documentation == family.help


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("", PLAIN),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PLAIN),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", OPEN_METRICS),
    ],
)
def test_who_takes_open_metrics_gets_it(accept: str, given: str) -> None:
    assert content_type(accept) == given


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    return found


def test_promtool_has_nothing_to_say(promtool: str) -> None:
    for kind, text in expositions():
        if kind == PLAIN:
            command = [promtool, "check", "metrics"]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- alerts and dashboard


def test_promtool_takes_the_alerts(promtool: str) -> None:
    command = [promtool, "check", "rules", str(ROOT / "deploy" / "alerts.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def known_samples() -> dict[str, set[str]]:
    """Every name that a query may have, with its labels."""
    found: dict[str, set[str]] = {"up": set()}
    for family in FAMILIES:
        if family.kind == "histogram":
            found[f"{family.name}_bucket"] = {*family.labels, "le"}
            found |= {f"{family.name}{end}": set(family.labels) for end in ("_sum", "_count")}
        else:
            found[family.full_name] = set(family.labels)
    return found


def check_query(query: str) -> None:
    """Each name in it exists, and so does each label that is asked of it, or by which is summed."""
    known = known_samples()
    names = re.findall(r"\b((?:embridge_\w+)|up)\b(?:\{([^}]*)\})?", query)
    assert names, query
    for name, matchers in names:
        assert name in known, f"{name} in {query}"
        asked = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers))
        assert asked <= known[name] | {"instance", "job"}, f"{asked} of {name} in {query}"
    grouped = {label.strip() for by in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query) for label in by.split(",")}
    labels = set().union(*(known[name] for name, _ in names)) | {"instance", "job"}
    assert grouped <= labels, query


def test_alerts_ask_for_what_there_is_and_say_what_to_do() -> None:
    text = (ROOT / "deploy" / "alerts.yml").read_text()
    alerts = re.split(r"\n +- alert: ", text)[1:]
    assert len(alerts) > 8
    for alert in alerts:
        (query,) = re.findall(r"\n +expr: (.*)", alert)
        check_query(query)
        (runbook,) = re.findall(r'\n +runbook: "(.*)"', alert)
        assert runbook.endswith(".")
        assert re.search(r'\n +summary: "', alert)
        for named in re.findall(r"embridge_\w+", runbook):
            assert any(name.startswith(named) for name in known_samples()), named
        for path in re.findall(r"docs/\S+\.md", runbook):
            assert (ROOT / path).exists()


def test_the_dashboard_asks_for_what_there_is() -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len(panels) > 12
    variables = {it["name"] for it in board["templating"]["list"]}
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            query = target["expr"]
            assert set(re.findall(r"\$(\w+)", query)) <= variables | {"__rate_interval"}
            check_query(query)
    squares = [(x, y) for p in panels for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
               for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]  # fmt: skip
    assert len(squares) == len(set(squares)), "two panels lie over each other"
    assert max(x for x, _ in squares) < 24


# ---- what is counted


def test_a_request_that_succeeds_is_counted_with_its_way_its_tokens_and_its_times() -> None:
    node = EncodeAlone()
    sender = node.sender(1, 8, rows=4)
    node.init(1, [3, 4])
    node.advance(0.3)
    node.write(sender, 4, 8)
    node.settle()
    assert sender.poll() == Phase.Success
    stamps = sender.stamps_ns
    seen = samples(node.control)
    assert seen['embridge_requests_total{outcome="succeeded",reason="none"}'] == 1
    path = "shm" if node.world.engine.is_local else "network"
    assert seen[f'embridge_deliveries_total{{path="{path}"}}'] == 1
    assert seen[f'embridge_delivered_tokens_total{{path="{path}"}}'] == 8
    assert seen[f'embridge_delivered_bytes_total{{path="{path}"}}'] == 8 * node.control.geometry.token_bytes
    assert seen["embridge_request_duration_seconds_count"] == 1
    whole_s = (stamps[Phase.Success] - stamps[0]) / NS
    assert seen["embridge_request_duration_seconds_sum"] == pytest.approx(whole_s)
    assert whole_s >= 0.3
    assert seen['embridge_request_duration_seconds_bucket{le="0.25"}'] == 0
    assert seen['embridge_request_duration_seconds_bucket{le="0.5"}'] == 1
    stages = [name for name in seen if name.startswith("embridge_request_stage_seconds_sum")]
    assert sum(seen[name] for name in stages) == pytest.approx(whole_s)
    assert seen['embridge_requests_in_flight{phase="success"}'] == 1
    node.close(1)
    node.advance(0.1)
    assert samples(node.control)['embridge_requests_in_flight{phase="success"}'] == 0
    assert samples(node.control)['embridge_requests_total{outcome="succeeded",reason="none"}'] == 1


def test_a_request_that_fails_is_counted_with_its_reason() -> None:
    node = LanguageAlone()
    receiver = node.receiver(1)
    receiver.abort("enough")
    node.settle()
    seen = samples(node.control)
    assert seen['embridge_requests_total{outcome="failed",reason="aborted"}'] == 1
    failed = [count for name, count in seen.items() if name.startswith('embridge_requests_total{outcome="failed"')]
    assert sum(failed) == node.metric("poller", "failed") == 1
    assert seen["embridge_request_duration_seconds_count"] == 0


def test_rows_over_a_network_and_their_rounds_are_counted_on_the_language_side() -> None:
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.Transferring, 8, total_tokens=8, ready_tokens=8)
    node.status(receiver, Phase.Success, 8, total_tokens=8, ready_tokens=8)
    seen = samples(node.control)
    assert seen['embridge_requests_total{outcome="succeeded",reason="none"}'] == 1
    assert seen["embridge_rounds_total"] == 1
    delivered = {name: count for name, count in seen.items() if name.startswith("embridge_delivered_tokens")}
    assert sorted(delivered.values()) == [0, 0, 8]
    assert seen['embridge_delivered_tokens_total{path="direct"}'] == 0


def test_each_destination_is_counted_by_its_own_way() -> None:
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 4)
    node.init(1, [3], required=2)
    node.init(1, [4], required=2, node_id=11)
    assert sender.poll() == Phase.Success
    delivered = node.control.ends.read().delivered
    assert sum(of.requests for of in delivered.values()) == 2
    assert sum(of.tokens for of in delivered.values()) == 8
    assert delivered[Way.DIRECT].requests == 0


def test_who_counts_has_a_row_of_its_own_and_a_reader_sees_the_sum() -> None:
    control = control_of(Role.LANGUAGE)
    for counter in Counter:
        control.ends.failed(counter, FailureCode.BUSY)
        control.ends.failed(counter, 99)  # of a newer peer
    failed = control.ends.read().failed
    assert failed == {code: 3 * (code in (FailureCode.BUSY, FailureCode.INTERNAL)) for code in FailureCode if code}


def test_a_late_count_of_a_slot_that_is_open_again_counts_nothing() -> None:
    control = control_of(Role.LANGUAGE)
    first = control.status.open(5, 100)
    control.status.advance(5, first, Phase.Success, 7, 150)
    assert control.ends.succeeded(Counter.POLLER, 5, first, Way.SHM, 1)
    second = control.status.open(5, 200)
    control.status.advance(5, second, Phase.Success, 9, 900)
    assert not control.ends.succeeded(Counter.POLLER, 5, first, Way.SHM, 1)
    ended = control.ends.read()
    assert (ended.succeeded, ended.delivered[Way.SHM], ended.rounds) == (1, (1, 7), 1)
    assert (ended.whole.sum_ns, ended.whole.counts[0]) == (50, 1)


def test_an_end_that_is_stamped_before_the_opening_has_taken_no_time() -> None:
    """A poller looks at the clock when its step begins, and a request may be opened, and whole, within that step."""
    control = control_of(Role.LANGUAGE)
    epoch = control.status.open(5, 200)
    control.status.advance(5, epoch, Phase.Success, 7, 150)
    assert control.ends.succeeded(Counter.POLLER, 5, epoch, Way.SHM, 1)
    for times in (control.ends.read().whole, control.ends.read().stages[0]):
        assert (times.sum_ns, times.counts[0], sum(times.counts)) == (0, 1, 1)


def test_ten_thousand_requests_make_not_one_series_more() -> None:
    control = control_of(Role.LANGUAGE, num_slots=10048)
    before = samples(control)
    while control.lanes.lease_page(0) is not None:
        pass
    for slot in range(10_000):
        epoch = control.status.open(slot, NS)
        control.slots.set(slot, Slot.EPOCH, epoch)
        control.status.advance(slot, epoch, slot % 3, slot % 3, 2 * NS)
    now = samples(control)
    assert list(now) == list(before)
    flight = [count for name, count in now.items() if name.startswith("embridge_requests_in_flight")]
    assert flight == [3334, 3333, 3333, 0, 0]
    assert SLOTS_PER_PAGE * control.lanes.num_pages == 10048


def test_the_versions_of_both_ways_to_ask_are_one() -> None:
    import embridge
    from embridge.workers.version import version

    assert version() == embridge.__version__
