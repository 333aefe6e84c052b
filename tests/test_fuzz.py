"""Whatever is in a file or behind an option, bigqa takes it or says in one line what is wrong; see `fuzzing`.

By default each kind gets so many inputs as its cost allows, the same each time; `make slow` draws 10,000 others.
`corpus/` holds those that were not told in a line once.
"""

import gzip
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import here
from fuzzing import VALUES, Spoiling, Tally, damaged, damages, dumped, spoiled, spoilings, tried
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)  # fmt: skip

from bigqa.bench.report import read_report
from bigqa.console import UNFORESEEN
from bigqa.engine.loop.checkpoint import _sha256, load_newest, save
from bigqa.engine.optim.update import State
from bigqa.errors import BigqaError
from bigqa.models.sources import check_lengths, load, load_config, load_tokenizer, resolve
from bigqa.plan.planner import estimator_for
from bigqa.rehearse.planned import plan_lines, read_planned
from bigqa.run.folder import settings_from
from bigqa.run.prediction import kind_and_options
from bigqa.run.together import check_together
from bigqa.sample import FOLDER
from bigqa.settings import make_settings, read_settings
from bigqa.strategy import STRATEGIES
from bigqa.tasks.scoring import METRICS, evaluate_files, metric_of
from bigqa.tasks.squad import read_questions

CORPUS = Path(__file__).parent / "corpus"
SHARES = {
    "data": 150, "bytes": 120, "answers": 40, "settings": 60, "plan": 50, "checkpoint": 40, "config": 60,
    "tokenizer": 40, "weights": 30, "notes": 20, "report": 20, "options": 60,
}  # fmt: skip
"""Inputs of each kind by default: 690, in some ten seconds."""
MORE = 15
"""Times as many in `make slow`."""

CONTEXT = "한강은 서울을 지나 서해로 흐른다. 길이는 494킬로미터이다."
ANSWER = {"text": "494킬로미터", "answer_start": 24}
QA = {"id": "q1", "question": "길이는?", "answers": [ANSWER], "is_impossible": False}
ROW = {
    "id": "q1",
    "title": "강",
    "context": CONTEXT,
    "question": "길이는?",
    "answers": {"text": ["494킬로미터"], "answer_start": [24]},
}
FORMS: list[Any] = [
    {"version": "1", "data": [{"title": "강", "paragraphs": [{"context": CONTEXT, "qas": [QA, QA | {"id": "q2"}]}]}]},
    {
        "version": "2",
        "data": [{"title": "강", "context": CONTEXT, "qas": [{"id": "q1", "question": "?", "answer": ANSWER}]}],
    },
    [ROW, ROW | {"id": "q2", "answers": {"text": [], "answer_start": []}}],
    {
        "data": [
            {
                "paragraphs": [
                    {"context": CONTEXT, "qas": [QA | {"is_impossible": True, "answers": []}, QA | {"guid": "g"}]}
                ]
            }
        ]
    },
]
Read = Callable[[Any, list[Spoiling], Path], Callable[[], object]]
"""From a kind's bases, a choice among them with its spoilings, and an empty folder to what reads it."""


def _lines(rows: list[Any]) -> bytes:
    return b"\n".join(map(dumped, rows)) + b"\n"


def _read_all(file: Path, answers: Path) -> None:
    """Read data in every way that commands do; each may refuse."""
    refusals = []
    for read in (
        lambda: read_questions(file, need_answers=True),
        lambda: read_questions(file, need_answers=False),
        lambda: metric_of(file),
        *(lambda metric=metric: evaluate_files(file, answers, metric) for metric in METRICS),
    ):
        try:
            read()
        except Exception as error:
            if type(error).__module__ != "bigqa.errors":
                raise
            refusals.append(error)
    if len(refusals) > len(METRICS) - 1:  # no data fit every metric
        raise refusals[0]


