"""Tensors by name that are made when they are asked for, and by no one kept. In: a maker for each. Out: a mapping."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """Makes a tensor anew each time that it is asked for: of many, one is there at a time."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        """Make a tensor."""
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        """Tell without making it."""
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Count them."""
        return len(self._makers)
