"""Make torchvision importable beside a CPU build of torch.

PyPI's torchvision is a CUDA build. Next to CPU torch its import fails with "operator torchvision::nms does
not exist", because its extension cannot load and the schemas are therefore missing. transformers' Qwen2.5-VL
processor and vLLM import torchvision but never call these two operators, so declaring the schemas is enough.

Every module that imports transformers' processors or vLLM calls :func:`declare_torchvision_operators` first.
"""

from importlib.metadata import version

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# The library object owns the declarations: they vanish when it is collected.
_library: torch.library.Library | None = None


def declare_torchvision_operators() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` unless a working torchvision registers them.

    That is so where torch has CUDA, and with PyTorch's own CPU build of torchvision.
    """
    global _library
    if _library is not None or torch.version.cuda is not None or "+cpu" in version("torchvision"):
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        _library.define(schema)
