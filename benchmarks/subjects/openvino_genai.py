"""openvino-genai as a subject, in an environment that has it:

python -m benchmarks.subjects.openvino_genai FOLDER PROPERTIES cold PROMPT | serve          PROPERTIES: JSON; $NAME is a variable
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.subjects.process import TokenClock, answer, prompt_tokens


class Streamer(genai.StreamerBase):  # type: ignore[misc]
    """Is told of every token as soon as it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = TokenClock()

    def write(self, _token: object) -> genai.StreamingStatus:
        self.clock.token()
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class Subject:
    def __init__(self, folder: Path, properties: dict[str, str]) -> None:
        self.vocabulary: int = json.loads((folder / "config.json").read_text())["vocab_size"]
        self.pipeline = genai.LLMPipeline(str(folder), "CPU", **properties)

    def decode(self, size: int, count: int, seed: int) -> dict[str, float]:
        ids = ov.Tensor(np.array([prompt_tokens(size, seed, self.vocabulary)], np.int64))
        inputs = genai.TokenizedInputs(ids, ov.Tensor(np.ones((1, size), np.int64)))
        config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False, apply_chat_template=False)
        streamer = Streamer()
        self.pipeline.generate(inputs, config, streamer)
        return streamer.clock.figures()


def main(folder: str, properties: str, *what: str) -> None:
    options = json.loads(os.path.expandvars(properties))
    answer(lambda: Subject(Path(folder), options), what, alone="LLMPipeline has one state")


if __name__ == "__main__":
    main(*sys.argv[1:])
