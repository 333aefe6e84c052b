"""What is broken, drawn from a seed. In: a seed, a number. Out: a `Case`, the same for everybody.

A kind of fault has the phases that it may come in, and figures drawn with it. Which thing of a phase it comes at is
drawn as a share: how many there are is known from the run that nobody breaks.
"""

import functools
import random
from dataclasses import dataclass, field
from typing import Any

from benchmarks.torture.setups import Setup, pairs_of, setups_on_cpu, setups_on_gpu

TRAINED = ("start", "features", "step", "between", "save", "evaluation", "handover")
STEPPED = ("step", "between", "save", "evaluation")
SAVED = ("step", "step", "between", "save", "evaluation")
KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    name: str
    phases: tuple[str, ...] = TRAINED
    weight: int = 2
    needs: str = ""
    """root, groups, gpu: what a machine must let it do."""
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What is drawn, between which two; sizes by their logarithm."""
    damages: str = ""
    """What is damaged after a run was stopped: a checkpoint, the newest; or other files of the run."""
    own: str = ""
    """What breaks instead of a run: a download."""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("kill-worker"),
        Kind("kill-launcher"),
        Kind("kill-all", weight=4),
        Kind("kill-in-write", ("save", "between", "handover", "start"), figures={"bytes": (1, 400 * KIB)}),
        Kind("kill-in-switch", ("switch",), weight=1),
        Kind("SIGTERM"),
        Kind("SIGINT"),
        Kind("SIGINT-twice", weight=1),
        Kind("SIGHUP", weight=1),
        Kind("memory-limit", figures={"bytes": (16 * MIB, 128 * MIB)}),
        Kind("memory-killed", needs="groups", figures={"bytes": (64 * KIB, 8 * MIB)}),
        Kind("disk-full", needs="root", figures={"bytes": (1, 2 * MIB)}),
        Kind("disk-away", STEPPED, figures={"seconds": (0.02, 2.0)}),
        Kind("file-limit", ("save", "between", "handover", "start"), weight=1, figures={"bytes": (1, 400 * KIB)}),
        Kind("cut-data", ("start", "features", "step"), weight=1, figures={"share": (0, 1)}),
        Kind("cut-cache", ("between", "step"), weight=1, figures={"share": (0, 1)}),
        Kind("clock", figures={"seconds": (-1e9, 1e9)}),
        Kind("damaged-checkpoint", SAVED, weight=6, damages="checkpoint"),
        Kind("damaged-features", SAVED, damages="features"),
        Kind("damaged-run", SAVED, damages="run"),
        Kind("download", ("download",), own="download"),
        Kind("device-memory", ("step", "between", "save", "handover"), needs="gpu", figures={"bytes": (1, 16 * MIB)}),
    )
}


EACH_ON_GPU, WEIGHT_ON_GPU = 6, 6
"""Each sixth case is on a GPU that is not there, and its memory runs out more often there than others' do."""
PAIRS, EVALUATED = {False: 64, True: 16}, 0.4
"""On a CPU and on a GPU; a quarter of them go on under the same setup. And the share that is scored as it trains."""


DELAYED = 0.5
"""Share of what comes in a step some milliseconds after what it is counted by: in the midst of a kernel."""
Pair = tuple[Setup, Setup, bool]
"""What a run begins under, what it goes on under, and whether it is scored as it trains."""
PLAIN, RECOMPUTED = Setup("plain", "fp32"), Setup("recompute", "fp32")
QUICK: tuple[Pair, ...] = ((PLAIN, PLAIN, False), (PLAIN, RECOMPUTED, False), (PLAIN, PLAIN, True))


