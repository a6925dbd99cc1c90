"""What limits requests and tokens a minute, wherever it keeps count."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["Limiter", "Reservation"]


class Reservation:
    """What one request took of a limiter. Opaque: only the limiter that made it knows what is in it."""

    __slots__ = ()


class Limiter(ABC):
    """Requests and LLM tokens a minute, for everyone who shares it.

    A request takes from it in the moment in which it is sent: `acquire_nowait`, or, where there is nothing to take,
    `wait` and again. A caller lets only the first of its queue ask, so that nobody is overtaken; who uses a limiter
    without a caller asks by `acquire`, which does the same.
    """

    requests_per_minute: float | None
    """None: no limit."""
    tokens_per_minute: float | None
    """None: no limit."""

    def check(self, tokens: int) -> None:  # noqa: B027 - most need not
        """Refuse what could never be sent.

        Raises:
            OptionValueError: a request of so many tokens is more than the limit of a minute, or less than nothing.
        """

    @abstractmethod
    def acquire_nowait(self, requests: int = 1, tokens: int = 0) -> Reservation | None:
        """Take this much now, or nothing and give None. Never suspends.

        Args:
            requests: how many are sent.
            tokens: what they will use together, by estimate; 0: unknown.
        """

    @abstractmethod
    async def wait(self, requests: int = 1, tokens: int = 0) -> None:
        """Wait until `acquire_nowait` is worth another try. Takes nothing, so cancelling it loses nothing."""

    @abstractmethod
    async def acquire(self, requests: int = 1, tokens: int = 0) -> Reservation:
        """Take this much, after everyone who asked before here.

        Raises:
            OptionValueError: see `check`.
        """

    @abstractmethod
    def settle(self, reservation: Reservation, tokens: int) -> None:
        """What was reserved turned out to be `tokens`: less is given back, more counts from now. Never suspends."""

    @abstractmethod
    def give_back(self, reservation: Reservation) -> None:
        """Nothing was sent after all. Never suspends."""

    @abstractmethod
    def push_back(self, seconds: float) -> None:
        """The server refused by its rate limit: nobody passes for so long. Never shortens an earlier one."""

    async def aclose(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what is held elsewhere. Closing twice is harmless."""
