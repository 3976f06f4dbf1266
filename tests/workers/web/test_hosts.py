"""A page whose name somebody has made lead to a node (DNS rebinding) reads nothing of its requests (D15)."""

from __future__ import annotations

import pytest

from embridge.workers.web.hosts import listed_hosts, strange_name


@pytest.mark.parametrize(
    "host",
    [
        *("", "127.0.0.1", "127.0.0.1:9464", "10.0.0.7:9464", "[::1]", "[2001:db8::7]:9464", "[::ffff:10.0.0.7]:80"),
        *("localhost", "localhost:9464", "LocalHost:9464", "localhost.:80", ":80"),
    ],
)
def test_a_node_answers_to_addresses_to_localhost_and_to_who_says_no_name(host: str) -> None:
    assert strange_name(host) == ""


@pytest.mark.parametrize(
    ("host", "name"),
    [
        *(("evil.example", "evil.example"), ("EVIL.example.:9464", "evil.example"), ("encode-7:9464", "encode-7")),
        *(("localhost.evil.example", "localhost.evil.example"), ("127.0.0.1.evil.example", "127.0.0.1.evil.example")),
        *(("[evil]", "[evil]"), ("a:b:c", "a:b:c"), ("x@127.0.0.1", "x@127.0.0.1"), ("2130706433", "2130706433")),
        ("127.0.0.1, evil.example", "127.0.0.1, evil.example"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_a_node_answers_to_no_other_name(host: str, name: str) -> None:
    assert strange_name(host) == name


def test_a_node_answers_to_the_names_that_are_listed() -> None:
    listed = listed_hosts(" Encode-7.cluster,status.example ")
    assert listed == {"encode-7.cluster", "status.example"}
    assert [strange_name(host, listed) for host in ("encode-7.cluster:9464", "STATUS.example.")] == ["", ""]
    assert strange_name("cluster", listed) == "cluster"
    assert listed_hosts("") == listed_hosts(" ") == frozenset()


@pytest.mark.parametrize("text", ["http://a", "a:9464", "a,,b", "*", "*.cluster", "a b", ".cluster", "a/", "a,"])
def test_what_is_no_list_of_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"web_hosts: '.*' is no host name; give names without scheme and port"):
        listed_hosts(text)
