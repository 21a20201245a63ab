"""The gradient of a global batch is the same for every split into micro-batches and workers."""

import faulthandler
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from actors.model import forward
from actors.model.attention.packed import PAD_DOCUMENT_ID
from actors.model.causal_lm import build
from actors.model.chunked_cross_entropy import summed_loss, token_losses
from actors.model.microbatch import DataParallelRank, accumulate, evaluate, sum_over_workers
from actors.model.sharding.fsdp import WithLoss, shard
from actors.objectives.lm import LanguageObjective
from cluster.recipe.model import Model
from tests.actors.objectives.test_preferences import of_worker

CONTEXT, VOCABULARY, ROWS = 32, 300, 7
CPU = torch.device("cpu")
# The settings of a worker of two: rows of a micro-batch, logits at once, recomputation of activations, and whether
# gradients are added up after the last micro-batch alone.
CASES = [
    (1, 1 << 26, False, False),
    (1, 1 << 26, False, True),
    (2, 1 << 26, False, False),
    (4, 5 * VOCABULARY, False, False),
    (2, 1 << 26, True, True),
]
# The preference losses that two workers compute, with a reference of its own or with adapters.
PREFERENCES = [(name, adapters) for name in ("dpo", "kto") for adapters in (False, True)]


def batch(seed: int = 5) -> pa.Table:
    """Returns packed rows with uneven numbers of trained tokens; in rows 2 and 3 nothing is trained."""
    chance = np.random.default_rng(seed)
    columns: dict[str, list] = {"input_ids": [], "document_ids": [], "loss_mask": []}
    for row in range(ROWS):
        used, cut = int(chance.integers(6, CONTEXT + 1)), int(chance.integers(2, 5))
        columns["input_ids"].append([*chance.integers(5, VOCABULARY, used), *[0] * (CONTEXT - used)])
        columns["document_ids"].append([*[0] * cut, *[1] * (used - cut), *[PAD_DOCUMENT_ID] * (CONTEXT - used)])
        columns["loss_mask"].append(list(chance.random(CONTEXT) < (0.0 if row in (2, 3) else 0.3 + 0.1 * row)))
    return pa.table({name: pa.array([np.array(row) for row in rows]) for name, rows in columns.items()})


def model() -> LlamaForCausalLM:
    made = build(Model(hidden=64, layers=2, heads=2, vocabulary=VOCABULARY, context=CONTEXT), 3, 4, 0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return made


def expected() -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the whole batch, document by document, with transformers' own causal forward."""
    made, rows = model(), LanguageObjective().collate(batch())
    losses = []
    for ids, documents, trained in zip(rows.input_ids, rows.document_ids, rows.loss_mask, strict=True):
        for number in (0, 1):
            own = documents == number
            logits = made(input_ids=ids[own][None]).logits[0, :-1]
            losses.append(functional.cross_entropy(logits, ids[own][1:], reduction="none")[trained[own][1:]])
    loss = torch.cat(losses).mean()
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in made.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        assert float(gradient.abs().max()) > 1e-4, name
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def reference() -> tuple[float, dict[str, Tensor]]:
    torch.set_num_threads(1)
    return expected()


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 3, ROWS, 100])
def test_one_worker_has_the_gradients_of_the_whole_batch(
    reference: tuple[float, dict[str, Tensor]], micro_batch_rows: int
):
    made, objective, rows = model(), LanguageObjective(), batch()
    assert objective.count(objective.collate(rows.slice(2, 2))) == 0, "a micro-batch in which nothing is trained"
    total = objective.count(objective.collate(rows))
    loss, _ = accumulate(
        WithLoss(made, objective), objective, rows, total, DataParallelRank(0, 1, micro_batch_rows, "float32", CPU)
    )
    assert loss == pytest.approx(reference[0], abs=1e-6)
    assert_same({name: p.grad for name, p in made.named_parameters() if p.grad is not None}, reference[1])


def test_a_batch_in_which_nothing_is_trained_has_no_gradient():
    made, objective, rows = model(), LanguageObjective(), batch().slice(2, 2)
    loss, _ = accumulate(WithLoss(made, objective), objective, rows, 0, DataParallelRank(0, 1, 2, "float32", CPU))
    assert loss == 0
    assert all(float(p.grad.abs().max()) == 0 for p in made.parameters() if p.grad is not None)
    assert evaluate(WithLoss(made, objective), objective, [rows], DataParallelRank(0, 1, 2, "float32", CPU)) == {}


