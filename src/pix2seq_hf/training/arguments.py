r"""What a training run is made of: typed settings, read from a YAML recipe and changed by `key=value`.

The defaults are the reference's fine-tuning of ViT-B on COCO (`configs/config_det_finetune.py`).
"""

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pix2seq_hf.configuration_pix2seq import PRESETS, Pix2SeqConfig

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# What annotations have for an order is "none" for detection and, as in the reference, "scores" for segmentation.
OBJECT_ORDERS = {"object_detection": ("random", "area", "none"), "instance_segmentation": ("scores", "random", "area")}


@dataclass(frozen=True)
class ModelArguments:
    r"""Which network.

    Args:
        pretrained (`str`, *optional*): Model folder or Hub name to start from.
        preset (`str`, *optional*): A released architecture for a new network, see `Pix2SeqConfig.from_preset`.
        attention (`str`): How attention is computed: `"sdpa"`, `"eager"` (on CPUs often the faster one in training), or
            another way that transformers knows.
        smooth_start (`bool`): Let a new network begin with neighbouring coordinates alike, and with neighbouring places
            if positions in the picture are learned, see [`~training.smooth_start.start_smoothly`].
        config (`dict`): Fields of `Pix2SeqConfig` that differ from the preset or from the pretrained model."""

    pretrained: str | None = None
    preset: str | None = None
    attention: str = "sdpa"
    smooth_start: bool = False
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSource:
    r"""A further data set, mixed in by weight.

    Args:
        path (`str`): As of `--data`.
        split (`str`): Its split.
        weight (`float`): How often it is drawn from, relative to `data.weight` and the other weights.
        tasks (`list[str]`, *optional*): Use it for these tasks only.
        columns (`dict`): Names of its columns, see [`DataArguments`].
        image_ids (`list[int]`, *optional*): Use these pictures only.
        max_images (`int`, *optional*): Use at most the first so many pictures."""

    path: str
    split: str = "train"
    weight: float = 1.0
    tasks: list[str] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    image_ids: list[int] | None = None
    max_images: int | None = None


@dataclass(frozen=True)
class DataArguments:
    r"""Which pictures, from the data set of `--data`.

    Args:
        split (`str`, *optional*): Split of the data set; by default that which is called `train2017` (COCO), `train`
            (others) or `trainval`.
        columns (`dict`): What the columns of a `datasets` data set are called, see [`~data.hub.read_dataset`].
        image_ids (`list[int]`, *optional*): Train on these pictures only.
        max_images (`int`, *optional*): Train on at most the first so many pictures.
        weight (`float`): How often this data set is drawn from, if there are others.
        others (`list[DataSource]`): Further data sets, mixed in by weight; classes are matched by name.
        streaming (`bool`): Read a `datasets` data set from its beginning to its end without an index, for what is too
            large to download; shuffled within a window of `shuffle_buffer` pictures. At the end of every epoch
            `datasets` waits five seconds for its threads.
        shuffle_buffer (`int`): See `streaming`.
        keep_pictures (`bool`): Keep all decoded pictures in memory, once per worker; for small sets.
        max_bad (`float`): Share of a task's samples that may turn out to be unusable before the run stops, rounded
            down; a single one only stops it if this is 0.
        num_workers (`int`): Processes that prepare batches, per task and training process."""

    split: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    image_ids: list[int] | None = None
    max_images: int | None = None
    weight: float = 1.0
    others: list[DataSource] = field(default_factory=list)
    streaming: bool = False
    shuffle_buffer: int = 1000
    keep_pictures: bool = False
    max_bad: float = 0.01
    num_workers: int = 2


@dataclass(frozen=True)
class TaskArguments:
    r"""What every task can set for itself. The tasks' defaults are those of the reference's multi-task training.

    Args:
        weight (`float`): Weight of the task's loss.
        batch_size (`int`, *optional*): Pictures per optimiser step (objects, for keypoints); by default
            `training.batch_size`.
        batch_duplicates (`int`): Copies of a sample in a batch, each varied on its own.
        min_scale, max_scale (`float`): Range of the scale jitter, as shares of the input size.
        use_evaluation_resize (`bool`): Antialias, and round sizes instead of cutting them, as in evaluation; the
            reference does neither in training.
        use_flip (`bool`): Mirror half of the samples."""

    weight: float = 1.0
    batch_size: int | None = None
    batch_duplicates: int = 1
    min_scale: float = 0.3
    max_scale: float = 1.0
    use_evaluation_resize: bool = False
    use_flip: bool = True


