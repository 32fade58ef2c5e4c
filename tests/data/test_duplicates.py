"""What is measured on original pictures, and which pictures count as copies of others."""

import io

import numpy as np
import pytest
from flowers import flower
from PIL import Image, ImageEnhance
from scipy.fft import dctn
from scipy.ndimage import laplace
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from visionpipe.data import duplicates
from visionpipe.data.alignment import aligned
from visionpipe.data.decode import decode_image
from visionpipe.data.duplicates import (
    PLAIN,
    TURNS,
    Groups,
    copies_between,
    find_copies,
    near_hashes,
    same_colours,
    turned,
    turned_hashes,
)
from visionpipe.data.measures import (
    HASH_SIDE,
    RECORD,
    derive,
    hashes,
    measure,
    quantisation,
    read_measured,
    records,
    sharpness,
)
from visionpipe.errors import DataError

RANDOM = np.random.default_rng(3)


def scene(seed: int, side: int = 96) -> Image.Image:
    """A smooth picture with colours and shapes of its own."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (13, 13, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def groups_of(files: list[bytes], folder, **options) -> np.ndarray:
    pictures = [decode_image(data) for data in files]
    digests = np.array([np.frombuffer(picture.tobytes()[:32], np.uint8) for picture in pictures])
    measured = np.frombuffer(records(list(map(measure, pictures, files))), RECORD)
    measures = read_measured(measured, folder / "thumbnails")
    return find_copies(digests, measures, **{"quiet": True} | options)


def test_a_hash_is_the_signs_of_the_cosine_transform():
    thumbnails = RANDOM.normal(128, 40, (5, 32, 32)).astype(np.float32)
    expected = dctn(thumbnails, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE] > 0
    expected[:, 0, 0] = False
    assert np.array_equal(np.unpackbits(hashes(thumbnails), axis=1).reshape(expected.shape), expected)


@pytest.mark.parametrize("turn", [*PLAIN, *TURNS])
def test_the_hash_of_a_turned_picture_follows_from_the_bits(turn):
    thumbnails = RANDOM.normal(128, 40, (20, 32, 32)).astype(np.float32)
    assert np.array_equal(turned_hashes(hashes(thumbnails), turn), hashes(turned(thumbnails, turn)))


def test_turns_are_those_that_their_names_say():
    picture = scene(1)
    grids = np.array(picture)[None]
    for turn, transposition in {
        "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
        "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
        "turned by 90°": Image.Transpose.ROTATE_90,
        "turned by 180°": Image.Transpose.ROTATE_180,
        "turned by 270°": Image.Transpose.ROTATE_270,
        "transposed": Image.Transpose.TRANSPOSE,
        "transversed": Image.Transpose.TRANSVERSE,
    }.items():
        assert np.array_equal(turned(grids, turn)[0], np.array(picture.transpose(transposition))), turn


def test_measures_are_those_of_other_libraries():
    grey = RANDOM.integers(0, 256, (40, 30), dtype=np.uint8)
    assert sharpness(grey[None])[0] == pytest.approx(laplace(grey.astype(float))[1:-1, 1:-1].var(), rel=1e-4)
    for quality in (5, 30, 75, 95):
        data = encoded(scene(2), "JPEG", quality=quality)
        assert quantisation(data) == pytest.approx(np.mean(Image.open(io.BytesIO(data)).quantization[0]))
    assert (
        quantisation(encoded(scene(2)))
        == quantisation(b"\xff\xd8")
        == quantisation(b"\xff\xd8\xff\xdb\0")
        == 0
    )


def test_colours_brightness_border_and_corners_are_means_of_the_picture():
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48], pixels[:8, 84:] = (200, 100, 0), (0, 0, 250)
    derived = derive(np.frombuffer(records([measure(pixels, b"\x89PNG\r\n\x1a\n")]), RECORD))
    assert derived["corners"][0].round() == pytest.approx(
        np.array([[200, 100, 0], [0, 0, 250], [200, 100, 0], [0, 0, 0]]), abs=8
    )
    assert derived["brightness"][0] == pytest.approx((pixels @ [0.299, 0.587, 0.114]).mean(), rel=0.02)
    assert derived["colour"][0, 4, 1].tolist() == [200, 100, 0]
    assert derived["border"][0] == pytest.approx(np.array([107, 54, 8]), abs=8)
    assert (derived["height"], derived["width"], derived["bytes"]) == (64, 96, 8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3), (700, 20)])
def test_pictures_of_every_shape_are_measured(shape):
    pixels = RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)
    derived = derive(np.frombuffer(records([measure(pixels, b"")]), RECORD))
    assert all(np.isfinite(values).all() for values in derived.values())


EDITS = {
    "JPEG of quality 40": lambda picture: encoded(picture, "JPEG", quality=40),
    "half the size": lambda picture: encoded(picture.resize((48, 48))),
    "darker": lambda picture: encoded(ImageEnhance.Brightness(picture).enhance(0.7)),
    "less contrast": lambda picture: encoded(ImageEnhance.Contrast(picture).enhance(0.7)),
    "mirrored": lambda picture: encoded(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "turned": lambda picture: encoded(picture.transpose(Image.Transpose.ROTATE_90)),
}


def test_edited_copies_form_groups_and_other_pictures_do_not(tmp_path):
    files = [encoded(scene(seed)) for seed in range(20)]
    edited = [edit(scene(seed)) for seed, edit in enumerate(EDITS.values())]
    found = groups_of(files + edited, tmp_path, turns=PLAIN + TURNS)
    assert found[20:].tolist() == list(range(len(EDITS))), list(EDITS)
    assert found[:20].tolist() == [*range(len(EDITS)), *[-1] * (20 - len(EDITS))]


def test_crops_and_small_rotations_are_found_by_alignment_and_not_without(tmp_path):
    originals = [scene(seed) for seed in range(12)]
    edited = [
        originals[0].crop((4, 2, 94, 92)),
        originals[1].crop((0, 6, 86, 92)).resize((80, 80)),
        originals[2].resize((192, 192)).rotate(5, Image.Resampling.BICUBIC).crop((10, 10, 182, 182)),
        originals[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((3, 3, 92, 92)),
    ]
    files = [encoded(picture) for picture in [*originals, *edited]]
    assert groups_of(files, tmp_path, align=True)[12:].tolist() == [0, 1, 2, 3]
    assert (groups_of(files, tmp_path, align=True)[4:12] == -1).all()
    assert (groups_of(files, tmp_path)[12:15] == -1).all()
    small = [encoded(picture.resize((40, 40))) for picture in [*originals, *edited]]
    assert (groups_of(small, tmp_path, align=True)[12:15] == -1).all()


def test_other_colours_are_another_picture(tmp_path):
    shapes = np.array(scene(4).convert("L"))[..., None] / 255
    flag, other = (
        (shapes * colour + (1 - shapes) * np.array([250, 250, 250])).astype(np.uint8)
        for colour in (np.array([0, 60, 220]), np.array([140, 20, 0]))
    )
    copy = encoded(Image.fromarray(flag), "JPEG", quality=60)
    files = [encoded(Image.fromarray(flag)), encoded(Image.fromarray(other)), copy]
    assert groups_of(files, tmp_path).tolist() == [0, -1, 0]


def test_plain_pictures_are_copies_only_if_they_are_equal(tmp_path):
    files = [encoded(Image.new("RGB", (50, 50), (level,) * 3)) for level in (10, 10, 11, 200)]
    assert groups_of(files, tmp_path).tolist() == [0, 0, -1, -1]


def test_the_search_by_tiles_finds_what_comparing_all_pairs_finds(monkeypatch):
    monkeypatch.setattr(duplicates, "TILE", (16, 24))
    bits = RANDOM.integers(0, 2, (70, 256), dtype=np.uint8)
    for row in range(35):  # pairs around the limit
        bits[row + 35] = bits[row]
        bits[row + 35, RANDOM.choice(256, 15 + row, replace=False)] ^= 1
    packed = np.packbits(bits, axis=1)
    found = {
        (int(one), int(other))
        for left, right in near_hashes(packed, packed, tqdm(disable=True))
        for one, other in zip(left, right, strict=True)
    }
    distance = (bits[:, None] != bits[None]).sum(axis=2)
    expected = {(i, j) for i, j in np.argwhere(distance <= 32).tolist() if i < j}
    assert found == expected
    assert len(expected) >= 15


def test_groups_are_the_connected_components():
    left, right = RANDOM.integers(0, 300, (2, 170))
    groups = Groups(np.arange(300))
    for start in range(0, 170, 20):
        groups.add(left[start : start + 20], right[start : start + 20])
    _, expected = connected_components(
        coo_array((np.ones(170), (left, right)), shape=(300, 300)), directed=False
    )
    numbers = groups.numbered()
    alone = np.bincount(expected)[expected] == 1
    assert (numbers[alone] == -1).all()
    assert (
        len(set(zip(numbers[~alone], expected[~alone], strict=True)))
        == numbers.max() + 1
        == len(set(expected[~alone]))
    )


def test_alignment_recovers_a_known_map_and_refuses_another_picture():
    grey = [np.array(scene(seed, 400).convert("L")) for seed in (5, 6)]
    whole, other = (Image.fromarray(picture).resize((32, 32)) for picture in grey)
    part = Image.fromarray(grey[0]).crop((30, 0, 380, 350)).resize((32, 32))
    brighter = part.point(lambda level: 40 + 0.7 * level)
    one = np.array([np.array(whole)] * 3)
    others = np.array([np.array(part), np.array(brighter), np.array(other)])
    grey = np.full((3, 8, 8, 3), 128, np.uint8)
    assert aligned(one, others, grey, grey).tolist() == [True, True, False]
    assert aligned(one[:0], others[:0], grey[:0], grey[:0]).tolist() == []
    blue = grey * np.array([0, 0, 1], np.uint8)
    assert aligned(one, others, grey, blue).tolist() == [False, False, False]


def test_simple_pictures_are_no_crops_of_each_other():
    """Flowers on plain meadows agree after one affine map or another, so a map alone proves nothing."""
    random = np.random.default_rng(0)
    pictures = [
        flower(name, random).resize((80, 80)) for name in ("daisy", "rose", "tulip") for _ in range(20)
    ]
    thumbnails = np.array([np.array(picture.convert("L").resize((32, 32))) for picture in pictures])
    colours = np.array([np.array(picture.resize((8, 8))) for picture in pictures])
    left, right = np.triu_indices(60, 1)
    assert aligned(thumbnails[left], thumbnails[right], colours[left], colours[right]).mean() < 0.002


def test_colours_that_hardly_differ_are_the_same():
    grey = np.full((1, 8, 8, 3), 128, np.uint8)
    tinted = grey + np.array([4, 0, 0], np.uint8)
    red = grey + np.array([90, 0, 0], np.uint8)
    assert same_colours(grey, tinted).all()
    assert not same_colours(grey, red).any()


def test_copies_between_splits():
    copies = {"train": np.array([0, -1, 1]), "validation": np.array([2, 1]), "test": np.array([-1, 2, 0, 3])}
    assert copies_between(copies, "validation", ["train"]).tolist() == [False, True]
    assert copies_between(copies, "test", ["train", "validation"]).tolist() == [False, True, True, False]


def test_a_search_in_too_many_images_is_refused(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST", 3)
    with pytest.raises(DataError, match=r"up to 3 images, and there are 4: remove prepare\.duplicates"):
        find_copies(np.zeros((4, 32), np.uint8), {})
