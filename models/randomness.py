"""The random generators of this process, kept in a file and set as they were: Python, NumPy, torch, CUDA."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def write(path: Path) -> None:
    """Keep the state of every generator."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": [version, words, gauss],
        "numpy": [kind, [int(key) for key in keys], *rest],
        "torch": _text(torch.get_rng_state()),
        "cuda": _text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else "",
    }
    path.write_text(json.dumps(state))


def restore(path: Path) -> None:
    """Set every generator as it was when ``path`` was written; without that file they stay as they are."""
    if not path.is_file():
        return
    state = json.loads(path.read_text())
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_state(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(_state(state["cuda"]))


def _text(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _state(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