@dataclass(frozen=True)
class ObjectDetectionArguments(TaskArguments):
    r"""How object detection is trained; see [`TaskArguments`] for the rest.

    Args:
        object_order (`str`): Order of objects in a sequence: `"random"`, `"area"` or `"none"`.
        use_noise_boxes (`bool`): Fill sequences up with noise boxes.
        class_label_corruption (`str`): What the decoder reads in place of the true classes.
        noise_bbox_weight (`float`): Loss weight of the class token of a noise box.
        eos_token_weight (`float`): Loss weight of padding."""

    max_scale: float = 2.0
    object_order: str = "random"
    use_noise_boxes: bool = True
    class_label_corruption: str = "rand_n_fake_cls"
    noise_bbox_weight: float = 1.0
    eos_token_weight: float = 0.1


@dataclass(frozen=True)
class InstanceSegmentationArguments(TaskArguments):
    r"""How instance segmentation is trained; see [`TaskArguments`] for the rest.

    Args:
        max_instances_per_image (`int`): Objects of a picture in a step, each a sequence.
        object_order (`str`): Which come first: `"scores"` (the order of the annotations), `"random"` or `"area"`.
        eos_token_weight (`float`): Loss weight of padding, which ends a polygon.
        point_jitter (`float`): Deviation of the points that the decoder reads, as a share of the picture, so that a
            point must not be guessed from those before it; 0 in the reference.
        box_jitter (`float`): As of keypoints, where objects are cut out (`mask_crop_pad_scale` of the model; the first
            two settings do nothing then)."""

    max_instances_per_image: int = 10
    object_order: str = "scores"
    eos_token_weight: float = 1.0
    point_jitter: float = 0.0
    box_jitter: float = 0.0


@dataclass(frozen=True)
class KeypointDetectionArguments(TaskArguments):
    r"""How keypoint detection is trained, one object at a time; see [`TaskArguments`] for the rest.

    Args:
        box_jitter (`float`): Deviation of the corners of the boxes that are asked about, in units of their height and
            width, so that a detector's boxes do as well; 0 in the reference.
        invisible_token_weight (`float`): Loss weight of keypoints that are not visible.
        eos_token_weight (`float`): Loss weight of padding."""

    use_flip: bool = False
    box_jitter: float = 0.0
    invisible_token_weight: float = 0.1
    eos_token_weight: float = 0.0


@dataclass(frozen=True)
class CaptioningArguments(TaskArguments):
    r"""How captioning is trained; see [`TaskArguments`] for the rest.

    Args:
        captions_per_image (`int`): Captions of a picture in a step, each a sequence.
        color_jitter_strength (`float`): How much colours are varied; 0 not at all.
        input_seq_drop_rate (`float`): Share of the tokens that the decoder does not get to read.
        eos_token_weight (`float`): Loss weight of the end of a caption.
        tokenizer (`str`, *optional*): Folder of a `transformers` tokenizer; by default that of the pretrained model, or
            else a new one is trained on the captions.
        tokenizer_vocab_size (`int`): Words of a new tokenizer."""

    max_scale: float = 2.0
    captions_per_image: int = 5
    color_jitter_strength: float = 0.5
    input_seq_drop_rate: float = 0.5
    eos_token_weight: float = 0.1
    tokenizer: str | None = None
    tokenizer_vocab_size: int = 500


@dataclass(frozen=True)
class OptimizationArguments:
    r"""How weights move.

    Args:
        learning_rate (`float`): Peak rate, before scaling.
        learning_rate_scaling (`str`): `"none"`, `"linear"` or `"sqrt"` with the batch size.
        learning_rate_schedule (`str`): `"linear"`, `"cosine"`, `"cosine@r"`, `"exp@r"` or `"none"`.
        warmup_epochs (`float`): Length of the warm-up, unless `warmup_steps` is given.
        warmup_steps (`int`, *optional*): Length of the warm-up in optimiser steps.
        tail_steps (`int`): Steps at the end that stay at the final rate.
        end_lr_factor (`float`): Final rate as a share of the peak.
        weight_decay (`float`): Decoupled decay per unit of learning rate.
        exclude_from_weight_decay (`list[str]`): Regular expressions on parameter names; the reference excludes none.
        beta1, beta2, eps (`float`): Of AdamW.
        max_grad_norm (`float`, *optional*): Clip gradients to this global norm; the reference does not.
        ema_decay (`float`, *optional*): Keep a moving average of the weights (timm's `ModelEmaV3`); it is what is
            evaluated and what `final` holds."""

    learning_rate: float = 3e-5
    learning_rate_scaling: str = "none"
    learning_rate_schedule: str = "linear"
    warmup_epochs: float = 2.0
    warmup_steps: int | None = None
    tail_steps: int = 0
    end_lr_factor: float = 0.01
    weight_decay: float = 0.05
    exclude_from_weight_decay: list[str] = field(default_factory=list)
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    max_grad_norm: float | None = None
    ema_decay: float | None = None


