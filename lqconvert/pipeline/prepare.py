"""The part of a run before training: everything is read, checked and set up. Nothing is written."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.data.arrays import DataLike
from lqconvert.data.dataset import Data, as_numpy
from lqconvert.data.preprocessing import Preprocessing, choose_preprocessing
from lqconvert.data.sources import load_data
from lqconvert.errors import LqError
from lqconvert.exporting.export import Template, learned_codes
from lqconvert.keras_loader.in_memory import ModelLike, model_label
from lqconvert.keras_loader.load import load_model
from lqconvert.pipeline.prune import Measuring, prune
from lqconvert.pipeline.settings import OutputSettings, Settings
from lqconvert.quantization.calibrate import calibrate, cover_targets
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.quantization.input_scaling import Fronted, choose_front
from lqconvert.quantization.layers import QuantizedLayer
from lqconvert.quantization.model_outputs import inference, joined, outputs_of
from lqconvert.quantization.pruning import Pruning
from lqconvert.quantization.recipes import EFFORTS
from lqconvert.quantization.rewrite import float_layers, rewrite
from lqconvert.quantization.schemes import Scheme
from lqconvert.reports.settings import RunSettings
from lqconvert.runtime.verify import check_runs
from lqconvert.tflite.c_source import including
from lqconvert.tflite.io_types import Border, border_of
from lqconvert.tflite.packages import PACKAGES, package_paths
from lqconvert.tflite.targets import Target
from lqconvert.training.augmentation import Augmentation, choose_augmentation
from lqconvert.training.checkpoint import Checkpoint
from lqconvert.training.finetune import FinetuneSettings, total_steps
from lqconvert.training.memorized import steer
from lqconvert.training.post_train import rounding_inputs
from lqconvert.utils.output_files import Packaged, Paths

log = logging.getLogger(__name__)

#: The number of validation examples on which int8 inputs are compared with scaled ones.
FRONT_EXAMPLES = 1000


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train."""

    name: str  # the model's path, or its own name if it is in memory
    paths: Paths
    targets: tuple[Target, ...]
    model: tf_keras.Model  # without the front, if there is one
    folded: tf_keras.Model
    pruned: tf_keras.Model  # the folded model, or one without the channels that limits do not allow
    units: list[np.ndarray]  # :attr:`.Pruning.kept`, which units are left; empty if there was none
    float_layers: dict[str, str]  # layers of the folded model that stay float, and what they are
    data: Data
    preprocess: Preprocessing  # with the front; moved off ties if the file takes raw pixels
    border: Border  # the input and output conversions of the files
    input_shift: float | None  # in steps of raw pixels; None if the file takes other inputs
    quantized: tf_keras.Model  # calibrated
    batches: list[Any]  # the batches of its calibration
    template: Template
    finetuning: FinetuneSettings
    settings: RunSettings
    identity: dict[str, str]  # all settings and checksums that decide what it learns
    checkpoint: Checkpoint | None  # of the run to continue
    steers_on_test: bool = False  # one half of the test split steers, the report uses the other half


