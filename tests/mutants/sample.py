"""Which mutants are tried. In: modules, operators, a seed. Out: cosmic-ray's work items, the first of a fixed order.

One mutant of a place in the code, drawn among the ways to break it; places come by turns from each function, so that a
few mutants see all of a module. The order follows from the seed and from what the code says, not from line numbers:
a larger sample holds the smaller one, and a change of one function moves no other.
"""

import ast
import contextlib
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_item import MutationSpec, WorkItem
from operators import DropStatement

MESSAGES = {"raise_stmt", "fstring", "assert_stmt"}
GUARDS = ("@dataclass", "if TYPE_CHECKING", "@staticmethod", "@functools.", "@lru_cache")
"""Lines that change nothing that comes out when they are broken, or everything."""


def operator(name: str):
    """Make an operator by its short name."""
    return DropStatement() if name == "DropStatement" else cosmic_ray.plugins.get_operator(f"core/{name}")()


@dataclass(frozen=True)
class Place:
    """Where code can be broken."""

    function: str
    line: int
    column: int
    text: str
    """Of the line."""
    occurrence: int
    """Of the same text in the function."""


def sample(tree: Path, module: str, names: list[str], left_out: dict, seed: int, count: int) -> list[WorkItem]:
    """Return the first mutants of a module."""
    named = tuple(place for kind in ("gpu", "speed", "chosen") for place in left_out[kind])
    source = (tree / module).read_text(encoding="utf-8")
    places: dict[Place, list[MutationSpec]] = defaultdict(list)
    for place, spec in _all(source, module, names, set(left_out["arguments"])):
        wanted = f"{module}:{place.function}" not in named and not f"{module}:{place.text}".startswith(named)
        if wanted and not any(word in place.text for word in left_out["words"]):
            places[place].append(spec)
    by_function: dict[str, list[Place]] = defaultdict(list)
    for place in sorted(places, key=lambda place: _rank(seed, module, place)):
        by_function[place.function].append(place)
    functions = sorted(by_function, key=lambda name: _digest(seed, module, name))
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(by_function[name] for name in functions)))
    found = (_item(source, place, places[place], seed) for place in turns if place is not None)
    return list(itertools.islice(filter(None, found), count))


def _all(source: str, module: str, names: list[str], arguments: set[str]) -> Iterator[tuple[Place, MutationSpec]]:
    tree, lines = get_ast(source), source.splitlines()
    nodes = [node for node in ast_nodes(tree) if not _is_left_out(node, arguments)]
    wanted = {id(node) for node in nodes}
    seen: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for name in names:
        made = operator(name)
        found = ((node, place) for node in ast_nodes(tree) for place in made.mutation_positions(node))
        for occurrence, (node, (start, end)) in enumerate(found):
            if id(node) not in wanted or lines[start[0] - 1].lstrip().startswith(GUARDS):
                continue
            function = _function(node)
            text = lines[start[0] - 1].strip()
            same = seen[function, text, start[1]]
            if start[0] not in same:
                same.append(start[0])
            spec = MutationSpec(
                module_path=module, operator_name=name, occurrence=occurrence, start_pos=start, end_pos=end,
                definition_name=function,
            )  # fmt: skip
            yield Place(function, start[0], start[1], text, same.index(start[0])), spec


def _function(node) -> str:
    """Return the name of the function or class around a node, with those around it."""
    names = []
    while node.parent is not None:
        if node.parent.type in ("funcdef", "classdef") and node.type == "suite":
            names.append(node.parent.name.value)
        node = node.parent
    return ".".join(reversed(names)) or "(module)"


def _is_left_out(node, arguments: set[str]) -> bool:
    """Whether a node is part of a message, of a type hint or of such an argument, or joins a path to a name."""
    if node.type == "operator" and node == "/" and any(child.type == "string" for child in node.parent.children):
        return True
    while node.parent is not None:
        above = node.parent
        index = next(i for i, child in enumerate(above.children) if child is node)
        before = above.children[index - 1] if index else None
        hint = (above.type in ("tfpdef", "annassign") and before == ":") or (above.type == "funcdef" and before == "->")
        guard = node.type == "argument" and getattr(node.children[0], "value", None) in arguments
        if hint or guard or node.type in MESSAGES:
            return True
        node = above
    return False


def _item(source: str, place: Place, specs: list[MutationSpec], seed: int) -> WorkItem | None:
    """Return one way to break a place; None where what comes of it is no Python, or the same."""
    for way in sorted(range(len(specs)), key=lambda way: _rank(seed, str(specs[0].module_path), place, way)):
        spec = specs[way]
        mutated = mutate_code(source, operator(spec.operator_name), spec.occurrence)
        with contextlib.suppress(SyntaxError):
            if ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source)):
                old, new = _differing(source.splitlines(), mutated.splitlines())
                name = _digest(spec.module_path, spec.definition_name, place.occurrence, *old, "", *new)[:12]
                return WorkItem.single(name, spec)
    return None


def _differing(before: list[str], after: list[str]) -> tuple[list[str], list[str]]:
    """Return the lines in which two texts differ."""
    start = next((i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), 0)
    tail = next((i for i, pair in enumerate(zip(before[::-1], after[::-1], strict=False)) if pair[0] != pair[1]), 0)
    return before[start : len(before) - tail], after[start : len(after) - tail]


def _rank(seed: int, module: str, place: Place, way: int = 0) -> str:
    return _digest(seed, module, place.function, place.text, place.column, place.occurrence, way)


def _digest(*parts) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
