"""transformers' Qwen2.5-VL modules import torchvision: its operators are declared before any test module."""

from models._compat import declare_torchvision_operators

declare_torchvision_operators()
