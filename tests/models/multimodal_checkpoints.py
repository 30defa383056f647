"""Random checkpoints of transformers' own Mistral3ForConditionalGeneration, in both layouts."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.tiny import YARN

TEXT: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
VISION: dict[str, Any] = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "head_dim": 8, "image_size": 16, "patch_size": 8,
}  # fmt: skip
TEXTS = {
    "mistral": TEXT | {"model_type": "mistral", "sliding_window": 6},
    "ministral3": TEXT | {"model_type": "ministral3", "rope_parameters": YARN},
}
WEIGHTS = "model.safetensors"


def multimodal_checkpoint(folder: Path, text: str = "mistral", *, tied: bool = False, published: bool = True) -> Any:
    """A random model and its checkpoint: transformers writes the published names, a state dict has those of transformers 5."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    config = Mistral3Config(text_config=dict(TEXTS[text]), vision_config=dict(VISION), tie_word_embeddings=tied)
    config._attn_implementation = "eager"
    model = Mistral3ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    if not published:
        save_file(dict(model.named_parameters()), folder / WEIGHTS, metadata={"format": "pt"})
    return model
