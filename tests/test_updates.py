"""Updates by hand: released, in fp16, of masters; recomputation; what is lost and what is kept when something fails."""

import threading
import time
from typing import Any

import pytest
import torch
from commands import LIMIT_S
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, ModernBertConfig, ModernBertForQuestionAnswering

from bigqa.engine import recompute
from bigqa.engine.optim.precision import Weights
from bigqa.engine.optim.release import ReleasedUpdate
from bigqa.engine.optim.scaling import LossScaler
from bigqa.engine.optim.update import Update
from bigqa.engine.processes import lost_a_peer
from bigqa.engine.recovery import HostWatch, OutOfMemory
from bigqa.errors import BigqaError
from bigqa.run.prediction import ready


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def loss_of(model: nn.Module, factor: float = 1.0) -> torch.Tensor:
    return (model(torch.linspace(-1, 1, 12).view(3, 4)) * factor).square().sum()


def released(model: nn.Module, precision: Any = "fp32", clip: float = 0.1) -> ReleasedUpdate:
    weights = Weights(model, precision)
    groups = [{"params": list(weights.masters.values())}]
    return ReleasedUpdate(model, weights, groups, lambda group: torch.optim.AdamW([group], lr=0.01), clip=clip)


def plain(model: nn.Module, precision: Any = "fp32", scaler: LossScaler | None = None, clip: float = 0.1) -> Update:
    weights = Weights(model, precision)
    optimizer = torch.optim.AdamW(list(weights.masters.values()), lr=0.01)
    return Update(model, weights, optimizer, clip=clip, scaler=scaler)


def run(update: Update, model: nn.Module, factors: tuple[float, ...]) -> list[float]:
    norms = []
    for factor in factors:
        with update.micro_batch(is_last=True):
            update.backward(loss_of(model, factor))
        norms.append(float(update.step()))
    return norms


def test_released_gradients_go_on_with_the_norm_before() -> None:
    whole, first, second = net(), net(), net()
    one, two, three = released(whole), released(first), released(second)
    run(one, whole, (1.0, 3.0, 1.0))
    run(two, first, (1.0, 3.0))
    kept = two.state()
    assert kept.extras["last_norm"] > 0.1 and released(net()).state().extras == {}
    three.load(kept, 2)
    run(three, second, (1.0,))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_rate_reaches_every_released_parameter() -> None:
    model = net()
    update = released(model)
    run(update, model, (1.0,))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    update.set_rate(0.0)
    run(update, model, (1.0,))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_weights_are_changing_only_while_they_are_released() -> None:
    model = net()
    update, seen = released(model), []
    model[0].weight.register_hook(lambda _: seen.append(update.changing))
    for is_last in (False, True):
        with update.micro_batch(is_last=is_last):
            update.backward(loss_of(model))
    assert seen == [False, True] and update.changing
    update.step()
    assert not update.changing and update.completed == 1


def test_the_scale_of_fp16_leaves_the_step_as_it_is() -> None:
    model, scaled = net(), net()
    update, other = plain(model), plain(scaled, scaler=LossScaler(scale=1024.0))
    norms, others = run(update, model, (1.0, 2.0)), run(other, scaled, (1.0, 2.0))
    torch.testing.assert_close(torch.tensor(norms), torch.tensor(others))
    for a, b in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_that_overflows_changes_nothing_and_is_kept_in_mind() -> None:
    model = net()
    update = plain(model, scaler=LossScaler(scale=1024.0))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run(update, model, (float("inf"),))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (update.skipped, update.completed) == (1, 1)
    assert all(parameter.grad is None for parameter in model.parameters())
    run(update, model, (1.0,))
    kept = update.state()
    assert kept.extras == {"scaler": {"scale": 512.0, "good_steps": 1, "skipped": 1}}
    other = plain(net(), scaler=LossScaler())
    other.load(kept, 2)
    assert other.state().extras == kept.extras
    # Adam's correction counts the steps that were made.
    assert {float(state["step"]) for state in other.optimizer.state.values()} == {1.0}


def test_masters_are_what_is_saved_and_what_is_used() -> None:
    model = net()
    exact = [parameter.detach().clone() for parameter in model.parameters()]
    update = plain(model, "bf16")
    for parameter, value in zip(model.parameters(), exact, strict=True):
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, value.bfloat16())
    x = torch.linspace(-1, 1, 12).view(3, 4).bfloat16()
    update.backward(model(x).float().square().sum())
    update.step()
    masters = {name: master.detach().clone() for name, master in update.weights.masters.items()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, masters[name].bfloat16()) and not torch.equal(parameter, masters[name])
    for name, parameter in update.finish().named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, masters[name])


