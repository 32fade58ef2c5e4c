"""Splits, groups, folds and decisions: no group is in two splits, and nothing moves that was not asked to."""

import csv
import io
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.data.config import DECISIONS_HEADER, PrepareConfig, TableConfig
from visionpipe.data.decisions import append_undecided, read_decisions
from visionpipe.data.decoding import Usable
from visionpipe.data.groups import join_groups, united
from visionpipe.data.prepared import PREPARED, SPLITS, open_prepared
from visionpipe.data.splits import draw_folds, draw_splits
from visionpipe.errors import DataError
from visionpipe.project.lineage import prepare_params
from visionpipe.project.params import Params
from visionpipe.stages.prepare import prepare

GROUPED = PrepareConfig("folder", "x", group=r"(\d+)_")
UNGROUPED = PrepareConfig("folder", "x")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def image(number, group=None, name="a", split=None):
    return Usable(split, name, f"{name}/{number}.png", f"{number:032d}".encode(), (9, 9), None, group)


def places(usable, config=GROUPED, seed=0, given=frozenset()):
    splits = draw_splits(usable, given, config, seed)
    assert sorted(row for rows in splits.values() for row in rows) == list(range(len(usable)))
    return {usable[row].file: split for split, rows in splits.items() for row in rows}


# The draw


def test_images_that_come_and_go_move_no_image_of_a_group():
    generator = random.Random(0)
    everything = [image(n, str(generator.randrange(60)) if n % 5 else None, "abc"[n % 3]) for n in range(600)]
    all_places = places(everything)
    for _ in range(50):
        subset = generator.sample(everything, generator.randrange(100, 600))
        assert places(subset).items() <= all_places.items()


def test_no_group_is_in_two_splits_and_the_shares_are_about_those_asked_for():
    usable = [image(n, str(n // 4), "ab"[n % 2]) for n in range(8000)]
    drawn = places(usable)
    splits = defaultdict(set)
    for one in usable:
        splits[one.group].add(drawn[one.file])
    assert set(map(len, splits.values())) == {1}
    counts = Counter(drawn.values())
    # of 2,000 groups, five standard deviations
    assert counts["test"] / 8000 == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 2000) ** 0.5)
    assert counts["validation"] / 8000 == pytest.approx(0.16, abs=5 * (0.16 * 0.84 / 2000) ** 0.5)
    of_a = Counter(split for file, split in drawn.items() if file.startswith("a/"))
    assert of_a["test"] / 4000 == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 2000) ** 0.5)
    assert places(usable, seed=1) != drawn


def test_few_groups_are_in_all_splits_too():
    for seed in range(20):
        usable = [image(n, str(n % 3)) for n in range(9)]
        assert Counter(Counter(places(usable, seed=seed).values()).values()) == {3: 3}


def test_a_group_in_two_given_splits_is_refused_with_an_example():
    usable = [image(1, "p", split="train"), image(2, "p", split="test"), image(3, "q", split="train")]
    with pytest.raises(DataError) as caught:
        places(usable, given=frozenset({"train", "test"}))
    assert str(caught.value) == (
        "prepare.group: the group 'p' is in two of the splits that the images come with: 'a/1.png' in train and "
        "'a/2.png' in test: move these images, or drop those in one of the splits in decisions.csv"
    )


def test_without_prepare_group_decided_groups_stay_whole_and_the_others_where_they_were():
    usable = [image(n, name="ab"[n % 2]) for n in range(200)]
    before = places(usable, UNGROUPED)
    together = [replace(one, group="same") if n < 7 else one for n, one in enumerate(usable)]
    after = places(together, UNGROUPED)
    assert len({after[one.file] for one in together[:7]}) == 1
    assert sum(before[one.file] != after[one.file] for one in usable[7:]) <= 7


def test_united_rows_are_those_that_a_chain_of_keys_connects():
    assert united([["x"], ["y"], ["x", "z"], [], ["z"], ["y"]]) == [0, 1, 0, 3, 0, 1]
    generator = random.Random(0)
    keys = [{generator.randrange(80) for _ in range(generator.randrange(3))} for _ in range(60)]
    reached = [{row} for row in range(60)]  # the closure, by brute force
    for _ in range(60):
        for row, others in enumerate(reached):
            for other in range(60):
                if any(keys[one] & keys[other] for one in others):
                    reached[row] = others | {other}
                    others = reached[row]
    assert united(keys) == [min(others) for others in reached]


def test_an_image_that_joins_two_groups_of_different_splits_is_left_out_and_moves_none():
    usable = [image(n, str(n % 40)) for n in range(80)]
    drawn = places(usable)
    train, test = (next(n for n in range(40) if drawn[f"a/{n}.png"] == split) for split in ("train", "test"))
    other = next(n for n in range(40) if n != train and drawn[f"a/{n}.png"] == "train")
    usable.append(image(99))
    joined, left_out = join_groups(usable, [[train, 80], [80, test]], frozenset(), GROUPED, 0)
    assert set(left_out) == {80, train}  # the new one, and the training image like a test image
    assert "a copy in two groups that are in different splits" in left_out[80]
    assert joined[:80] == usable[:80]
    joined, left_out = join_groups(usable, [[train, 80, other]], frozenset(), GROUPED, 0)
    assert left_out == {}
    assert joined[80].group == usable[train].group
    assert places(joined).items() >= drawn.items()


