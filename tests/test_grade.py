"""Marks and regret on reports made by hand; the expected figures were worked out by hand."""

import pytest
from hand_made import GIB, row
from hypothesis import given
from hypothesis import strategies as st

from bigqa.plan.candidates import Candidate, choose, rank
from bigqa.plan.machine import HEADROOM, HOST_HEADROOM
from bigqa.table.grade import BARS, Cap, Grade, caps_of, grade
from bigqa.table.marks import grade_markdown, grade_record
from bigqa.table.regret import choices_at, workloads
from bigqa.table.rows import Row


def five() -> list[Row]:
    """One workload on the CPU. Peaks in GiB and samples per second, said and ran:

    A fits 8, not 4; B fits 4, not 3; C is said to fit 4 and does not; D (tier 1) fits 3; E (tier 2) fits 3.
    """
    return [
        row("cpu", said=(6.0, 20), ran=(6.0, 16)),  # A: speed +25%
        row("cpu-fp32", said=(3.6, 10), ran=(3.75, 12)),  # B: memory -4%, speed -16.7%
        row("cpu-recompute", said=(3.7, 11), ran=(5.0, 15)),  # C: memory -26%, speed -26.7%
        row("cpu-8bit", said=(2.5, 8), ran=(2.5, 8)),  # D: exact
        row("cpu-seq-384", seq_len=48, said=(2.0, 30), ran=(2.0, 32)),  # E: speed -6.25%
    ]


def figures(found: Grade) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in found.figures}


def at(found: Grade, gib: int) -> Cap:
    return next(cap for cap in found.caps if cap.size_bytes == gib * GIB)


def test_errors_and_fits_by_hand() -> None:
    [found] = grade(five())
    said = figures(found)
    # Sizes of the memory errors: 0, 0.04, 0.26, 0, 0; of the speeds': 0.25, 1/6, 4/15, 0, 1/16.
    assert said["memory, median error"] == 0
    assert said["memory, worst error"] == pytest.approx(0.26)
    assert said["memory, short by"] == pytest.approx(0.26)
    assert said["speed, median error"] == pytest.approx(1 / 6)
    assert said["speed, worst error"] == pytest.approx(4 / 15)
    # Limits: 24, 16, 8, 4, 3 GiB and the machine's 64. "Fits" is said 5 times at each of 64, 24, 16, 8; at 4 (3.8 with
    # headroom) of B, C, D, E, and C is wrong; at 3 (2.85) of D, E. No "does not fit" is wrong: A at 4, A, B, C at 3.
    assert said["false fits"] == pytest.approx(1 / 26)
    assert said['false "does not fit"'] == 0


def test_regret_by_hand() -> None:
    [found] = grade(five())
    # With 8 GiB or more A is taken (20 said), and nothing of tier 0 was faster than its 16.
    for gib in (24, 16, 8):
        [choice] = at(found, gib).choices
        assert choice.kind == "plan" and choice.regret == 0
    # At 4 C is taken (11 said against 10), and needs 5.
    [choice] = at(found, 4).choices
    assert choice.kind == "false fit" and choice.regret == 1
    assert choice.chosen is not None and choice.chosen.report.case.strategy == "cpu-recompute"
    # At 3 only D and E are said to fit; D is the lower tier.
    [choice] = at(found, 3).choices
    assert choice.kind == "plan" and choice.regret == 0
    assert choice.chosen is not None and choice.chosen.report.case.strategy == "cpu-8bit"
    assert figures(found)["regret, worst"] == 1
    wrong = {"memory, worst error", "memory, short by", "false fits", "speed, median error", "regret, worst"}
    assert set(found.failed) == wrong


def test_a_slower_choice_is_regretted() -> None:
    rows = [row("cpu", said=(2, 10), ran=(2, 8)), row("cpu-recompute", said=(2, 9), ran=(2, 10))]
    [choice] = choices_at(rows, 8 * GIB)
    assert choice.regret == pytest.approx(0.2)


def test_a_faster_run_of_a_higher_tier_is_not_regretted() -> None:
    rows = [row("cpu", said=(2, 10), ran=(2, 8)), row("cpu-8bit", said=(2, 20), ran=(2, 20))]
    [choice] = choices_at(rows, 8 * GIB)
    assert choice.regret == 0


def test_nothing_said_to_fit_though_something_does() -> None:
    [choice] = choices_at([row(said=(4.1, 10), ran=(3.9, 10))], 4 * GIB)
    assert choice.kind == "false no" and choice.regret is None and choice.best is not None
    [choice] = choices_at([row(said=(4.1, 10), ran=(4.1, 10))], 4 * GIB)
    assert choice.kind == "nothing fits" and choice.regret is None


def test_running_out_of_memory_is_known_up_to_what_the_run_had() -> None:
    out = row(said=(3, 10), ran="out of memory", cap_bytes=4 * GIB)
    assert [out.fitted(gib * GIB) for gib in (3, 4, 8)] == [False, False, None]
    [choice] = choices_at([out], 4 * GIB)
    assert choice.kind == "false fit"
    assert choices_at([out], 8 * GIB) == []
    assert out.memory_error is None and out.speed_error is None and out.rate_share is None


def test_a_crash_that_is_chosen_trains_nothing() -> None:
    rows = [row("cpu", said=(2, 20), ran="failed"), row("cpu-recompute", said=(2, 10), ran=(2, 10))]
    [choice] = choices_at(rows, 8 * GIB)
    assert choice.regret == 1


def test_a_run_under_the_cap_replaces_the_run_without_one() -> None:
    rows = [row(said=(2, 10), ran=(2, 10)), row(said=(2, 10), ran="out of memory", cap_bytes=3 * GIB)]
    assert [choice.kind for choice in choices_at(rows, 3 * GIB)] == ["false fit"]
    assert [choice.kind for choice in choices_at(rows, 4 * GIB)] == ["plan"]


def test_a_heap_that_keeps_memory_says_nothing_of_the_need() -> None:
    [found] = grade([row(said=(2, 10), ran=(2, 10)), row(said=(2, 12), ran=(4, 10), heap="kept")])
    assert figures(found)["memory, worst error"] == 0
    assert figures(found)["speed, worst error"] == pytest.approx(0.2)
    [choice] = at(found, 3).choices
    assert choice.kind == "plan"


def test_shorter_windows_answer_longer_workloads_only() -> None:
    asked = [row(seq_len=64), row(seq_len=32)]
    shorter = row("cpu-seq-384", seq_len=48)
    found = {work.seq_len: len(members) for work, members in workloads([*asked, shorter]).items()}
    assert found == {64: 2, 32: 1}


def test_cards_are_graded_apart_and_by_their_own_bars() -> None:
    rows = [row(), row("plain", said=(2.01, 10), ran=(2, 10)), row("plain", ran=(2, 10), cap_bytes=4 * GIB)]
    cpu, gpu = grade(rows)
    assert (cpu.kind, gpu.kind, gpu.processor) == ("cpu", "gpu", "Card 24")
    assert figures(gpu)["allocated, median error"] == pytest.approx(0.0025)
    assert gpu.passes and cpu.passes
    assert [cap // GIB for cap in caps_of(rows[1:])] == [24, 16, 11, 8, 6, 4, 2]


def test_every_bar_belongs_to_a_figure() -> None:
    for found in grade([row(), row("plain")]):
        assert set(BARS[found.kind]) <= set(figures(found))


def test_the_grade_as_text_and_as_values() -> None:
    found = grade(five())
    text = grade_markdown(found)
    assert "### Processor: FAIL" in text and "the plan does not fit" in text
    assert "24.00 GiB to 8.00 GiB" in text  # neighbouring caps with one outcome
    [values] = [grade_record(one) for one in found]
    assert values["passes"] is False and len(values["choices"]) == 5


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(["cpu", "cpu-fp32", "cpu-8bit", "cpu-least", "cpu-recompute"]),
        said=st.tuples(st.floats(0.5, 30), st.floats(0.1, 100)),
        ran=st.one_of(st.tuples(st.floats(0.5, 30), st.floats(0.1, 100)), st.just("out of memory"), st.just("failed")),
        micro_batch=st.integers(1, 4),
    ),
    min_size=1,
    max_size=8,
)
CAPS = st.floats(0.5, 40).map(lambda gib: int(gib * GIB))


@given(rows=ROWS, cap=CAPS)
def test_regret_is_a_share(rows: list[Row], cap: int) -> None:
    for choice in choices_at(rows, cap):
        assert choice.regret is None or 0 <= choice.regret <= 1


EXACT = st.lists(
    st.builds(
        lambda name, figures, micro: row(name, said=figures, ran=figures, micro_batch=micro),
        st.sampled_from(["cpu", "cpu-fp32", "cpu-8bit", "cpu-least", "plain", "8bit", "stochastic"]),
        st.tuples(st.floats(0.5, 30), st.floats(0.1, 100)),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=8,
)


@given(rows=EXACT, cap=CAPS)
def test_exact_predictions_are_never_regretted(rows: list[Row], cap: int) -> None:
    def within_headroom(one: Row) -> bool:
        return cap * (1 - (HEADROOM if one.on_gpu else HOST_HEADROOM)) < one.predicted_bytes <= cap

    for choice in choices_at([one for one in rows if not within_headroom(one)], cap):
        assert choice.kind in ("plan", "nothing fits")
        # To the last digits: a report keeps seconds, not speeds.
        assert choice.regret is None or choice.regret == pytest.approx(0, abs=1e-9)


@given(rows=ROWS, cap=CAPS)
def test_the_rule_is_the_planners(rows: list[Row], cap: int) -> None:
    for choice in choices_at(rows, cap):
        known = [one for one in rows if one.measured.outcome != "out of memory" or one.fitted(cap) is False]
        found = choose(rank([candidate(one, cap) for one in known]))
        said = (choice.chosen.tier, choice.chosen.predicted.samples_per_s) if choice.chosen else None
        if len({one.report.case for one in rows}) == len(rows):
            assert said == ((found.tier, found.samples_per_s) if found else None)


def candidate(one: Row, cap: int) -> Candidate:
    """Return a row as the planner has it."""
    case = one.report.case
    return Candidate(
        name=case.strategy,
        strategy=case.axes,
        tier=one.tier,
        micro_batch=case.micro_batch,
        grad_accum=case.grad_accum,
        seq_len=case.seq_len,
        memory=one.predicted.memory,
        limit_bytes=cap,
        windows_per_step=4,
        samples_per_s=one.predicted.samples_per_s,
        run_s=1.0,
        verdict="fits" if one.predicted.memory.host_bytes <= int(cap * (1 - HOST_HEADROOM)) else "too large",
        reason="",
    )
