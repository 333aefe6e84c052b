"""The launch files: each is what `accelerate launch` of this version reads, and names this machine's topology."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[1] / "launch"
PROCESSES = {"cpu_2.yaml": 2, "gpu_1.yaml": 1, "gpu_2.yaml": 2}


def test_the_readme_names_every_file() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == PROCESSES.keys()
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in PROCESSES)


@pytest.mark.parametrize(("name", "processes"), PROCESSES.items())
def test_accelerate_reads_it(name: str, processes: int) -> None:
    config = load_config_from_file(str(FOLDER / name))
    assert config.num_processes == processes
    assert config.num_machines == 1
    assert config.mixed_precision == "no"  # bigqa holds its own precision
    assert config.use_cpu is name.startswith("cpu")


def test_no_field_is_misspelt() -> None:
    for path in FOLDER.glob("*.yaml"):
        known = set(vars(load_config_from_file(str(path)))) | {"distributed_type"}
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known