def test_sets_without_a_group_become_one():
    usable = [image(n) for n in range(6)]
    for config in (GROUPED, UNGROUPED):
        joined, _ = join_groups(usable, [[0, 3], [3, 5]], frozenset(), config, 0)
        assert joined[0].group == joined[3].group == joined[5].group == "pictures like a/0.png"
        assert [one.group for one in (joined[1], joined[2], joined[4])] == [None] * 3


# Folds


def test_folds_keep_groups_together_spread_classes_evenly_and_leave_test_alone():
    generator = np.random.default_rng(0)
    usable = [
        image(n, str(group), "abc"[group % 3]) for n, group in enumerate(generator.integers(0, 90, 900))
    ]
    splits = draw_splits(usable, frozenset(), GROUPED, 0)
    folds = draw_folds(usable, splits, 5, 0)
    assert set(folds) == {*splits["train"], *splits["validation"]}
    of_group = defaultdict(set)
    for row, fold in folds.items():
        of_group[usable[row].group].add(fold)
    assert set(map(len, of_group.values())) == {1}
    for name in "abc":
        counts = Counter(fold for row, fold in folds.items() if usable[row].class_name == name)
        assert len(counts) == 5
        assert max(counts.values()) - min(counts.values()) <= 12  # images of about one group


def test_folds_of_images_without_groups_differ_by_one_image_of_a_class():
    usable = [image(n, name="aab"[n % 3]) for n in range(100)]
    folds = draw_folds(
        usable, {"train": list(range(70)), "validation": list(range(70, 90)), "test": []}, 4, 0
    )
    for name in "ab":
        counts = Counter(fold for row, fold in folds.items() if usable[row].class_name == name)
        assert max(counts.values()) - min(counts.values()) <= 1


# Through the stage


