"""For tests without a model, a key or a network: an endpoint that behaves like the real ones, for better and for worse.

    async with FakeEndpoint(reply="Hello world", faults=[Fault.status(503)]) as endpoint:
        ...  # anything that speaks HTTP to endpoint.url

`FakeLLM` is a model without an endpoint, for tests of what is built on models. The endpoint is for measuring too:
with `Latency`, slots and rate limits it is a server whose capacity is known.
"""

from millstream.testing._behaviour import FakeRequest
from millstream.testing._endpoint import FakeEndpoint
from millstream.testing._faults import Fault, Latency
from millstream.testing._models import FakeLLM

__all__ = ["FakeEndpoint", "FakeLLM", "FakeRequest", "Fault", "Latency"]
