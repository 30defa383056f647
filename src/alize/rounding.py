"""Rounds a checkpoint's matrices to integers, once a build, in the order of the layers; what is there already is not redone."""

from alize.artifact.pieces import Pieces
from alize.calibration import calibrate
from alize.calibration_text import CalibrationText
from alize.mixing import Mix
from alize.models.checkpoint import Checkpoint
from alize.models.registry import single_weights
from alize.optimize.quantisation import Quantisation
from alize.optimize.round_to_integers import quantised
from alize.optimize.rounded import Rounded
from alize.progress import Progress

__all__ = ["round_weights"]


def round_weights(
    checkpoint: Checkpoint,
    weights: str,
    pieces: Pieces,
    *,
    text: CalibrationText | None = None,
    mix: Mix | None = None,
    progress: Progress,
) -> Rounded | None:
    """The integers of `checkpoint` as `weights` (int4-g128, ...) has them, those in `pieces` as they are, the others made now.
    None where `weights` names a float type. mix: what was chosen, where `weights` names a mix.

    Each matrix is kept as soon as it is made. text: what the layers' matrices are rounded for, see `calibrate`; tables never
    are. Raises CorruptCheckpoint (NaN or infinite weights, a shard that changed
    meanwhile), UnsupportedModel (a scale beyond float16), UsageError (a text that is too short).
    """
    chosen = Quantisation.parse(weights) if mix is None else mix.quantisation
    if chosen is None:
        return None
    sources = single_weights(checkpoint)
    rounded = Rounded.of(sources, chosen, pieces)
    plain = [name for name in rounded.forms if text is None or not name.startswith("model.layers.")]
    sizes = {name: checkpoint.tensors[sources[name].sources[0]].size for name in plain}
    progress.stage(f"round to {chosen.kind}", total_bytes=sum(sizes.values()))
    missing = set(rounded.missing())
    for name in plain:
        if name in missing:
            integers = quantised(name, checkpoint.stored(sources[name])[0], rounded.forms[name])
            checkpoint.check_unchanged()  # what was read is what was hashed
            rounded.put(name, integers)
        progress.advance(sizes[name])
    if text is not None:
        unseen = calibrate(checkpoint, rounded, text.sequences(checkpoint), progress=progress)
        if unseen:
            progress.note(f"{len(unseen)} matrices of experts that the text hardly reached are not calibrated, as {unseen[0]}")
    return rounded
