"""Loading with a library. In: what, and its name. Out: what it says where it cannot, in one line."""

import contextlib
import pickle
from collections.abc import Iterator

from bigqa.errors import BigqaError, as_a_line
from bigqa.language import tr


@contextlib.contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Tell in a line why something cannot be loaded. Code of its own is never run, and never asked about."""
    with as_a_line(tr("the {what} {name} cannot be loaded", what=what, name=name)):
        try:
            yield
        except pickle.UnpicklingError:
            raise BigqaError(
                tr(
                    "the {what} {name} cannot be loaded: it is a pickle of more than tensors, which could run "
                    "code; save its weights as safetensors",
                    what=what,
                    name=name,
                )
            ) from None
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise BigqaError(
                tr(
                    "the {what} {name} is code of its own, which bigqa never runs (trust_remote_code is not "
                    "honoured): name one of a kind that transformers has",
                    what=what,
                    name=name,
                )
            ) from None
