"""The language model's last layer, which goes on after attention with the tokens that are asked about only.

Nobody reads what the last layer makes of prompts, pictures and crops: later tokens see a token's key and
value, which are made from the layer's input. Its MLP, most of its weights, is therefore computed and
differentiated for the tokens that predict something and for no others. Nothing else of the results changes.
"""

from typing import Any

from torch import Tensor, nn

from models._compat import declare_torchvision_operators

declare_torchvision_operators()
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer  # noqa: E402


class LastLayer(Qwen2_5_VLDecoderLayer):
    """A decoder layer that may be asked for some tokens."""

    def forward(self, hidden_states: Tensor, *, wanted: Tensor | None = None, **options: Any) -> Tensor:
        """The layer's output (B, T, D); with ``wanted`` (N,) int64, places in the rows one after another,
        that of these tokens, (1, N, D)."""
        if wanted is None:
            return super().forward(hidden_states, **options)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
        states = (hidden_states + attended).flatten(0, 1).index_select(0, wanted)[None]
        return states + self.mlp(self.post_attention_layernorm(states))

    @classmethod
    def replace_in(cls, language_model: nn.Module) -> None:
        """Let a language model use it; weights and their names stay."""
        layers = language_model.layers
        assert isinstance(layers, nn.ModuleList), "the language model has no list of layers"
        last = layers[len(layers) - 1]
        assert isinstance(last, Qwen2_5_VLDecoderLayer), f"the model ends with {type(last).__name__}"
        last.__class__ = cls
