"""The output head, which also gives log-probs without ever holding the logits of all tokens.

With the published vocabularies the logits of 16,384 tokens are 10 GB in float32, and a softmax with its
gradient takes four times that. So tokens go through in chunks, and what a chunk computed is computed again
when its gradient is wanted.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Of a chunk's logits in float32; at its height the gradient takes 2.8 times as much (measured on a CPU in
# bfloat16). With the published vocabularies a chunk is 883 tokens: wide enough for a GPU's matrix products,
# and 16,384 tokens are 19 chunks, whose gradients of the weight are added up in bfloat16. What is smaller is
# no chunk: computed once and kept, as all that the embedded model ever has.
CHUNK_BYTES = 512 << 20


class OutputHead(nn.Linear):
    """A linear layer over the vocabulary. All chunks are one call of it: ZeRO-3 gathers the weight once per
    pass, on every rank, however many tokens each has."""

    def forward(
        self,
        input: Tensor,
        targets: Tensor | None = None,
        *,
        temperature: float = 1.0,
        banned: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, V) of hidden states (N, D).

        With ``targets`` (N,) int64 their log-probs (N,) instead, nats, fp32, at a temperature and without the
        ``banned`` tokens (number of them,) int64.
        """
        if targets is None:
            return super().forward(input)
        size = chunk_tokens(self.out_features)
        logprobs = partial(self._logprobs, temperature=temperature, banned=banned)
        if len(input) <= size:
            return logprobs(input, targets)
        # Not reentrant: the weight then gets one gradient per pass, which is what ZeRO waits for.
        chunks = zip(input.split(size), targets.split(size), strict=True)
        return torch.cat([checkpoint(logprobs, *chunk, use_reentrant=False) for chunk in chunks])

    def _logprobs(
        self, hidden: Tensor, targets: Tensor, *, temperature: float, banned: Tensor | None
    ) -> Tensor:
        found: Tensor = _LogProbs.apply(super().forward(hidden), targets, temperature, banned)
        return found

    @classmethod
    def replace_in(cls, model: nn.Module) -> None:
        """Let a model use it; the weight and its name stay."""
        head = model.lm_head
        assert isinstance(head, nn.Linear), f"the model ends with {type(head).__name__}"
        head.__class__ = cls


class _LogProbs(Function):
    """Logits (N, V) to log-probs (N,) of targets. Written out, the gradient is one tensor of the logits' size
    where PyTorch's own of the operations below are several."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, banned: Tensor | None
    ) -> Tensor:
        logits_processed = processed(logits, temperature=temperature, banned=banned)
        total = logits_processed.logsumexp(dim=1)
        ctx.save_for_backward(logits_processed, targets, total)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return logits_processed.gather(1, targets[:, None])[:, 0] - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Of a target's log-prob by its own logit 1 - p, by another's -p; by a banned token's 0."""
        logits, targets, total = ctx.saved_tensors
        scale = gradient[:, None] / ctx.temperature
        found = (logits - total[:, None]).exp_().mul_(-scale)
        return found.scatter_add_(1, targets[:, None], scale).to(ctx.dtype), None, None, None


def processed(logits: Tensor, *, temperature: float, banned: Tensor | None) -> Tensor:
    """Logits (N, V) in fp32, divided by the temperature; minus infinity for banned tokens."""
    logits = logits.float() / temperature  # a tensor of its own, so bans can be written into it
    return logits if banned is None else logits.index_fill_(1, banned, -torch.inf)


def chunk_tokens(vocabulary: int) -> int:
    """How many tokens a chunk has at most."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))
