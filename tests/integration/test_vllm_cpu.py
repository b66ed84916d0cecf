"""vLLM's layers with its CPU kernels against the same layers in PyTorch."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import models.vllm_engine  # noqa: F401  (it registers the layers, as an engine's start does)
from models.vllm_cpu import FusedRMSNorm, TabledMRotaryEmbedding, register_layers

from vllm.config import (  # isort: skip
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.model_executor import custom_op  # isort: skip
from vllm.model_executor.layers.layernorm import RMSNorm  # isort: skip
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding  # isort: skip

pytestmark = pytest.mark.integration

NUM_TOKENS, NUM_HEADS, HEAD_SIZE, WIDTH = 19, 3, 16, 24
EXACT = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    # As an engine without torch.compile has it: else vLLM calls PyTorch, and the comparisons compare nothing.
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE))):
        yield


@pytest.fixture
def rotary() -> MRotaryEmbedding:
    return MRotaryEmbedding(HEAD_SIZE, HEAD_SIZE, 64, 10000.0, True, torch.float32, mrope_section=[2, 3, 3])


def queries_and_keys() -> tuple[torch.Tensor, torch.Tensor]:
    """Parts of one projection, as a layer has them: rows are further apart than they are long."""
    width = NUM_HEADS * HEAD_SIZE
    query, key, _ = torch.randn(NUM_TOKENS, 3 * width).split(width, dim=1)
    return query, key


def places() -> torch.Tensor:
    return torch.randint(0, 64, (3, NUM_TOKENS))


def test_vllm_builds_its_models_of_these_layers(rotary):
    norm = RMSNorm(WIDTH)
    assert (type(norm), norm._forward_method) == (FusedRMSNorm, norm.forward_cpu)
    assert (type(rotary), rotary._forward_method) == (TabledMRotaryEmbedding, rotary.forward_cpu)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_they_are_layers_of_a_cpu_only(monkeypatch, on_cpu):
    """On a GPU vLLM enables layers by names, which these would change."""
    registry: dict[str, type] = {}
    monkeypatch.setattr(custom_op, "op_registry_oot", registry)
    register_layers(SimpleNamespace(is_cpu=lambda: on_cpu))
    assert set(registry.values()) == ({FusedRMSNorm, TabledMRotaryEmbedding} if on_cpu else set())


@pytest.mark.parametrize("shape", [(NUM_TOKENS, WIDTH), (2, NUM_TOKENS, WIDTH)])
def test_the_norm_is_that_of_pytorch(shape):
    norm, x = RMSNorm(WIDTH), torch.randn(shape)
    norm.weight.data.uniform_(0.5, 2.0)
    torch.testing.assert_close(norm(x), norm.forward_native(x), **EXACT)


def test_the_norm_of_a_part_of_each_row_is_that_of_pytorch():
    norm, x = RMSNorm(WIDTH), torch.randn(NUM_TOKENS, 2 * WIDTH)[:, WIDTH:]
    torch.testing.assert_close(norm(x), norm.forward_native(x.clone()), **EXACT)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_norm_of_a_sum_comes_with_the_sum(stride):
    norm = RMSNorm(WIDTH)
    x, residual = torch.randn(2, NUM_TOKENS, stride * WIDTH)[..., :WIDTH]
    norm.weight.data.uniform_(0.5, 2.0)
    wanted = norm.forward_native(x.clone(), residual.clone())
    torch.testing.assert_close(norm(x, residual), wanted, **EXACT)


@pytest.mark.parametrize("setting", [{"has_weight": False}, {"var_hidden_size": WIDTH // 2}])
def test_a_norm_that_the_kernel_does_not_know_is_left_to_pytorch(setting):
    norm, x = RMSNorm(WIDTH, **setting), torch.randn(NUM_TOKENS, WIDTH)
    torch.testing.assert_close(norm(x), norm.forward_native(x.clone()), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_that_the_kernels_do_not_know_are_left_to_pytorch(dtype):
    norm, x = RMSNorm(20, dtype=dtype), torch.randn(2, NUM_TOKENS, 20, dtype=dtype)
    torch.testing.assert_close(norm(x[0]), norm.forward_native(x[0]), **EXACT)
    wanted = norm.forward_native(x[0].clone(), x[1].clone())
    torch.testing.assert_close(norm(x[0], x[1]), wanted, **EXACT)
    rotary = MRotaryEmbedding(20, 20, 64, 10000.0, True, dtype, mrope_section=[2, 4, 4])
    query, key, positions = *torch.randn(2, NUM_TOKENS, 3 * 20, dtype=dtype), places()
    wanted = rotary.forward_native(positions, query.clone(), key.clone())
    torch.testing.assert_close(rotary(positions, query, key), wanted, **EXACT)


def test_queries_and_keys_are_turned_by_time_row_and_column(rotary):
    positions = places()
    for _layer in range(2):
        query, key = queries_and_keys()
        wanted = rotary.forward_native(positions, query.clone(), key.clone())
        torch.testing.assert_close(rotary(positions, query, key), wanted, **EXACT)


def test_another_pass_has_another_table(rotary):
    for positions in (places(), places()):
        query, key = queries_and_keys()
        wanted = rotary.forward_native(positions, query.clone(), key.clone())
        torch.testing.assert_close(rotary(positions, query, key), wanted, **EXACT)


def test_positions_of_text_alone_are_turned_as_ever(rotary):
    positions = torch.arange(NUM_TOKENS)
    query, key = queries_and_keys()
    wanted = rotary.forward_native(positions, query.clone(), key.clone())
    torch.testing.assert_close(rotary(positions, query, key), wanted, **EXACT)
