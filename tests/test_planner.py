"""What is chosen: the fastest of the lowest tier that fits, on the hardware as it is."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_made import RATES
from transformers import AutoConfig

from bigqa.engine.build import not_together
from bigqa.errors import BigqaError
from bigqa.machine import hardware
from bigqa.machine.gpus import GPUS, find_gpu
from bigqa.machine.hardware import Cpu, Gpu, Hardware, capped, planned_gpu
from bigqa.memory.estimate import MemoryEstimate
from bigqa.memory.host import CPU_BASELINE_BYTES, CUDA_BASELINE_BYTES
from bigqa.models.sources import load_config, resolve
from bigqa.plan.candidates import Candidate, Workload, choose, rank
from bigqa.plan.ladder import ladder_of, plain_ladder
from bigqa.plan.machine import Machine
from bigqa.plan.planner import Planner, known_estimator
from bigqa.strategy import STRATEGIES
from bigqa.units import GIB, parse_bytes


@pytest.fixture(scope="module")
def estimator() -> Any:
    return known_estimator(load_config(resolve("tiny")))


def machine(gpu: Gpu | None, **changes: Any) -> Machine:
    """A machine whose CPU was measured: else every plan would measure it anew."""
    known = {"gpu": gpu, "host_bytes": 64 * GIB, "host_cores": 8, "cpu_bf16": True, "rates": {"cpu": RATES}}
    return Machine(**(known | changes))


def card(name: str, memory: str | None = None) -> Gpu:
    return planned_gpu(name, parse_bytes(memory) if memory else None)


def test_the_fastest_of_the_lowest_tier_is_chosen(estimator: Any) -> None:
    found = Planner(estimator, Workload(), machine(card("A100-40"))).candidates()
    chosen = choose(found)
    assert chosen is not None and chosen.tier == 0
    assert all(chosen.samples_per_s >= c.samples_per_s for c in found if c.fits and c.tier == 0)
    assert found == rank(found)


EACH_TIER = [
    "plain", "recompute", "selective", "zero2-offload", "stream", "8bit-recompute", "stochastic", "cpu", "cpu-least",
    "stochastic-8bit-recompute", "lora-recompute", "qlora-recompute", "seq-384",
]  # fmt: skip


def test_less_memory_gives_up_speed_before_it_gives_up_learning(estimator: Any) -> None:
    assert {STRATEGIES[name].tier for name in EACH_TIER} == {0, 1, 2}
    least = {}
    for memory in ("40GiB", "1GiB", "700MiB", "560MiB"):
        chosen = choose(Planner(estimator, Workload(), machine(card("A100-40", memory))).candidates(EACH_TIER))
        assert chosen is not None
        on_gpu = chosen.strategy.device == "cuda"
        if on_gpu:
            assert chosen.peak_bytes <= parse_bytes(memory) * 0.98
        least[memory] = (chosen.tier, chosen.samples_per_s)
    tiers = [tier for tier, _ in least.values()]
    assert tiers == sorted(tiers)


def test_the_global_batch_is_kept(estimator: Any) -> None:
    for memory in ("40GiB", "700MiB"):
        for candidate in Planner(estimator, Workload(), machine(card("3090", memory))).candidates():
            assert candidate.micro_batch * candidate.grad_accum >= 16
            assert candidate.micro_batch * (candidate.grad_accum - 1) < 16


@pytest.mark.parametrize(("name", "low"), [("T4", "fp16"), ("1080 Ti", "fp16"), ("V100-16", "fp16"), ("3090", "bf16")])
def test_cards_before_ampere_get_fp16_and_never_bf16(estimator: Any, name: str, low: str) -> None:
    found = Planner(estimator, Workload(), machine(card(name))).candidates()
    precisions = {c.strategy.precision for c in found if c.strategy.device == "cuda" and c.fits}
    assert precisions <= {"fp32", low} | ({"bf16-sr"} if low == "bf16" else set())


def test_memory_that_others_hold_counts(estimator: Any) -> None:
    whole = card("3090")
    busy = whole.model_copy(update={"free_bytes": 600 * 2**20})
    free, taken = (choose(Planner(estimator, Workload(), machine(gpu)).candidates(tier=0)) for gpu in (whole, busy))
    assert free is not None and taken is not None
    assert free.peak_bytes > 600 * 2**20 >= taken.peak_bytes or taken.strategy.device == "cpu"


def test_without_a_gpu_the_cpu_is_planned_for_and_its_memory_is_the_limit(estimator: Any) -> None:
    found = Planner(estimator, Workload(), machine(None)).candidates()
    assert {c.strategy.device for c in found} == {"cpu"}
    least = min(c.memory.host_bytes for c in found if c.memory)
    tight = Planner(estimator, Workload(), machine(None, host_bytes=least // 2)).candidates()
    assert choose(tight) is None and all(c.reason == "host memory" for c in tight)


def test_on_a_cpu_the_fastest_micro_batch_is_taken_and_not_the_largest(
    estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_to_hand_out = replace(RATES, fresh_bytes_per_s=1e6)
    planner = Planner(estimator, Workload(), machine(None, rates={"cpu": slow_to_hand_out}))
    assert planner.judge("cpu", STRATEGIES["cpu"]).micro_batch == 16
    need = planner.need(STRATEGIES["cpu"], 4, 512, 1).host_bytes
    monkeypatch.setattr("bigqa.machine.heap.plenty", lambda need_bytes, free_bytes: need_bytes <= need)
    assert planner.judge("cpu", STRATEGIES["cpu"]).micro_batch == 4


def test_a_cpu_without_bf16_gets_fp32(estimator: Any) -> None:
    found = Planner(estimator, Workload(), machine(None, cpu_bf16=False)).candidates()
    assert {c.strategy.precision for c in found if c.strategy.optimizer == "adamw"} == {"fp32"}


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in names else found(name, *more))


def test_a_row_that_wants_a_package_which_is_not_here_is_not_possible(
    estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = card("3090").model_copy(update={"is_here": True})
    without(monkeypatch, "peft", "deepspeed", "bitsandbytes")
    found = {c.name: c for c in Planner(estimator, Workload(), machine(here)).candidates()}
    for name, extra in (("lora", "adapters"), ("zero2", "deepspeed"), ("8bit", "8bit"), ("cpu-8bit", "8bit")):
        assert found[name].verdict == "not possible" and f"pip install 'bigqa[{extra}]'" in found[name].reason
    assert found["plain"].fits and choose(list(found.values())) is not None
    assert not [rung for rung in plain_ladder(STRATEGIES["plain"], 2) if rung.strategy.optimizer != "adamw"]


def test_another_machine_needs_the_packages_there_and_not_here(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "deepspeed")
    planner = Planner(estimator, Workload(), machine(card("3090")))
    assert planner.judge("zero2", STRATEGIES["zero2"]).fits


def test_a_card_without_a_datasheet_is_planned_for_by_the_most_like_it(estimator: Any) -> None:
    unknown = Gpu(name="RTX 9999", total_bytes=23 * GIB, free_bytes=23 * GIB, capability=(8, 6))
    found = choose(Planner(estimator, Workload(), machine(unknown)).candidates())
    assert found is not None and found.fits and found.strategy.device == "cuda"
    assert "no datasheet of RTX 9999" in found.speed_source and found.speed_error == 0.5
    assert any(name in found.speed_source for name in ("3090", "A10G", "L4"))


def test_weights_are_loaded_through_host_memory(estimator: Any) -> None:
    """In fp32, and once more where there are masters: eight bytes, or four, for each parameter."""
    count = estimator.num_parameters
    for name, each in (("plain", 8), ("plain-fp32", 4), ("stochastic", 4), ("lora", 4), ("zero2", 8)):
        found = estimator.estimate(STRATEGIES[name], 1, 64, accumulating=False)
        assert found.host_bytes - CUDA_BASELINE_BYTES == pytest.approx(each * count, rel=0.01), name


def test_the_states_of_zero_on_a_cpu_are_in_its_memory(estimator: Any) -> None:
    """As the paper counts them, on one process: 16 bytes for each parameter."""
    for name in ("zero1", "zero2", "zero2-offload"):
        on_cpu = STRATEGIES[name].model_copy(update={"device": "cpu"})
        found = estimator.estimate(on_cpu, 1, 64, accumulating=False)
        assert found.host_bytes > CPU_BASELINE_BYTES + 16 * estimator.num_parameters, name


def test_each_machine_has_the_memory_for_its_own_processes(estimator: Any) -> None:
    row = STRATEGIES["zero2-offload"]
    for nodes in (1, 2):
        planner = Planner(estimator, Workload(), machine(card("3090"), num_gpus=4, num_nodes=nodes))
        memory = planner.need(row, 1, 512, 4 * nodes)
        tight = planner.machine.model_copy(update={"host_bytes": int(4.5 * memory.host_bytes)})
        assert tight.shortfall(row, memory) is None
        short = tight.model_copy(update={"host_bytes": int(3.9 * memory.host_bytes)})
        assert "host memory" in str(short.shortfall(row, memory))


def needs(**sizes: int) -> MemoryEstimate:
    known: dict[str, Any] = {"allocated_bytes": 0, "reserved_bytes": 0, "device_bytes": 0, "host_bytes": 0}
    known |= {"pinned_bytes": 0, "disk_bytes": 0, "phase": "", "by_category": {}, "largest": ()}
    return MemoryEstimate(**(known | sizes))


def test_each_process_has_a_file_of_its_own_on_the_machines_disk() -> None:
    row, memory = STRATEGIES["stream-disk"], needs(disk_bytes=10 * GIB)
    for nodes in (1, 2):
        four = machine(card("3090"), num_gpus=4, num_nodes=nodes, nvme=True, disk_free_bytes=40 * GIB)
        assert four.shortfall(row, memory) is None
        short = four.model_copy(update={"disk_free_bytes": 40 * GIB - 1}).shortfall(row, memory)
        assert short == "this strategy needs 40.00 GiB of disk space, and 40.00 GiB are free"


def test_a_ladder_goes_on_to_what_needs_as_much_of_a_gpu_and_less_of_the_host() -> None:
    sizes = {"recompute": (5, 1), "stream": (1, 7), "stream-disk": (1, 3), "release-recompute": (1, 3), "cpu": (0, 9)}
    judged = [
        Candidate(
            name=name, strategy=STRATEGIES[name], tier=0, micro_batch=1, grad_accum=1, seq_len=64, limit_bytes=9,
            memory=needs(device_bytes=device, host_bytes=host), windows_per_step=1, samples_per_s=1.0, run_s=1.0,
            verdict="fits", reason="",
        )
        for name, (device, host) in sizes.items()
    ]  # fmt: skip
    assert [rung.name for rung in ladder_of(judged, judged[0])] == ["stream", "stream-disk", "cpu"]


def test_every_rung_of_a_run_without_a_plan_can_be_had() -> None:
    rows = [
        row for row in STRATEGIES.values() if not row.needs_deepspeed and row.adapters == "none" and not row.release
    ]
    assert [rung.strategy for row in rows for rung in plain_ladder(row, 4) if not_together(rung.strategy)] == []


def test_a_disk_that_was_not_looked_at_is_not_full(estimator: Any) -> None:
    on_disk = STRATEGIES["zero3-nvme"]
    for free, fits in ((None, True), (10**12, True), (10**6, False), (0, False)):
        gpu = card("3090")
        planner = Planner(estimator, Workload(), machine(gpu, nvme=True, disk_free_bytes=free))
        assert planner.judge("zero3-nvme", on_disk).fits is fits


def test_offloaded_activations_move_from_the_card_to_pinned_memory() -> None:
    wide = AutoConfig.for_model(
        "bert", hidden_size=128, num_attention_heads=4, intermediate_size=512, num_hidden_layers=4
    )
    planner = Planner(known_estimator(wide), Workload(), machine(card("3090")))
    names = ("plain", "offload-activations")
    stay, go = (planner.judge(name, STRATEGIES[name]).memory for name in names)
    assert stay is not None and go is not None and stay.pinned_bytes < 2**20  # batches on their way
    moved = stay.by_category["activations"]
    # Most of what the forward pass keeps goes; a few storages are on their way, and small ones stay.
    assert 0.9 * moved < go.pinned_bytes - stay.pinned_bytes < 1.1 * moved
    assert go.by_category["activations"] < 0.2 * moved


def test_four_bit_weights_take_a_quarter_of_16_bit_ones(estimator: Any) -> None:
    planner = Planner(estimator, Workload(), machine(card("3090")))
    plain, packed = (planner.judge(name, STRATEGIES[name]).memory for name in ("lora-recompute", "qlora-recompute"))
    assert plain is not None and packed is not None
    config = estimator.config
    linear = config.num_hidden_layers * config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    # 2 bytes against 4 bits, a byte for each 64 weights, and 4 bytes for each 64 * 256: QLoRA, section 3. Of each layer
    # its codes (16 and 256 in fp32) and its mean are kept too. The model is small, and what a tensor takes is a
    # multiple of 512 bytes.
    tables = 6 * config.num_hidden_layers * (512 + 1024 + 512)
    saved = linear * (2 - 0.5 - 1 / 64 - 4 / (64 * 256)) - tables
    assert plain.by_category["weights"] - packed.by_category["weights"] == pytest.approx(saved, rel=0.02)


def test_axes_that_exclude_each_other_are_not_planned(estimator: Any) -> None:
    planner = Planner(estimator, Workload(), machine(card("3090"), num_gpus=2))
    for name in ("release-recompute", "stochastic-release-recompute"):
        found = planner.judge(name, STRATEGIES[name])
        assert found.verdict == "not possible" and "one process" in found.reason


def test_near_a_limit_the_whole_model_is_traced(estimator: Any) -> None:
    """A card with just the memory that the quick prediction names is judged by the exact one."""
    strategy, workload = STRATEGIES["plain"], Workload(seq_len=128)
    quick = estimator.estimate(strategy, 16, 128, accumulating=False, card=machine(card("3090")).card)
    exact = estimator.estimate(strategy, 16, 128, accumulating=False, card=machine(card("3090")).card, whole=True)
    gpu = card("3090").model_copy(update={"free_bytes": int(quick.device_bytes * 1.03)})
    found = Planner(estimator, workload, machine(gpu)).judge("plain", strategy)
    assert found.micro_batch == 16 and found.memory == exact


def test_there_is_a_row_for_each_answer_that_people_get() -> None:
    assert len(STRATEGIES) >= 16
    assert {"plain", "recompute", "8bit", "batch-1", "seq-384", "zero2-offload", "zero3-nvme", "lora", "cpu"} <= set(
        STRATEGIES
    )
    assert {row.tier for row in STRATEGIES.values()} == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "total_gib", "row"),
    [
        ("Tesla T4", None, "T4"),
        ("NVIDIA GeForce RTX 3090", None, "3090"),
        ("NVIDIA GeForce GTX 1080 Ti", None, "1080 Ti"),
        ("rtx 4060ti", None, "4060 Ti-16"),
        ("Tesla V100-SXM2-32GB", None, "V100-32"),
        ("Tesla V100-PCIE", 32, "V100-32"),
        ("NVIDIA A100-SXM4-80GB", 79, "A100-80"),
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA L4", None, "L4"),
        ("NVIDIA L40S", None, "L40S"),
    ],
)
def test_names_as_drivers_and_people_write_them(name: str, total_gib: int | None, row: str) -> None:
    found = find_gpu(name, total_gib * GIB if total_gib else None)
    assert found is not None and found.name == row


@pytest.mark.parametrize(
    "name", ["RTX 3060 Ti", "3080 Ti", "RTX 3080 12GB", "GeForce RTX 3090 Ti", "RTX 4090 Laptop GPU", "A100 20GB"]
)
def test_a_card_that_is_only_called_alike_is_another(name: str) -> None:
    """An RTX 3060 Ti has 8 GB, where the 3060 has 12."""
    assert find_gpu(name) is None
    with pytest.raises(BigqaError, match="no GPU"):
        planned_gpu(name)


def test_every_card_of_the_table_is_found_by_its_own_name_and_has_a_source() -> None:
    for row in GPUS:
        assert find_gpu(row.name) == row and row.source


def test_an_unknown_card_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(BigqaError, match="--gpu-memory with one of T4, P100"):
        planned_gpu("K80")


def test_a_cap_lowers_and_never_raises() -> None:
    assert capped(card("T4"), 8 * GIB).free_bytes == 8 * GIB
    assert capped(card("T4"), 80 * GIB) == card("T4")


def test_a_cgroup_limit_is_the_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(str(3 * GIB))
    (tmp_path / "memory.current").write_text(str(2 * GIB))
    (tmp_path / "memory.stat").write_text(f"anon {GIB}\ninactive_file {GIB}\n")
    (tmp_path / "cpu.max").write_text("100000 100000")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.host_memory() == (3 * GIB, 2 * GIB)
    assert hardware.usable_cores() == 1


def test_detection_sees_this_machine() -> None:
    found = hardware.detect(Path("/tmp"))
    assert isinstance(found, Hardware) and isinstance(found.cpu, Cpu)
    assert 0 < found.host_free_bytes <= found.host_total_bytes and found.cpu.cores >= 1
    assert (found.disk_free_bytes or 0) > 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB),
        ("8G", 8 * GIB),
        ("8GB", 8 * 10**9),
        ("7600MiB", 7600 * 2**20),
        ("512", 512),
        ("1.5 gib", 3 * GIB // 2),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="write it like 8GiB"):
        parse_bytes("plenty")
