"""A checkpoint to another library's form and back. In: a run, a form, a folder. Out: the folder, or a checkpoint."""

from collections.abc import Callable
from pathlib import Path

from bigqa.checkpoints import accelerate, universal
from bigqa.checkpoints.finding import newest_whole
from bigqa.checkpoints.taking import Kept, Layout, check_full, layout_of, model_of, settings_of, take
from bigqa.engine import adapters
from bigqa.engine.loop import checkpoint
from bigqa.engine.optim.update import State
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder
from bigqa.language import tr
from bigqa.lock import held
from bigqa.run.delivery import settled, write_model


def _model(kept: Kept, folder: Path) -> None:
    """Write the model as a run hands it over, adapters merged."""
    adapters.merge(kept.model)
    write_model(folder, kept.model, kept.tokenizer, settled(kept.job, kept.settings))


TO: dict[str, Callable[[Kept, Path], None]] = {
    "transformers": _model,
    "accelerate": accelerate.write,
    "deepspeed": universal.write,
}
FROM: dict[str, Callable[[Path, Layout], tuple[State, int]]] = {
    "accelerate": accelerate.read,
    "deepspeed": universal.read,
}


def convert_to(form: str, source: Path, target: Path, *, one_group: bool) -> Path:
    """Write a checkpoint in a form; return the checkpoint that was taken: of a run, the newest whole one."""
    path = newest_whole(source)
    with atomic_folder(target) as temporary:
        TO[form](take(path.absolute(), one_group=one_group), temporary)
    return path


def convert_from(form: str, source: Path, run: Path, *, step: int | None, say: Callable[[str], None]) -> Path:
    """Put a folder's weights and moments into a run's checkpoints, to go on from. Returns: the checkpoint.

    `step`: after which it goes on; none: as many as the optimizer has made. Raises: BigqaError.
    """
    settings = settings_of(run)
    check_full(settings, form)
    _, model, _ = model_of(settings)
    state, made = FROM[form](source, layout_of(model, settings, one_group=False))
    step = made if step is None else step
    folder = run / "checkpoints"
    newer = [path for path in checkpoint.newest_first(folder) if path.name >= checkpoint.path_of(folder, step).name]
    if newer:
        raise BigqaError(
            tr(
                "{run} goes on from {newest}, which is not before step {step}: begin a run in another folder",
                run=run, newest=newer[0].name, step=step,
            )
        )  # fmt: skip
    with held(run, say):
        return checkpoint.save(folder, step, state, settings.model_dump(mode="json"))
