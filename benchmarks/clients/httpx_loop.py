"""What one writes by hand with httpx."""

from __future__ import annotations

import httpx

from benchmarks.clients._like_httpx import LikeHttpx


class Bench(LikeHttpx):
    label = "httpx in a bare loop"
    module = "httpx"
    distributions = ("httpx",)
    library = httpx
