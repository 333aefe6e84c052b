"""What a run trains: model, tokenizer, windows. In: settings. Out: these, or what is wrong with the files."""

from typing import Any

from bigqa.console import progress
from bigqa.engine.processes import Processes
from bigqa.errors import BigqaError
from bigqa.files import cache_folder
from bigqa.models.sources import check_lengths, load_config, load_model, load_tokenizer, resolve
from bigqa.settings import Settings
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


def model_and_tokenizer(settings: Settings) -> tuple[Any, Any]:
    """Return both, the model with the dropouts that the settings ask for."""
    source = resolve(settings.model, tokenizer=settings.tokenizer)
    tokenizer = load_tokenizer(source)
    config = load_config(source)
    check_lengths(config, settings.seq_len)
    if settings.dropout is not None:
        for name in (*DROPOUTS, *DROPOUTS_MORE):
            if getattr(config, name, None) is not None:
                setattr(config, name, settings.dropout)
    return load_model(source, config, vocabulary_size=len(tokenizer), seed=settings.seed), tokenizer


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
