"""Where a window begins to matter: the positions at which a wrong window shows."""

from collections.abc import Iterable, Sequence

__all__ = ["clusters", "edge_names"]


def edge_names(windows: Sequence[int]) -> dict[int, str]:
    """Position -> its name, of the windows of all layers (0 = full attention has no edge).

    Position W-1 is the last that sees every token before it, W the first that does not, 2W the first of which no key of the
    first window is left in any cache.
    """
    distinct = sorted({window for window in windows if window})
    names: dict[int, str] = {}
    for window in distinct:
        letter = "W" if len(distinct) == 1 else str(window)
        twice = "2W" if len(distinct) == 1 else f"2·{window}"
        marks = ((window - 1, f"{letter}−1"), (window, letter), (window + 1, f"{letter}+1"), (2 * window, twice))
        for position, name in marks:
            names.setdefault(position, name)
    return names


def clusters(positions: Iterable[int], reach: int) -> list[list[int]]:
    """Positions in order, those within `reach` of their neighbour together."""
    groups: list[list[int]] = []
    for position in sorted(set(positions)):
        if groups and position - groups[-1][-1] <= reach:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups
