"""Warns of what is lost between the image files and the prepared pixels: cut off sides, and grey levels."""

from collections import Counter
from collections.abc import Iterator

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decoding import Usable
from visionpipe.data.levels import OpenLevels

MOST_CUT_OFF = 0.4  # of an image's area
MANY = 0.2  # of all images
MOST_OF_A_CLASS = 0.5
DEPTHS = (8, 10, 12, 14, 15)  # bits that cameras and scanners use of 16
NEARLY_ALL = 0.9  # of the images; the rest may have a damaged pixel, or a mark that was drawn into it


def losses(usable: list[Usable], config: PrepareConfig) -> list[str]:
    """Returns warnings, with the key of params.yaml that avoids each loss."""
    deep = [image.open_levels for image in usable if image.open_levels]
    return [*cut_off(usable, config), *unused_levels(deep), *stretched_levels(deep)]


def cut_off(usable: list[Usable], config: PrepareConfig) -> Iterator[str]:
    """Warns where the central crop removes more than MOST_CUT_OFF of many images, or of most of a class."""
    if config.framing != "crop":
        return
    cropped = [image for image in usable if share_cut_off(image.size, config) > MOST_CUT_OFF]
    classes = Counter(name for image in usable for name in image.names)
    of_class = Counter(name for image in cropped for name in image.names)
    hit = [name for name, count in of_class.items() if count > MOST_OF_A_CLASS * classes[name]]
    if len(cropped) > MANY * len(usable) or hit:
        shares = sorted(share_cut_off(image.size, config) for image in cropped)
        where = "" if len(cropped) > MANY * len(usable) else f", and most of the class {hit[0]!r}"
        yield (
            f"the sides of {len(cropped):,} of {len(usable):,} images are cut off{where}: of these, half lose "
            f"{shares[len(shares) // 2]:.0%} of their area or more; prepare.framing: pad shows all of them"
        )


def share_cut_off(size: tuple[int, int], config: PrepareConfig) -> float:
    """Returns the share of an image's area that the central crop removes because of the image's shape."""
    (height, width), (target_height, target_width) = size, config.size
    ratio = (height * target_width) / (width * target_height)
    return 1 - min(ratio, 1 / ratio)


def unused_levels(deep: list[OpenLevels]) -> Iterator[str]:
    """Warns where 16-bit images use the lower levels only, so that they become dark."""
    largest = sorted(image.highest for image in deep if not image.stretched)
    if not largest:
        return
    typical = largest[int(NEARLY_ALL * (len(largest) - 1))]
    for bits in DEPTHS:
        white = 2**bits - 1
        if typical <= white:
            dark = sum(level <= white for level in largest)
            yield (
                f"{dark:,} of {len(largest):,} 16-bit images have no level above {white:,}, but 65,535 is white, so "
                f"they become dark: set prepare.levels: [0, {white}] if that is their white"
            )
            return


def stretched_levels(deep: list[OpenLevels]) -> Iterator[str]:
    """Warns where images of floats or 32-bit integers are scaled each by itself."""
    stretched = [image for image in deep if image.stretched]
    if stretched:
        lowest, highest = min(image.lowest for image in stretched), max(image.highest for image in stretched)
        yield (
            f"{len(stretched):,} image{'s' if len(stretched) > 1 else ''} of floats or 32-bit integers do not say "
            f"which level is white, so each is stretched by itself: set prepare.levels: [{lowest:g}, {highest:g}], "
            "or another range, for one scale"
        )
