"""What one writes by hand: split the lines, decode the JSON, take the text out."""

from __future__ import annotations

import json
from collections.abc import Iterable

from benchmarks.part import Part


class Bench(Part):
    label = "by hand, json"
    module = "json"

    def texts(self, pieces: Iterable[bytes]) -> list[str]:
        found: list[str] = []
        rest = b""
        for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    text = json.loads(line[6:])["choices"][0]["delta"].get("content")
                    if text:
                        found.append(text)
        return found
