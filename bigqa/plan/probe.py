"""What fits, how fast, what is given up. In: a question. Out: a `Probe`: every strategy judged, and the plan.

No weights are made and nothing is run: the planner traces the trainer's own step without data.
"""

from dataclasses import dataclass

from bigqa.engine.processes import torch_here
from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.machine.hardware import Gpu, Hardware
from bigqa.machine.kernels import lacking
from bigqa.memory.estimate import Estimator
from bigqa.memory.timeline import Timeline
from bigqa.plan.candidates import Candidate, Workload, choose
from bigqa.plan.machine import Machine
from bigqa.plan.planner import Planner, known_estimator
from bigqa.plan.question import Question, there, wanted
from bigqa.strategy import STRATEGIES
from bigqa.tasks.registry import kind_of


@dataclass(frozen=True)
class Probe:
    """What was found. `candidates`: the best first."""

    question: Question
    hardware: Hardware
    machine: Machine
    has_vocabulary: bool
    """Whether the model brings its tokenizer, so that training needs none named."""
    workload: Workload
    candidates: list[Candidate]
    chosen: Candidate | None
    estimator: Estimator

    @property
    def gpu(self) -> Gpu | None:
        """The card that was planned for."""
        return self.machine.gpu

    @property
    def num_gpus(self) -> int:
        """Of a machine."""
        return self.machine.num_gpus

    @property
    def num_parameters(self) -> int:
        """Parameters of the model."""
        return self.estimator.num_parameters

    @property
    def closest(self) -> Candidate | None:
        """Where nothing fits: what is short of its limit by the smallest factor."""
        short = [c for c in self.candidates if c.memory is not None and c.verdict == "too large"]
        return min(short, key=lambda c: c.peak_bytes / max(1, c.limit_bytes), default=None)

    @property
    def without_kernels(self) -> str | None:
        """Where the torch that is installed has no kernels for the card: what to install instead."""
        gpu = self.gpu
        return lacking(gpu.name, gpu.capability, torch_here()) if gpu is not None else None

    def timeline(self, candidate: Candidate) -> Timeline:
        """Return the memory of one step of a candidate over time."""
        return self.estimator.timeline(
            candidate.strategy,
            candidate.micro_batch,
            candidate.seq_len,
            accumulating=candidate.grad_accum > 1,
            world_size=self.machine.processes(candidate.strategy),
        )

    @property
    def next_best(self) -> Candidate | None:
        """The next plan that fits, were the chosen one not there."""
        return choose([c for c in self.candidates if c is not self.chosen])


def probe(question: Question) -> Probe:
    """Judge every strategy on this machine, or on the one that the question names."""
    if question.strategy is not None and question.strategy not in STRATEGIES:
        raise UsageError(
            tr(
                "no strategy {strategy}; choose one of {strategies}",
                strategy=question.strategy,
                strategies=", ".join(STRATEGIES),
            )
        )
    source, config, workload = wanted(question)
    hardware, machine = there(question)
    estimator = known_estimator(config, kind_of(question.task))
    precision = None if question.precision == "auto" else question.precision
    names = None if question.strategy is None else [question.strategy]
    candidates = Planner(estimator, workload, machine, precision, on_all_cores=True).candidates(names, question.tier)
    has_vocabulary = source.tokenizer is not None
    return Probe(question, hardware, machine, has_vocabulary, workload, candidates, choose(candidates), estimator)
