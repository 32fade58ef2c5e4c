"""The command line: a user's mistake is one line and exit code 1, and help comes at once."""

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from repository import CHECKOUT, Project

from visionpipe import __version__
from visionpipe.cli import file_of, main
from visionpipe.errors import ConfigError, no_room
from visionpipe.files import temporary_name
from visionpipe.project.params import load_params
from visionpipe.project.paths import STAGES

SLOW_IMPORTS = ("jax", "keras", "keras_cv", "mlflow", "numpy", "onnxruntime", "tensorflow", "torch")


def one_line(project: Project, *arguments: str, **variables: str) -> str:
    """What the command says about a mistake: one line, exit code 1, no traceback."""
    result = project.visionpipe(*arguments, check=False, **variables)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("visionpipe: ")
    return line


# key to change → value (None: remove the key) → what the line must say
WRONG_PARAMETERS = [
    ("sead", 1, "unknown key sead (did you mean 'seed'?)"),
    ("regster", {}, "unknown key regster (did you mean 'register'?)"),
    ("train.epoch", 3, "unknown key train.epoch (did you mean 'epochs'?)"),
    ("register.gate.acuracy", 0.5, "unknown key register.gate.acuracy (did you mean 'accuracy'?)"),
    ("models.vit.varient", "x", "unknown key models.vit.varient (did you mean 'variant'?)"),
    ("models.vit.train.epoch", 3, "unknown key models.vit.train.epoch (did you mean 'epochs'?)"),
    ("models.vit.overrides.image_size", 64, "overrides: ViT-Mi/4 has no 'image_size'"),
    ("models.vit.overrides.layer_scale", "1e-4", "above 0, received '1e-4' (YAML reads 1e-3 as text"),
    ("models.vit.overrides.dept", 3, "models.vit: overrides: ViT-Mi/4 has no 'dept' (did you mean 'depth'?)"),
    ("models.vit.variant", "ViT-Mi4", "models.vit: variant: no 'ViT-Mi4' (did you mean 'ViT-Mi/4'?)"),
    ("models.vit.overrides.num_heads", 3, "hidden_dim 16 is not divisible by num_heads 3"),
    ("backend", "tensorflw", "expected one of tensorflow, jax, torch, received 'tensorflw' (did you mean"),
    ("prepare.source", "folders", "(did you mean 'folder'?)"),
    ("prepare.size", [30, 30], "models.vit: image size 30×30 is not divisible by patch_size 4"),
    ("prepare.size", 28, "prepare.size: expected a list of [height, width], received 28"),
    ("train.learning_rate", "1e-3", "expected a number, received '1e-3' (YAML reads 1e-3 as text"),
    ("train.epochs", 0, "epochs: must be at least 1"),
    ("train.epochs", 2.5, "train.epochs: expected a whole number, received 2.5"),
    ("register.gate.over_majority", -0.1, "register.gate.over_majority: must lie between 0 and 1"),
    ("register.gate.accuracy", 75, "register.gate.accuracy: must lie between 0 and 1"),
    ("train.learning_rate", float("inf"), "learning_rate: must be positive and finite"),
    ("evaluate.calibration_bins", 0, "evaluate.calibration_bins: must be at least 1"),
    ("evaluate.worst_mistakes", -1, "evaluate.worst_mistakes: must not be negative"),
    ("export.opset", 99, "export.opset: must lie between 13 and 18"),
    ("tracking.model", "a/b", "tracking.model: must be a name without / : ' @ ?"),
    ("models.vit.variant", "vit-mi/4", "did you mean 'ViT-Mi/4'?); visionpipe models lists all variants"),
    ("seed", True, "seed: expected a whole number, received True"),
    ("train", None, "models.resnet.train.epochs: give one of epochs, steps, minutes; received none"),
    ("train.steps", 5, "epochs: give one of epochs, steps, minutes; received epochs, steps"),
    ("train.preset", "diet", "train.preset: no preset 'diet' (did you mean 'deit'?); known: resnet-classic,"),
    ("train.warmup", "5 epoch long", "train.warmup: expected a fraction, \"5 epochs\" or \"500 steps\"; received"),
    ("train.warmup", "99 epochs", "train.warmup: 99 epochs is too long: the training ends after"),
    ("train.ema_decay", 1.0, "ema_decay: must lie in [0, 1)"),
    ("train.freeze", [{"epochs": 1, "train": ["logits"]}], "freeze: phases of 1 epoch are too long"),
    ("train.freeze", [{"epochs": 1}], "train.freeze[0].train is missing"),
    ("train.class_weights", "balance", "class_weights: expected one of balanced, received 'balance' (did you mean"),
    ("train.sampler", "balance", "train.sampler: expected one of shuffle, balanced, sqrt, received 'balance' (did you"),
    ("train.logit_adjustment", 0, "train.logit_adjustment: must be positive and finite"),
    ("train.repeated_augmentation", 3, "repeated_augmentation: must divide batch_size 16"),
    ("models.vit.train.distill", {"teacher": "resnt"}, "distill.teacher: no other model 'resnt' (did you mean"),
    ("models.vit.train.distill", {"teacher": "resnet"},
     "models.vit.needs: must be models/resnet/model.keras, the model in train.distill.teacher"),
    ("models.vit.init", "resnet", "models.vit.needs: must be models/resnet/model.keras, the model in init"),
    ("models.vit.init_sha256", "00ff", "models.vit.init_sha256: has no effect without init: give both"),
    ("models.vit.pixel_std", [0.229, 0.224, 0.225], "models.vit.pixel_std: must lie between 1 and 255, the range"),
    ("models.vit.pixel_mean", [127.5], "models.vit.pixel_mean: expected a list of 3, received [127.5]"),
    ("models.vit.train.preset", ["deit"], "models.vit.train.preset: no preset ['deit']"),
    ("train.epochs", 10**30, "epochs: must be at most 1,000,000,000"),
    ("models.vit.init", "resnett", "models.vit.init: no other model 'resnett' (did you mean 'resnet'?)"),
    ("models.vit.train", {"epochs": 2, "rates": {"logits": 0}, "freeze": [{"epochs": 1, "train": ["logits"]}]},
     "freeze[0].train: nothing would be trained: rates gives the rate 0 to logits"),
    ("prepare.channels", 0, "prepare.channels: must lie between 1 and 64"),
    ("prepare.depth", 12, "prepare.depth: expected one of 8, 16, received 12"),
    ("prepare.levels", [9, 1], "prepare.levels: must be a smaller and a larger number"),
    ("prepare.levels", "image", "prepare.levels: expected one of file, received 'image'"),
    ("prepare.crop_ratio", 1.5, "prepare.crop_ratio: must be above 0 and at most 1"),
    ("prepare.interpolation", "cubic", "prepare.interpolation: expected one of nearest, bilinear, bicubic, lanczos"),
    ("models", {}, "models: needs at least one entry"),
    ("train.augmentation", [{"name": "flop"}], "no augmentation 'flop' (did you mean 'flip'?)"),
    ("train.augmentation", [{"name": "crop", "paddin": 2}], "augmentation[0].paddin (did you mean 'padding'"),
    ("train.augmentation", [{"name": "flip"}, {"name": "crop", "padding": 1.5}],
     "augmentation[1].padding: expected a whole number, received 1.5"),
    ("train.augmentation", [{"name": "flip", "probability": 2}],
     "augmentation[0].probability: must be between 0 and 1; received 2"),
    ("train.augmentation", [{"name": "erasing", "fill": "gray"}],
     "augmentation[0].fill: expected one of noise, grey, received 'gray' (did you mean 'grey'?)"),
    ("train.augmentation", [{"name": "mixup"}, {"name": "flip"}],
     "augmentation[1]: flip must come before mixup and cutmix, which mix images"),
    ("train.augmentation", [{"name": "flip"}] * 65, "augmentation: holds at most 64 entries"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), WRONG_PARAMETERS)