@dataclass(frozen=True)
class LoopArguments:
    r"""How long, how much at once, what is kept.

    Args:
        batch_size (`int`): Pictures per optimiser step, over all processes and accumulated batches.
        epochs (`float`): Length of the run, unless `steps` is given.
        steps (`int`, *optional*): Length of the run in optimiser steps.
        gradient_accumulation_steps (`int`): Parts that the batch of a step is cut into, one after the other.
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`; a processor without instructions for bfloat16 computes in
            float32 instead.
        gradient_checkpointing (`bool`): Compute activations twice instead of keeping them.
        compile (`bool`): Compile the layers with `torch.compile`; needs a C++ compiler, and minutes at the start.
        checkpoint_steps (`int`, *optional*): Save a checkpoint every so many steps; also when the run is interrupted.
        keep_checkpoints (`int`): How many of the last checkpoints are kept.
        log_steps (`int`): Write to the log every so many steps.
        log_with (`list[str]`): Where to: `"tensorboard"`, `"wandb"` and what else Accelerate knows.
        max_loss_factor (`float`): The run stops if a loss is more than so many times the loss of guessing, the
            logarithm of the size of the vocabulary, and more than so many times the loss of the first step.
        seed (`int`): Decides everything random."""

    batch_size: int = 32
    epochs: float = 40.0
    steps: int | None = None
    gradient_accumulation_steps: int = 1
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_steps: int | None = 1000
    keep_checkpoints: int = 3
    log_steps: int = 10
    log_with: list[str] = field(default_factory=lambda: ["tensorboard"])
    max_loss_factor: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class EvaluationArguments:
    r"""How the run looks at itself while it lasts.

    Args:
        split (`str`, *optional*): Split of the data set of `--data` to evaluate on; without one there is no evaluation.
        data (`str`, *optional*): Another data set than that of `--data`.
        columns (`dict`): Names of its columns, see [`DataArguments`].
        steps (`int`): Evaluate every so many steps, and after the last.
        tasks (`list[str]`, *optional*): What is measured; by default all that is trained.
        boxes (`str`): What masks and keypoints are asked for: `"detected"` or `"annotated"` boxes.
        max_images (`int`, *optional*): Evaluate on at most the first so many pictures.
        image_ids (`list[int]`, *optional*): Evaluate on these pictures only.
        batch_size (`int`): Pictures at once.
        num_pictures (`int`): Pictures in the log, what was found beside what is annotated.
        metric (`str`, *optional*): What is the best, `TASK/NAME`, higher is better; by default `AP` of the first task,
            or `reproduced` of captions, how many are word for word an annotated one.
        patience (`int`, *optional*): Stop after so many evaluations in a row without a new best."""

    split: str | None = None
    data: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    steps: int = 1000
    tasks: list[str] | None = None
    boxes: str = "detected"
    max_images: int | None = None
    image_ids: list[int] | None = None
    batch_size: int = 8
    num_pictures: int = 4
    metric: str | None = None
    patience: int | None = None


