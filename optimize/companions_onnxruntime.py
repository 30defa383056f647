"""genai_config.json: what onnxruntime-genai opens an ONNX artifact with.

Specification: https://onnxruntime.ai/docs/genai/reference/config.html
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alize.models.checkpoint import Checkpoint
from alize.models.registry import family_for

__all__ = ["genai_config", "write"]


def write(checkpoint: Checkpoint, folder: Path, *, providers: Sequence[str] = ()) -> None:
    """Writes FOLDER/genai_config.json. providers: those to run by, where not the CPU's."""
    config = genai_config(checkpoint.config)
    config["model"]["decoder"]["session_options"]["provider_options"] = [{name: {}} for name in providers]
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "genai_config.json").write_text(text + "\n", encoding="utf-8")


def genai_config(raw: dict[str, Any]) -> dict[str, Any]:
    """From a config.json. Past and present share buffers there as in alize's own runtime."""
    config = family_for(raw).config.from_dict(raw)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": config.head_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    ends = config.eos_token_ids
    tokens = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(ends) if len(ends) != 1 else ends[0],
        "pad_token_id": ends[0] if config.pad_token_id is None and ends else config.pad_token_id,
    }
    search = {"do_sample": False, "max_length": config.max_positions, "past_present_share_buffer": True, "num_beams": 1}
    model = {
        "type": "mistral",
        "context_length": config.max_positions,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
        **{name: value for name, value in tokens.items() if value is not None},
    }
    return {"model": model, "search": search}
