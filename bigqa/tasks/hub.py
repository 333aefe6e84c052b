"""Data sets of the Hugging Face hub. In: "OWNER/NAME", with "/CONFIG" and ":SPLIT" where there are several. Out: files.

Only files of data are fetched, and none is run: a data set that is a script is taken in the form that the hub made of
it.
"""

import re
from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks.containers import DATA_SUFFIXES, PACKED_SUFFIXES, is_data
from bigqa.tasks.splits import split_of

ID = re.compile(r"(?P<name>[\w][\w.-]*/[\w][\w.-]*)(/(?P<config>[\w.-]+))?(:(?P<split>\w+))?")
REVISIONS = (None, "refs/convert/parquet")
"""Where its files are looked for: as its owner keeps them, then as the hub wrote them anew."""


def is_hub_id(text: str) -> bool:
    """Say whether a text may be a data set's id, and is not the name of a file that is not there."""
    names_file = text.lower().endswith((*DATA_SUFFIXES, *PACKED_SUFFIXES[1:], ".zip", ".csv", ".tsv", ".txt"))
    # A path that begins in a folder which is there is a slip of the pen.
    return ID.fullmatch(text) is not None and not names_file and not Path(text.partition("/")[0]).exists()


def hub_files(text: str, role: str) -> list[Path]:
    """Return a split's files, fetched where they are not in the hub's cache. Raises: BigqaError."""
    asked = ID.fullmatch(text)
    assert asked is not None
    name, config, split = asked["name"], asked["config"], asked["split"]
    for revision in REVISIONS:
        folder = _fetched(name, revision, text, role)
        files = sorted(file for file in folder.rglob("*") if is_data(file.name) and file.is_file()) if folder else []
        tables = [file for file in files if ".json" not in file.name or "info" not in file.name]
        if folder is not None and tables:
            return _chosen(tables, folder, config, split, text, role)
    raise BigqaError(
        tr(
            "{role} not found: {given}: the data set {name} holds no JSON, JSON lines, Parquet or Arrow file",
            role=role,
            given=text,
            name=name,
        )
    )


def _fetched(name: str, revision: str | None, text: str, role: str) -> Path | None:
    """Return the folder of a data set's files, or nothing where it has no such revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    patterns = [f"*{data}{packed}" for data in DATA_SUFFIXES for packed in PACKED_SUFFIXES]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:
        if revision is not None:
            return None
        reason = " ".join(str(error).split())[:200]
        raise BigqaError(
            tr(
                "{role} not found: {given} is no path here, and no data set of the hub: {reason}",
                role=role,
                given=text,
                reason=reason,
            )
        ) from None


def _chosen(files: list[Path], folder: Path, config: str | None, split: str | None, text: str, role: str) -> list[Path]:
    """Return the files of one configuration and split; what is left open must be the only one."""
    configs = {file: _config_of(file, folder) for file in files}
    config = _one(config, set(configs.values()), "configuration", f"{text.partition(':')[0]}/", text, role)
    splits = {file: _split_of(file, folder) for file in files if configs[file] == config}
    split = _one(split, set(splits.values()), "split", f"{text}:", text, role)
    return [file for file in files if splits.get(file) == split]


def _one(asked: str | None, there: set[str], kind: str, example: str, text: str, role: str) -> str:
    """Return what is asked for where it is there, or the only one that is. Raises: BigqaError."""
    names = sorted(there)
    if asked in names or (asked is None and len(names) == 1):
        return asked or names[0]
    which = ", ".join(names)
    if asked is None:
        raise BigqaError(
            tr(
                "{role}: {given} has more than one {kind}: {which}; name one: {example}{names}",
                role=role,
                given=text,
                kind=kind,
                which=which,
                example=example,
                names=names[0],
            )
        )
    raise BigqaError(
        tr(
            "{role}: {given} has no {kind} {asked}; choose one of {which}",
            role=role,
            given=text,
            kind=kind,
            asked=asked,
            which=which,
        )
    )


def _config_of(file: Path, folder: Path) -> str:
    """Return the configuration that a file is of: the folder that it lies in, but for "data" and a split's own."""
    parts = [part for part in file.relative_to(folder).parts[:-1] if part != "data" and split_of(f"{part}.") is None]
    return parts[0] if parts else "default"


def _split_of(file: Path, folder: Path) -> str:
    for part in (file.name, *(f"{part}." for part in reversed(file.relative_to(folder).parts[:-1]))):
        if (split := split_of(part)) is not None:
            return split
    words = [split for word in re.split(r"[^a-z]+", file.name.lower()) if (split := split_of(f"{word}."))]
    return words[0] if words else "train"
