"""Rounds a model's matrices for the activations that a text brings about, layer by layer.

Each matrix is rounded for what reaches it from the layers, and the parts of its own layer, that were rounded before: their losses
are in its inputs. Between layers only the hidden states of the text are kept, within one a matrix or two and the products of
their inputs with themselves: memory does not grow with the number of layers.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every PyTorch reader knows
from numpy.typing import NDArray
from torch import Tensor, nn

from alize.calibration_costs import CALIBRATE
from alize.models.checkpoint import Checkpoint
from alize.models.mistral import Layer
from alize.models.ops import choose_experts
from alize.models.registry import family_for, single_weights
from alize.optimize.calibrated_rounding import Inputs, calibrated
from alize.optimize.round_to_integers import Integers, dequantised, quantised
from alize.optimize.rounded import Rounded
from alize.progress import Progress

__all__ = ["LEAST_ROWS", "calibrate"]

LEAST_ROWS = 128
"""Tokens that have to reach an expert: with fewer it is rounded without them."""


def calibrate(
    checkpoint: Checkpoint, rounded: Rounded, sequences: Sequence[NDArray[np.int64]], *, progress: Progress
) -> list[str]:
    """Rounds the matrices of all layers, those that are in `rounded` already excepted. The embedding has to be there.

    sequences: int64 [S] each. Returns the names of what too few tokens reached: it is rounded without calibration. Raises what
    `calibrated` raises, and CorruptCheckpoint for a shard that changed meanwhile.
    """
    with torch.no_grad():  # not inference_mode: threads that round write into what it makes
        return _Walk(checkpoint, rounded).run(sequences, progress)


class _Walk:
    def __init__(self, checkpoint: Checkpoint, rounded: Rounded) -> None:
        family = family_for(checkpoint.config)
        self.checkpoint, self.rounded = checkpoint, rounded
        self.config = family.config.from_dict(checkpoint.config)
        self.weights = single_weights(checkpoint)
        self.missing = set(rounded.missing())
        self.unseen: list[str] = []
        with torch.device("meta"):
            self.model = family.model(self.config)

    def run(self, sequences: Sequence[NDArray[np.int64]], progress: Progress) -> list[str]:
        hidden = [self._embedded(sequence) for sequence in sequences]
        progress.stage(CALIBRATE, steps=self.config.num_layers)
        for index in range(self.config.num_layers):
            layer = self.model.layers[index]
            assert isinstance(layer, Layer)
            prefix = f"model.layers.{index}"
            hidden = self._attention(layer, prefix, hidden)
            norm = self._loaded(layer.post_attention_layernorm, f"{prefix}.post_attention_layernorm")
            feed = self._experts if self.config.num_experts else self._mlp
            hidden = feed(f"{prefix}.mlp", hidden, norm)
            self.checkpoint.check_unchanged()  # what was read is what was hashed
            progress.advance()
        return self.unseen

    def _embedded(self, sequence: NDArray[np.int64]) -> Tensor:
        """[1,S,M]"""
        return dequantised(self.rounded("model.embed_tokens.weight").rows(torch.from_numpy(sequence)))[None]

    def _attention(self, layer: Layer, prefix: str, hidden: list[Tensor]) -> list[Tensor]:
        """The residual stream [1,S,M] after the attention."""
        name = f"{prefix}.self_attn"
        norm = self._loaded(layer.input_layernorm, f"{prefix}.input_layernorm")
        self._round([f"{name}.{part}_proj.weight" for part in "qkv"], (norm(states)[0] for states in hidden))
        attention = self._loaded(layer.self_attn, name)
        heads: list[Tensor] = []
        attention.get_submodule("o_proj").register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
        for states in hidden:
            count = states.shape[1]
            empty = torch.empty(1, self.config.num_kv_heads, 0, self.config.head_size)
            attention(
                norm(states), self.model.angles(torch.arange(count)[None]), torch.ones(1, count, dtype=torch.int64), empty, empty
            )
        del attention
        output = f"{name}.o_proj.weight"
        self._round([output], (rows[0] for rows in heads))
        weight = self._value(output)
        return [states + F.linear(rows, weight) for states, rows in zip(hidden, heads, strict=True)]

    def _mlp(self, name: str, hidden: list[Tensor], norm: nn.Module) -> list[Tensor]:
        """The residual stream after a plain MLP."""
        rows = [norm(states)[0] for states in hidden]
        answers = self._swiglu(name, rows)
        return [states + answer for states, answer in zip(hidden, answers, strict=True)]

    def _experts(self, name: str, hidden: list[Tensor], norm: nn.Module) -> list[Tensor]:
        """The residual stream after a mixture: each expert is rounded for the tokens that chose it."""
        stream = torch.cat([states[0] for states in hidden])  # [n,M]
        x = norm(stream)
        logits = F.linear(x, self._value(f"{name}.gate.weight")).float()
        chosen = choose_experts(logits, self.config.experts_per_token)
        shares = torch.softmax(logits.gather(1, chosen), dim=-1)
        for expert in range(self.config.num_experts):
            row, slot = (chosen == expert).nonzero(as_tuple=True)
            stack = f"{name}.experts.{expert}"
            answers = self._swiglu(stack, [x[part] for part in torch.split(row, 512)])
            if len(row):
                stream.index_add_(0, row, torch.cat(answers) * shares[row, slot, None])
        return [part[None] for part in torch.split(stream, [states.shape[1] for states in hidden])]

    def _swiglu(self, name: str, rows: list[Tensor]) -> list[Tensor]:
        """down(silu(gate(x)) * up(x)) of each [n,M], its three matrices rounded on the way."""
        names = {part: f"{name}.{part}_proj.weight" for part in ("gate", "up", "down")}
        if sum(map(len, rows)) < LEAST_ROWS:
            self._round_unseen(names.values())
        self._round([names["gate"], names["up"]], rows)
        gate, up = self._value(names["gate"]), self._value(names["up"])

        def inner() -> Iterator[Tensor]:
            return (F.silu(F.linear(x, gate)) * F.linear(x, up) for x in rows)

        self._round([names["down"]], inner())
        down = self._value(names["down"])
        return [F.linear(x, down) for x in inner()]

    def _round(self, names: Sequence[str], rows: Iterable[Tensor]) -> None:
        """Rounds matrices that read the same inputs, given as [n,in] some at a time."""
        wanted = [name for name in names if name in self.missing]
        if not wanted:
            return
        size = self.rounded.shapes[wanted[0]][-1]
        gram = torch.zeros(size, size)
        for x in rows:
            gram.addmm_(x.t(), x)
        inputs = Inputs.of(gram)
        for name in wanted:
            self._keep(name, calibrated(name, self._stored(name), self.rounded.forms[name], inputs))

    def _round_unseen(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.missing:
                self._keep(name, quantised(name, self._stored(name), self.rounded.forms[name]))
            self.unseen.append(name)

    def _keep(self, name: str, integers: Integers) -> None:
        self.checkpoint.check_unchanged()
        self.rounded.put(name, integers)
        self.missing.discard(name)

    def _stored(self, name: str) -> Tensor:
        return self.checkpoint.stored(self.weights[name])[0]

    def _value(self, name: str) -> Tensor:
        """What is computed with, float32: the integers where there are some."""
        if name in self.rounded.forms and name not in self.missing:
            return dequantised(self.rounded(name))
        return self._stored(name).float()

    def _loaded(self, module: nn.Module, prefix: str) -> nn.Module:
        """A copy with its weights in memory."""
        copied = copy.deepcopy(module)
        copied.load_state_dict({name: self._value(f"{prefix}.{name}") for name in copied.state_dict()}, assign=True)
        return copied
