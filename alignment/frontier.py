"""Points that are better in several ways at once: the Pareto front, and the volume that it dominates."""

from collections.abc import Mapping, Sequence

from alignment.errors import InputError

Point = Sequence[float]


def front(points: Mapping[str, Point]) -> set[str]:
    """Names of the points that no other one beats: none is as good in every coordinate and better in one."""
    return {name for name, x in points.items() if not any(_beats(y, x) for y in points.values())}


def _beats(y: Point, x: Point) -> bool:
    return tuple(y) != tuple(x) and all(b >= a for a, b in zip(x, y, strict=True))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume of all that some point beats and that beats the reference, larger coordinates being better.

    Exact, by slices along the last coordinate; meant for the few dozen points of a frontier.

    Raises:
        InputError: points of other lengths than the reference.
    """
    if any(len(point) != len(reference) for point in points):
        raise InputError(
            f"points have {sorted({len(p) for p in points})} coordinates and the reference {len(reference)}"
        )
    above = [tuple(point) for point in points if all(x > low for x, low in zip(point, reference))]
    if len(reference) == 1:
        return max((x for (x,) in above), default=reference[0]) - reference[0]
    # From the top down: between two heights, the volume is that of the points that reach the upper one.
    heights = sorted({point[-1] for point in above}, reverse=True)
    total = 0.0
    for height, lower in zip(heights, [*heights[1:], reference[-1]]):
        reaching = [point[:-1] for point in above if point[-1] >= height]
        total += (height - lower) * hypervolume(reaching, reference[:-1])
    return total