def _of_data(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    form = FORMS[which % len(FORMS)]
    rows = spoiled(form if isinstance(form, list) else [form], drawn) if which % 3 == 0 else None
    content = _lines(rows) if isinstance(rows, list) else dumped(spoiled(form, drawn))
    (folder / "data.json").write_bytes(content)
    (folder / "p.json").write_bytes(dumped({"q1": "494", "q2": ""}))
    return lambda: _read_all(folder / "data.json", folder / "p.json")


def _arrow(open_: Callable[..., Any]) -> bytes:
    table, sink = pa.Table.from_pylist([ROW]), io.BytesIO()
    with open_(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _contents() -> list[bytes]:
    plain, lines, parquet, zipped = dumped(FORMS[0]), _lines([ROW, ROW | {"id": "q2"}]), io.BytesIO(), io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROW]), parquet)
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", plain)
    packed = gzip.compress(lines)
    return [
        plain,
        lines,
        packed,
        zipped.getvalue(),
        parquet.getvalue(),
        _arrow(pa.ipc.new_stream),
        _arrow(pa.ipc.new_file),
    ]


CONTENTS = _contents()


def _of_bytes(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    (folder / "data").write_bytes(damaged(CONTENTS[which % len(CONTENTS)], drawn))
    (folder / "p.json").write_bytes(b"{}")
    return lambda: _read_all(folder / "data", folder / "p.json")


def _of_answers(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    form, metric = ((0, "korquad1"), (1, "korquad2"), (3, "squad2"), (3, "klue"))[which % 4]
    (folder / "data.json").write_bytes(dumped(FORMS[form]))
    answers = {"q1": "494킬로미터", "g": "", "q2": "<b>494</b>"}
    content = dumped(answers)
    (folder / "p.json").write_bytes(damaged(content, drawn) if which % 5 == 0 else dumped(spoiled(answers, drawn)))
    return lambda: evaluate_files(folder / "data.json", folder / "p.json", metric)


def _settings() -> dict[str, Any]:
    rung = {"name": "cpu", "strategy": STRATEGIES["cpu"].model_dump(mode="json"), "micro_batch": 1}
    made = make_settings(
        model="tiny", train_file=FOLDER / "train.json", out="run", strategy=STRATEGIES["cpu"], ladder=[rung]
    )
    return made.model_dump(mode="json")


SETTINGS = _settings()
PLAN = {
    "schema": 1, "strategy": "cpu", "num_gpus": 1,
    "gpu": {"name": "T4", "total_bytes": 10**10, "model": {"memory_mib": 15360}},
    "settings": {name: SETTINGS[name] for name in ("model", "strategy", "seq_len", "micro_batch", "ladder")},
    "predicted": {"memory": {"allocated_bytes": 1, "reserved_bytes": 2, "device_bytes": 3}},
}  # fmt: skip


def _of_settings(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    content = dumped(SETTINGS)
    (folder / "config.json").write_bytes(
        damaged(content, drawn) if which % 6 == 0 else dumped(spoiled(SETTINGS, drawn))
    )
    options: list[dict[str, Any]] = [{}, {"strategy": "cpu-fp32"}, {"keep": 3}, {"dev_file": FOLDER / "dev.json"}]
    return lambda: (read_settings(folder / "config.json"), settings_from(options[which % 4], folder))


def _of_plan(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    file = folder / "plan.json"
    file.write_bytes(damaged(dumped(PLAN), drawn) if which % 6 == 0 else dumped(spoiled(PLAN, drawn)))

    def read() -> None:
        if which % 2:
            found = read_planned(file)
            plan_lines(found, fits=False)
            assert (found.card, found.memory_bytes, found.num_gpus) is not None
        else:
            settings_from({"plan": file, "train_file": FOLDER / "train.json", "out": folder / "run"}, None)

    return read


def _of_checkpoint(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    weights = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(2)}
    moments = {f"{kind}.{name}": value for kind in ("exp_avg", "exp_avg_sq") for name, value in weights.items()}
    save(folder, 3, State(weights=weights, moments=moments), {"seed": 1})
    path = folder / "step-00000003"
    name = ("state.json", "weights.safetensors", "adam.safetensors", "checksums.json")[which % 4]
    content = (path / name).read_bytes()
    is_json = name.endswith(".json") and which % 3
    (path / name).write_bytes(dumped(spoiled(json.loads(content), drawn)) if is_json else damaged(content, drawn))
    if name != "checksums.json" and which % 5:  # sealed again: whoever edits a file may do that as well
        sums = {file.name: _sha256(file) for file in path.iterdir() if file.name != "checksums.json"}
        (path / "checksums.json").write_bytes(dumped(sums))

    def read() -> None:
        said: list[str] = []
        found = load_newest(folder, said.append)
        assert all("\n" not in line for line in said) and (found is not None or said)
        if found is None:
            raise BigqaError(said[0])
        assert isinstance(found.step, int) and dict(found.settings) is not None and dict(found.state.extras) is not None
        for tensors in (found.state.weights, found.state.moments):
            assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())

    return read


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}
CONFIGS = [
    json.loads(made(**SIZES).to_json_string(use_diff=False))
    for made in (BertConfig, RobertaConfig, ElectraConfig, DebertaV2Config, ModernBertConfig)
]


def _of_config(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    base = CONFIGS[which % len(CONFIGS)]
    (folder / "config.json").write_bytes(
        damaged(dumped(base), drawn) if which % 7 == 0 else dumped(spoiled(base, drawn))
    )

    def read() -> None:
        config = load_config(resolve(str(folder / "config.json")))
        check_lengths(config, 64)
        assert estimator_for(config).num_parameters >= 0

    return read


def _of_tokenizer(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    _saved(folder, names[:2] if which % 3 < 2 else ("vocab.txt", "tokenizer_config.json"))
    name = names[which % 3]
    content = (folder / name).read_bytes()
    is_json = name.endswith(".json") and which % 7
    (folder / name).write_bytes(dumped(spoiled(json.loads(content), drawn)) if is_json else damaged(content, drawn))
    source = resolve("bert-base", tokenizer=str(folder))

    def read() -> None:
        check_together(source, load_tokenizer(source), load_config(source))

    return read


def _saved(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.copy(_model() / name, folder / name)


def _model(made: list[Path] = []) -> Path:  # noqa: B006 - it is made once
    """Return the folder of a whole model with its tokenizer."""
    if not made:
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="bigqa-fuzz-"))
        tokenizer = load_tokenizer(resolve("tiny"))
        BertForQuestionAnswering(BertConfig(**SIZES | {"vocab_size": len(tokenizer)})).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.copy(FOLDER / "vocab.txt", folder)
        made.append(folder)
    return made[0]


def _of_weights(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    _saved(folder, ("config.json",))
    file = folder / "model.safetensors"
    match which % 4:
        case 0:
            file.write_bytes(damaged((_model() / file.name).read_bytes(), drawn))
        case 1:
            save_file({f"{number}": torch.zeros(number + 1) for number in range(which % 5)}, file)
        case 2:
            file.write_bytes(damaged(b"version https://git-lfs.github.com/spec/v1\n", drawn))
        case _:
            index = {"metadata": {}, "weight_map": {"qa_outputs.bias": "model.safetensors", "x": "no.safetensors"}}
            (folder / "model.safetensors.index.json").write_bytes(dumped(spoiled(index, drawn)))
    source = resolve(str(folder))
    return lambda: load(source, load_config(source), require_head=bool(which % 2))


def _of_notes(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    notes = {"schema": 1, "task": "qa", "options": {"seq_len": 128, "doc_stride": 32, "null_threshold": 0.5}}
    (folder / "bigqa.json").write_bytes(dumped(spoiled(notes, drawn)) if which % 4 else damaged(dumped(notes), drawn))
    return lambda: kind_and_options(folder, BertConfig(**SIZES))


REPORT = json.loads(
    next((Path(__file__).parents[1] / "benchmarks/runs/cpu").glob("*.json")).read_text(encoding="utf-8")
)


def _of_report(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    file = folder / "report.json"
    file.write_bytes(dumped(spoiled(REPORT, drawn)) if which % 4 else damaged(dumped(REPORT), drawn))
    return lambda: read_report(file)


NONE = str(FOLDER / "no-such-file.json")
COMMANDS = [
    ["train", "--model", "tiny", "--train-file", NONE, "--out", "run"],
    ["predict", str(FOLDER / "no-model"), NONE, "out.json"],
    ["evaluate", NONE, NONE],
    ["data", "inspect", NONE, "tiny"],
    ["probe", "no-such-model"],
    ["bench", "no-such-model", "--out", "bench"],
    ["rehearse", "--gpu", "T4"],
    ["table", "no-such-folder"],
    ["convert", "enliple", "no-such", "out"],
    ["launch-files", "/dev/null/x"],
]
OPTIONS = [
    "--seed",
    "--epochs",
    "--max-steps",
    "--global-batch",
    "--micro-batch",
    "--seq-len",
    "--doc-stride",
    "--max-query-length",
    "--lr",
    "--warmup",
    "--weight-decay",
    "--dropout",
    "--precision",
    "--strategy",
    "--plan",
    "--nvme",
    "--device",
    "--save-every",
    "--keep",
    "--limit",
    "--num-processes",
    "--resume",
    "--tokenizer",
    "--dev-file",
    "--model",
    "--nbest",
    "--null-threshold",
    "--metric",
    "--json",
    "--gpu",
    "--gpu-memory",
    "--gpus",
    "--nodes",
    "--host-memory",
    "--tier",
    "--steps",
    "--caps",
    "--budget-s",
    "--case-s",
    "--heap",
    "--format",
    "--check",
    "--bound",
    "--true",
    "--task",
    "--all",
]


def _of_options(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    words = [*COMMANDS[which % len(COMMANDS)]]
    for _, where, what in drawn:
        value = VALUES[what]
        text = value if isinstance(value, str) else json.dumps(value)
        words += [OPTIONS[where % len(OPTIONS)], text.encode("utf-8", "replace").decode().replace("\0", "")]

    def read() -> None:
        done = here(*words)
        assert done.returncode in (0, 1, 2), done
        assert len(done.stderr.strip().splitlines()) <= 1 and UNFORESEEN not in done.stderr, (words, done.stderr)
        assert done.returncode == 0 or done.stderr.startswith("bigqa: "), (words, done)

    return read


KINDS: dict[str, tuple[Read, st.SearchStrategy[list[Spoiling]]]] = {
    "data": (_of_data, spoilings()),
    "bytes": (_of_bytes, damages()),
    "answers": (_of_answers, spoilings()),
    "settings": (_of_settings, spoilings()),
    "plan": (_of_plan, spoilings()),
    "checkpoint": (_of_checkpoint, spoilings()),
    "config": (_of_config, spoilings(2)),
    "tokenizer": (_of_tokenizer, spoilings(2)),
    "weights": (_of_weights, spoilings()),
    "notes": (_of_notes, spoilings()),
    "report": (_of_report, spoilings()),
    "options": (_of_options, spoilings(2)),
}
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def _try(
    kind: str, which: int, drawn: list[Spoiling], folder: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    monkeypatch.chdir(folder)
    # Spoilings also serve as damages: what is done has other names there.
    tried(KINDS[kind][0](which, drawn, folder), folder, tally)


def _fuzz(kind: str, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch, *, always: bool) -> Tally:
    tally = Tally()

    @settings(max_examples=count, deadline=None, database=None, derandomize=always, suppress_health_check=QUIET)
    @given(st.integers(0, 10**4), KINDS[kind][1])
    def run(which: int, drawn: list[Spoiling]) -> None:
        _try(kind, which, drawn, folder, tally, monkeypatch)

    run()
    return tally


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_or_told_in_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = _fuzz(kind, SHARES[kind], tmp_path / "case", monkeypatch, always=True)
    assert tally.refused >= SHARES[kind] // 5 or kind == "options"  # it is bad input


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_of_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = _fuzz(kind, SHARES[kind] * MORE, tmp_path / "case", monkeypatch, always=False)
    print(f"{kind}: {tally.refused} refused, {tally.taken} taken")


def test_there_are_enough() -> None:
    assert sum(SHARES.values()) >= 500 and sum(SHARES.values()) * MORE >= 10_000


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.json")), ids=lambda file: file.stem)
def test_what_was_a_fault_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.loads(file.read_text(encoding="utf-8"))
    drawn = [tuple(one) for one in case["drawn"]]
    _try(case["kind"], case["which"], drawn, tmp_path / "case", Tally(), monkeypatch)
