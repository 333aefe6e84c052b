"""What the planner says of a benchmark's cases. In: a case, or a finished report. Out: `Predicted`.

A report can be predicted anew on any machine, from the configuration and the rates that it holds.
"""

import functools
import json
from typing import Any

from bigqa.bench.report import Case, Predicted, RunReport
from bigqa.machine.hardware import Gpu, Hardware, capped
from bigqa.memory.cards import A100, Card, card_for
from bigqa.memory.estimate import Estimator
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import known_estimator
from bigqa.speed.throughput import Rates, Shape, speed_of
from bigqa.units import MIB

DATASETS_BYTES = 50 * MIB
"""Of `datasets` and its pandas, which every process imported as far as 0.1.0; reports of the time name its version."""


class Predictor:
    """Predicts the cases of one machine; a model's traces are made once."""

    def __init__(self, hardware: Hardware, gpu: Gpu | None, rates: dict[str, Rates]) -> None:
        self.hardware = hardware
        self.gpu = gpu
        self._rates = rates
        self._estimators: dict[str, Estimator] = {}

    def rates(self, device: str) -> Rates:
        """Return what a device reaches."""
        return self._rates[device]

    def config(self, model: str) -> dict[str, Any]:
        """Return a model's configuration as plain values."""
        values: dict[str, Any] = self.estimator(model).config.to_dict()
        return values

    def estimator(self, model: str) -> Estimator:
        """Return a model's estimator."""
        if model not in self._estimators:
            self._estimators[model] = known_estimator(load_config(resolve(model)))
        return self._estimators[model]

    def of(self, case: Case) -> Predicted:
        """Return what is predicted of a case."""
        gpu = capped(self.gpu, case.cap_bytes) if self.gpu and case.cap_bytes else self.gpu
        card = card_for(gpu.name, gpu.capability, gpu.total_bytes) if gpu else A100
        return predict(self.estimator(case.model), case, self.rates(case.axes.device), self.hardware.cpu.cores, card)


def predict(estimator: Estimator, case: Case, rates: Rates, host_cores: int, card: Card) -> Predicted:
    """Predict one case."""
    accumulating = case.grad_accum > 1
    memory = estimator.estimate(
        case.axes,
        case.micro_batch,
        case.seq_len,
        accumulating=accumulating,
        card=card,
        whole=case.axes.device == "cuda",
        micro_batches=case.grad_accum,
    )
    asked: dict[str, Any] = {"accumulating": accumulating, "card": card, "micro_batches": case.grad_accum}
    speed = speed_of(
        estimator.footprint(case.axes, case.micro_batch, case.seq_len, **asked),
        case.axes,
        rates,
        Shape(
            micro_batch=case.micro_batch,
            seq_len=case.seq_len,
            num_micro_batches=case.grad_accum,
            num_parameters=estimator.num_parameters,
            host_cores=host_cores,
            keeps_memory=case.heap == "kept",
        ),
    )
    return Predicted(memory=memory, samples_per_s=speed.samples_per_s)


def predict_anew(report: RunReport) -> Predicted:
    """Predict a report's case with the code as it is now."""
    gpus = [gpu for gpu in report.hardware.gpus if gpu.name == report.gpu]
    card = card_for(gpus[0].name, gpus[0].capability, gpus[0].total_bytes) if gpus else A100
    found = predict(estimator_of(report), report.case, report.rates, report.hardware.cpu.cores, card)
    if "datasets" not in report.versions:
        return found
    memory = found.memory.model_copy(update={"host_bytes": found.memory.host_bytes + DATASETS_BYTES})
    return found.model_copy(update={"memory": memory})


def estimator_of(report: RunReport) -> Estimator:
    """Return the estimator of a report's model; reports of one model share its traces."""
    return _estimator(_frozen(report.config))


@functools.lru_cache(maxsize=32)
def _estimator(frozen: str) -> Estimator:
    from transformers import AutoConfig

    return known_estimator(AutoConfig.for_model(**json.loads(frozen)))


def _frozen(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
