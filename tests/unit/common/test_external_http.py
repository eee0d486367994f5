"""Links lead only where they may: hostile ones are refused before anybody is connected to, and no answer is endless."""

from __future__ import annotations

import gzip
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.clock import SYSTEM_CLOCK
from libs.common.domain import DomainError
from libs.common.http.external import Answer, ExternalClient, Limits, resolve
from libs.common.http.links import Networks, parse_link
from libs.common.pki import LocalCa, server_name
from tests.unit.common.web import Web, answer, giving, web

SETTING = "ARGOSY_TEST_NETWORKS"
PUBLIC = Networks([], SETTING)
LOOPBACK = Networks(["127.0.0.0/8"], SETTING)
LIMITS = Limits(bytes=10_000_000, seconds=5, answer_seconds=2, idle_seconds=1)
QUICK = Limits(bytes=10_000_000, seconds=0.4, answer_seconds=0.2, idle_seconds=0.1)

# Loopback in every spelling; PORT is where a server listens that nobody may reach.
LOOPBACK_LINKS = [
    "http://127.0.0.1:PORT/",
    "http://127.0.0.1:PORT",
    "HTTP://127.0.0.1:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7f.0x0.0x0.0x1:PORT/",
    "http://0X7F.1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://017700000001:PORT/",
    "http://127.0.0.01:PORT/",
    "http://127.127.127.127:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0:PORT/",
    "http://0x0:PORT/",
    "http://[::1]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST:PORT/",
    "http://localhost.:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://127。0。0。1:PORT/",
    "http://ｌｏｃａｌｈｏｓｔ:PORT/",
    "http://localho\u00adst:PORT/",
    "https://127.0.0.1:PORT/",
    "http://127.0.0.1:PORT/?host=example.com",
    "http://127.0.0.1:PORT/#@example.com/",
]
OTHER_LINKS = [
    # Credentials, and hosts that look like something else.
    "http://user@127.0.0.1:PORT/",
    "http://user:password@127.0.0.1:PORT/",
    "http://example.com@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT@example.com/",
    "http://example.com\\@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT\\@example.com/",
    "http://127.0.0.1%2f@example.com/",
    "http://127.0.0.1%00.example.com/",
    "http://127.0.0.1:PORT\r\nHost: example.com/",
    "http://127.0.0.1:PORT\t/",
    " http://127.0.0.1:PORT/",
    "http:127.0.0.1:PORT/",
    "http:///127.0.0.1:PORT/",
    "http://[127.0.0.1]:PORT/",
    "http://[::1%25lo]:PORT/",
    "http://[fe80::1%25eth0]:PORT/",
    "http://[::1]example.com/",
    "http://127.0.0.1:PORT:80/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:+80/",
    "http://256.256.256.256/",
    "http://127.0.0.1.0x1/",
    "http://xn--/",
    "http://-a.example/",
    "http://a..example/",
    "http://" + "a" * 64 + ".example/",
    "http://example.com/" + "a" * 3000,
    "//127.0.0.1:PORT/",
    "127.0.0.1:PORT",
    "",
    # Other protocols.
    "file:///etc/passwd",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/_x",
    "dict://127.0.0.1:PORT/",
    "unix:/run/docker.sock",
    "data:text/plain,x",
    "jar:http://127.0.0.1:PORT/!/",
    # Private, local, shared and reserved addresses.
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[fc00::1]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://[100::1]/",
    # Metadata of clouds.
    "http://169.254.169.254/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://2852039166/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fd00:ec2::254]/",
    "http://100.100.100.200/",
    "http://192.0.0.192/",
    "http://168.63.129.16/",
    # An IPv4 address inside an IPv6 address: NAT64, 6to4, Teredo, IPv4-compatible, local NAT64.
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a00:1::1]/",
    "http://[2001:0:a00:1::80ff:fffe]/",
    "http://[::127.0.0.1]:PORT/",
    "http://[64:ff9b:1::a00:1]/",
    # Ports of what is no web server.
    "http://example.com:22/",
    "http://example.com:25/",
    "http://example.com:6379/",
    "http://example.com:5432/",
    "http://example.com:0/",
]


@pytest.fixture
def server() -> Iterator[Web]:
    with web(giving(answer(b"{}\n"))) as running:
        yield running


