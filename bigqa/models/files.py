"""Files of a model's folder, looked at before they are loaded. In: a folder. Out: nothing, or what is wrong with one.

The library says of a pointer that its header is too large, and of a folder whose weights have another name that it has
none.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from bigqa.contents import HEAD_BYTES, UNREADABLE
from bigqa.errors import BigqaError
from bigqa.files import read_json
from bigqa.language import tr
from bigqa.models.presets import preset_names
from bigqa.models.tokenizers import stored

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = tuple(f"{name}.index.json" for name in WHOLE)
OTHERS = {
    "*-of-*.safetensors": "a shard of weights without their index, model.safetensors.index.json: fetch it as well",
    "*-of-*.bin": "a shard of weights without their index, pytorch_model.bin.index.json: fetch it as well",
    "*.h5": "weights of TensorFlow: save them for torch (from_pretrained(..., from_tf=True) of an older transformers)",
    "*.msgpack": "weights of Flax: save them for torch (from_pretrained(..., from_flax=True) of an older transformers)",
    "*.gguf": "weights of llama.cpp: name the model that they were made of",
    "*.onnx": "a program of ONNX: name the model that it was made of",
    "*.safetensors": "weights under another name: call them model.safetensors",
    "*.ckpt": "a checkpoint of another trainer: save its model by save_pretrained",
    "*.pt": "a checkpoint of another trainer: save its model by save_pretrained",
    "*.pth": "a checkpoint of another trainer: save its model by save_pretrained",
    "*.bin": "weights under another name: call them pytorch_model.bin",
}
"""What may be there in the place of weights, the surest first."""
POINTERS = tuple(magic for magic, said in UNREADABLE.items() if "pointer" in said)
HUB_PAGE = re.compile(r"https?://(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)")
LENGTH_BYTES = 8
"""At the start of a file of safetensors: how long the header is that follows."""


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are not there, are pointers or are cut short. Raises: BigqaError."""
    there = [folder / name for name in WHOLE if (folder / name).is_file()]
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if not there and index is None:
        raise BigqaError(
            tr(
                "{folder} holds no weights ({whole}){instead}",
                folder=folder,
                whole=" or ".join(WHOLE),
                instead=_instead(folder),
            )
        )
    for file in there[:1] if there else _shards(folder, index):
        check_pointer(file)
        if file.suffix == ".safetensors":
            _check_length(file)


def check_pointer(file: Path) -> None:
    """Refuse a file that only says where its content lies. Raises: BigqaError."""
    with file.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    for magic in POINTERS:
        if head.startswith(magic):
            raise BigqaError(f"{file} is {UNREADABLE[magic]}")


def no_model(name: str) -> BigqaError:
    """Say that a name stands for no model; of a page of the hub, which id it is of."""
    page = HUB_PAGE.match(name)
    if page:
        return BigqaError(
            tr(
                "no model {name}: it is no folder, no file, no hub id (OWNER/NAME); name it by its id, {id}",
                name=name,
                id=page[1],
            )
        )
    return BigqaError(
        tr(
            "no model {name}: it is no folder, no file, no hub id (OWNER/NAME) and no preset ({presets})",
            name=name,
            presets=", ".join(preset_names()),
        )
    )


def without_config(path: Path) -> str:
    """Say what a folder without a model's configuration holds, and what to name."""
    if (path / "adapter_config.json").is_file():
        return tr("; it holds an adapter: merge it into its model first")
    if any(path.glob("*.gguf")):
        return tr("; GGUF files are of llama.cpp: name the model that they were made of")
    if path.is_dir():
        inside = (*sorted(path.iterdir()), *sorted(path.glob("snapshots/*")))  # the second: in the hub's own cache
        inner = next((one for one in inside if (one / "config.json").is_file()), None)
        return "" if inner is None else tr("; {inner} does: name that", inner=inner)
    return ""


def refuse_other_forms(name: str, config: Any) -> None:
    """Refuse what the library would make something else of, or nothing, by what else is installed."""
    if stored(name, "adapter_config.json") is not None:
        raise BigqaError(
            tr("{source} holds an adapter (adapter_config.json): merge it into its model first", source=name)
        )
    if getattr(config, "quantization_config", None) is not None:
        raise BigqaError(
            tr(
                "{source} holds quantized weights (quantization_config in config.json): name the model that "
                "they were made of; --strategy qlora quantizes by itself",
                source=name,
            )
        )


def _instead(folder: Path) -> str:
    broken = [name for name in (*WHOLE, *INDEXES) if (folder / name).is_symlink()]
    if broken:
        return f": {broken[0]} is a link to nothing"
    found = ((file, said) for kind, said in OTHERS.items() for file in sorted(folder.glob(kind)))
    return next((f": {file.name} is {said}" for file, said in found), "")


def _shards(folder: Path, index: Path | None) -> list[Path]:
    said = read_json(index, "the index of weights") if index else {}
    places = said.get("weight_map") if isinstance(said, dict) else None
    shards = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    lacking = [name for name in shards if not os.path.isfile(folder / name)]  # a name may be none that a disk takes
    if lacking:
        raise BigqaError(
            tr(
                "{folder} lacks {lacking}, {count} of {all} files of weights: fetch it again",
                folder=folder,
                lacking=lacking[0],
                count=len(lacking),
                all=len(shards),
            )
        )
    return [folder / name for name in shards]


def _check_length(file: Path) -> None:
    """Refuse a file of safetensors that ends before its last tensor does. Raises: BigqaError."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        wanted = LENGTH_BYTES + length
        try:
            tensors = json.loads(opened.read(length)) if wanted <= size else {}
            ends = [one["data_offsets"][1] for name, one in tensors.items() if name != "__metadata__"]
            wanted += max(ends, default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            return  # no header at all: the library says so
    if size < max(wanted, LENGTH_BYTES + 1):
        raise BigqaError(
            tr(
                "{file} is cut short: {size} bytes of at least {wanted}; fetch it again",
                file=file,
                size=size,
                wanted=wanted,
            )
        )