def prepare(
    model_source: ModelLike,
    data_source: DataLike,
    output: str | Path,
    settings: Settings,
    *,
    resume: bool = False,
) -> Prepared:
    """Reads the model and the data, and sets up training.

    Args: those of :func:`lqconvert.quantize`.

    Raises:
        LqError: for every mistake of the user that can be found before training.
    """
    bits = settings.quantization.activations
    border_of(None, settings.output.io, bits)
    targets = settings.output.runtimes
    paths = paths_of(output, targets, settings.output)
    outputs = [path.resolve() for path in paths.all()]
    if isinstance(model_source, (str, Path)) and Path(model_source).resolve() in outputs:
        raise LqError(f"{model_source}: is the model itself; give the .tflite another name")
    scheme = settings.scheme
    if settings.budget.steers and type(scheme).penalty is Scheme.penalty:
        raise LqError(f"scheme {scheme.name} has no penalty, so it cannot hold a budget; choose rate")
    model = load_model(
        model_source, input_shape=settings.model.input_shape, trust_model=settings.model.trust_model
    )
    folded = fold(model)
    kept = float_layers(folded)
    _check_integer(kept, targets, settings.model.strict)
    shapes = input_shapes(model)
    data = load_data(data_source, shapes, outputs_of(model), settings.data.wishes)
    for note in data.notes:
        log.info(note)
    _check_indices(model, data)
    for head in data.heads:
        log.info(f"task{f' of {head.output.name}' if len(data.heads) > 1 else ''}: {head.describe()}")
    given, seed = settings.data.preprocess, settings.training.seed
    data, preprocess = preprocessed(model, data, given)
    data, steers_on_test = steer(folded, data, preprocess, settings.data.steer_on)
    if steers_on_test and given is None:  # memorized labels score well with several preprocessings
        data, preprocess = preprocessed(model, data, given)
    steps = _steps(data, settings)
    preprocess.refuse_indices(
        name for name, x in zip(model.input_names, model.inputs, strict=True) if x.dtype.is_integer
    )
    images = _takes_images(model)
    augmentation = _augmentation(model, data, preprocess) if images and steps else Augmentation()
    tf_keras.utils.set_random_seed(seed)
    pixels = preprocess.pixel_range if data.integer_pixels and images and bits == 8 else None
    fed = preprocess if pixels is None else preprocess.off_ties(preprocess.pixel_zero_point)
    if images and pixels is None:
        fronted = _front(model, data, fed, seed, settings)
        if fronted is not None:
            model, fed = fronted.model, dataclasses.replace(fed, front=fronted.front)
            folded = fold(model)
    border = border_of(fed.front, settings.output.io, bits)
    quantized = rewrite(
        folded,
        scheme,
        granularity=settings.granularity,
        rounding=settings.quantization.rounding,
        start=settings.quantization.start,
        activations=bits,
        input_range=pixels,
    )
    few = data.train.batches(256, shuffle_seed=seed, preprocessing=fed).take(4)
    batches = [as_numpy(x) for _, x, _ in few]
    calibrate(quantized, batches)
    cover_targets(quantized, data.heads, data.train.y)
    template = Template.of(quantized, learned_codes(quantized))
    targets = tuple(_checked(template.tflite, target) for target in targets)
    chosen = _chosen(settings, data, preprocess, augmentation, border.io, steers_on_test)
    identity = {
        **chosen.lines(),
        "steps": str(steps),
        **_identity_of_target(targets[0]),
        **_identity_of_data(data, batches),
        "inputs": ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()),
        "model": checksum(*folded.get_weights()),
    }
    resumes = resume and paths.checkpoint.exists()
    checkpoint = Checkpoint.load(paths.checkpoint, identity) if resumes else None
    measuring = Measuring(quantized, template, targets, settings.limits)
    pruned, units = folded, [] if checkpoint is None else checkpoint.units
    if units or (checkpoint is None and measuring.too_large()):
        pruned = fold(model)
        some = rounding_inputs(quantized, data, fed, seed)
        pruning = Pruning(pruned, folded, data.heads, some, targets[0].blocks)
        prune(pruning, measuring, units[0] if units else None)
        units = [pruning.kept]
        calibrate(quantized, batches)
        cover_targets(quantized, data.heads, data.train.y)
    return Prepared(
        name=model_label(model_source),
        paths=paths,
        targets=targets,
        model=model,
        folded=folded,
        pruned=pruned,
        units=units,
        float_layers=kept,
        data=data,
        preprocess=fed,
        border=border,
        input_shift=None if pixels is None else preprocess.pixel_shift,
        quantized=quantized,
        batches=batches,
        template=template,
        finetuning=_finetuning(chosen, quantized, steps, settings.training.save_seconds),
        settings=chosen,
        identity=identity,
        checkpoint=checkpoint,
        steers_on_test=steers_on_test,
    )


