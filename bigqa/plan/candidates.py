"""A strategy judged for a machine, and the order of such. In: candidates. Out: the best first, and the best.

The best is the fastest of the lowest tier that fits.
"""

from pydantic import Field, SkipValidation

from bigqa.language import tr
from bigqa.machine.hardware import Record
from bigqa.memory.estimate import MemoryEstimate
from bigqa.plan.machine import Verdict
from bigqa.strategy import Strategy


class Workload(Record):
    """What is wanted, never how."""

    seq_len: int = 512
    global_batch: int = 16
    num_windows: int = 68_538
    """Of one epoch. Default: KorQuAD 1.0 train (60,407 questions) at the 1.13 windows each that its dev file has."""
    epochs: float = 4
    out_of_reach: dict[int, float] = Field(default_factory=dict)
    """Sequence length -> share of what is to be learned that no window of it holds whole."""
    lost_words: SkipValidation[tuple[str, str]] = (tr("answers"), tr("out of reach"))
    """What that share is of, and what becomes of it, in the task's words."""


class Candidate(Record):
    """One strategy on this hardware."""

    name: str
    strategy: Strategy
    tier: int
    micro_batch: int
    grad_accum: int
    seq_len: int
    memory: MemoryEstimate | None
    limit_bytes: int
    """Of what runs short first: the GPU's memory, or on the CPU the host's."""
    windows_per_step: int
    samples_per_s: float
    run_s: float
    speed_source: SkipValidation[str] = ""
    """What the speed was worked out from; nothing where it was not."""
    speed_error: float = 0.0
    """What it may be off by, as a share of it."""
    verdict: Verdict
    reason: SkipValidation[str]  # which would take its languages from it

    @property
    def step_s(self) -> float:
        """Seconds of one optimizer step; zero where unknown."""
        return self.windows_per_step / self.samples_per_s if self.samples_per_s else 0.0

    @property
    def fits(self) -> bool:
        """Whether it can be chosen."""
        return self.verdict == "fits"

    @property
    def peak_bytes(self) -> int:
        """What is compared with the limit."""
        if self.memory is None:
            return 0
        return self.memory.device_bytes if self.strategy.device == "cuda" else self.memory.host_bytes


def rank(candidates: list[Candidate]) -> list[Candidate]:
    """Order candidates: what fits before what does not, then the lower tier, then the faster.

    The CPU comes after every GPU plan of its tier: it is what is left.
    """
    order = {"fits": 0, "too large": 1, "not possible": 2}
    return sorted(candidates, key=lambda c: (order[c.verdict], c.tier, -c.samples_per_s))


def choose(candidates: list[Candidate]) -> Candidate | None:
    """Return the fastest of the lowest tier that fits, or none."""
    return next((candidate for candidate in candidates if candidate.fits), None)
