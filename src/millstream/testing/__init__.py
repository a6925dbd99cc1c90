"""For tests without a model, a key or a network: an endpoint that behaves like the real ones, for better and for worse.

    async with FakeEndpoint(reply="Hello world", faults=[Fault.status(503)]) as endpoint:
        ...  # anything that speaks HTTP to endpoint.url

Also for measuring: with `Latency`, slots and rate limits it is a server whose capacity is known.
"""

from millstream.testing._behaviour import FakeRequest
from millstream.testing._endpoint import FakeEndpoint
from millstream.testing._faults import Fault, Latency

__all__ = ["FakeEndpoint", "FakeRequest", "Fault", "Latency"]