@dataclass(frozen=True)
class Recipe:
    """All settings of a run, one section each; the sections of tasks say which are trained, by default detection."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    object_detection: ObjectDetectionArguments | None = None
    instance_segmentation: InstanceSegmentationArguments | None = None
    keypoint_detection: KeypointDetectionArguments | None = None
    captioning: CaptioningArguments | None = None
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    training: LoopArguments = field(default_factory=LoopArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)

    def __post_init__(self):
        if not self.tasks:
            object.__setattr__(self, "object_detection", ObjectDetectionArguments())
        if self.model.pretrained and self.model.preset:
            raise ValueError(
                f"model.pretrained ({self.model.pretrained}) and model.preset ({self.model.preset}) exclude each other"
            )
        if self.model.preset and self.model.preset not in PRESETS:
            raise ValueError(f"model.preset {self.model.preset!r} is unknown: choose one of {', '.join(PRESETS)}")
        if self.training.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"training.mixed_precision {self.training.mixed_precision!r}: use no, bf16 or fp16")
        for name, value, smallest in (
            ("data.max_images", self.data.max_images, 1),
            ("data.num_workers", self.data.num_workers, 0),
            ("optimization.warmup_steps", self.optimization.warmup_steps, 0),
            ("training.batch_size", self.training.batch_size, 1),
            ("training.steps", self.training.steps, 1),
            ("training.gradient_accumulation_steps", self.training.gradient_accumulation_steps, 1),
            ("training.checkpoint_steps", self.training.checkpoint_steps, 1),
            ("training.keep_checkpoints", self.training.keep_checkpoints, 1),
            ("training.log_steps", self.training.log_steps, 1),
            ("evaluation.steps", self.evaluation.steps, 1),
            ("evaluation.max_images", self.evaluation.max_images, 1),
            ("evaluation.batch_size", self.evaluation.batch_size, 1),
            ("evaluation.num_pictures", self.evaluation.num_pictures, 0),
            ("evaluation.patience", self.evaluation.patience, 1),
            ("data.shuffle_buffer", self.data.shuffle_buffer, 1),
            ("optimization.learning_rate", self.optimization.learning_rate, 0),
            ("optimization.warmup_epochs", self.optimization.warmup_epochs, 0),
            ("optimization.tail_steps", self.optimization.tail_steps, 0),
            ("optimization.end_lr_factor", self.optimization.end_lr_factor, 0),
            ("optimization.weight_decay", self.optimization.weight_decay, 0),
            ("optimization.eps", self.optimization.eps, 0),
            ("optimization.max_grad_norm", self.optimization.max_grad_norm, 0),
            ("training.epochs", self.training.epochs, 0),
            ("training.max_loss_factor", self.training.max_loss_factor, 0),
            ("data.weight", self.data.weight, 0),
            *((f"data.others[{number}].weight", other.weight, 0) for number, other in enumerate(self.data.others)),
            ("training.seed", self.training.seed, 0),
            *((f"{task}.batch_size", settings.batch_size, 1) for task, settings in self.tasks.items()),
            *((f"{task}.batch_duplicates", settings.batch_duplicates, 1) for task, settings in self.tasks.items()),
            *((f"{task}.weight", settings.weight, 0) for task, settings in self.tasks.items()),
        ):
            if value is not None and not value >= smallest:  # NaN is refused, too
                raise ValueError(f"{name} is {value}, it must be at least {smallest}")
        for name, value in (
            ("data.max_bad", self.data.max_bad),
            ("optimization.beta1", self.optimization.beta1),
            ("optimization.beta2", self.optimization.beta2),
            ("optimization.ema_decay", self.optimization.ema_decay),
        ):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, it must be between 0 and 1")
        if self.evaluation.boxes not in ("detected", "annotated"):
            raise ValueError(f"evaluation.boxes {self.evaluation.boxes!r}: use detected or annotated")
        for task, orders in OBJECT_ORDERS.items():
            settings = self.tasks.get(task)
            if settings is not None and settings.object_order not in orders:
                raise ValueError(f"{task}.object_order {settings.object_order!r}: use one of {', '.join(orders)}")
        for name, tasks in (
            ("evaluation.tasks", self.evaluation.tasks),
            *((f"data.others[{number}].tasks", other.tasks) for number, other in enumerate(self.data.others)),
        ):
            unknown = [task for task in tasks or () if task not in self.tasks]
            if unknown:
                raise ValueError(f"{name}: {unknown[0]!r} is not trained; the tasks are {', '.join(self.tasks)}")
        parts = self.training.gradient_accumulation_steps
        for task in self.tasks:
            batch_size, name = self.batch_size(task), f"{task}.batch_size"
            if batch_size % parts:
                name = name if self.tasks[task].batch_size else "training.batch_size"
                raise ValueError(
                    f"{name} {batch_size} is not divisible by training.gradient_accumulation_steps {parts}"
                )

    @property
    def tasks(self) -> dict[str, TaskArguments]:
        """Settings of the tasks that are trained, by name, in the order of the sections."""
        names = ("object_detection", "instance_segmentation", "keypoint_detection", "captioning")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def batch_size(self, task: str) -> int:
        """Samples of a task per optimiser step."""
        return self.tasks[task].batch_size or self.training.batch_size

    def with_split(self, split: str) -> "Recipe":
        """This recipe, with a split of the data set if it names none."""
        if self.data.split is not None:
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, split=split))

    def total_steps(self, num_images: int) -> int:
        """Optimiser steps of the run; `num_images` is what the first task has of pictures."""
        batch_size = self.batch_size(next(iter(self.tasks)))
        return self.training.steps or max(int(num_images * self.training.epochs) // batch_size, 1)

    def warmup_steps(self, num_images: int) -> int:
        """Optimiser steps of the warm-up; `num_images` is what the first task has of pictures."""
        if self.optimization.warmup_steps is not None:
            return self.optimization.warmup_steps
        batch_size = self.batch_size(next(iter(self.tasks)))
        return round(self.optimization.warmup_epochs * num_images // batch_size)


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    r"""Read a recipe and change it.

    Args:
        name (`str` or `Path`): A recipe that ships with the package, or the path of a YAML file.
        overrides (`Iterable[str]`): Like `"training.batch_size=8"`; the value is YAML.
    Returns:
        [`Recipe`].
    Raises:
        OSError: If there is no such recipe.
        ValueError: If a key is unknown (the message has the nearest one) or a value is of the wrong type."""
    path, overrides = find_recipe(name), list(overrides)
    settings = read_settings(path)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"--set {override}: write key=value, for instance training.batch_size=8")
        _assign(settings, key.strip().split("."), _parse_yaml(value, f"--set {override}"), override)
    try:
        return build_recipe(settings, str(path))
    except ValueError as error:
        message = str(error).removeprefix(f"{path}: ")
    if not overrides:
        raise ValueError(f"{path}: {message}")
    load_recipe(path)  # if the file itself is wrong, that is said
    blamed = [override for override in overrides if override.partition("=")[0].strip() in message]
    raise ValueError(f"--set {' --set '.join(blamed or overrides)}: {message}")


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe, by the name of one that ships with the package or by a path."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        nearest = difflib.get_close_matches(str(name), list_recipes(), n=1, cutoff=0.6)
        advice = f"did you mean {nearest[0]}?" if nearest else "or give a .yaml file"
        known = ", ".join(list_recipes())
        raise FileNotFoundError(f"{name}: no such recipe (recipes of the package: {known}); {advice}")
    if path.parent == RECIPES / "accelerate":
        raise ValueError(f"{name}: is no recipe, but how processes are started: for accelerate launch --config_file")
    return path


def read_settings(path: Path, builds_on_it: tuple[Path, ...] = ()) -> dict[str, Any]:
    r"""Read the settings of a recipe, laid over those of the recipe that its key `base` names.

    Args:
        path (`Path`): A YAML file. Its `base` is a recipe of the package or a .yaml file beside it.
        builds_on_it (`tuple[Path, ...]`): The recipes that led here, which must not be among the bases again.
    Returns:
        `dict`: Settings by section, without `base`. `captioning: null` takes the section of a base away, which is then
            `None`; a section with nothing in it (`captioning:`) changes nothing of the base, or is one of defaults.
    Raises:
        OSError: If a base does not exist.
        ValueError: If a file is not a recipe, or recipes build on each other in a circle."""
    chain = (*builds_on_it, path.resolve())
    if path.resolve() in builds_on_it:
        raise ValueError(f"{path}: recipes build on each other: {' -> '.join(item.stem for item in chain)}")
    text = path.read_text(encoding="utf-8")
    settings = _parse_yaml(text, str(path)) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: a recipe has sections such as 'training:' with settings in them")
    left_out = _find_nulls(text)
    settings = {name: {} if value is None and name not in left_out else value for name, value in settings.items()}
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise ValueError(f"{path}: base must be the name of a recipe or a .yaml file, not {base!r}")
    beside = path.parent / base
    try:
        base_path = find_recipe(beside if beside.is_file() else base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: base {error}") from None
    return {**_lay_over(read_settings(base_path, chain), settings), **dict.fromkeys(left_out)}


def _find_nulls(text: str) -> set[str]:
    """The sections of a recipe that are said to be null, other than those that are empty."""
    node = yaml.compose(text, yaml.SafeLoader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return {key.value for key, value in pairs if value.tag == "tag:yaml.org,2002:null" and value.value}


def _lay_over(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Merge nested settings; where both have a value, that of `settings` wins. An empty section changes nothing."""
    merged = dict(base)
    for name, value in settings.items():
        earlier = merged.get(name)
        if isinstance(earlier, dict) and isinstance(value, dict):
            merged[name] = _lay_over(earlier, value)
        elif name not in merged or not (isinstance(earlier, dict) and value is None):
            merged[name] = value
    return merged


