"""The frames of one series sorted into volumes: one place, one frame.

A series may hold several volumes: slice directions, stacks of an enhanced object, and time points,
echoes or diffusion weightings at the same places. Header fields tell the last apart where they do,
the order of acquisition where they do not; the same pixels twice at one place are a repeat.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shards.dicom.facts import LOCALISER_SLICES, MAX_DIRECTIONS
from shards.dicom.frames import LABELS, Frame, label
from shards.dicom.geometry import SAME_PLACE_MM
from shards.dicom.values import same_direction
from shards.policy import Policy
from shards.scan import ScanError

REPEATED, OTHER_TIME = "a repeat of the same slice", "another volume at the same place"
Frames = list[Frame]
Places = list[Frames]  # the frames at each place, the places in order along the normal
IsSame = Callable[[Frame, Frame], bool]


@dataclass(frozen=True)
class Volumes:
    """Frames of each volume in order along the normal.

    Attributes:
        volumes: In the order of their labels or of acquisition.
        left_out: Frames that are no part of any, by reason.
    """

    volumes: tuple[Frames, ...]
    left_out: dict[str, Frames] = field(default_factory=dict)


def split_stacks(frames: Sequence[Frame], *, policy: Policy) -> list[Frames]:
    """One list for each slice direction and stack.

    Raises:
        ScanError: More directions than the policy allows, or than a volume can have.
    """
    directions: list[Frames] = []
    for frame in frames:
        for known in directions:
            if _is_parallel(known[0], frame):
                known.append(frame)
                break
        else:
            directions.append([frame])
        if len(directions) > MAX_DIRECTIONS:
            raise ScanError("slices of many directions (radial or rotating), no volume")
    if len(directions) > 1:
        if policy.orientations == "reject":
            raise ScanError("several slice directions in one series")
        few = max(len(one) for one in directions) <= LOCALISER_SLICES
        if few and policy.localisers == "reject":
            raise ScanError("a localiser, not a scan")
    return [stack for one in directions for stack in _by_label(one, "StackID")]


def split_volumes(stack: Sequence[Frame], *, policy: Policy, is_same: IsSame) -> Volumes:
    """The volumes of frames that share a direction.

    Args:
        stack: In any order.
        policy: Of repeats and of time points.
        is_same: Whether two frames hold the same pixels; it decodes them, so it is asked last.

    Raises:
        ScanError: The policy refuses what is there, or nothing tells the frames of a place apart.
    """
    places = _places(stack)
    left_out: dict[str, Frames] = {}
    volumes = None
    if all(len(place) == 1 for place in places):
        volumes = [[place[0] for place in places]]
    elif not _all_repeats(places, is_same):
        volumes = _complete(places)
    if volumes is None:
        places, repeats = _without_repeats(places, is_same)
        if repeats and policy.repeated_slices == "reject":
            raise ScanError("the same slice more than once")
        left_out = {REPEATED: repeats} if repeats else {}
        volumes = _complete(places) or _incomplete(places)
    if len(volumes) > 1 and policy.time_points == "reject":
        raise ScanError(f"{len(volumes)} volumes at one place (time points, echoes and the like)")
    if policy.time_points == "first" and len(volumes) > 1:
        left_out[OTHER_TIME] = [frame for one in volumes[1:] for frame in one]
        volumes = volumes[:1]
    return Volumes(tuple(volumes), left_out)


def _is_parallel(one: Frame, other: Frame) -> bool:
    mine, theirs = ([*frame.along_columns, *frame.along_rows] for frame in (one, other))
    return same_direction(mine, theirs)


def _places(stack: Sequence[Frame]) -> Places:
    """Frames at one position together; each place in the order of acquisition."""
    normal = stack[0].normal
    inside = sorted(stack, key=lambda frame: (float(normal @ frame.position), frame.order))
    places: Places = []
    for frame in inside:
        apart = np.linalg.norm(frame.position - places[-1][0].position) if places else np.inf
        if apart <= SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    return [sorted(place, key=lambda frame: frame.order) for place in places]


def _all_repeats(places: Places, is_same: IsSame) -> bool:
    """Every place that holds several frames holds one image."""
    # From the middle: what lies at the ends is often empty, in every time point.
    order = sorted(range(len(places)), key=lambda number: abs(number - len(places) // 2))
    return all(is_same(places[one][0], frame) for one in order for frame in places[one][1:])


def _without_repeats(places: Places, is_same: IsSame) -> tuple[Places, Frames]:
    kept: Places = []
    repeats: Frames = []
    for place in places:
        images: Frames = []
        for frame in place:
            found = repeats if any(is_same(one, frame) for one in images) else images
            found.append(frame)
        kept.append(images)
    return kept, repeats


def _complete(places: Places) -> list[Frames] | None:
    """Volumes that each have every place: by labels, or else by the order of acquisition."""
    if len({len(place) for place in places}) > 1:
        return None
    count, groups = len(places), [[frame for place in places for frame in place]]
    for tag in LABELS:
        if len(groups[0]) == count:
            break
        finer = [part for group in groups for part in _by_label(group, tag)]
        sizes = {len(part) for part in finer}
        if len(sizes) == 1 and all(_is_balanced(part, places) for part in finer):
            groups = finer
    if len(groups[0]) == count:
        return [_along_normal(group) for group in groups]
    if len({frame.order for place in places for frame in place}) == len(places) * len(places[0]):
        return [list(volume) for volume in zip(*places, strict=True)]
    return None


def _incomplete(places: Places) -> list[Frames]:
    """Volumes of which one has not every place, as where a time series was stopped."""
    frames = [frame for place in places for frame in place]
    if len(frames) == len(places):
        return [frames]
    for tag in LABELS:
        groups = _by_label(frames, tag)
        if len(groups) > 1 and all(_is_one_each(group) for group in groups):
            return [_along_normal(group) for group in groups]
    raise ScanError("several images at the same position that nothing in the header tells apart")


def _is_balanced(group: Frames, places: Places) -> bool:
    """The same number of frames at every place."""
    found = _places(group)
    return len(found) == len(places) and len({len(place) for place in found}) == 1


def _is_one_each(group: Frames) -> bool:
    return all(len(place) == 1 for place in _places(group))


def _along_normal(group: Frames) -> Frames:
    return [place[0] for place in _places(group)]


def _by_label(frames: Iterable[Frame], tag: str) -> list[Frames]:
    """Groups of one value, in the order of their values; numbers by size."""
    groups: dict[str, Frames] = {}
    for frame in frames:
        groups.setdefault(label(frame.header, tag), []).append(frame)
    return [groups[name] for name in sorted(groups, key=_rank)]


def _rank(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
