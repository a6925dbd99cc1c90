"""What this process has used of a shared quota: what it may use by itself while nobody keeps the common count."""

from __future__ import annotations

from collections import deque

from millstream.limiters._redis_script import BUCKETS, Operation

__all__ = ["OwnUse", "Quota", "Use"]


class Quota:
    """One limit: `amount` whole requests or tokens within any `seconds`.

    Args:
        per_minute: None: no limit.
        period: seconds in which the limit is to hold. Where it is less than one in that time, it is one in more.
    """

    __slots__ = ("amount", "per_minute", "seconds")

    def __init__(self, per_minute: float | None, period: float) -> None:
        self.per_minute = per_minute
        within = 1.0 if per_minute is None else per_minute * period / 60
        self.seconds = period / min(1.0, within)
        self.amount: int | None = None if per_minute is None else int(max(1.0, within))

    @property
    def bucket(self) -> float:
        """Seconds in which uses are counted together, as the last of them."""
        return self.seconds / BUCKETS


class Use:
    """What was used about one moment."""

    __slots__ = ("amounts", "at", "since", "untold")

    def __init__(self, at: float) -> None:
        self.since = at
        self.at = at
        """Of the last of it."""
        self.amounts = [0, 0]
        self.untold = [0, 0]
        """The part that the common count does not have."""


class OwnUse:
    """A sliding window over the uses of this process. Time is an argument."""

    def __init__(self, requests: Quota, tokens: Quota) -> None:
        self._quotas = (requests, tokens)
        self._together = min(requests.bucket, tokens.bucket)
        self._uses: deque[Use] = deque()
        self._untold: list[Use] = []
        self._sealed_at = 0.0
        self._seal = [0.0, 0.0]
        self._memory = 0.0

    def add(self, at: float, requests: int, tokens: int, processes: int, *, told: bool) -> Use:
        """Something was used; `told`: the common count has it. The result is for what is settled later."""
        uses = self._uses
        self._memory = processes * max(quota.seconds for quota in self._quotas) + 1
        while uses and uses[0].at < at - self._memory:
            uses.popleft()
        if uses and at - uses[-1].since < self._together:
            use = uses[-1]
            use.at = max(at, use.at)
        else:
            use = Use(at)
            uses.append(use)
        for index, amount in enumerate((requests, tokens)):
            use.amounts[index] += amount
            if not told:
                use.untold[index] += amount
        if not told and (not self._untold or self._untold[-1] is not use):
            self._untold.append(use)
        return use

    def wait(self, now: float, requests: int, tokens: int, processes: int) -> float:
        """Seconds until this process may use so much, if it has one share of `processes`; 0: now.

        A request that is larger than the share may pass when nothing else has in as many windows as it takes shares.
        """
        longest = 0.0
        for index, amount in enumerate((requests, tokens)):
            quota = self._quotas[index]
            if quota.amount is None or amount == 0:
                continue
            share = quota.amount / processes
            counts = quota.seconds * max(1.0, amount / share) + 2 * quota.bucket
            excess = amount - max(share, amount)
            counted: list[tuple[float, float]] = [
                (use.at, use.amounts[index]) for use in self._uses if use.at > now - counts
            ]
            if self._seal[index] and self._sealed_at > now - counts:
                counted.append((self._sealed_at, self._seal[index]))
            excess += sum(used for _, used in counted)
            for at, used in counted:
                if excess <= 0:
                    break
                excess -= used
                longest = max(longest, at + counts - now)
        return longest

    def seal(self, now: float, free: tuple[int, int] | None, processes: int) -> None:
        """The common count can't be asked from now on. Of the share only what was `free` is there; None: unknown."""
        self._sealed_at = now
        for index, quota in enumerate(self._quotas):
            self._seal[index] = 0.0
            if quota.amount is not None and free is not None:
                share = quota.amount / processes
                used = sum(use.amounts[index] for use in self._uses if use.at > now - quota.seconds)
                self._seal[index] = max(0.0, share - used - free[index] / processes)

    def operations(self) -> list[Operation]:
        """What the common count does not have yet; from now on it does."""
        untold, self._untold = self._untold, []
        made: list[Operation] = []
        for use in untold:
            made += [Operation(index + 1, None, use.at, amount) for index, amount in enumerate(use.untold) if amount]
            use.untold = [0, 0]
        return [each for each in made if self._quotas[each.dimension - 1].amount is not None]

    def recount(self, now: float) -> list[Operation]:
        """All that still counts, for a common count that was lost."""
        self._untold = []
        made: list[Operation] = []
        for use in self._uses:
            use.untold = [0, 0]
            for index, quota in enumerate(self._quotas):
                if quota.amount is not None and use.amounts[index] > 0 and use.at > now - quota.seconds * 1.01:
                    made.append(Operation(index + 1, None, use.at, use.amounts[index]))
        return made
