"""vLLM's OpenAI-compatible server for a model folder: ``python -m models.vllm_server --model FOLDER ...``.

All arguments are vLLM's own. The console command ``vllm serve`` cannot be used beside a CPU build of torch,
because it imports torchvision before anything of ours runs. The engine core starts in a child that imports
this module again, so what stands at its top happens there too.
"""

import json
import sys
from pathlib import Path

from models._compat import declare_torchvision_operators

declare_torchvision_operators()

import torch  # noqa: E402
from vllm import ModelRegistry  # noqa: E402
from vllm.entrypoints.launchers.api_server.entry import main  # noqa: E402

# There, a prompt must not be prefilled in parts (models/vllm_engine.py); one process less starts sooner.
_CPU_ARGUMENTS = ("--no-enable-chunked-prefill", "--distributed-executor-backend", "uni")


def register_architecture(model_path: Path) -> None:
    """Tell vLLM the classes of a model themselves, not their names.

    vLLM inspects a name in a child process, where torchvision does not import beside a CPU build of torch.
    An architecture that vLLM does not know is left to its own error message.
    """
    config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    for name in config.get("architectures", ()):
        known = ModelRegistry.models.get(name)
        if known is not None:
            ModelRegistry.register_model(name, known.load_model_cls())


if "--model" in sys.argv:
    register_architecture(Path(sys.argv[sys.argv.index("--model") + 1]))

if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.argv += _CPU_ARGUMENTS
    main()