def test_a_wrong_parameter_is_one_line_that_says_where_and_what_instead(
    pristine, tmp_path, monkeypatch, capsys, key, value, message
):
    project = Project(tmp_path)
    project.write_params(pristine.params())
    if value is None:
        params = project.params()
        del params[key]
        project.write_params(params)
    else:
        project.change(key, value)
    monkeypatch.chdir(tmp_path)
    assert main(["params"]) == 1  # in this process: starting one for each row takes longer than all the rest
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("visionpipe: ")
    assert message in line
    assert "params.yaml" in line


def test_a_folder_without_params_is_one_line(project):
    (project.root / "params.yaml").unlink()
    assert "is not in a visionpipe project: make one with visionpipe init" in one_line(project, "check")


def test_yaml_that_is_none_is_one_line(project):
    (project.root / "params.yaml").write_text("seed: [1\n")
    assert "params.yaml is not valid YAML" in one_line(project, "prepare")


def test_a_model_that_params_lack_is_one_line_with_a_suggestion(project):
    assert "no model 'resnett' in params.yaml (did you mean 'resnet'?)" in one_line(
        project, "train", "resnett"
    )


def test_a_missing_source_is_one_line(project):
    project.change("prepare.path", "data/none.zip")
    line = one_line(project, "prepare")
    assert "prepare.path" in line
    assert "data/none.zip" in line


