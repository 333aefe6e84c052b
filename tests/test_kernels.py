"""Which cards a build of torch has kernels for. The rules are those of NVIDIA's programming guide, by hand."""

import re

import pytest
import torch

from bigqa.engine import processes
from bigqa.errors import BigqaError
from bigqa.machine.gpus import GPUS
from bigqa.machine.kernels import IN_CUDA_12_6, IN_CUDA_13, Build, has_kernels, lacking
from bigqa.run import prediction


@pytest.mark.parametrize(
    ("capability", "code", "runs"),
    [
        ((8, 9), ["sm_86"], True),  # binary code: within a major version, upwards
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_86"], False),
        ((6, 1), ["sm_60"], True),
        ((12, 1), ["sm_120"], True),
        ((10, 3), ["sm_100"], True),
        ((12, 0), ["sm_100"], False),  # no major version runs another's
        ((9, 0), ["compute_70"], True),  # PTX: upwards without end
        ((7, 0), ["sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),  # of one capability, of one family
        ((12, 0), ["sm_100a", "compute_100a"], False),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["compute_100f"], False),
        ((8, 0), [], False),
        ((9, 0), ["gfx90a"], False),
    ],
)
def test_code_runs_where_the_guide_says(capability: tuple[int, int], code: list[str], runs: bool) -> None:
    assert has_kernels(capability, code) is runs


def test_the_cards_of_the_table_that_cuda_13_left_behind() -> None:
    lacking_13 = {card.name for card in GPUS if not has_kernels(card.capability, IN_CUDA_13)}
    assert lacking_13 == {"P100", "V100-16", "V100-32", "1080 Ti"}
    assert {card.name for card in GPUS if not has_kernels(card.capability, IN_CUDA_12_6)} == {"5090", "B200"}


@pytest.mark.parametrize(
    ("capability", "version", "code", "says"),
    [
        ((7, 0), "2.13.0+cu130", IN_CUDA_13, r"torch 2.13.0\+cu130 has no .* 7.0.*torch==2.13.0 --index-url .*/cu126$"),
        ((6, 1), "2.14.1+cpu", None, "torch 2.14.1 as PyPI has it .* 6.1.*torch==2.14.1 --index-url .*/cu126$"),
        ((7, 0), "2.15.0+cu132", IN_CUDA_13, r"the last torch .*'torch==2.14.\*' --index-url .*/cu126$"),
        ((12, 0), "2.13.0+cu126", IN_CUDA_12_6, "install PyPI's, which has: pip install torch==2.13.0$"),
        ((3, 5), "2.13.0+cu130", IN_CUDA_13, "no build of torch that this program runs with"),
    ],
)
def test_what_to_install_instead_is_one_line(
    capability: tuple[int, int], version: str, code: tuple[str, ...] | None, says: str
) -> None:
    found = lacking("CARD", capability, Build(version, code))
    assert found is not None and "\n" not in found and "for the CARD (compute" in found
    assert re.search(says, found)


def test_nothing_is_said_of_a_card_that_has_kernels() -> None:
    assert lacking("T4", (7, 5), Build("2.13.0+cu130", IN_CUDA_13)) is None
    assert lacking("V100", (7, 0), Build("2.13.0+cu126", IN_CUDA_12_6)) is None


def test_training_is_refused_on_a_card_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(processes, "torch_here", lambda: Build("2.13.0+cu130", IN_CUDA_13))
    with pytest.raises(BigqaError, match=r"no kernels for the Tesla V100 .*cu126; or use the CPU: --device cpu$"):
        processes.check_kernels(torch.device("cuda", 0))
    processes.check_kernels(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    processes.check_kernels(torch.device("cuda", 0))


def test_a_run_asks_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(processes, "check_kernels", asked.append)
    assert processes.Processes("cpu").device == torch.device("cpu") and asked == [torch.device("cpu")]


def test_predicting_is_refused_too_on_a_card_without_kernels_or_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a look at the model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(processes, "torch_here", lambda: Build("2.13.0+cu130", IN_CUDA_13))
    with pytest.raises(BigqaError, match=r"no kernels for the Tesla V100"):
        prediction.load_for_prediction("no-such-model", "auto", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BigqaError, match=r"Tesla V100 has no bf16: use --precision fp16 or fp32$"):
        prediction.load_for_prediction("no-such-model", "cuda", None, "bf16")
    with pytest.raises(BigqaError, match="no-such-model"):
        prediction.load_for_prediction("no-such-model", "cuda", None)
