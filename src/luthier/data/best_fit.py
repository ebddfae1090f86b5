"""lengths -> groups that fill bins of one size, none broken up."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Groups of at most `size` tokens, by best fit decreasing (Johnson 1974): 11/9 of the fewest.

    The longest come first, each into the fullest group that has room for it, of equals into the
    one that was opened last.

    Args:
        lengths: none above `size`.
        size: the most tokens of a group.

    Returns:
        Numbers of the lengths; ascending in a group, and groups by the first number in them.
    """
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        length = lengths[number]
        assert length <= size, (length, size)
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            group = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
            groups[group].append(number)
        else:
            room, group = size, len(groups)
            groups.append([number])
        room -= length
        if room:
            if room not in by_room:
                by_room[room] = []
                insort(rooms, room)
            by_room[room].append(group)
    return sorted(map(sorted, groups))
