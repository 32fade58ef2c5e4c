"""From images and a machine to the values of params.yaml, each with its reason.

Three models of three families are trained, of the largest image size that leaves each enough passes over the images
within the time that `budget_minutes` allows. Times are estimates from multiply-accumulates and from how fast this
machine multiplies matrices; EFFICIENCY is calibrated on measured trainings (docs/results/training.md).
"""

import math
from dataclasses import dataclass
from typing import Any

import yaml

from visionpipe.data.config import OVERSAMPLING
from visionpipe.project.ladder import FROM_SCRATCH, Choice, Ladder, Models, Size, from_published
from visionpipe.project.machine import Machine
from visionpipe.project.survey import ELONGATED, MANY, Survey
from visionpipe.tasks import TASKS

EFFICIENCY = 0.5  # of a product's rate that small models reach in training on CPUs: 0.49 a ViT, 0.67 a ResNet
GPU_EFFICIENCY = 0.03  # a small model leaves most of a GPU idle
START_SECONDS = 30  # of each training: imports and the tracing of the graph
EPOCH_SECONDS = 0.2  # of each epoch: its checkpoint, its numbers for MLflow, the start of the input
STEP_SECONDS = 0.004  # of each step, beside its products
PIXEL_SECONDS = 6e-9  # of the input path, for each pixel of an image
OTHER_SECONDS = 30  # of exporting and evaluating each model
DECODE_SECONDS = 25e-9  # of one core, for each pixel of a source image
MEMORY_SHARE = 0.5  # of the free memory that a batch may take

MOST_EPOCHS = 100
FINETUNING_EPOCHS = 6  # as the preset has it
LEAST_EPOCHS = 3
LARGEST_GATE = 0.1


@dataclass(frozen=True)
class Choices:
    """`params`: the content of params.yaml; `reasons`: key with dots → why. Minutes are estimates for `machine`:
    of the trainings, and of all of `dvc repro`.
    """

    params: dict[str, Any]
    reasons: dict[str, str]
    machine: Machine
    training_minutes: float
    minutes: float


def choose(survey: Survey, machine: Machine, backend: str, pretrained: bool) -> Choices:
    """Decides on every value of params.yaml that depends on the images or the machine."""
    splits, framing = fractions(survey), choose_framing(survey)
    training, validation = split_sizes(survey, splits)
    budget = budget_minutes(survey.images)
    size, models, epochs = fitting(survey, machine, training, validation, budget, pretrained)
    batch = batch_size(training, max(model.macs(size) for model in models.values()), machine)
    seconds = training_seconds(list(models.values()), size, training, validation, epochs, batch, machine)
    others = OTHER_SECONDS * len(models) + survey.pixels * DECODE_SECONDS / machine.cores
    recipe, recipe_reasons = choose_recipe(survey, machine, training, size, epochs, batch, models, pretrained)
    gate, gate_reasons = choose_gate(survey)
    enough = enough_epochs(training, pretrained)
    entries = {name: entry(model, batch, models["resnet"].learning_rate) for name, model in models.items()}
    params = {
        "task": survey.task,
        "backend": backend,
        "seed": 0,
        "threads": None,
        "prepare": {"source": survey.source, "path": survey.path}
        | (survey.guess.params() if survey.guess else {})
        | {"size": list(size)}
        | framing
        | survey.form
        | choose_decoding(survey, size)
        | splits
        | ({"duplicates": "keep"} if survey.images <= MOST_ALIGNED else {}),
        "models": entries,
        "train": recipe,
        "export": {"precision": "fp32", "opset": 18, "max_logit_difference": 0.001},
        "evaluate": {"calibration_bins": 15, "worst_mistakes": 25},
        "register": {"gate": gate},
        "tracking": {"experiment": "visionpipe", "model": "visionpipe"},
    }
    reasons = {
        "task": task_reason(survey),
        "backend": "tensorflow | jax | torch",
        "threads": "null: the number of physical cores",
        "prepare.source": "zip | folder (one folder per class) | table | huggingface | tfds | idx",
        "prepare.path": "the images stay where they are; a relative path starts at this file",
        **(survey.guess.reasons if survey.guess else {}),
        "prepare.size": size_reason(survey, size, enough, budget),
        "prepare.framing": f"crop | pad | stretch; pad shows all of the image: {survey.elongated:.0%} are more than "
        f"{ELONGATED} times as long as wide",
        "prepare.channels": "as the files have them: 1 for grey, 3 for RGB",
        "prepare.depth": "8 | 16 bits of a value are kept",
        "prepare.levels": "file: the extremes of each; [low, high] for one scale, if you know the values of all",
        "prepare.reduced_decode": "most photos are far larger: decoding at half their sides or less is faster, "
        "with almost the same pixels",
        **fraction_reasons(survey),
        "prepare.duplicates": "copies are drawn into one split; or drop | error; null only warns",
        "models": f"three families, to compare: {minutes_text(seconds / 60)} of training together on {machine}",
        **{f"models.{name}": model_reason(model, size) for name, model in models.items()},
        **recipe_reasons,
        "export.precision": "fp32 | int8 | auto: int8 where it is 1.3 times faster and loses at most 0.5 points",
        "export.max_logit_difference": "between Keras and ONNX, relative to the largest logit",
        "register.gate": "the least that a model must reach on the validation images to be registered",
        **gate_reasons,
    }
    return Choices(params, reasons, machine, seconds / 60, (seconds + others) / 60)


