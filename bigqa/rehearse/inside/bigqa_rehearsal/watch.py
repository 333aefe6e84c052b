"""Waits until the command imports torch or DeepSpeed, and hooks in. In: BIGQA_REHEARSE. Out: a recorder at work."""

import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from bigqa_rehearsal.recorder import STREAMING, Recorder


class After(importlib.abc.MetaPathFinder):
    """Calls a function once a module has been imported."""

    def __init__(self, wanted: dict[str, Callable[[], None]]) -> None:
        self.wanted = wanted

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a wanted module as others do, and add the call to its loader."""
        call = self.wanted.pop(fullname, None)
        if call is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_call(module: ModuleType) -> None:
                load(module)
                call()

            spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec


def start() -> None:
    """Watch this process, and none that it forks: those that it starts anew watch themselves."""
    settings: dict[str, Any] = json.loads(os.environ["BIGQA_REHEARSE"])
    recorder = Recorder(settings["folder"], settings["steps"], settings["true"], settings["known"])
    hooks = {
        "torch": recorder.on_torch,
        "deepspeed.runtime.engine": recorder.on_deepspeed,
        "deepspeed.runtime.zero.utils": recorder.on_deepspeed_checks,
        STREAMING: recorder.on_streaming,
    }
    sys.meta_path.insert(0, After(hooks))
    os.register_at_fork(after_in_child=recorder.disable)