def test_a_source_with_one_class_only_is_one_line(project):
    with zipfile.ZipFile(project.root / "data" / "tiny.zip") as archive:
        archive.extractall(project.root / "data", [n for n in archive.namelist() if "/red/" in n])
    project.change("prepare.source", "folder")
    project.change("prepare.path", "data/tiny")
    assert "holds only the class 'red'" in one_line(project, "prepare")


def test_a_backend_that_keras_backend_contradicts_is_one_line(project):
    line = one_line(project, "prepare", KERAS_BACKEND="torch")
    assert "KERAS_BACKEND=torch contradicts backend: tensorflow in params.yaml" in line
    assert "unset KERAS_BACKEND" in line
    assert project.visionpipe("prepare", KERAS_BACKEND="tensorflow").returncode == 0


HIDE_JAX = """
import importlib.util

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "jax" else find_spec(name, package)
"""


def test_a_backend_that_is_not_installed_is_one_line_with_the_install_command(project, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE_JAX)
    project.change("backend", "jax")
    line = one_line(project, "train", "vit", PYTHONPATH=str(tmp_path / "site"))
    assert "backend jax is not installed" in line
    assert "pip install" in line
    assert "[jax]" in line


def test_check_before_anything_was_registered_is_one_line(project):
    assert "no registration.json: run dvc repro first" in one_line(project, "check")


def test_a_stage_before_its_inputs_are_there_is_one_line(project):
    for stage in ("export", "evaluate"):
        assert "dvc repro" in one_line(project, stage, "vit")
    assert "dvc repro" in one_line(project, "register")


def test_debug_adds_the_traceback(project):
    project.change("seed", -1)
    result = project.visionpipe("--debug", "prepare", check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "seed: must lie between" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["no-such-command"], ["train"], ["prepare", "--fast"]])
def test_wrong_usage_exits_with_2_and_shows_the_usage(arguments):
    result = visionpipe(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: visionpipe")


def test_without_a_command_one_is_told_what_to_do_next(project, tmp_path):
    result = project.visionpipe()
    assert f"The project in {project.root}" in result.stdout
    assert "dvc repro" in result.stdout
    elsewhere = Project(tmp_path)
    assert "visionpipe init flowers --images ~/photos" in elsewhere.visionpipe().stdout


def test_every_command_works_from_a_subfolder_and_a_moved_project_goes_on(project, tmp_path):
    project.root.rename(tmp_path / "moved")
    inside, package = Project(tmp_path / "moved" / "data"), str(tmp_path / "moved")
    assert "resnet: ResNet-8 on tensorflow" in inside.visionpipe("params").stdout
    assert "prepared 200 of 200 files" in inside.visionpipe("prepare", PYTHONPATH=package).stdout
    assert (tmp_path / "moved/data/prepared/manifest.json").exists()
    assert "no model 'vti' in params.yaml (did you mean 'vit'?)" in one_line(inside, "train", "vti")
    assert "code.lock is up to date" in inside.visionpipe("lock", PYTHONPATH=package).stdout


def test_an_entry_that_is_there_twice_is_refused(project):
    params = project.root / "params.yaml"
    params.write_text(params.read_text() + "seed: 1\n")
    assert "the key seed occurs twice" in one_line(project, "params")


def test_params_lists_the_trainings_or_says_what_is_wrong(project):
    assert "vit: ViT-Mi/4 on tensorflow, " in project.visionpipe("params").stdout
    project.change("prepare.path", "nowhere.zip")
    assert "nowhere.zip does not exist" in one_line(project, "params")


def test_compare_before_anything_was_trained_says_so(project):
    assert "no model of this project has been evaluated yet" in one_line(project, "compare")


def visionpipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return Project(CHECKOUT).visionpipe(*arguments, check=False)


def test_version_is_the_packages():
    result = visionpipe("--version")
    assert (result.returncode, result.stdout) == (0, f"visionpipe {__version__}\n")


def test_help_names_every_command():
    text = visionpipe("--help").stdout
    for command in (
        *STAGES,
        "params",
        "preview",
        "models",
        "compare",
        "check",
        "promote",
        "rollback",
        "lineage",
        "prune",
    ):
        assert f"\n    {command} " in text


def test_help_takes_less_than_three_tenths_of_a_second():
    times = []
    for _ in range(7):
        start = time.perf_counter()
        assert visionpipe("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3, times


def test_help_imports_nothing_slow():
    script = f"""
import sys
from visionpipe.commands.options import parser
parser().format_help()
print([name for name in {SLOW_IMPORTS} if name in sys.modules])
from visionpipe.project.params import load_params
load_params()
print([name for name in {SLOW_IMPORTS} if name in sys.modules])
"""
    assert Project(CHECKOUT).run(sys.executable, "-c", script).stdout == "[]\n['numpy']\n"


def test_models_prints_the_table_of_all_variants():
    from visionpipe.models import costs

    command = [sys.executable, "-m", "visionpipe", "models"]
    output = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert output.startswith(costs.table())


@pytest.mark.parametrize("arguments", [["models"], ["--help"]])
def test_a_reader_that_goes_ends_a_command_without_a_word(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "visionpipe", *arguments],
            cwd=CHECKOUT,
            stdout=pipe,
            stderr=subprocess.PIPE,
        )
    assert result.stderr == b""
    assert result.returncode in (0, 141)  # argparse takes no notice


def test_an_output_without_room_is_one_line():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "visionpipe", "models"]
        result = subprocess.run(command, cwd=CHECKOUT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == (
        "visionpipe: a file cannot be written (No space left on device): "
        "make room on the disk, then give the same command again\n"
    )


def test_names_that_a_terminal_has_no_letters_for_are_printed_all_the_same():
    result = Project(CHECKOUT).visionpipe("models", PYTHONIOENCODING="ascii")
    assert "\\u2013" in result.stdout


def wrapped():
    try:
        Path("/dev/full").write_bytes(b"x")
    except OSError as error:
        raise RuntimeError("of a library") from error


def too_large(folder):
    """A file of more bytes than the process may write, through SQLite."""
    with contextlib.closing(sqlite3.connect(folder / "store")) as store:
        store.execute("CREATE TABLE t (x)")
        store.execute("INSERT INTO t VALUES (zeroblob(400000))")
        store.commit()


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: Path("/dev/full").write_bytes(b"x"),
        lambda folder: np.arange(1000).tofile("/dev/full"),
        lambda folder: (folder / "large").write_bytes(bytes(300_000)),
        lambda folder: wrapped(),
        too_large,
    ],
    ids=["full", "numpy", "limit", "wrapped", "sqlite"],
)
def test_errors_of_a_full_disk_are_known_however_they_come(tmp_path, write):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert no_room(caught.value)
    assert no_room(ValueError("something else")) is None


