"""vLLM's own OpenAI-compatible server on this machine: ``python -m tests.integration.vllm_server ARGUMENTS``.

The console command ``vllm serve`` cannot be used beside a CPU build of torch, because it imports torchvision
before anything of ours runs. The engine core starts in a child that imports this module again, so what stands
at its top happens there too.
"""

from models._compat import declare_torchvision_operators

declare_torchvision_operators()

from vllm import ModelRegistry  # noqa: E402
from vllm.entrypoints.launchers.api_server.entry import main  # noqa: E402
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration  # noqa: E402

ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", Qwen2_5_VLForConditionalGeneration)

if __name__ == "__main__":
    main()