def task_reason(survey: Survey) -> str:
    kinds = "single: each image has one class | multi: any number of labels, or none"
    return f"{kinds}; {survey.task_reason}" if survey.task_reason else kinds


def budget_minutes(images: int) -> float:
    """Returns how long the three trainings may take together: a quarter of an hour, longer for many images."""
    return 15 * min(6.0, max(1.0, images / 10_000))


def choose_framing(survey: Survey) -> dict[str, str]:
    """Returns `framing: pad` where a crop would cut off too much of many images; the default is to crop."""
    return {"framing": "pad"} if survey.elongated > MANY else {}


def choose_decoding(survey: Survey, size: tuple[int, int]) -> dict[str, bool]:
    """Returns `reduced_decode: true` where most images are JPEG files large enough for it; the default is not to."""
    large = survey.short_sides[50] >= 2 * OVERSAMPLING * max(size)
    return {"reduced_decode": True} if large and survey.formats.get("JPEG", 0) > survey.images / 2 else {}


def fractions(survey: Survey) -> dict[str, float]:
    return {
        "validation_fraction": 0.2 if survey.images < 2000 else 0.1,
        "test_fraction": 0.2 if survey.images < 20_000 else 0.1,
    }


def fraction_reasons(survey: Survey) -> dict[str, str]:
    reasons = {}
    for split in ("validation", "test"):
        of = "training" if split == "validation" else "all"
        reason = f"of {of} images"
        if split in survey.splits:
            reason = f"not used: the images come with a {split} {'split' if survey.guess else 'folder'}"
        elif split == "validation" and survey.images < 2000:
            reason += ": fewer would make the choice of the best model a matter of luck"
        reasons[f"prepare.{split}_fraction"] = reason
    return reasons


def split_sizes(survey: Survey, drawn: dict[str, float]) -> tuple[int, int]:
    """Returns the number of training and of validation images that `prepare` will make of these."""
    training = survey.splits.get("train", 0) if survey.splits else survey.images
    if "test" not in survey.splits:
        training -= round(training * drawn["test_fraction"])
    validation = survey.splits.get("validation", 0) or round(training * drawn["validation_fraction"])
    return training - (0 if "validation" in survey.splits else validation), validation


def enough_epochs(training: int, pretrained: bool) -> int:
    """Returns how many passes over the images make a useful model: more of few images than of many."""
    if pretrained:
        return LEAST_EPOCHS
    return round(min(50, max(8, 60_000 / training)))


def fitting(
    survey: Survey, machine: Machine, training: int, validation: int, budget: float, pretrained: bool
) -> tuple[Size, Models, int]:
    """Returns the largest image size that the images have and the machine can train, its models and the epochs."""
    ladder = from_published() if pretrained else FROM_SCRATCH
    most, enough = (FINETUNING_EPOCHS if pretrained else MOST_EPOCHS), enough_epochs(training, pretrained)
    for size, models in candidates(survey, ladder, pretrained):
        heaviest = max(model.macs(size) for model in models.values())
        batch = batch_size(training, heaviest, machine)
        choices = list(models.values())
        start = training_seconds(choices, size, training, validation, 0, batch, machine)
        epoch = training_seconds(choices, size, training, validation, 1, batch, machine) - start
        epochs = min(most, int((60 * budget - start) / epoch))
        if epochs >= enough:
            break
    return size, models, max(epochs, LEAST_EPOCHS)


