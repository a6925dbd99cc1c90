"""What one writes by hand with httpx2."""

from __future__ import annotations

import httpx2

from benchmarks.clients._like_httpx import LikeHttpx


class Bench(LikeHttpx):
    label = "httpx2 in a bare loop"
    module = "httpx2"
    distributions = ("httpx2",)
    requirements = ("httpx2==2.16.2",)
    library = httpx2
