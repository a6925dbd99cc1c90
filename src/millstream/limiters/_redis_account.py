"""What this process holds of a shared quota, and what it has to tell whoever keeps the common count."""

from __future__ import annotations

import math

from millstream.limiters._base import Reservation
from millstream.limiters._redis_own import OwnUse, Quota, Use
from millstream.limiters._redis_script import Dimension, Operation, Told

__all__ = ["Account", "Batch", "Lease", "Taken"]

Batch = tuple[int, bool, list[Operation]]
"""A number, whether these are all uses (a recount), and the corrections."""


class Lease:
    """Part of the quota that this process may use by itself until `until`."""

    __slots__ = ("buckets", "epoch", "granted", "last", "requests", "sent", "server_time", "tokens", "until", "use")

    def __init__(self, told: Told, sent: float, valid: float, *, counts_tokens: bool) -> None:
        self.granted = told.granted
        self.requests = told.granted[0]
        self.tokens = told.granted[1] if counts_tokens else math.inf
        self.sent = self.last = sent
        self.until = sent + valid  # the server counted it later than this was sent: its time ends later than ours
        self.server_time = told.now
        self.buckets = list(told.buckets)
        self.epoch = told.epoch
        self.use: Use | None = None
        """Where the use is remembered; None while the lease is open."""


class Taken(Reservation):
    __slots__ = ("lease", "requests", "tokens", "use")

    def __init__(self, lease: Lease | None, use: Use | None, requests: int, tokens: int) -> None:
        self.lease = lease
        self.use = use
        self.requests = requests
        self.tokens = tokens


class Account:
    """Leases, and the corrections of what the common count says of them. Time is an argument."""

    def __init__(self, requests: Quota, tokens: Quota, lease_size: int) -> None:
        self._quotas = (requests, tokens)
        self._lease_size = lease_size
        self.own = OwnUse(requests, tokens)
        self.lease: Lease | None = None
        self.epoch = ""
        """Which life of the common count is known here; empty: none."""
        self.processes = 1
        """How many share the quota, as far as is known."""
        self._ask = 1
        self._number = 0
        self._batch: Batch | None = None
        self._moves: list[Operation] = []
        self._returns: dict[tuple[int, int], int] = {}

    def grant(self, told: Told, sent: float, valid: float) -> Lease:
        """The lease that the server has granted; `sent`: when it was asked for, `valid`: seconds from then."""
        self.lease = Lease(told, sent, valid, counts_tokens=self._quotas[1].amount is not None)
        return self.lease

    def give_back(self, taken: Taken, requests: int, tokens: int) -> None:
        """So much of what was taken is not used. It is here again while the lease is open, else the server is told."""
        lease = taken.lease
        if lease is not None and lease.use is None:  # still open
            lease.requests += requests
            lease.tokens += tokens
        else:
            use = taken.use if lease is None else lease.use
            assert use is not None
            for index, amount in enumerate((requests, tokens)):
                use.amounts[index] -= amount
                if lease is None:
                    use.untold[index] = max(0, use.untold[index] - amount)
            if lease is not None:
                self._give_back_of(lease, requests, tokens)

    def _give_back_of(self, lease: Lease, requests: int, tokens: int) -> None:
        if lease.epoch != self.epoch:
            return
        for index, (quota, amount) in enumerate(zip(self._quotas, (requests, tokens), strict=True)):
            if quota.amount is not None and amount > 0:
                place = (index + 1, lease.buckets[index])
                self._returns[place] = self._returns.get(place, 0) + amount

    def end_lease(self, now: float) -> None:
        """Report what was used, as of when it was used last, and give back the rest."""
        lease, self.lease = self.lease, None
        if lease is None:
            return
        left = (lease.requests, 0 if self._quotas[1].amount is None else int(lease.tokens))
        used = (lease.granted[0] - left[0], lease.granted[1] - left[1])
        self._ask = (
            min(self._lease_size, 2 * max(self._ask, lease.granted[0]))
            if left[0] == 0 or now < lease.until
            else max(1, used[0])
        )
        lease.use = self.own.add(lease.last, used[0], max(0, used[1]), self.processes, told=True)
        self._give_back_of(lease, *left)
        if lease.epoch == self.epoch:
            last = lease.server_time + math.ceil((lease.last - lease.sent) * 1e6)
            for index, quota in enumerate(self._quotas):
                bucket = last // _microseconds(quota)
                if quota.amount is not None and used[index] > 0 and bucket < lease.buckets[index]:
                    self._moves.append(Operation(index + 1, lease.buckets[index], bucket, used[index]))
                    source = self._returns.pop((index + 1, lease.buckets[index]), 0)
                    if source:
                        self._moves.append(Operation(index + 1, lease.buckets[index], -1, source))
                    lease.buckets[index] = bucket

    def dimensions(self, requests: int, tokens: int) -> tuple[Dimension, Dimension]:
        """Limits, need and wish, as the server is asked. Who used up the last lease wishes for twice as much."""
        ask = max(requests, self._ask) if requests else 0
        counted = tokens if self._quotas[1].amount is not None else 0
        asks = (ask, -(-tokens * ask // requests) if requests else 0)
        first, second = (
            Dimension(-1 if quota.amount is None else quota.amount, _microseconds(quota), need, wanted)
            for quota, need, wanted in zip(self._quotas, (requests, counted), asks, strict=True)
        )
        return first, second

    def batch(self) -> Batch:
        """What the server is to be told: the same until `told`, however often that takes."""
        if self._batch is None:
            self._batch = self._new_batch()
        return self._batch

    def told(self) -> None:
        """The last batch has arrived."""
        self._batch = None

    def _new_batch(self) -> Batch:
        self._number += 1
        operations = self._moves
        operations += [Operation(dimension, place, -1, n) for (dimension, place), n in self._returns.items()]
        operations += self.own.operations()
        self._moves, self._returns = [], {}
        return self._number, False, operations

    def count_again(self, told: Told, now: float) -> None:
        """The server has other counts than those that we know: it has lost them."""
        self._number += 1
        self._moves, self._returns = [], {}
        self._batch = (self._number, True, self.own.recount(now))
        self.epoch = told.epoch


def _microseconds(quota: Quota) -> int:
    return math.ceil(quota.bucket * 1e6)