def list_recipes() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def build_recipe(settings: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Build a [`Recipe`] from nested settings; `source` begins the error messages."""
    _refuse_unknown(settings, [item.name for item in dataclasses.fields(Recipe)], "", source)
    homes = _homes_of_settings()
    sections = {}
    for section in dataclasses.fields(Recipe):
        (kind, *optional) = typing.get_args(section.type) or (section.type,)
        if optional and settings.get(section.name) is None:
            continue
        given = {} if settings.get(section.name) is None else settings[section.name]
        if not isinstance(given, Mapping):
            raise ValueError(f"{source}: {section.name} must be a section with settings in it, not {given!r}")
        _refuse_unknown(given, typing.get_type_hints(kind), f"{section.name}.", source, homes)
        sections[section.name] = _build_section(kind, given, section.name, source)
    known = [item.name for item in dataclasses.fields(Pix2SeqConfig)]
    _refuse_unknown(sections["model"].config, known, "model.config.", source)
    return Recipe(**sections)


def _build_section(kind: type, given: Mapping[str, Any], name: str, source: str) -> Any:
    """Build a dataclass from settings, each of which is checked; `name` leads to them."""
    hints = typing.get_type_hints(kind)
    _refuse_unknown(given, hints, f"{name}.", source)
    for item in dataclasses.fields(kind):
        if item.default is item.default_factory is dataclasses.MISSING and item.name not in given:
            raise ValueError(f"{source}: {name}.{item.name} must be given")
    return kind(**{key: _convert(value, hints[key], f"{name}.{key}", source) for key, value in given.items()})


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every setting of a recipe as YAML; [`load_recipe`] reads it back."""
    settings = {name: section for name, section in dataclasses.asdict(recipe).items() if section is not None}
    Path(path).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error


def _assign(settings: dict, keys: list[str], value: Any, override: str) -> None:
    """Set `settings[a][b] = value` for keys `a.b`, making the sections on the way."""
    for key in keys[:-1]:
        inner = settings.get(key)
        if inner is None:
            inner = settings[key] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"--set {override}: {key} has no settings in it")
        settings = inner
    settings[keys[-1]] = value