def _steps(data: Data, settings: Settings) -> int:
    """The number of training steps. If the user set the epochs, no steps are added; there may be none."""
    training, cycles = settings.training, settings.budget.cycles
    if settings.epochs == 0:
        return 0
    usual = steps = total_steps(
        data.train.size,
        settings.epochs,
        training.batch_size,
        cycles,
        least=EFFORTS[training.effort] * max(training.minimum_steps, training.minimum_cycle * cycles),
    )
    if training.epochs is not None:
        steps = total_steps(data.train.size, training.epochs, training.batch_size, cycles)
    if steps < usual:
        log.info(f"training {steps:,} steps, for the given epochs (default: {usual:,})")
    return steps


def _augmentation(model: tf_keras.Model, data: Data, preprocess: Preprocessing) -> Augmentation:
    """How training images are varied."""
    augmentation = choose_augmentation(_predictions(model), data, preprocess)
    if augmentation != Augmentation():
        varied = dataclasses.replace(augmentation, blend=False)
        log.info(f"training images are {varied}: this hardly changes the float model's outputs")
    if augmentation.blend:
        log.info("training images are blended in pairs, because the float model has memorized them")
    return augmentation


def _chosen(
    settings: Settings,
    data: Data,
    preprocess: Preprocessing,
    augmentation: Augmentation,
    io: str,
    steers_on_test: bool,
) -> RunSettings:
    """All settings of a run, with detected and default values filled in."""
    return RunSettings(
        scheme=settings.scheme,
        budget=settings.budget,
        io=io,
        granularity=settings.granularity,
        rounding=settings.quantization.rounding,
        start=settings.quantization.start,
        activations=settings.quantization.activations,
        preprocess=preprocess,
        tasks={head.output.name: head.task for head in data.heads},
        judged={head.output.name: head.judged for head in data.heads},
        weights={head.output.name: head.weight for head in data.heads},
        threshold=settings.data.wishes.threshold,
        steer_on="test-half" if steers_on_test else "validation",
        limits=settings.limits,
        augmentation=augmentation,
        epochs=settings.epochs,
        max_minutes=settings.training.max_minutes,
        batch_size=settings.training.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.training.seed,
    )


def _finetuning(
    chosen: RunSettings, quantized: tf_keras.Model, steps: int, save_seconds: float
) -> FinetuneSettings:
    """The settings of fine-tuning."""
    linear = sum(isinstance(layer, QuantizedLayer) for layer in quantized.layers)
    return FinetuneSettings(
        steps=steps,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        seed=chosen.seed,
        save_seconds=save_seconds,
        damping=chosen.scheme.damping(linear),
        budget=chosen.budget,
        augmentation=chosen.augmentation,
        keep_last=chosen.scheme.coarsens,
    )


def _front(
    model: tf_keras.Model,
    data: Data,
    preprocess: Preprocessing,
    seed: int,
    settings: Settings,
) -> Fronted | None:
    """The scaling that columns of different ranges need (:func:`.input_scaling.choose_front`), if any."""
    few = data.train.batches(256, shuffle_seed=seed, preprocessing=preprocess).take(4)
    seen = np.concatenate([x.numpy() for _, x, _ in few])
    part = data.validation.pick(np.arange(min(FRONT_EXAMPLES, data.validation.size)))
    x = np.concatenate([x.numpy() for _, x, _ in part.batches(256, preprocessing=preprocess)])
    fronted, io = choose_front(model, seen, x, settings.quantization.activations), settings.output.io
    if fronted is not None and io not in (None, "float32"):
        log.info(f"with {io} inputs your program has to do it; the report says how")
    return fronted


def _checked(tflite: bytes, target: Target) -> Target:
    """A target that can run an int8 file. If RAM is preferred, unpacking may take no more than the file."""
    if not target.is_installed:
        return target
    arena_bytes = check_runs(tflite, target)
    return target.within(arena_bytes) if target.prefer == "ram" else target


