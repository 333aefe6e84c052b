"""Started by every Python of a rehearsed command, before its own code: this folder is the first in PYTHONPATH.

Starts the environment's own `sitecustomize` too, which this one hides.
"""

import os
import sys


def _start_the_hidden_one() -> None:
    import importlib.machinery
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))
    paths = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get("BIGQA_REHEARSE"):
    from bigqa_rehearsal import watch

    watch.start()
_start_the_hidden_one()