@pytest.fixture(scope="module")
def untouched() -> Iterator[Web]:
    """A server that nobody may reach."""
    with web(giving(answer(b"{}\n"))) as running:
        yield running


def fetch(text: str, networks: Networks = PUBLIC, limits: Limits = LIMITS, **options: object) -> tuple[Answer, bytes]:
    """The answer to a link and its body."""
    client = ExternalClient(networks, limits, **options)  # type: ignore[arg-type]
    with client.get(parse_link(text)) as found:
        return found, b"".join(found.chunks())


def refusal(text: str, networks: Networks = PUBLIC, limits: Limits = LIMITS, **options: object) -> DomainError:
    with pytest.raises(DomainError) as caught:
        fetch(text, networks, limits, **options)
    return caught.value


def test_there_are_enough_hostile_links() -> None:
    links = LOOPBACK_LINKS + OTHER_LINKS
    assert len(set(links)) == len(links) >= 60


@pytest.mark.parametrize("link", LOOPBACK_LINKS + OTHER_LINKS)
def test_hostile_links_are_refused_and_nobody_is_connected_to(link: str, untouched: Web) -> None:
    def without_network(host: str, port: int) -> list[str]:
        """Answers as the machine does, but asks no server: a name that is not local is public."""
        return resolve(host, port) if host == "localhost" or ":" in host or host[0].isdigit() else ["93.184.216.34"]

    error = refusal(link.replace("PORT", str(untouched.port)), look_up=without_network)
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "uri")
    assert untouched.connections == 0


def test_without_the_guard_loopback_links_arrive(server: Web) -> None:
    """The links are real ones: a plain client reaches the server with most of them."""
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for link in LOOPBACK_LINKS:
        with suppress(OSError, ValueError):
            plain.open(link.replace("PORT", str(server.port)), timeout=0.2).read()
    assert server.connections >= 25


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("http://127.1/", "unusual spelling"),
        ("http://0x7f000001/", "unusual spelling"),
        ("http://0177.0.0.1/", "unusual spelling"),
        ("http://2130706433/", "unusual spelling"),
        ("http://user@example.com/", "a user name or password"),
        ("http://example.com\\@127.0.0.1/", "backslash"),
        ("gopher://example.com/", "gopher is not followed"),
        ("http://example.com:22/", "port 22"),
    ],
)
def test_a_refusal_says_why_before_anything_is_looked_up(link: str, words: str) -> None:
    with pytest.raises(DomainError, match=words):
        parse_link(link)


@pytest.mark.parametrize("link", ["http://127.0.0.1:PORT/", "http://localhost:PORT/", "http://[::ffff:7f00:1]:PORT/"])
def test_an_operator_allows_networks(link: str, server: Web) -> None:
    found, body = fetch(link.replace("PORT", str(server.port)), Networks(["127.0.0.0/8", "::1/128"], SETTING))
    assert (found.status, body) == (200, b"{}\n")
    assert SETTING in refusal(link.replace("PORT", str(server.port))).message
    assert server.connections == 1


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "::ffff:93.184.216.34", "8.8.8.8"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    PUBLIC.require(address, "example.com", "uri")


def test_one_forbidden_address_of_a_name_is_enough(server: Web) -> None:
    error = refusal(server.url(host="two.example"), look_up=lambda host, port: ["93.184.216.34", "127.0.0.1"])
    assert "two.example (127.0.0.1)" in error.message
    assert server.connections == 0


def test_a_name_whose_address_changes_gains_nothing(server: Web) -> None:
    """DNS rebinding: the socket goes to the very address that was checked, and a name is looked up once."""
    answers = iter([["127.0.0.2"], ["127.0.0.1"]])
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    only_the_first = Networks(["127.0.0.2/32"], SETTING)
    # Nobody listens at 127.0.0.2; the server at 127.0.0.1 must not see the second answer's connection.
    error = refusal(server.url(host="rebind.example"), only_the_first, look_up=rebinding)
    assert (error.reason, asked, server.connections) == ("PEER_UNAVAILABLE", ["rebind.example"], 0)
    error = refusal(server.url(host="rebind.example"), only_the_first, look_up=rebinding)
    assert (error.reason, len(asked), server.connections) == ("INVALID_FIELD", 2, 0)


