"""What the file of a client says about itself, read without importing it: its library is in another environment."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDERS = ("clients", "parts")


@dataclass(frozen=True)
class Description:
    """The class attributes of a `Bench`, which `Client` explains; `name` is that of its file."""

    name: str
    label: str = ""
    module: str = ""
    distributions: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    skips: Mapping[str, str] = field(default_factory=dict)

    def why_not(self, scenario: str) -> str | None:
        """Why it is not measured in this scenario, None where it is."""
        for beginning, reason in self.skips.items():
            if f"{scenario}-".startswith(f"{beginning.removesuffix('-')}-"):
                return reason
        return None


def module_of(name: str) -> str:
    """Where the class `Bench` of a client or a part is.

    Raises:
        LookupError: there is none of this name.
    """
    for folder in FOLDERS:
        if (HERE / folder / f"{name}.py").exists():
            return f"benchmarks.{folder}.{name}"
    raise LookupError(f"no client {name!r}; there are {', '.join(names_in('clients'))}")


def names_in(folder: str) -> list[str]:
    return sorted(file.stem for file in (HERE / folder).glob("[!_]*.py"))


def describe(name: str) -> Description:
    """Raises: LookupError: no such file; ValueError: it has no class `Bench`, or an attribute is no literal."""
    file = HERE.joinpath(*module_of(name).split(".")[1:]).with_suffix(".py")
    return description_in(name, file.read_text())


def description_in(name: str, source: str) -> Description:
    body = next(
        (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Bench"), None
    )
    if body is None:
        raise ValueError(f"{name} has no class Bench")
    wanted = {each.name for each in fields(Description)} - {"name"}
    found: dict[str, Any] = {}
    for name_of, value in _assignments(body):
        if name_of in wanted:
            try:
                found[name_of] = ast.literal_eval(value)
            except ValueError:
                raise ValueError(f"{name}: {name_of} is no literal") from None
    return Description(name, **{"label": name} | found)


def _assignments(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value