def candidates(survey: Survey, ladder: Ladder, pretrained: bool) -> list[tuple[Size, Models]]:
    """Returns the image sizes to try, the largest first, none much larger than the images."""
    limit = max(ladder[0][0], survey.short_sides[50] * (2 if pretrained else 1.25))
    found = [((side, side), models) for side, models in ladder if side <= limit]
    size = survey.one_size
    if size and not pretrained and min(size) >= 16 and max(size) <= 64:  # these images need no resizing
        models = next(models for side, models in reversed(ladder) if side <= max(*size, ladder[0][0]))
        found = [(other, models) for other, models in found if max(other) < min(size)] + [(size, models)]
    return found[::-1]


def training_seconds(
    models: list[Choice],
    size: Size,
    training: int,
    validation: int,
    epochs: int,
    batch: int,
    machine: Machine,
) -> float:
    """Estimates all trainings one after the other: a forward and a backward pass are three forward passes."""
    rate = machine.gflops * 1e9 * (GPU_EFFICIENCY if machine.gpu else EFFICIENCY)
    total = 0.0
    for model in models:
        forward = 2 * model.macs(size) / rate
        image = 3 * forward + PIXEL_SECONDS * size[0] * size[1] + STEP_SECONDS / batch
        total += START_SECONDS + epochs * (EPOCH_SECONDS + training * image + validation * forward)
    return total


def batch_size(training: int, macs: float, machine: Machine) -> int:
    """Returns images per step: enough steps in an epoch of few images, and no more than the memory holds."""
    batch = 16 if training < 500 else 32 if training < 2000 else 64
    if machine.gpu and training > 10_000:
        batch = 256
    image = min(0.25 * macs, 20e6 + 0.06 * macs)  # bytes: measured with a ResNet-20 and a ResNet-50
    while batch > 1 and batch * image > machine.memory * MEMORY_SHARE:
        batch //= 2
    return batch


def learning_rate(rate: float, batch: int) -> float:
    """Scales a rate for 64 images a step with the square root of the batch, as Adam's noise asks for."""
    return float(f"{rate * math.sqrt(batch / 64):.1g}")


def entry(model: Choice, batch: int, common: float) -> dict[str, Any]:
    """Returns an entry of `models:`."""
    content: dict[str, Any] = {"needs": "data/prepared/manifest.json", "variant": model.variant}
    if model.init:
        content["init"] = model.init
    if model.overrides:
        content["overrides"] = model.overrides
    if model.learning_rate != common:
        content["train"] = {"learning_rate": learning_rate(model.learning_rate, batch)}
    return content


def choose_recipe(
    survey: Survey, machine: Machine, training: int, size: Size, epochs: int, batch: int, models: Models,
    pretrained: bool,
) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
    """Returns the section `train:` with its reasons."""
    steps = math.ceil(training / batch)
    recipe: dict[str, Any] = {
        "preset": "finetune" if pretrained else "vit-small-data",
        "epochs": epochs,
        "batch_size": batch,
        "warmup": 0.1,
    }
    reasons = {
        "train": "every key is in the documentation: Reference, params.yaml",
        "train.preset": "for a start from published weights: the head first, then all layers, at a low rate"
        if pretrained
        else "for a start from random weights: AdamW, cosine, label smoothing; the keys below replace its values",
        "train.epochs": f"about {epochs * steps:,} steps of each model"
        + ("" if pretrained or epochs == MOST_EPOCHS else ": what fits into the time; more is better"),
        "train.batch_size": batch_reason(training, batch),
        "train.warmup": "of all steps, in which the rate rises",
    }
    if not pretrained:
        recipe["learning_rate"] = learning_rate(models["resnet"].learning_rate, batch)
        recipe["ema_decay"] = 0.99
        reasons |= {
            "train.learning_rate": "for small models, and for this batch size",
            "train.ema_decay": "the average of the weights over the last steps is what is kept",
        }
    recipe["augmentation"], reasons["train.augmentation"] = choose_augmentation(survey, size)
    if machine.bfloat16:
        recipe["precision"] = "bfloat16"
        reasons["train.precision"] = f"{machine.gpu} is several times as fast in it"
    return recipe, reasons


