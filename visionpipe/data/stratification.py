"""Iterative stratification: divides images with several labels so that every part has its share of each label.

Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data"
(doi.org/10.1007/978-3-642-23808-6_10), for sets of images that stay together: copies of a picture, or a group. The
label of which the fewest images are left comes first, while there is a choice. Each set that has it goes to the part
that lacks most images of this label, of several such parts to the one that lacks most images. Having no label counts
as one more label, which the paper does not do: it lets such images fill the parts at the end.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence

NO_LABEL = ("",)


def stratified(sets: Sequence[Sequence[Sequence[str]]], shares: Sequence[float], first: int = 0) -> list[int]:
    """Returns the part of each set of images.

    Time grows with the number of all labels of all images. Where choices are equal, the earlier label, set and part
    count, so the order of `sets` is the only chance in the result.

    Args:
        sets: for each set, the labels of each of its images. Of those with a label, larger sets are divided first.
        shares: of the images in each part; they sum to 1.
        first: the part that must have each label: it gets a set with the label, where it would have none.
    """
    counts = [Counter(label for image in images for label in image or NO_LABEL) for images in sets]
    having: dict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(sets)), key=lambda number: -len(sets[number])):
        for label in counts[number]:
            having[label].append(number)
    left = Counter[str]()
    for of_set in counts:
        left.update(of_set)
    total = sum(map(len, sets))
    lacking = [share * total for share in shares]
    lacking_of = {label: [share * count for share in shares] for label, count in left.items()}
    parts = [-1] * len(sets)

    def put(number: int, label: str) -> None:
        part = max(
            places, key=lambda part: (round(lacking_of[label][part], 9), round(lacking[part], 9), -part)
        )
        parts[number] = part
        lacking[part] -= len(sets[number])
        for name, count in counts[number].items():
            lacking_of[name][part] -= count
            left[name] -= count

    places = range(len(shares))
    queue = sorted((count, label) for label, count in left.items())
    while queue:
        count, label = heapq.heappop(queue)
        if count != left[label] or not count:
            continue
        chosen = [number for number in having[label] if parts[number] < 0]
        for number in chosen:
            put(number, label)
        for name in {name for number in chosen for name in counts[number]}:
            heapq.heappush(queue, (left[name], name))
    complete(parts, having, first)
    return parts


def complete(parts: list[int], having: dict[str, list[int]], first: int) -> None:
    """Moves a set with each label that the part `first` lacks to this part."""
    for label in sorted(having):
        if all(parts[number] != first for number in having[label]):
            parts[having[label][-1]] = first