def _refuse_unknown(
    given: Iterable[str], known: Iterable[str], prefix: str, source: str, homes: Mapping[str, str] | None = None
) -> None:
    """Raise a ValueError for a name that is not known; `homes` says which section has a setting of that name."""
    known = list(known)
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            advice = (homes or {}).get(str(name), f"{prefix}{nearest}")
            raise ValueError(f"{source}: unknown setting {prefix}{name}; did you mean {advice}?")


def _homes_of_settings() -> dict[str, str]:
    """Every setting with its section, by its name alone; of several sections the first, those of tasks last."""
    homes = {}
    for section in sorted(dataclasses.fields(Recipe), key=lambda section: bool(typing.get_args(section.type))):
        (kind, *_) = typing.get_args(section.type) or (section.type,)
        for item in dataclasses.fields(kind):
            homes.setdefault(item.name, f"{section.name}.{item.name}")
    return {**{item.name: f"model.config.{item.name}" for item in dataclasses.fields(Pix2SeqConfig)}, **homes}


def _convert(value: Any, hint: Any, name: str, source: str) -> Any:
    """Check a YAML value against the type of its field."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = typing.get_origin(kinds[0]) or kinds[0]
    if kind is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)  # a whole number too, or a text such as 3e-5, which YAML takes for a word
    if kind is int and isinstance(value, str | float):
        with contextlib.suppress(ValueError):
            if float(value).is_integer():
                return int(float(value))  # 1e3, which YAML takes for a word
    if kind is str and value is False:
        return "no"  # which YAML takes for false
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        if kind is list:
            (inner,) = typing.get_args(kinds[0])
            return [_convert(item, inner, name, source) for item in value]
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _build_section(kind, value, name, source)
    expected = {float: "a number", int: "a whole number", bool: "true or false", str: "text", list: "a list"}
    raise ValueError(f"{source}: {name} must be {expected.get(kind, 'a section')}, not {value!r}")
