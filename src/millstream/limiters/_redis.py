"""Limits that several processes and machines share by a Redis server."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakSet

import anyio

from millstream import _clock
from millstream._config import check_int, check_number
from millstream._errors import MissingExtraError, OptionTypeError, OptionValueError, UsageError
from millstream._origin import parse_url
from millstream._secret import Secret
from millstream.limiters._base import Limiter, Reservation
from millstream.limiters._redis_account import Account, Taken
from millstream.limiters._redis_own import Quota
from millstream.limiters._redis_script import SCRIPT, Asked, Told, argument, told_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisLimiter", "limiter_key"]

_log = logging.getLogger("millstream")

PATIENCE_SECONDS = 1.0
"""A server that takes longer is treated as one that is not there."""
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.5, 8.0
_SOON_SECONDS = 0.02
"""What others gave back is asked for so often at most."""
_FRESH_SECONDS = 2.0
"""For so long what the server last told of the quota is worth something."""
_MEMORY_SECONDS = 300.0
"""The server keeps its counts for longer. Who was away for so long has nothing to tell them."""


def limiter_key(endpoint_url: str, api_key: str | None = None) -> str:
    """A name for the quota that one key has at one endpoint, the same in every process.

    Args:
        endpoint_url: where the requests go; a query is left out of the name.
        api_key: the key, of which only a hash is in the name; None: none is sent.

    Raises:
        OptionValueError: the URL is none, or the key can't be one.
    """
    origin, path = parse_url(endpoint_url)
    who = "nobody" if api_key is None else Secret(api_key).fingerprint()
    return f"{origin}{path.partition('?')[0].rstrip('/')}#{who}"


_limiters: WeakSet[RedisLimiter] = WeakSet()


def _forget_limiters() -> None:
    """In a forked process: leases and connections belong to the other one."""
    for limiter in list(_limiters):
        limiter._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_limiters)


class RedisLimiter(Limiter):
    """One quota for all processes, on any machine, that name the same `key` on the same Redis server.

    In no window do they begin more than the limit together: a script on the server counts, on the server's clock. It
    grants *leases* of some requests that are valid for at most a second; within one, `acquire_nowait` asks nobody.
    What is left of a lease goes back. Who waits gets leases in turn, and a refusal that one process has seen
    (`push_back`) stops all others with their next lease.

    Where Redis does not answer within a second, fails, or has lost its data, no call fails: until it answers again
    this process keeps to its share, the limit divided by the number of processes that were last seen, says so once
    on the logger ``millstream``, and in `degraded`. A server that has lost its data is told what was used.

    It needs asyncio (or uvloop): under trio the first wait says so. One object may serve several event loops, one
    after the other; close it (`aclose`, ``async with``) before its loop ends. It can be used again after that.

    Args:
        server: a URL (``redis://``, ``rediss://``, ``unix://``) or a client (`redis.asyncio.Redis`), which is not
            closed here and serves the event loop that it was made for.
        requests_per_minute: requests begun in any 60 s; None: no limit. Below 1: one in more than a minute.
        tokens_per_minute: LLM tokens in any 60 s; None: no limit.
        key: the name of the quota; see `limiter_key`. Never a credential.
        lease: requests in a lease at most. 1: the server is asked for each request. Leases grow to this only where
            that many are used within a second, and where it is no more than a fair share of what a second allows.
        processes: how many share the quota at least, for when Redis can't be asked and fewer were seen.
        period: seconds of the window in which the limits hold. A shorter one allows smaller bursts: with 600 requests a
            minute and a period of 1, 10 in any second. All who share a key have the same one.

    Raises:
        MissingExtraError: a URL, and the extra ``redis`` is not installed.
        OptionTypeError, OptionValueError: an option that can't be.
    """

    def __init__(
        self,
        server: str | Redis,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        key: str,
        lease: int = 25,
        processes: int = 1,
        period: float = 60.0,
    ) -> None:
        check_number("requests_per_minute", requests_per_minute, above=0.0)
        check_number("tokens_per_minute", tokens_per_minute, low=1.0)
        check_int("lease", lease, low=1, optional=False)
        check_int("processes", processes, low=1, optional=False)
        check_number("period", period, low=0.1, high=3600.0)
        if not key or not isinstance(key, str):
            raise OptionTypeError("key is a text that names the quota, such as limiter_key(endpoint_url, api_key)")
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.period = period
        self._requests = Quota(requests_per_minute, period)
        self._tokens = Quota(tokens_per_minute, period)
        self._server = server
        if not isinstance(server, str) and not hasattr(server, "register_script"):
            raise OptionTypeError('server is a URL such as "redis://localhost", or a redis.asyncio.Redis')
        if isinstance(server, str):
            _client_of(server)  # a wrong URL is told here
        self._key = key
        self._lease_size = lease
        self._least_processes = processes
        self._valid = min(1.0, period / 20)
        self._abandoned: list[Any] = []  # connections of another process: closing them would close the other's
        self._client: Any = None
        self._script: Any = None
        self._begin()
        _limiters.add(self)

    def _begin(self) -> None:
        """As new, in a new process."""
        if self._client is not None:
            self._abandoned.append((self._client, self._script))
        self._id = _clock.unique_id()
        self._client = self._script = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = anyio.Lock(fast_acquire=True)
        self._queue = anyio.Lock(fast_acquire=True)
        self._changed: anyio.Event | None = None
        self._call: asyncio.Task[None] | None = None
        self._account = Account(self._requests, self._tokens, self._lease_size)
        self._account.processes = self._least_processes
        self._contact, self._free = -math.inf, (0, 0)
        self._push_until: float | None = None
        self._blocked_until = -math.inf
        self._next_call = self._last_call = -math.inf
        self._retry_after = _FIRST_RETRY_SECONDS
        self.degraded = False
        """Redis can't be asked: this process keeps to its share of the limits by itself."""

    @property
    def processes(self) -> int:
        """How many share the quota, as far as is known."""
        return self._account.processes

    # -- taking --------------------------------------------------------------------------------------------------------

    def check(self, tokens: int) -> None:
        check_int("the estimate of a request's tokens", tokens, low=0)
        most = self._tokens.amount
        if most is not None and tokens > most:
            within = "" if self.period == 60 else f" (at most {most} within {self.period:g} s)"
            raise OptionValueError(
                f"a request of about {tokens} tokens can never be sent under tokens_per_minute="
                f"{self.tokens_per_minute:g}{within}; raise the limit, shorten the prompt, or lower max_tokens"
            )

    def acquire_nowait(self, requests: int = 1, tokens: int = 0) -> Reservation | None:
        lease = self._account.lease
        if lease is not None:
            now = _clock.steady_time()
            if now < lease.until and 0 < requests <= lease.requests and 0 <= tokens <= lease.tokens:
                lease.requests -= requests
                lease.tokens -= tokens
                lease.last = now
                return Taken(lease, None, requests, tokens)
        self._check_both(requests, tokens)
        if not self.degraded:
            return None
        now = _clock.steady_time()
        self._look_again(now)
        if not self._passes(now, requests, tokens):
            return None
        use = self._account.own.add(now, requests, tokens, self.processes, told=False)
        return Taken(None, use, requests, tokens)

    async def wait(self, requests: int = 1, tokens: int = 0) -> None:
        self._check_both(requests, tokens)
        self._connect()
        async with self._turn:
            while not self._passes(now := _clock.steady_time(), requests, tokens):
                pause = self._next_step(now, requests, tokens)
                if self._changed is None:
                    self._changed = anyio.Event()
                with anyio.move_on_after(pause):
                    await self._changed.wait()

    async def acquire(self, requests: int = 1, tokens: int = 0) -> Reservation:
        self._connect()
        if not self._queue.locked() and (taken := self.acquire_nowait(requests, tokens)) is not None:
            return taken
        async with self._queue:
            while (taken := self.acquire_nowait(requests, tokens)) is None:
                await self.wait(requests, tokens)
            return taken

    def _check_both(self, requests: int, tokens: int) -> None:
        self.check(tokens)
        check_int("requests", requests, low=1, high=self._requests.amount, optional=False)

    def _passes(self, now: float, requests: int, tokens: int) -> bool:
        if self.degraded:
            return now >= self._blocked_until and self._account.own.wait(now, requests, tokens, self.processes) <= 0
        lease = self._account.lease
        return lease is not None and now < lease.until and requests <= lease.requests and tokens <= lease.tokens

    def _next_step(self, now: float, requests: int, tokens: int) -> float:
        """Do what brings the first that waits on; gives the seconds until it is to look again, if nothing happens."""
        if self.degraded:
            self._look_again(now)
            own = self._account.own.wait(now, requests, tokens, self.processes)
            return max(1e-3, min(max(own, self._blocked_until - now), max(self._next_call - now, 0.1)))
        if self._call is None:
            if self._push_until is not None:
                self._start("tell")
                return PATIENCE_SECONDS
            ready = max(self._next_call, self._blocked_until)
            if now < ready:
                return max(ready - now, 1e-6)
            self._start("take", requests, tokens)
        return 2 * PATIENCE_SECONDS  # the end of the call is told

    # -- giving back ---------------------------------------------------------------------------------------------------

    def settle(self, reservation: Reservation, tokens: int) -> None:
        assert isinstance(reservation, Taken)
        more = tokens - reservation.tokens
        if more and self._tokens.amount is not None:
            reservation.tokens = tokens
            if more > 0:
                self._account.own.add(_clock.steady_time(), 0, more, self.processes, told=False)
            else:
                self._account.give_back(reservation, 0, -more)
                self._ask_soon()

    def give_back(self, reservation: Reservation) -> None:
        assert isinstance(reservation, Taken)
        requests, tokens = reservation.requests, reservation.tokens
        reservation.requests = reservation.tokens = 0
        self._account.give_back(reservation, requests, tokens)
        self._ask_soon()

    def _ask_soon(self) -> None:
        """There may be more than there was when the server last said how long to wait."""
        if not self.degraded:
            soon = max(_clock.steady_time(), self._last_call + _SOON_SECONDS)
            self._next_call = min(self._next_call, soon)
        self._wake()

    def push_back(self, seconds: float) -> None:
        now = _clock.steady_time()
        until = now + min(seconds, 86400.0)
        if not until > max(now, self._blocked_until):  # not a number, either
            return
        self._blocked_until = self._push_until = until
        self._account.end_lease(now)
        if self._call is None and not self.degraded and self._loop is _running_loop() is not None:
            self._start("tell")

    async def aclose(self) -> None:
        """Give back what is leased, leave the quota to the others, and close the connections."""
        loop = _running_loop()
        client, self._client = self._client, None
        if client is None or loop is None or loop is not self._loop:
            self._account.end_lease(_clock.steady_time())
            return
        with anyio.move_on_after(2 * PATIENCE_SECONDS, shield=True):
            if self._call is not None:
                await asyncio.wait({self._call})
            if not self.degraded:
                await self._exchange_safely("bye")
            if isinstance(self._server, str):
                await client.aclose()
        self._loop = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # -- the server ----------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        loop = _running_loop()
        if loop is None:
            raise UsageError(
                "RedisLimiter needs asyncio (or uvloop): the Redis client knows no other event loop; "
                "use LocalLimiter under trio"
            )
        if loop is not self._loop or self._client is None:
            self._loop = loop
            self._turn = anyio.Lock(fast_acquire=True)
            self._queue = anyio.Lock(fast_acquire=True)
            self._changed = self._call = None
            self._client = _client_of(self._server) if isinstance(self._server, str) else self._server
            self._script = self._client.register_script(SCRIPT)

    def _start(self, mode: Literal["take", "tell"], requests: int = 0, tokens: int = 0) -> None:
        """Call the script, in a task that this object owns, which ends after a second at the latest.

        Whoever waits for it may be cancelled: what the server grants is not lost by that.
        """
        assert self._loop is not None
        self._call = self._loop.create_task(self._exchange_safely(mode, requests, tokens))

    def _look_again(self, now: float) -> None:
        if self._call is None and now >= self._next_call and self._loop is not None and self._loop is _running_loop():
            self._start("tell")

    async def _exchange_safely(self, mode: Literal["take", "tell", "bye"], requests: int = 0, tokens: int = 0) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                sent, told = await self._exchange(mode, requests, tokens)
                if told.status < 0:
                    self._account.count_again(told, _clock.steady_time())
                    self._contact = sent
                    sent, told = await self._exchange(mode, requests, tokens)
            self._accept(sent, told)
        except Exception as error:  # noqa: BLE001 - whatever fails there, no call fails by it
            self._fail(error)
        except BaseException:
            self._call = None
            raise
        self._call = None
        if mode != "bye" and self._push_until is not None and not self.degraded:
            self._start("tell")
        self._wake()

    async def _exchange(self, mode: Literal["take", "tell", "bye"], requests: int, tokens: int) -> tuple[float, Told]:
        from redis.exceptions import ConnectionError as BrokenConnectionError  # noqa: PLC0415 - an extra

        self._account.end_lease(_clock.steady_time())
        number, recount, operations = self._account.batch()
        pushed = self._push_until
        sent = self._last_call = _clock.steady_time()
        asked = Asked(
            member=self._id,
            epoch=self._account.epoch if sent - self._contact < _MEMORY_SECONDS else "",
            number=number,
            mode=mode,
            valid=int(self._valid * 1e6),
            dimensions=self._account.dimensions(requests, tokens),
            push=0 if pushed is None else max(0, math.ceil((pushed - sent) * 1e6)),
            known=self.processes,
            recount=recount,
        )
        seconds = f"{self._requests.seconds:g}/{self._tokens.seconds:g}"
        keys = [f"millstream:{{{self._key}}}:{seconds}:{what}" for what in ("counts", "members")]
        values = [argument(asked, operations, sent)]
        try:
            reply = await self._script(keys=keys, args=values)
        except BrokenConnectionError:  # one that was kept open, to a server that has started anew
            sent = _clock.steady_time()
            reply = await self._script(keys=keys, args=values)
        told = told_of(reply)
        if self._push_until == pushed:
            self._push_until = None
        if told.status >= 0:
            self._account.told()
        return sent, told

    def _accept(self, sent: float, told: Told) -> None:
        now = _clock.steady_time()
        if self.degraded:
            self.degraded = False
            self._retry_after = _FIRST_RETRY_SECONDS
            self._next_call = now
            _log.info("RedisLimiter %r: Redis answers again; the quota is shared as before", self._key)
        account = self._account
        self._contact, self._free = sent, told.free
        account.epoch = told.epoch
        account.processes = max(self._least_processes, told.live)
        if told.pushed:
            self._blocked_until = max(self._blocked_until, now + told.wait / 1e6)
        if told.status == 1:
            self._next_call = now
            if now >= account.grant(told, sent, self._valid).until:  # the way there and back took longer
                self._valid = min(1.0, 2 * self._valid)
            if now < self._blocked_until:  # told while this was under way
                account.end_lease(now)
        elif told.status == 0:
            self._next_call = now + told.wait / 1e6

    def _fail(self, error: Exception) -> None:
        now = _clock.steady_time()
        if not self.degraded:
            self.degraded = True
            fresh = now - self._contact < _FRESH_SECONDS
            self._account.own.seal(now, self._free if fresh else None, self.processes)
            # Its kind only: a message may quote the address of the server, with a password in it.
            _log.warning(
                "RedisLimiter %r: Redis can't be asked (%s); until it answers again, this process keeps to 1/%d of the "
                "limits by itself",
                self._key,
                type(error).__name__,
                self.processes,
            )
        self._next_call = now + self._retry_after
        self._retry_after = min(_LAST_RETRY_SECONDS, 2 * self._retry_after)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _client_of(url: str) -> Any:
    try:
        from redis.asyncio import Redis  # noqa: PLC0415 - an extra
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError('a shared limiter needs Redis\'s client: pip install "millstream[redis]"') from error
    try:
        return Redis.from_url(url, retry=Retry(NoBackoff(), 0))
    except ValueError:
        raise OptionValueError(
            "the server is a URL such as redis://localhost:6379/0 (rediss:// for TLS, unix:// for a socket)"
        ) from None
