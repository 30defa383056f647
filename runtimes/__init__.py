"""Runs a sealed artifact: load, Session, generation and text. Needs neither PyTorch nor ONNX.

model = load(Path("artifact"))
with model.session() as session:
    stream = model.tokenizer.stream()
    for tokens in generate(session, [model.tokenizer.encode("Hello")], GenerationOptions(max_new_tokens=64)):
        print(stream.push(int(tokens[0])), end="")
    print(stream.flush())
"""

from alize.runtimes.assistant import AssistantModel, SessionDrafter
from alize.runtimes.batching import ContinuousBatch, NewToken
from alize.runtimes.generate import Generation, GenerationOptions, generate
from alize.runtimes.model import Model, load
from alize.runtimes.prompt_lookup import PromptLookup
from alize.runtimes.registry import BACKENDS, Backend
from alize.runtimes.runner import Runner
from alize.runtimes.sampling import SamplingOptions, sample
from alize.runtimes.session import Session
from alize.runtimes.speculation import Drafter
from alize.runtimes.text import StreamDecoder, Tokenizer

__all__ = [
    "BACKENDS",
    "AssistantModel",
    "Backend",
    "ContinuousBatch",
    "Drafter",
    "Generation",
    "GenerationOptions",
    "Model",
    "NewToken",
    "PromptLookup",
    "Runner",
    "SamplingOptions",
    "Session",
    "SessionDrafter",
    "StreamDecoder",
    "Tokenizer",
    "generate",
    "load",
    "sample",
]
