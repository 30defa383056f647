"""The files beside an IR that openvino_genai.LLMPipeline and optimum's OVModelForCausalLM open it with."""

from pathlib import Path

from alize.models.checkpoint import Checkpoint
from alize.optimize.openvino_write import write_ir

__all__ = ["write"]


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """openvino_tokenizer and openvino_detokenizer, where the checkpoint has a tokenizer.json."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    if not (checkpoint.folder / "tokenizer.json").is_file():
        return
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint.folder), local_files_only=True)
    encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    write_ir(encoder, folder / "openvino_tokenizer.xml", save=openvino.save_model)
    write_ir(decoder, folder / "openvino_detokenizer.xml", save=openvino.save_model)
