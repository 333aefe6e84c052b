"""What a run trains: model, tokenizer, rows. In: settings, their job. Out: these, or what is wrong with the files."""

from dataclasses import dataclass
from typing import Any

from bigqa.console import progress
from bigqa.engine.processes import Processes
from bigqa.engine.stream.loading import in_files
from bigqa.errors import BigqaError
from bigqa.files import cache_folder
from bigqa.language import tr
from bigqa.models.sources import check_lengths, describe_config, load, load_tokenizer
from bigqa.models.tokenizers import rows_needed
from bigqa.models.weights import Loaded
from bigqa.run.job import Job, give_padding
from bigqa.run.together import check_together
from bigqa.settings import Settings


def check_dev_file(settings: Settings, job: Job) -> None:
    """Read what the run will be scored on: a mistake in it would show after hours. Raises: BigqaError."""
    if settings.dev_file is not None:
        job.kind.check_file(settings.dev_file, job.options, job.config())


@dataclass(frozen=True)
class Made:
    """What a run begins with."""

    loaded: Loaded
    tokenizer: Any
    config: str
    """The model's configuration as text, before the run's own dropouts are in it."""
    doubts: tuple[str, ...]
    """Lines about what of it may be another's."""


def model_and_tokenizer(settings: Settings, job: Job) -> Made:
    """Return both, the model with the dropouts that the settings ask for.

    What does not go together is refused before weights are read. Raises: BigqaError.
    """
    tokenizer = load_tokenizer(job.source)
    described = describe_config(job.config(with_dropout=False))
    config = job.config()
    check_lengths(config, settings.seq_len)
    give_padding(config, tokenizer)
    doubts = check_together(job.source, tokenizer, config, job.kind)
    if (line := job.kind.check_text(settings.train_file, tokenizer, job.options)) is not None:
        doubts.append(line)
    with in_files(settings.nvme if settings.strategy is not None and settings.strategy.weights_on_disk else None):
        loaded = load(
            job.source,
            config,
            head=job.kind.head,
            vocabulary_size=rows_needed(tokenizer),
            seed=settings.seed,
            new_head=bool(job.facts),
        )
    return Made(loaded, tokenizer, described, tuple(doubts))


def make_rows(settings: Settings, job: Job, tokenizer: Any, config: Any, processes: Processes) -> Any:
    """Return the features of the training file, made by the first process. Raises: BigqaError where there are none."""

    def make() -> Any:
        with progress(tr("Reading windows"), shown=processes.is_main) as on_progress:
            return job.kind.features(
                settings.train_file,
                tokenizer,
                job.options,
                config,
                cache_dir=cache_folder() / "features",
                limit=settings.limit,
                on_progress=on_progress,
            )

    with processes.accelerator.main_process_first():
        rows = make()
    if len(rows) == 0:
        raise BigqaError(tr("{train_file} has nothing to train on", train_file=settings.train_file))
    return rows