def batch_reason(training: int, batch: int) -> str:
    steps = math.ceil(training / batch)
    return f"{training:,} training images make {steps:,} step{'' if steps == 1 else 's'} an epoch"


def choose_augmentation(survey: Survey, size: Size) -> tuple[list[dict[str, Any]], str]:
    """Returns the section `augmentation:` and its reason: characters are not mirrored, large images are cropped."""
    characters = all(len(name) == 1 or name.isdigit() for name in survey.classes)
    if min(size) >= 64 and not survey.one_size:
        crop: dict[str, Any] = {"name": "resized_crop", "scale": [0.5, 1.0]}
    else:
        crop = {"name": "crop", "padding": max(1, min(size) // 16)}
    if characters:
        return [crop], "no flip, for the classes look like digits or letters; see: visionpipe preview"
    return [{"name": "flip"}, crop], "leave out flip where left and right matter; see: visionpipe preview"


def choose_gate(survey: Survey) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the section `register.gate` and its reasons.

    The margin over a model that sees nothing is at most a quarter of the distance from its score to 1.
    """
    task, blind = TASKS[survey.task], survey.blind
    over, words = task.over
    gain = min(LARGEST_GATE, math.floor(250 * (1 - blind)) / 1000)
    reasons = {
        f"register.gate.{task.limits[0]}": "0: none for now; write what you need once you know what is possible",
        f"register.gate.{over}": f"the {task.score.replace('_', ' ')} must lie this much above {blind:.0%}, "
        f"the {words}",
    }
    return {**dict.fromkeys(task.limits, 0.0), over: gain}, reasons


def size_reason(survey: Survey, size: Size, enough: int, budget: float) -> str:
    if survey.one_size == size:
        return "height, width: that of all images"
    if min(size) > survey.short_sides[50]:
        return f"height, width: the least for these models; the images' median short side is {survey.short_sides[50]}"
    return (
        f"height, width: the largest that leaves time for {enough} epochs in {budget:.0f} minutes; the images' median "
        f"short side is {survey.short_sides[50]:,}"
    )


def model_reason(model: Choice, size: Size) -> str:
    start = f", from the published checkpoint {model.init}" if model.init else ""
    return f"{model.macs(size) / 1e6:,.0f} million multiply-accumulates an image{start}"


def minutes_text(minutes: float) -> str:
    """Such as "about 14 minutes" or "about 3 hours"."""
    if minutes < 1.5:
        return "about a minute"
    return f"about {minutes:.0f} minutes" if minutes < 100 else f"about {minutes / 60:.1f} hours"


# params.yaml -------------------------------------------------------------------------------------------

MOST_ALIGNED = 20_000  # images whose copies are found within minutes, crops and rotations included
SECTIONS = ("prepare", "models", "train", "export", "evaluate", "register", "tracking")


def params_yaml(choices: Choices, heading: list[str]) -> str:
    """Writes the values as YAML, below `heading`, each with its reason beside it."""
    lines = [f"# {line}".rstrip() for line in heading]
    for key, value in choices.params.items():
        if key in SECTIONS:
            lines.append("")
        lines += written(key, value, key, "", choices.reasons)
    return "\n".join(lines) + "\n"


def written(name: str, value: Any, key: str, indent: str, reasons: dict[str, str]) -> list[str]:
    """Returns the lines of one value: a section for a mapping near the top, else one line."""
    reason = f" # {reasons[key]}" if key in reasons else ""
    if key == "train.augmentation":
        return [f"{indent}{name}:{reason}", *(f"{indent}  - {in_one_line(item)}" for item in value)]
    if (
        key in SECTIONS
        or key in ("register.gate", "prepare.table")
        or (key.startswith("models.") and key.count(".") == 1)
    ):
        lines = [f"{indent}{name}:{reason}"]
        for inner, content in value.items():
            lines += written(inner, content, f"{key}.{inner}", f"{indent}  ", reasons)
        return lines
    quoted = key == "prepare.path"  # always: YAML 1.1 and 1.2 disagree about what is text without quotes
    return [f"{indent}{name}: {in_one_line(value, quoted)}{reason}"]


def in_one_line(value: Any, quoted: bool = False) -> str:
    text = yaml.safe_dump(
        value,
        default_flow_style=True,
        default_style='"' if quoted else None,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
    )
    return text.removesuffix("\n").removesuffix("\n...")
