"""Who the server is, is checked before anything is sent."""

from __future__ import annotations

import datetime as dt
import ssl

import pytest
import trustme

from millstream._backoff import classify
from millstream._errors import CertificateError, ConnectError
from millstream._transport import Origin, PoolTransport, Request, Route
from millstream._transport._tls import create_context

from ..support.servers import answer, chunked, script, serve

CA = trustme.CA()
OK = script(answer(b"secret"))


def server_context(host="127.0.0.1", ca=CA, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(host, **options).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture
def ca_file(tmp_path, monkeypatch):
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return str(path)


async def test_https(pool, ca_file):
    async with serve(OK, tls=server_context()) as server, pool() as transport:
        for _ in range(3):
            assert (await transport.send(server.request())).body == b"secret"
        assert server.connections == 1
        body = b"x" * 3_000_000
        assert (await transport.send(server.request(body))).status == 200
        assert server.requests[-1].endswith(body)


async def test_a_stream_over_tls(pool, ca_file):
    async with serve([chunked(b"abc", b"def")], tls=server_context()) as server, pool() as transport:
        for _ in range(2):
            response = await transport.send(server.request(stream=True))
            got = b""
            while piece := await response.stream.receive():
                got += piece
            assert got == b"abcdef"
        assert server.connections == 1


PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (lambda: server_context("other.test"), "127.0.0.1"),
        (lambda: server_context(not_before=PAST, not_after=PAST + dt.timedelta(days=1)), "expired"),
        (lambda: server_context(ca=trustme.CA()), "certificate"),
    ],
    ids=["wrong host", "expired", "unknown authority"],
)
async def test_a_certificate_that_is_not_accepted(pool, ca_file, context, words):
    async with serve(OK, tls=context(), handshake_may_fail=True) as server, pool() as transport:
        with pytest.raises(CertificateError, match=words):
            await transport.send(server.request())
        assert not server.requests
        assert transport.statistics().open == 0


async def test_anybody_may_answer_where_that_is_asked_for(pool):
    async with serve(OK, tls=server_context("other.test", trustme.CA())) as server, pool(verify=False) as transport:
        assert (await transport.send(server.request())).status == 200


async def test_certificates_from_a_path_and_from_a_context(pool, ca_file, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    given = ssl.create_default_context(cafile=ca_file)
    async with serve(OK, tls=server_context()) as server:
        for options in ({"verify": ca_file}, {"ssl_context": given}):
            async with pool(**options) as transport:
                assert (await transport.send(server.request())).status == 200


async def test_old_tls_is_refused(pool, ca_file):
    old = server_context()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serve(OK, tls=old, handshake_may_fail=True) as server, pool() as transport:
        with pytest.raises(ConnectError) as caught:
            await transport.send(server.request())
        assert not isinstance(caught.value, CertificateError)


async def test_a_server_that_speaks_no_tls(pool):
    async def plain(peer):
        await peer.stream.receive()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def cut(peer):
        await peer.stream.receive()
        await peer.reset()

    for what in (plain, cut):
        async with serve(what) as server, pool() as transport:
            origin = Origin("https", "127.0.0.1", server.origin.port)
            with pytest.raises(ConnectError) as caught:
                await transport.send(Request(Route("POST", origin, "/"), b"{}"))
            assert not isinstance(caught.value, CertificateError)


async def test_https_where_the_server_speaks_http_is_told_at_once(pool):
    async def plain(peer):
        await peer.stream.receive()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serve(plain) as server, pool() as transport:
        origin = Origin("https", "127.0.0.1", server.origin.port)
        with pytest.raises(ConnectError, match=f"{origin} does not speak TLS; is it http://127.0.0.1:") as caught:
            await transport.send(Request(Route("POST", origin, "/"), b"{}"))
    assert caught.value.permanent
    assert not classify(caught.value).retry


def test_the_default_context(monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    context = create_context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) > 20
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert create_context().get_ca_certs() == []


async def test_the_context_is_made_with_the_first_https_connection():
    transport = PoolTransport()
    assert transport._ssl_context is None
    assert transport.ssl_context() is transport.ssl_context()