def _identity_of_target(target: Target) -> dict[str, str]:
    """The properties of a target that decide the size of its files."""
    return {
        "target": target.name,
        "packings": ", ".join(map(_without_defaults, target.packings)),
        "strip_all": str(target.needless.signature),
        "drop_bias_scales": str(target.needless.bias_scales),
        "prefer": str(target.prefer),
        "room": str(target.room),
    }


def _identity_of_data(data: Data, batches: list[Any]) -> dict[str, str]:
    """The splits' sizes, and a checksum of their labels and of the first inputs."""
    sizes = [f"{size:,} {name}" for name, size in data.sizes.items()]
    return {"data": ", ".join([*sizes, checksum(data.train.y, data.validation.y, *_flat(batches))])}


def _without_defaults(value: Any) -> str:
    """The repr of a data class, without fields that have their default value."""
    fields = {each.name: (getattr(value, each.name), each.default) for each in dataclasses.fields(value)}
    given = [f"{name}={now}" for name, (now, default) in fields.items() if now != default]
    return f"{type(value).__name__}({', '.join(given)})"


def checksum(*arrays: np.ndarray) -> str:
    """A checksum of arrays that must be the same when a run continues."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return f"checksum {checksum:08x}"


def _flat(batches: list[Any]) -> list[np.ndarray]:
    """All arrays of the batches. A batch with several inputs is a list of arrays."""
    return [part for batch in batches for part in (batch if isinstance(batch, list) else [batch])]


def paths_of(output: str | Path, targets: Sequence[Target], settings: OutputSettings) -> Paths:
    """The paths of the files to write. Raises an LqError for a path or setting that is not possible."""
    sources = tuple(target.name for target in targets if settings.c_array and not target.for_phones)
    paths = Paths(
        Path(output),
        tuple(target.name for target in targets),
        tuple(target.name for target in targets if target.accelerator),
        sources,
        settings.gzip,
        None if settings.report is None else Path(settings.report),
        None if settings.package is None else _packaged(Path(output), targets, settings.package),
    )
    paths.check()
    if settings.limits is not None and settings.limits.max_ram is not None:
        _check_arenas(targets)
    if settings.c_array and not sources:
        raise LqError("no C sources for LiteRT: phones load the .tflite itself", hint="tflm")
    for target in targets:
        if not target.is_micro:
            target.check_installed()
        elif not target.is_installed:
            log.warning(
                f"{target.package} is not installed: the file for {target.name} is not verified in TFLite "
                "Micro on this machine"
            )
    for name in sources:
        including(paths.deployed(name).with_suffix(".h"))
    return paths


def _check_arenas(targets: Sequence[Target]) -> None:
    """Refuses a limit of RAM if no target's RAM is known, and says for which others it does not hold."""
    unknown = [target for target in targets if not target.has_arena]
    if all(target.for_phones for target in targets):
        raise LqError("RAM cannot be limited on LiteRT: its arena has no fixed size", hint="tflm")
    if len(unknown) == len(targets):
        raise LqError(f"the RAM of a file for {unknown[0].name} is not known", hint="measured")
    for target in unknown:
        log.warning(f"the RAM of the file for {target.name} is not limited: it is not known")


