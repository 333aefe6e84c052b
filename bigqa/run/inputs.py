"""What a run trains: model, tokenizer, windows. In: settings. Out: these, or what is wrong with the files."""

from dataclasses import dataclass
from typing import Any

from bigqa.console import progress
from bigqa.engine.processes import Processes
from bigqa.errors import BigqaError
from bigqa.files import cache_folder
from bigqa.models.sources import check_lengths, describe_config, load, load_config, load_tokenizer, resolve
from bigqa.models.tokenizers import rows_needed
from bigqa.models.weights import Loaded
from bigqa.run.together import check_together
from bigqa.settings import Settings
from bigqa.tasks.coverage import check_text
from bigqa.tasks.features import build_features
from bigqa.tasks.scoring import metric_of, read_golds
from bigqa.tasks.squad import iter_questions
from bigqa.tasks.windows import Lengths

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "embedding_dropout")
DROPOUTS_MORE = ("mlp_dropout", "classifier_dropout", "pooler_dropout", "residual_dropout")


def lengths_of_settings(settings: Settings) -> Lengths:
    """Return the lengths of windows that a run's settings ask for."""
    return Lengths.model_validate({name: getattr(settings, name) for name in Lengths.model_fields})


def check_dev_file(settings: Settings) -> None:
    """Read what the run will be scored on: a mistake in it would show after hours. Raises: BigqaError."""
    if settings.dev_file is not None:
        read_golds(settings.dev_file, metric_of(settings.dev_file))
        for _ in iter_questions(settings.dev_file, need_answers=False):
            pass


@dataclass(frozen=True)
class Made:
    """What a run begins with."""

    loaded: Loaded
    tokenizer: Any
    config: str
    """The model's configuration as text, before the run's own dropouts are in it."""
    doubts: tuple[str, ...]
    """Lines about what of it may be another's."""


def model_and_tokenizer(settings: Settings) -> Made:
    """Return both, the model with the dropouts that the settings ask for.

    What does not go together is refused before weights are read. Raises: BigqaError.
    """
    source = resolve(settings.model, tokenizer=settings.tokenizer)
    tokenizer = load_tokenizer(source)
    config = load_config(source)
    described = describe_config(config)
    check_lengths(config, settings.seq_len)
    doubts = check_together(source, tokenizer, config)
    if (line := check_text(settings.train_file, tokenizer)) is not None:
        doubts.append(line)
    if settings.dropout is not None:
        for name in (*DROPOUTS, *DROPOUTS_MORE):
            if getattr(config, name, None) is not None:
                setattr(config, name, settings.dropout)
    loaded = load(source, config, vocabulary_size=rows_needed(tokenizer), seed=settings.seed)
    return Made(loaded, tokenizer, described, tuple(doubts))


def make_windows(settings: Settings, tokenizer: Any, lengths: Lengths, processes: Processes) -> Any:
    """Return the features of the training file, made by the first process. Raises: BigqaError where there are none."""

    def make() -> Any:
        with progress("Reading windows", shown=processes.is_main) as on_progress:
            return build_features(
                settings.train_file,
                tokenizer,
                lengths,
                training=True,
                cache_dir=cache_folder() / "features",
                limit=settings.limit,
                on_progress=on_progress,
            )

    with processes.accelerator.main_process_first():
        windows = make()
    if len(windows) == 0:
        raise BigqaError(f"{settings.train_file} has no questions to train on")
    return windows