MODEL = {"needs": "data/prepared/manifest.json", "variant": "ResNet-8"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (
                "tracking.model",
                name,
                "tracking.model: must be a name without / : ' @ ?, of at most",
            )
            for name in ("it's", "a@b", "a?b", "a\nb", "..", "", " ", " \t", "x" * 251)
        ),
        (
            "tracking.experiment",
            "a\x1bb",
            "tracking.experiment: must be a name without / :, of at most 250",
        ),
        *(
            (
                "models",
                {name: MODEL},
                f"models.{name}: the name may have letters, digits, '-' and '_' only",
            )
            for name in ("-x", "--help", "a b", "a/b", "a%2Fb", "a$b", "a'b", "<b>", "", "é" * 101)
        ),
    ],
)
def test_a_name_that_could_not_be_used_everywhere_is_refused(tmp_path, key, value, message):
    with pytest.raises(ConfigError) as caught:
        load_changed(tmp_path, key, value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("tracking.model", name) for name in ("a b", "a%2Fb", "a#b", "$x", 'q"q', "<b>", "é猫", "a.b")),
        *(("tracking.experiment", name) for name in ("it's", "a?b", "a@b", "50 %")),
        *(("models", {name: MODEL}) for name in ("a-b_c", "_x", "1", "é", "模型")),
    ],
)
def test_a_name_that_can_be_used_everywhere_is_accepted(tmp_path, key, value):
    load_changed(tmp_path, key, value)


def load_changed(folder, key, value):
    project = Project(folder)
    shutil.copyfile(CHECKOUT / "params.yaml", folder / "params.yaml")
    project.change(key, value)
    return load_params(folder / "params.yaml")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "code"), [("--version", 0), ("predict --output no.txt", 1), ("models", 0)]
)
def test_closed_streams_are_as_if_nobody_read_them(tmp_path, closed, command, code):
    script = f"exec {sys.executable} -m visionpipe {command} {closed}"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == code
    assert "Traceback" not in result.stdout + result.stderr
    assert ("visionpipe: --output" in result.stderr) == (code == 1 and "2>" not in closed)


def test_an_error_names_the_target_and_not_its_temporary_file():
    for target in (Path("table.csv"), Path("/a/ä b.tmp"), Path(".hidden"), Path("../.x.y.tmp/d")):
        temporary = target.with_name(temporary_name(target, 123))
        assert file_of(OSError(28, "full", str(temporary))) == str(target)
        assert file_of(OSError(28, "full", str(temporary / "m" / "model.onnx"))) == f"{target}/m/model.onnx"
        assert file_of(OSError(21, "folder", "x", None, os.fsencode(temporary))) == str(target)
    assert file_of(OSError("of no file")) == "a file"
