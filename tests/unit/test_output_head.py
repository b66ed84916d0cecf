"""Log-probs without all logits at once: the same numbers, from chunks that are computed again."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models import output_head
from models.output_head import OutputHead, chunk_tokens, processed

NUM_TOKENS, WIDTH, VOCABULARY = 50, 8, 400
BANNED = torch.tensor([3, 17])
OPTIONS = {"temperature": 0.7, "banned": BANNED}


class Made(TorchDispatchMode):
    """The most values of any tensor that is made, and how many tensors there are of each size."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, Tensor] = {}  # kept, so that no place is used twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the size of what an operator returns."""
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self._made[found.data_ptr()] = found
        return found

    @property
    def numel(self) -> int:
        """Of the largest tensor."""
        return max(self.places)

    @property
    def places(self) -> Counter[int]:
        """How many tensors were made of each number of values, what is written in place counted once."""
        return Counter(tensor.numel() for tensor in self._made.values())


def head_and_input() -> tuple[OutputHead, Tensor, Tensor]:
    torch.manual_seed(0)
    head = OutputHead(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(NUM_TOKENS, WIDTH, requires_grad=True)
    targets = torch.randint(20, VOCABULARY, (NUM_TOKENS,))
    return head, hidden, targets


def logprobs_and_gradients() -> tuple[Tensor, Tensor, Tensor]:
    head, hidden, targets = head_and_input()
    found = head(hidden, targets, **OPTIONS)
    (found * torch.linspace(-1, 1, NUM_TOKENS)).sum().backward()
    return found.detach(), hidden.grad, head.weight.grad


def cut_into(monkeypatch: pytest.MonkeyPatch, *, tokens: int) -> None:
    monkeypatch.setattr(output_head, "CHUNK_BYTES", 4 * VOCABULARY * tokens)


def test_logprobs_are_those_of_a_softmax_without_the_banned_tokens() -> None:
    head, hidden, targets = head_and_input()
    logits = torch.nn.functional.linear(hidden, head.weight) / 0.7
    logits[:, BANNED] = -torch.inf
    expected = logits.log_softmax(dim=1)[torch.arange(NUM_TOKENS), targets]
    torch.testing.assert_close(head(hidden, targets, **OPTIONS), expected)
    assert torch.equal(processed(head(hidden), **OPTIONS), logits)


@pytest.mark.parametrize("banned", [BANNED, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_pytorchs_softmax(dtype: torch.dtype, banned: Tensor | None) -> None:
    head, hidden, targets = head_and_input()
    head, hidden = head.to(dtype), hidden.detach().to(dtype).requires_grad_()
    logits = torch.nn.functional.linear(hidden, head.weight).float() / 0.7
    if banned is not None:
        logits = logits.index_fill(1, banned, -torch.inf)
    plain = logits.log_softmax(dim=1)[torch.arange(NUM_TOKENS), targets]
    ours = head(hidden, targets, temperature=0.7, banned=banned)
    weights = torch.linspace(-1, 1, NUM_TOKENS)
    expected, found = (
        torch.autograd.grad((logprobs * weights).sum(), (hidden, head.weight)) for logprobs in (plain, ours)
    )
    torch.testing.assert_close(found, expected)
    assert found[0].dtype is found[1].dtype is dtype
    assert bool(found[1][BANNED].any()) == (banned is None)


def test_the_gradient_is_one_tensor_of_the_size_of_the_logits() -> None:
    head, hidden, targets = head_and_input()
    logprobs = head(hidden, targets, **OPTIONS).sum()
    with Made() as backward:
        logprobs.backward()
    assert backward.places[NUM_TOKENS * VOCABULARY] == 1


@pytest.mark.parametrize("tokens", [1, 7, 25, 49])
def test_chunks_change_neither_logprobs_nor_gradients(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    whole = logprobs_and_gradients()
    cut_into(monkeypatch, tokens=tokens)
    for found, expected in zip(logprobs_and_gradients(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert whole[2].abs().max() > 0.1


def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    # Forward and backward: 50 x 400 logits; in chunks of 9 tokens 9 x 400, and the weight has 8 x 400.
    with Made() as whole:
        logprobs_and_gradients()
    cut_into(monkeypatch, tokens=9)
    with Made() as chunked:
        logprobs_and_gradients()
    assert whole.numel == NUM_TOKENS * VOCABULARY
    assert chunked.numel == 9 * VOCABULARY


def test_of_a_chunk_only_its_input_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden, targets = head_and_input()
    cut_into(monkeypatch, tokens=9)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda x: x):
        head(hidden, targets, **OPTIONS)
    assert sum(tensor.numel() for tensor in kept) <= NUM_TOKENS * (WIDTH + 2)


def test_all_chunks_are_one_call_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    # Under ZeRO-3 a call gathers the weight on all ranks together; they differ in how many chunks they have.
    head, hidden, targets = head_and_input()
    cut_into(monkeypatch, tokens=9)
    calls: list[int] = []
    head.register_forward_hook(lambda *_: calls.append(1))
    head(hidden, targets, **OPTIONS).sum().backward()
    assert calls == [1]


def test_what_is_small_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_head, "checkpoint", lambda *_, **__: pytest.fail("computed again"))
    logprobs_and_gradients()
    cut_into(monkeypatch, tokens=NUM_TOKENS)
    logprobs_and_gradients()


def test_no_token_has_no_logprob(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden, targets = head_and_input()
    cut_into(monkeypatch, tokens=9)
    assert head(hidden[:0], targets[:0], **OPTIONS).shape == (0,)


def test_a_chunk_of_the_published_vocabulary() -> None:
    assert chunk_tokens(151_936) == 883  # 512 MiB / (4 bytes x 151,936)