@pytest.mark.parametrize("make", [plain, released])
def test_nothing_of_a_finished_run_holds_its_masters(make: Any) -> None:
    """On a GPU they would be there while it scores: the optimizer's groups, and hooks, know them to the end."""
    update = make(model := net(), "bf16")
    known = [parameter for group in update.optimizer.param_groups for parameter in group["params"]]
    assert sum(parameter.numel() for parameter in known) == sum(parameter.numel() for parameter in model.parameters())
    found = update.finish()
    assert not any(parameter.numel() for parameter in known) and all(one.numel() for one in found.parameters())


def test_angles_of_rotary_positions_are_not_rounded() -> None:
    """They are no weights: a model folder has none, and whoever loads it makes them anew, exactly."""
    config = ModernBertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=3, sep_token_id=4,
    )  # fmt: skip
    model = ModernBertForQuestionAnswering(config)
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    assert exact and not any(torch.equal(one, one.bfloat16().float()) for one in exact.values())
    Weights(model, "bf16").place(model, torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(model.get_buffer(name), one) for name, one in exact.items())
    assert ready(model, torch.device("cpu"), "bf16").get_buffer(min(exact)).dtype == torch.float32
    ids = torch.arange(20)[None]
    assert model(input_ids=ids).start_logits.dtype == torch.bfloat16


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts products."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.products += name in ("mm", "addmm", "linear")
        self.norms += name == "native_layer_norm"
        return func(*args, **(kwargs or {}))


def test_what_is_recomputed_is_what_the_mode_says() -> None:
    found: dict[str, tuple[int, int]] = {}
    for mode in ("none", "selective", "full"):
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=64
        )
        model = BertForQuestionAnswering(config).train()
        recompute.apply(model, mode)  # type: ignore[arg-type]
        with Counted() as counted:
            loss = model(input_ids=torch.arange(16).view(1, 16)).start_logits.logsumexp(-1).sum()
            before = counted.products, counted.norms
            loss.backward()
        # Backward passes of products are products; norms of a backward pass are others.
        found[mode] = counted.products - before[0], counted.norms - before[1]
    assert found["none"][1] == 0
    # Selective: two norms of each layer again, and no product; full: the six products of each layer too.
    assert found["selective"] == (found["none"][0], found["selective"][1]) and found["selective"][1] > 0
    assert found["full"][0] >= found["none"][0] + 3 * 5 and found["full"][1] > 0


def test_a_model_that_cannot_recompute_says_so() -> None:
    recompute.apply(net(), "none")
    with pytest.raises(BigqaError, match="Sequential cannot recompute"):
        recompute.apply(net(), "full")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("Broken pipe"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError("Broken pipe"), False),
    ],
)
def test_the_end_of_another_process_is_told_from_other_errors(error: BaseException, lost: bool) -> None:
    assert lost_a_peer(error) is lost


def test_the_watch_interrupts_where_no_memory_is_free_and_only_there() -> None:
    with HostWatch(lambda: (1 << 40, 1 << 39)):
        time.sleep(0.1)
    with pytest.raises(OutOfMemory, match="about to run out") as caught, HostWatch(lambda: (1 << 40, 1 << 10)):
        time.sleep(LIMIT_S)
    assert caught.value.where == "host" and caught.value.step is None
    assert all(thread.name != "host memory" for thread in threading.enumerate())


def test_what_is_not_finished_is_forgotten() -> None:
    model = net()
    update = plain(model, "bf16")
    x = torch.linspace(-1, 1, 12).view(3, 4).bfloat16()
    update.backward(model(x).float().square().sum())
    update.weights.gather_gradients()
    update.backward(model(x).float().square().sum())
    update.forget_gradients()
    assert all(one.grad is None for one in (*model.parameters(), *update.weights.masters.values()))


def test_a_model_is_handed_back_in_fp32_whatever_it_was_trained_in() -> None:
    model = net()
    model.register_buffer("table", torch.ones(3))
    update = plain(model, "bf16-sr")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    rounded = [parameter.detach().float() for parameter in model.parameters()]
    found = update.finish()
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(rounded, found.parameters(), strict=True))