def _packaged(output: Path, targets: Sequence[Target], name: str) -> Packaged:
    """The package of the first target for which there can be one."""
    if name not in PACKAGES:
        raise LqError(f"package '{name}': not one of {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    possible = [target for target in targets if not (target.for_phones or target.accelerator)]
    if not possible:
        hint = "tflm" if package.has_decode else "no_decode"
        raise LqError(f"no {name} package for {targets[0].name}: it is not for TFLite Micro", hint=hint)
    fitting = [target for target in possible if package.has_decode or not target.has_decode]
    if not fitting:
        raise LqError(f"{package.library} has no DECODE", hint="no_decode")
    folder = output.with_name(f"{output.stem}-{name}")
    if name == "arduino" and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", folder.name):
        raise LqError(f"{folder}: Arduino takes only letters, digits, '_', '-' and '.' in a sketch's name")
    files, users = package_paths(name, folder)
    return Packaged(name, fitting[0].name, folder, tuple(files), tuple(users))


def _check_integer(kept: dict[str, str], targets: Sequence[Target], strict: bool) -> None:
    """Refuses layers that would stay float if the user or a target does not allow that."""
    if kept and (strict or not all(target.for_phones for target in targets)):
        listed = ", ".join(f"'{name}' ({what})" for name, what in kept.items())
        raise LqError(f"no integer kernel for {listed}", hint="allow_float" if strict else "litert")


def input_shapes(model: tf_keras.Model) -> dict[str, tuple[int, ...]]:
    """The inputs' names and shapes, without the batch axis."""
    return {name: tuple(x.shape[1:]) for name, x in zip(model.input_names, model.inputs, strict=True)}


def _check_indices(model: tf_keras.Model, data: Data) -> None:
    """Refuses indices for which an Embedding has no row."""
    names = [x.name for x in model.inputs]
    ends = np.cumsum([math.prod(shape) for shape in data.train.parts])[:-1]
    embeddings = [layer for layer in model.layers if isinstance(layer, tf_keras.layers.Embedding)]
    direct = [layer for layer in embeddings if layer.input.name in names]
    for split in (data.train, data.validation, data.test) if direct else ():
        x, _ = split.arrays()
        parts = np.split(x, ends, axis=1) if split.parts else [x]
        for layer in direct:
            part = parts[names.index(layer.input.name)]
            wrong = part[(part < 0) | (part >= layer.input_dim)]
            if wrong.size:
                raise LqError(
                    f"{data.name}: index {int(wrong[0])} is out of range: layer '{layer.name}' has "
                    f"{layer.input_dim:,} rows"
                )


def _takes_images(model: tf_keras.Model) -> bool:
    """Whether the model has one float input: images, or other arrays that may be scaled."""
    return len(model.inputs) == 1 and model.inputs[0].dtype == tf.float32


def _predictions(model: tf_keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A function from inputs to all outputs in one array."""
    call = inference(joined(model))
    return lambda x: call(x).numpy()


def preprocessed(
    model: tf_keras.Model,
    data: Data,
    preprocess: Preprocessing | None,
) -> tuple[Data, Preprocessing]:
    """The data, and the preprocessing that the model was trained with.

    The targets of a reconstruction are preprocessed as the model's inputs are.

    Args:
        preprocess: the user's choice. Without it, the preprocessing is detected on labelled images.

    Raises:
        LqError: if the model is no better than chance under any known preprocessing.
    """
    if not _takes_images(model):
        if preprocess is None:
            log.info("inputs are used as they are")
        return data, preprocess or Preprocessing()
    if not data.labelled:
        if preprocess is None:
            log.info(
                "no labels to detect the preprocessing with: inputs are used as they are",
                extra={"hint": "preprocess"},
            )
        return data, preprocess or Preprocessing()
    if preprocess is not None:
        return data.retargeted(preprocess), preprocess
    predict = _predictions(model)
    choice = choose_preprocessing(lambda batches: np.concatenate([*map(predict, batches)]), data)
    listed = ", ".join(f"{name} {value:.3g}" for name, value in choice.scores.items())
    log.info(f"preprocessing: {choice.preprocessing} (float model's scores on validation data: {listed})")
    for head in choice.doubts:
        if head.task == "reconstruction":
            log.warning(
                "the outputs do not reconstruct the inputs: they are compared with the float model's outputs"
            )
            data = data.held_against_float(head)
        else:
            log.warning(f"output {head.output.name}: the float model is no better than chance on its labels")
    return data.retargeted(choice.target), choice.preprocessing
