"""Scores as a run trains. In: settings, their job, a run's parts. Out: what scores the model that is being trained."""

from collections.abc import Mapping
from typing import Any

from bigqa.engine.build import strategy_of
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.evaluation import BEST, Evaluation
from bigqa.engine.loop.training import Training
from bigqa.errors import BigqaError, UsageError
from bigqa.language import tr
from bigqa.run.job import Job
from bigqa.run.prediction import Answerer
from bigqa.settings import Settings


def wants_evaluation(settings: Settings) -> bool:
    """Whether a run is scored as it trains: asked for by itself, or by what hangs on it. Raises: UsageError."""
    asked = {name: getattr(settings, name) is not None for name in ("eval_every", "eval_times", "eval_on", "metric")}
    asked |= {"keep_best": settings.keep_best, "patience": settings.patience is not None}
    if asked["eval_every"] and asked["eval_times"]:
        raise UsageError(tr("--eval-every and --eval-times exclude each other: both say when a run is scored"))
    named = [name for name, wanted in asked.items() if wanted]
    if named and settings.dev_file is None:
        raise UsageError(tr("--{named} wants --dev-file: what is it scored on?", named=named[0].replace("_", "-")))
    return bool(named)


def check_whole(settings: Settings, device: Any) -> None:
    """Refuse to score a model as it trains whose weights are not all on the device. Raises: BigqaError."""
    strategy = strategy_of(settings, device)
    if wants_evaluation(settings) and (strategy.zero_stage == 3 or strategy.stream):
        raise BigqaError(
            tr(
                "--eval-every wants the weights on the device, and this strategy has parts of them there: "
                "choose another, or score the result at the end alone"
            )
        )


def evaluation_of(training: Training, job: Job, model: Any, tokenizer: Any) -> Evaluation | None:
    """Return what scores a run as it trains; none where nobody asked."""
    settings = training.settings
    if not wants_evaluation(settings):
        return None
    dev_file = settings.dev_file
    assert dev_file is not None
    metric = settings.metric or job.kind.watched_on(dev_file)
    answerer = Answerer(
        job.kind, job.kind.settled(job.options, [settings.train_file, dev_file]), model, tokenizer,
        training.processes.device, training.packs, tell=training.recorder.say, trains=True,
    )  # fmt: skip

    def score() -> Mapping[str, Any]:
        return answerer.score(dev_file, settings.eval_on).scores

    return Evaluation(
        settings.out,
        _every(training),
        score,
        metric,
        least=metric in job.kind.smaller_is_better,
        patience=settings.patience,
        keep_best=settings.keep_best,
    )


def _every(training: Training) -> int:
    """Return the steps from one score to the next."""
    settings = training.settings
    if settings.eval_times is not None:
        return -(-training.num_steps // settings.eval_times)
    return settings.eval_every or training.order.steps_per_epoch


def back_to_best(training: Training) -> None:
    """Put the weights of the best score back; every process must call."""
    evaluation = training.evaluation
    if evaluation is None or not evaluation.keep_best or not training.saves:
        return
    best = evaluation.best
    found = checkpoint.load_newest(training.settings.out / BEST, training.recorder.say)
    if found is not None and best is not None and found.step == best["step"]:
        checkpoint.restore(found, training.parts.update)
        training.recorder.say(tr("handing over the model of step {step}, the best", step=found.step))
    elif best is not None:
        training.recorder.say(
            tr("the model of step {step}, the best, is not there whole: handing over the last one", step=best["step"])
        )