def test_the_name_stays_the_name(server: Web) -> None:
    fetch(server.url(host="Data.Example"), LOOPBACK, look_up=lambda host, port: ["127.0.0.1"])
    assert f"Host: data.example:{server.port}\r\n" in server.heads[0]


def test_tls_is_for_the_name_while_the_connection_goes_to_the_address(tmp_path: Path) -> None:
    authority = LocalCa(tmp_path, now=SYSTEM_CLOCK.now)
    authority.create()
    authority.issue("dataset")
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(tmp_path / "dataset.crt", tmp_path / "dataset.key")
    believed = ssl.create_default_context(cadata=authority.certificate.decode())
    options = {"look_up": lambda host, port: ["127.0.0.1"], "tls": believed}
    with web(giving(answer(b"there")), ours) as server:
        name = server.url(host=server_name("dataset")).replace("http:", "https:")
        assert fetch(name, LOOPBACK, **options)[1] == b"there"
        other = refusal(name.replace("dataset", "another"), LOOPBACK, **options)
        unknown = refusal(name, LOOPBACK, look_up=options["look_up"])
    for error in (other, unknown):
        assert (error.reason, "certificate" in error.message) == ("INVALID_FIELD", True)


def test_proxies_of_the_environment_are_ignored(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, server.url("/"))
    refusal("http://127.0.0.1:1030/", LOOPBACK)
    assert server.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:PORT/",
        "http://[::1]:PORT/",
        "//localhost:PORT/",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "http://user@127.0.0.1:PORT/",
        "http://127.0.0.1:PORT/\\@example.com",
    ],
)
def test_redirects_are_checked_like_links(location: str) -> None:
    with web(giving(answer())) as inside:
        redirect = answer(status="302 Found", Location=location.replace("PORT", str(inside.port)))
        with web(giving(redirect)) as outside:
            only_outside = Networks(["127.0.0.1/32"], SETTING)
            error = refusal(outside.url(), only_outside, look_up=_by_name)
        assert error.reason == "INVALID_FIELD"
        assert inside.connections == 0


def _by_name(host: str, port: int) -> list[str]:
    return {"localhost": ["127.0.0.9"]}.get(host, [host])


def test_redirects_are_followed_so_far() -> None:
    with web(lambda connection, head: connection.sendall(hop(head))) as server:
        found, body = fetch(server.url("/5"), LOOPBACK)
        assert (body, found.link.target) == (b"there", "/0")
        assert "more than 5" in refusal(server.url("/6"), LOOPBACK).message


def hop(head: str) -> bytes:
    """A redirect from /n to /n-1, and an answer at /0."""
    left = int(head.split()[1].removeprefix("/"))
    return answer(status="307 On", Location=str(left - 1)) if left else answer(b"there")


def test_https_is_not_left() -> None:
    with pytest.raises(DomainError, match="from https to http"):
        parse_link("https://example.com/a").follow("http://example.com/a", "uri")
    assert parse_link("https://example.com/a/b?c").follow("../d", "uri").address == "https://example.com/d"


def drip(connection: socket.socket, data: bytes) -> None:
    """A byte now and then, so that no single wait is long."""
    for number in range(1000):
        connection.sendall(data[number % len(data) :][:1])
        time.sleep(0.02)


def test_slow_headers_end() -> None:
    began = time.monotonic()
    with web(lambda connection, _: drip(connection, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200)) as server:
        error = refusal(server.url(), LOOPBACK, QUICK)
    assert (error.reason, error.message.endswith("is too slow")) == ("PEER_UNAVAILABLE", True)
    # The drip takes twenty seconds.
    assert time.monotonic() - began < 5


def test_a_slow_body_ends() -> None:
    began = time.monotonic()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"

    def answering(connection: socket.socket, _: str) -> None:
        connection.sendall(head)
        drip(connection, b"x" * 1000)

    with web(answering) as server:
        assert refusal(server.url(), LOOPBACK, QUICK).message.endswith("is too slow")
    assert 0.3 < time.monotonic() - began < 5


def test_silence_ends() -> None:
    with web(lambda connection, _: time.sleep(1)) as server:
        # The connection ends after a second, which is told in other words.
        assert refusal(server.url(), LOOPBACK, QUICK).message.endswith("is too slow")


