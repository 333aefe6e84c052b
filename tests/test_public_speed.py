"""The model of a card's speed is held to what others measured on cards that it was not fitted on."""

import statistics

import pytest

from benchmarks import public_speed
from benchmarks.public_speed import FITTED, MEDIAN, PUBLISHED, WORST, errors, predicted, stock_work
from bigqa.machine.gpus import find_gpu
from bigqa.speed.throughput import bandwidth_of, gpu_rates


@pytest.fixture(scope="module")
def work() -> tuple[float, float]:
    return stock_work()


def test_the_work_of_stock_code_is_what_a_hand_counts(work: tuple[float, float]) -> None:
    """Of each token, two FLOPs a weight of the layers forward and four backward; attention's two products besides."""
    layers = 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 2 * 1024
    attention = 24 * 2 * 2 * 384 * 1024
    assert work[0] == pytest.approx(384 * 3 * (2 * layers + attention), rel=1e-3)


def test_cards_that_were_held_out_are_predicted(work: tuple[float, float]) -> None:
    held_out = [abs(error) for error in errors(set(PUBLISHED) - set(FITTED), work).values()]
    assert len(held_out) == 3 and statistics.median(held_out) <= MEDIAN and max(held_out) <= WORST
    assert max(abs(error) for error in errors(FITTED, work).values()) <= WORST


def test_the_constants_are_those_that_the_fit_gives(work: tuple[float, float]) -> None:
    found = public_speed.fitted(FITTED, work)
    for used, fitted in zip(public_speed.USED, found, strict=True):
        assert used == pytest.approx(fitted, rel=0.02)


def test_probes_use_the_same_rates(work: tuple[float, float]) -> None:
    card = find_gpu("H200")
    assert card is not None
    rates = gpu_rates(card)
    assert rates.bytes_per_s == bandwidth_of(card) == pytest.approx(1 / (1 / (0.8 * 4.8e12) + 1 / 6e12))
    seconds = work[0] / rates.low_flops_per_s + work[1] / rates.bytes_per_s
    assert predicted(card, work) == pytest.approx(1 / seconds)