def worker(rank: int, folder: Path, finished: Barrier) -> None:
    torch.set_num_threads(1)
    stderr = os.open(folder / f"{rank}.stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(stderr, 2)  # The only place of the message with which C++ aborts a process.
    faulthandler.enable()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    objective, rows = LanguageObjective(), batch()
    total = objective.count(objective.collate(rows))
    for number, (micro_batch_rows, logits, recompute, once) in enumerate(CASES):
        forward.LOGITS_AT_ONCE = {"cpu": logits}
        own, unwrapped_model = DataParallelRank(rank, 2, micro_batch_rows, "float32", CPU), model()
        if recompute:
            unwrapped_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        sharded = shard(WithLoss(unwrapped_model, objective), 2, CPU).train()
        loss, _ = sum_over_workers(*accumulate(sharded, objective, rows, total, own, reduce_once=once), own)
        found = {name: p.grad for name, p in sharded.model.named_parameters()}
        assert all(isinstance(gradient, DTensor) for gradient in found.values())
        whole = {name: gradient.full_tensor().contiguous() for name, gradient in found.items()}
        held_out = evaluate(sharded, objective, [rows], own)
        if rank == 0:
            figures = {"loss": torch.tensor(loss), "held_out": torch.tensor(held_out["loss"])}
            save_file({**whole, **figures}, folder / f"{number}.safetensors")
    for name, adapters in PREFERENCES:
        loss, figures, gradients = of_worker(name, adapters, rank, 2)
        if rank == 0:
            sums = {f"sum of {key}": torch.tensor(value) for key, value in {"loss": loss, **figures}.items()}
            save_file({**gradients, **sums}, folder / f"{name}-{adapters}.safetensors")
    # The interpreter's own end would abort the process now and then: threads of gloo and of autograd still run and ask
    # for the interpreter. And one that ends while the other still talks to it takes it down.
    finished.wait(timeout=60)
    os._exit(0)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the results of two processes of a gloo group, with FSDP2, in each case."""
    folder = tmp_path_factory.mktemp("gradients")
    finished = multiprocessing.get_context("spawn").Barrier(2)
    try:
        multiprocessing.spawn(worker, (folder, finished), nprocs=2)
    except multiprocessing.ProcessExitedException as ended:
        said = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.stderr")))
        pytest.fail(f"{ended}; the processes printed:\n{said[-4000:]}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_workers_have_the_gradients_of_the_whole_batch(
    two_workers: Path, reference: tuple[float, dict[str, Tensor]], case: int
):
    found = load_file(two_workers / f"{case}.safetensors")
    assert float(found.pop("loss")) == pytest.approx(reference[0], abs=1e-6)
    assert float(found.pop("held_out")) == pytest.approx(reference[0], abs=1e-6)
    assert_same(found, reference[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adapters"), PREFERENCES)
def test_two_workers_compute_preference_losses_as_one_does(two_workers: Path, name: str, adapters: bool):
    """The reference is sharded too, or is the policy without its adapters; KTO's reference point is of the whole
    batch."""
    loss, figures, gradients = of_worker(name, adapters)
    found = load_file(two_workers / f"{name}-{adapters}.safetensors")
    for key, value in {"loss": loss, **figures}.items():
        assert float(found.pop(f"sum of {key}")) == pytest.approx(value, abs=1e-5), key
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in gradients.values())
    assert_same(found, gradients)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most elements that any tensor made within it has."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        tensors = [item for item in (result if isinstance(result, tuple | list) else [result]) if torch.is_tensor(item)]
        self.elements = max(self.elements, *(tensor.numel() for tensor in tensors), 0)
        return result


SIZES = pytest.mark.parametrize(("tokens", "at_once"), [(64, 64 * 1000), (64, 9 * 1000), (64, 1), (0, 1)])


@SIZES
def test_losses_in_chunks_equal_those_in_one_piece(tokens: int, at_once: int):
    head, states, targets = head_and_states(tokens)
    weights = torch.rand(tokens)
    plain = functional.cross_entropy(head(states), targets, reduction="none")
    expected = torch.autograd.grad((plain * weights).sum(), (states, head.weight))
    with Largest() as largest:
        found = token_losses(head, states, targets, at_once)
        gradients = torch.autograd.grad((found * weights).sum(), (states, head.weight))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
    # Neither forward nor backward makes more logits than allowed; the head's own gradient has 8,000.
    assert largest.elements <= max(at_once, 8 * 1000)


@pytest.mark.parametrize("frozen", [False, True])
@SIZES
def test_the_sum_in_chunks_equals_that_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, tokens: int, at_once: int, frozen: bool
):
    monkeypatch.setattr("actors.model.chunked_cross_entropy.LOGITS_TOGETHER", {"cpu": 64 * 300})
    head, states, targets = head_and_states(tokens)
    learning = (states,) if frozen else (states, head.weight)
    plain = functional.cross_entropy(head(states), targets, reduction="sum")
    expected = torch.autograd.grad(plain / 7, learning)
    head.requires_grad_(not frozen)
    with Largest() as largest:
        found = summed_loss(head, states, targets, at_once)
        gradients = torch.autograd.grad(found / 7, learning)
    with torch.no_grad():
        torch.testing.assert_close(summed_loss(head, states, targets, at_once), plain)
    torch.testing.assert_close(found, plain)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
    # The bound is one of memory: three numbers for each of `at_once` logits, which here are logits alone.
    assert largest.elements <= max(3 * at_once, 8 * 1000)


@pytest.mark.slow
def test_compiled_and_in_bfloat16_the_sum_and_its_gradients_are_the_same_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("actors.model.chunked_cross_entropy.LOGITS_TOGETHER", {"cpu": 64 * 300})
    head, states, targets = head_and_states(64)
    plain = functional.cross_entropy(head(states), targets, reduction="sum")
    expected = torch.autograd.grad(plain, (states, head.weight))
    with torch.autocast("cpu", torch.bfloat16):
        found = summed_loss(head, states, targets, 1000, compiled=True)
    gradients = torch.autograd.grad(found, (states, head.weight))
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=0)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - wanted).norm() / wanted.norm()) < 0.01


def head_and_states(tokens: int) -> tuple[torch.nn.Linear, Tensor, Tensor]:
    """Returns a head over 1,000 words, and states of width 8 with their targets."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 1000, bias=False)
    return head, torch.randn(tokens, 8, requires_grad=True), torch.randint(1000, (tokens,))


def test_the_plain_loss_does_make_all_logits():
    head, states = torch.nn.Linear(8, 1000, bias=False), torch.randn(64, 8, requires_grad=True)
    with Largest() as largest:
        functional.cross_entropy(head(states), torch.zeros(64, dtype=torch.long)).backward()
    assert largest.elements == 64 * 1000