def picture(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def write_images(count=40, root="images"):
    for seed in range(count):
        file = Path(root, "ab"[seed % 2], f"p{seed // 4}_{seed}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(seed))


def run(source="folder", path="images", **options):
    prepare(Params(PrepareConfig(source, path, **({"size": (8, 8)} | options)), models={}))
    return open_prepared(PREPARED)


def all_files(prepared):
    return {file: split for split in SPLITS for file in prepared.files(split)}


def prepared_bytes():
    return {path.name: path.read_bytes() for path in PREPARED.iterdir()}


def decide(*rows):
    Path("decisions.csv").write_bytes(DECISIONS_HEADER + "".join(f"{row}\n" for row in rows).encode())


def test_a_pattern_names_the_groups_which_become_metadata():
    write_images()
    Path("images/a/lonely.png").write_bytes(picture(99))
    prepared = run(group=r"/(p\d+)_")
    splits = defaultdict(set)
    for split in SPLITS:
        for file, group in zip(prepared.files(split), prepared.metadata(split)["group"], strict=True):
            assert group == (file.split("/")[1].split("_")[0] if "_" in file else "")
            splits[group].add(split)
    del splits[""]
    assert set(map(len, splits.values())) == {1}
    assert prepared.manifest["warnings"][1] == (
        "images without a group, each of which is a group of its own: 1, such as 'a/lonely.png'; the others are in 10 "
        "groups"
    )
    with pytest.raises(DataError, match=r"no image has a group: .* matches no path, such as 'a/lonely.png'"):
        run(group="(patient)")


def test_a_table_of_groups_weights_and_metadata_is_prepared():
    write_images()
    lines = [
        f"{seed % 2},p{seed // 4},{'ab'[seed % 2]}/p{seed // 4}_{seed}.png,{seed % 3},left,{seed}"
        for seed in range(40)
    ]
    Path("images/labels.csv").write_text("\n".join(["dx,patient,image,w,side,age", *lines]))
    table = TableConfig(file="image", label="dx", group="patient", weight="w")
    prepared = run("table", table=table)
    assert prepared.classes == ["0", "1"]
    assert prepared.manifest["columns"] == ["patient", "side", "age"]
    for split in SPLITS:
        metadata = prepared.metadata(split)
        seeds = [int(file.split("_")[1].removesuffix(".png")) for file in prepared.files(split)]
        assert metadata["age"] == [str(seed) for seed in seeds]
        assert metadata["patient"] == [f"p{seed // 4}" for seed in seeds]
        assert prepared.labels(split).tolist() == [seed % 2 for seed in seeds]
        if split == "train":
            np.testing.assert_array_equal(prepared.weights(), np.float32([seed % 3 for seed in seeds]))
    unweighted = run("table", table=replace(table, weight=None))
    assert unweighted.weights() is None
    assert unweighted.manifest["content_sha256"] != prepared.manifest["content_sha256"]
    assert unweighted.manifest["columns"] == ["patient", "w", "side", "age"]
    same = run("table", table=TableConfig(file="image", label="dx"), group="patient")
    assert same.manifest == unweighted.manifest


def test_folds_stand_outside_the_identity_of_the_data():
    write_images()
    before = run()
    assert before.folds() is None
    prepared = run(folds=3)
    assert prepared.manifest["content_sha256"] == before.manifest["content_sha256"]
    for split, folds in prepared.folds().items():
        assert len(folds) == len(prepared.files(split))
    assert set(np.concatenate([*prepared.folds().values()])) == {0, 1, 2}


def test_defaults_of_new_keys_are_in_no_key_of_a_training():
    written = prepare_params(PrepareConfig("folder", "x"))
    assert set(written) == {
        "source", "path", "name", "size", "interpolation", "crop_ratio", "validation_fraction", "test_fraction",
    }  # fmt: skip
    assert prepare_params(PrepareConfig("folder", "x", folds=3))["folds"] == 3


# Decisions


def test_undecided_rows_change_no_byte_of_the_prepared_data():
    write_images()
    run()
    before = prepared_bytes()
    decide("a/p0_0.png,label error,b,", "nowhere.png,blurred,,", "b/p0_1.png,dark,,keep")
    run()
    assert prepared_bytes() == before


def test_decided_rows_are_obeyed_counted_and_listed(capsys):
    write_images()
    before = all_files(run())
    decide(
        "a/p0_0.png,blank,,drop",
        "a/p0_2.png,label error,b,relabel",
        "a/p1_4.png,label error,,relabel b",
        *(f"a/p{n}_{4 * n}.png,near duplicate,twins,group" for n in range(2, 8)),
        "gone.png,blank,,drop",
    )
    capsys.readouterr()
    prepared = run()
    after = all_files(prepared)
    assert before.keys() - after.keys() == {"a/p0_0.png"}
    assert {"path": "a/p0_0.png", "reason": "dropped by decisions.csv"} in prepared.manifest["quarantined"]
    for file in ("a/p0_2.png", "a/p1_4.png"):
        split = after[file]
        assert prepared.classes[prepared.labels(split)[prepared.files(split).index(file)]] == "b"
    assert len({after[f"a/p{n}_{4 * n}.png"] for n in range(2, 8)}) == 1
    assert [row["decision"] for row in prepared.manifest["decisions"]] == [
        "drop", "relabel b", "relabel b", *["group twins"] * 6,
    ]  # fmt: skip
    assert prepared.manifest["warnings"][0] == (
        "rows of decisions.csv that name no file of these images: 1, such as line 11, 'gone.png'"
    )
    assert "by decisions.csv: 1 dropped, 2 relabelled, 6 grouped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x.png,dark,,dorp"], "line 2: 'dorp' is no decision (did you mean 'drop'?)"),
        (["x.png,label error,,relabel"], "line 2: there is no suggestion: write relabel CLASS"),
        (["a/p0_0.png,label error,c,relabel"], "line 2: there is no class 'c'"),
        (
            ["x.png,blank,,drop", "y.png,z,,", "x.png,label error,a,relabel"],
            "line 4: relabel a contradicts line 2, drop, about the same file x.png",
        ),
        (["x.png,l,a,relabel", "x.png,m,b,relabel"], "line 3: relabel b contradicts line 2, relabel a"),
        ([",blank,,drop"], "line 2: a decision without a file"),
        (["x.png,blank,,drop it"], "line 2: 'drop it' is no decision"),
    ],
)
def test_a_wrong_decision_is_one_line_with_its_place(rows, message):
    write_images(8)
    decide(*rows)
    with pytest.raises(DataError) as caught:
        run()
    assert f"decisions.csv, {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spreadsheet_may_have_saved_the_decisions():
    content = "decision;file;finding;suggestion;my notes\r\nDrop ;a;blank;;\r\n;b;dark;;look\r\n"
    Path("decisions.csv").write_bytes(content.encode("utf-16"))
    assert set(read_decisions().dropped) == {"a"}
    assert append_undecided([("b", "dark", ""), ("=c,d", "label error", "x;y")]) == 1
    with open("decisions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file", "finding", "suggestion", "decision"],
        ["a", "blank", "", "Drop"],
        ["b", "dark", "", ""],
        ["'=c,d", "label error", "x;y", ""],  # which no spreadsheet executes
    ]
    assert append_undecided([("=c,d", "label error", "")]) == 0  # read as it was given


def test_appending_leaves_every_byte_of_the_rows_that_are_there():
    decide("a.png,dark,,drop", 'b.png,"label, error",x,')
    before = Path("decisions.csv").read_bytes()
    assert append_undecided([("a.png", "dark", "new"), ("b.png", "label, error", "y")]) == 0
    assert Path("decisions.csv").read_bytes() == before
    assert append_undecided([("a.png", "blurred", ""), ("a.png", "blurred", "")]) == 1
    assert Path("decisions.csv").read_bytes() == before + b"a.png,blurred,,\n"
    Path("decisions.csv").unlink()
    assert append_undecided([("a.png", "blurred", "")]) == 1
    assert Path("decisions.csv").read_bytes() == DECISIONS_HEADER + b"a.png,blurred,,\n"
