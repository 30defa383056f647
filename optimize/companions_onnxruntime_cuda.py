"""genai_config.json for the CUDA provider."""

from functools import partial

from alize.optimize import companions_onnxruntime

__all__ = ["write"]

write = partial(companions_onnxruntime.write, providers=("cuda",))