@dataclass(frozen=True)
class Case:
    """One fault."""

    seed: int
    number: int
    kind: str
    first: Setup
    then: Setup
    phase: str
    share: float
    """Of the things of the phase, those before the fault."""
    rank: int
    delay_ms: float
    figures: dict[str, float]
    evaluates: bool
    until_s: int | None
    """`--until`, where a clock jumps."""

    @property
    def draw(self) -> random.Random:
        """Random numbers for what is drawn later."""
        return random.Random(f"{self.seed} {self.number} later")

    def lacks(self, has: frozenset[str]) -> bool:
        """Whether this machine lacks what the case needs."""
        needs = {KINDS[self.kind].needs, "gpu" if self.on_gpu else ""}
        return bool(needs - {""} - has)

    @property
    def on_gpu(self) -> bool:
        """Whether it is trained on a GPU that is not there."""
        return self.first.device == "cuda"

    @property
    def told(self) -> dict[str, Any]:
        """What a report says of it."""
        figures = {name: round(value, 3) for name, value in self.figures.items()}
        pair = {"first": self.first.key, "then": self.then.key}
        moment = {"phase": self.phase, "share": round(self.share, 4), "rank": self.rank, "delay_ms": self.delay_ms}
        return {"seed": self.seed, "number": self.number, "kind": self.kind} | pair | moment | {"figures": figures}


@functools.lru_cache(maxsize=4)
def pairs(seed: int, *, on_gpu: bool) -> list[Pair]:
    """Return the pairs of a seed's cases, and whether each is scored as it trains."""
    draw = random.Random(f"{seed} pairs {on_gpu}")
    setups = list(setups_on_gpu() if on_gpu else setups_on_cpu())
    some = [(one, one) for one in setups]
    others = [pair for pair in pairs_of(setups) if pair[0] != pair[1]]
    some = [*draw.sample(some, PAIRS[on_gpu] // 4), *draw.sample(others, PAIRS[on_gpu] - PAIRS[on_gpu] // 4)]
    return [(a, b, not on_gpu and a.scores and b.scores and draw.random() < EVALUATED) for a, b in some]


def drawn(seed: int, number: int) -> Case:
    """Return a case, whatever this machine can do: `lacks` tells of that."""
    draw = random.Random(f"{seed} {number}")
    on_gpu = number % EACH_ON_GPU == EACH_ON_GPU - 1
    kinds = [kind for kind in KINDS.values() if (not kind.own if on_gpu else kind.needs != "gpu")]
    weights = [kind.weight * (WEIGHT_ON_GPU if kind.needs == "gpu" else 1) for kind in kinds]
    kind = draw.choices(kinds, weights)[0]
    return _case(seed, number, draw, kind, draw.choice(pairs(seed, on_gpu=on_gpu)))


def sampled(seed: int, number: int) -> Case:
    """Return a case of those that are quickly run: kinds in turn that need nothing, and few setups."""
    draw = random.Random(f"{seed} {number} sampled")
    kinds = [kind for kind in KINDS.values() if not kind.needs]
    return _case(seed, number, draw, kinds[number % len(kinds)], draw.choice(QUICK))


def _case(seed: int, number: int, draw: random.Random, kind: Kind, pair: Pair) -> Case:
    first, then, evaluates = pair
    phase = draw.choice([phase for phase in kind.phases if evaluates or phase != "evaluation"])
    delayed = phase in ("step", "evaluation") and draw.random() < DELAYED
    return Case(
        seed=seed,
        number=number,
        kind=kind.name,
        first=first,
        then=then,
        phase=phase,
        share=draw.random(),
        rank=draw.randrange(first.processes) if phase in ("step", "features") else 0,
        delay_ms=round(draw.uniform(0, 10), 2) if delayed else 0.0,
        figures={name: _between(draw, *ends) for name, ends in kind.figures.items()},
        evaluates=evaluates,
        until_s=3600 if kind.name == "clock" and draw.random() < 0.5 else None,
    )


def _between(draw: random.Random, least: float, most: float) -> float:
    """Return a number between two; where both are sizes, as likely of each magnitude."""
    if least >= 1:
        return float(int(least * (most / least) ** draw.random()))
    return draw.uniform(least, most)