def endless(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def test_an_endless_body_ends() -> None:
    with web(endless) as server:
        error = refusal(server.url(), LOOPBACK)
    assert (error.reason, error.metadata) == ("TOO_LARGE", {"limit": "10000000"})


def test_endless_headers_end() -> None:
    with web(giving(b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 1_000_000)) as server:
        assert refusal(server.url(), LOOPBACK).reason == "PEER_UNAVAILABLE"


def test_a_stated_size_above_the_limit_is_not_begun() -> None:
    with web(giving(answer(Content_Length="10000001"))) as server:
        assert refusal(server.url(), LOOPBACK).reason == "TOO_LARGE"


@pytest.mark.parametrize("stated", ["100", "-1", "5, 6", "x"])
def test_a_lying_length_is_noticed(stated: str) -> None:
    with web(giving(answer(b"hello", Content_Length=stated))) as server:
        assert refusal(server.url(), LOOPBACK).reason == "PEER_UNAVAILABLE"


def test_bytes_behind_the_stated_length_are_not_read() -> None:
    with web(giving(answer(b"hello", Content_Length="4"))) as server:
        assert fetch(server.url(), LOOPBACK)[1] == b"hell"


def test_gzip_on_the_way_is_unpacked_and_a_bomb_is_not() -> None:
    with web(giving(answer(gzip.compress(b"rows"), Content_Encoding="gzip"))) as server:
        found, body = fetch(server.url(), LOOPBACK)
        assert (body, found.packed) == (b"rows", True)
    bomb = gzip.compress(bytes(9_000_000))
    with web(giving(answer(bomb, Content_Encoding="gzip"))) as server:
        assert "200 times" in refusal(server.url(), LOOPBACK).message
    # As a file of its own it is bytes like any other; whoever unpacks it limits it.
    with web(giving(answer(bomb))) as server:
        assert fetch(server.url(), LOOPBACK)[1] == bomb
    with web(giving(answer(gzip.compress(b"rows" * 99)[:-9], Content_Encoding="gzip"))) as server:
        assert refusal(server.url(), LOOPBACK).reason == "PEER_UNAVAILABLE"
    for coding in ("br", "gzip, gzip"):
        with web(giving(answer(b"x", Content_Encoding=coding))) as server:
            assert refusal(server.url(), LOOPBACK).reason == "INVALID_FIELD"


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9\r\n", b"", b"ICY 200 OK\r\n\r\n", b"\x00" * 100])
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with web(giving(data)) as server:
        assert refusal(server.url(), LOOPBACK).reason == "PEER_UNAVAILABLE"


def test_a_link_is_taken_apart_once() -> None:
    link = parse_link("https://Bücher.Example.:8443/a b".replace(" ", "%20") + "/ü?q=ü&sig=s#part")
    assert (link.host, link.port) == ("xn--bcher-kva.example", 8443)
    assert link.target == "/a%20b/%C3%BC?q=%C3%BC&sig=s"
    assert link.address == "https://xn--bcher-kva.example:8443/a%20b/%C3%BC"


@given(st.text("htps:/[]@.\\0127x%a-_é①。\u00ad \n", max_size=40), st.sampled_from(["", "http://", "http://a:1/"]))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_link_or_is_refused(text: str, start: str) -> None:
    for read in (lambda: parse_link(start + text), lambda: parse_link("http://a.example/b").follow(text, "uri")):
        with suppress(DomainError):
            link = read()
            assert parse_link(f"{link.scheme}://{link.authority}{link.target}") == link


def test_what_is_sent_is_held_back_from_forbidden_addresses_and_redirects() -> None:
    with web(giving(answer())) as elsewhere:
        away = answer(b"", "307 Temporary Redirect", Location=elsewhere.url("/"))
        with web(giving(away)) as first:
            sent = {"Authorization": "Bearer hidden"}
            with ExternalClient(LOOPBACK, LIMITS).post(parse_link(first.url("/")), b"{}", sent) as found:
                assert found.status == 307
            with (
                pytest.raises(DomainError, match="not a public address"),
                ExternalClient(PUBLIC, LIMITS).post(parse_link(first.url("/")), b"{}", sent),
            ):
                pass
            (head,) = first.heads
        assert head.startswith("POST / HTTP/1.1\r\n")
        assert "Authorization: Bearer hidden" in head
        assert "Content-Length: 2" in head
        assert elsewhere.connections == 0
