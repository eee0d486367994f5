"""Environment of a process that holds vLLM. It must be set before torch or vllm is imported."""

from __future__ import annotations

import os

# Each value carries the reason why it is not the default.
_SETTINGS = {
    # Nothing phones home and nothing is looked up on a model hub: models come from our own blob store.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # The engine core is one child process instead of two: less memory and seven seconds less to start.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The first call with log probabilities would otherwise compile for seconds, and need a compiler.
    "TORCHDYNAMO_DISABLE": "1",
    # By default the engine pins its threads to fixed cores: two replicas of one machine would pin the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment(*, cuda: bool, cpus: float) -> None:
    """Sets the variables of this process, and so of the engine's child.

    Args:
        cuda: whether the engine will run on a GPU; there the compiled path stays on.
        cpus: cores of this replica; it gets as many compute threads.
    """
    settings = {**_SETTINGS, "OMP_NUM_THREADS": str(max(int(cpus), 1))}
    if cuda:
        del settings["TORCHDYNAMO_DISABLE"]
    os.environ.update(settings)
    # It counts whole GiB and would override the size in bytes that a deployment asks for.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    # Ray sets it to a comma list or an empty string; the engine's own device detection must not trip over the latter.
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" and cuda:
        del os.environ["CUDA_VISIBLE_DEVICES"]


def cuda_present() -> bool:
    """Whether this machine has an NVIDIA driver. Does not import torch, because the environment is set before that."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")
