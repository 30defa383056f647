"""llama.cpp's converter, also for checkpoints of random weights, which have no tokenizer:

python -m benchmarks.bench.convert_gguf CONVERTER [--no-vocabulary] ARGUMENTS of convert_hf_to_gguf.py
"""

import runpy
import sys
from pathlib import Path
from typing import Any

script = Path(sys.argv[1]) / "convert_hf_to_gguf.py"
sys.path.insert(0, str(script.parent))
sys.argv = [str(script), *sys.argv[2:]]
if "--no-vocabulary" in sys.argv:
    from conversion.llama import LlamaModel

    def no_vocabulary(self: Any) -> None:
        """As the converter itself does it for models of speech."""
        self._set_vocab_none()

    sys.argv.remove("--no-vocabulary")
    LlamaModel.set_vocab = no_vocabulary
runpy.run_path(str(script), run_name="__main__")
