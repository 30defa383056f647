"""The benchmark behind the limit of compile fidelity: on a tiny model too an off-by-one window is far beyond it."""

import json

from alize.models.checkpoint import Checkpoint
from benchmarks.window_margin import compare
from tests.builds.conftest import WINDOW, BuiltOnce


def test_an_off_by_one_window_is_far_beyond_the_limit(built: BuiltOnce) -> None:
    found = json.loads(json.dumps(compare(Checkpoint.open(built("onnxruntime").checkpoint), ["onnxruntime"])))
    assert (found["window"], found["tokens"], found["fidelity_factor"]) == (WINDOW, 2 * WINDOW + 3, 30.0)
    windows = found["targets"]["onnxruntime"]
    assert windows["W"]["structure_check"] is None
    for case in windows["W"]["cases"].values():
        assert case["times_floor"] < 30
        assert case["positions_over_limit"] == 0
    for name, first in {"W-1": WINDOW - 1, "W+1": WINDOW}.items():
        assert windows[name]["structure_check"].startswith("layer 0: ")
        assert windows[name]["cases"]["one append"]["first_over_limit"] == first
        assert all(case["times_floor"] > 300 for case in windows[name]["cases"].values())
