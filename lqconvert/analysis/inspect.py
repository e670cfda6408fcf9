"""What a file contains, and how quantize converts a model. Needs no data and no training.

A model is rewritten as in :func:`lqconvert.quantize`, and its layers are described from the result. For
.tflite files and codes, TensorFlow is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lqconvert.analysis.inspect_codes import CodesInspection, inspect_codes
from lqconvert.analysis.inspect_tflite import TfliteInspection, dimensions, inspect_tflite
from lqconvert.errors import LqError
from lqconvert.keras_loader.in_memory import ModelLike, model_name
from lqconvert.runtime.verify import check_runs
from lqconvert.tflite.c_source import operators
from lqconvert.tflite.targets import RUNTIMES, Target
from lqconvert.utils.terminal import Shown, Table, narrow


def inspect(
    file: ModelLike, *, input_shape: tuple[int, ...] | None = None, trust_model: bool = False
) -> ModelInspection | TfliteInspection | CodesInspection:
    """Describes a Keras model, a .tflite or a .codes.npz. For a model, shows how quantize converts it.

    A model that quantize refuses is described as far as possible; ``refused`` has the reason.

    Args:
        file: a .tflite of any tool, the .codes.npz of a run, or a Keras model (a file, or in memory).
        input_shape, trust_model: see :func:`lqconvert.keras_loader.load.load_model`.

    Raises:
        LqError: if the file cannot be read.
    """
    if isinstance(file, (str, Path)):
        path = Path(file)
        if not path.exists():
            raise LqError(f"{path}: no such file")
        if path.suffix == ".tflite":
            return inspect_tflite(path)
        if path.suffix == ".npz":
            return inspect_codes(path)
    return _inspect_model(file, input_shape, trust_model)


#: The limit for a name that is shown: a stranger's may have megabytes.
LONGEST_NAME = 200
#: Names and kinds up to this length are not folded: 80 columns have room for two of them and the rest.
WHOLE = 22
HEADERS = ("layer", "kind", "output", "weights", "becomes")
#: The beginning of ``becomes`` for a layer without integer kernels.
FLOAT = "float: "


@dataclass(frozen=True)
class LayerRow:
    """A layer of the model file, or of the rewritten graph, and its form in the int8 file."""

    name: str
    kind: str  # "A -> B" if the graph has another class instead
    shape: tuple[int | None, ...] | None  # of its output, without the batch axis; None if it was not built
    parameters: int
    becomes: str = ""
    codes: int = 0  # the number of int8 codes of its kernel
    scales: int = 0  # the number of their scales

    @property
    def stays_float(self) -> bool:
        return self.becomes.startswith(FLOAT)


@dataclass(frozen=True)
class ModelInspection(Shown):
    """A Keras model. If quantize refuses it, ``refused`` has the reason, and there is no int8 file."""

    file: str
    layers: list[LayerRow]
    parameters: int
    float32_bytes: int
    weight_bytes: int  # of its int8 codes and int32 biases
    int8_bytes: int  # of the whole int8 file, accurate to a few bytes
    operators: list[str]
    targets: dict[str, str]  # "runs", or the reason why the runtime cannot run it
    refused: str = ""
    hint: str | None = None  # the setting that can help
    folds: ClassVar[bool] = True

    def shown(self) -> Iterator[str | Table]:
        yield from self._verdict()
        if self.parameters:
            yield f"{self.parameters:,} parameters: {self.float32_bytes:,} bytes as float32"
        yield ""
        longest = max((len(text) for row in self.layers for text in (row.name, row.kind)), default=0)
        table = narrow(*HEADERS, whole=HEADERS[:4] if longest <= WHOLE else ())
        for row in self.layers:
            count = f"{row.parameters:,}" if row.parameters else ""
            table.add_row(row.name, row.kind, dimensions(row.shape), count, row.becomes)
        yield table

    def _verdict(self) -> Iterator[str]:
        if self.refused:
            yield f"quantize refuses it: {self.refused}"
            return
        floats = [f"'{row.name}' ({row.becomes[len(FLOAT) :]})" for row in self.layers if row.stays_float]
        what = "a file of it that is float in part" if floats else "an integer-only file of it"
        yield f"quantize makes {what}, about {self.int8_bytes:,} bytes before packing"
        for target, answer in self.targets.items():
            yield f"{target}: {answer}"
        if floats:
            yield f"stays float: {', '.join(floats)}"
        yield f"int8 codes and int32 biases: {self.weight_bytes:,} bytes"
        yield f"operators: {', '.join(self.operators)}"


def _inspect_model(
    file: ModelLike, input_shape: tuple[int, ...] | None, trust_model: bool
) -> ModelInspection:
    from lqconvert.keras_loader.config_checks import MOST_LAYERS, layer_count
    from lqconvert.keras_loader.load import load_model, model_config
    from lqconvert.quantization.rewrite import rewrite
    from lqconvert.quantization.schemes import Rate

    name, config = model_name(file), model_config(file)
    if layer_count(config) > MOST_LAYERS:  # nobody reads a row for each
        raise LqError(f"{name}: the model has more than {MOST_LAYERS:,} layers")
    rows, parameters = _config_rows(config, trust_model), 0
    try:
        model = load_model(file, input_shape=input_shape, trust_model=trust_model)
        rows, parameters = _float_rows(model), model.count_params()
        quantized = rewrite(model, Rate(), granularity="mixed")
        rows = quantized_rows(quantized, model, config)
        return describe(name, model, rows, int8_file(quantized)[0])
    except LqError as error:
        marked, reason = _marked(rows, str(error)), str(error)
        return ModelInspection(name, marked, parameters, 4 * parameters, 0, 0, [], {}, reason, error.hint)


def describe(name: str, model: Any, rows: list[LayerRow], tflite: bytes) -> ModelInspection:
    """The description of a model that was converted.

    Args:
        name: the path of its file, or the name of a model in memory.
        rows: its :func:`quantized_rows`.
        tflite: its int8 file.
    """
    parameters, biases = model.count_params(), sum(row.parameters - row.codes for row in rows if row.codes)
    return ModelInspection(
        name,
        rows,
        parameters,
        4 * parameters,
        sum(row.codes for row in rows) + 4 * biases,
        len(tflite),
        operators(tflite),
        {target.name: _answer(tflite, target, rows) for target in RUNTIMES.values()},
    )


def _config_layers(config: dict[str, Any] | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, class, config) of the layers of a model's config. Nested models are replaced by their layers."""
    from lqconvert.keras_loader.config_checks import MODELS
    from lqconvert.keras_loader.limits import layers_of

    # The config is not checked yet: a stranger's may contain anything at any depth.
    stack = layers_of(config)[::-1]
    while stack:
        layer = stack.pop()
        kind = str(layer.get("class_name")).split(">")[-1]
        if kind in MODELS:
            stack += layers_of(layer)[::-1]
        else:
            settings = layer.get("config")
            name = settings.get("name") if isinstance(settings, dict) else None
            name = str(name or layer.get("name", "?")).replace("/", "_")
            yield name[:LONGEST_NAME], kind[:LONGEST_NAME], layer


def _config_rows(config: dict[str, Any] | None, trusted: bool) -> list[LayerRow]:
    """The layers of a model that may not load, with a refusal at every layer that causes one."""
    from lqconvert.keras_loader.config_checks import refuse_unknown

    rows = []
    for name, kind, layer in _config_layers(config):
        why = ""
        try:
            refuse_unknown({"class_name": "Functional", "config": {"layers": [layer]}}, trusted)
        except LqError as error:
            why = f"refused: {error}"
        rows.append(LayerRow(name, kind, None, 0, why))
    return rows


def _marked(rows: list[LayerRow], refusal: str) -> list[LayerRow]:
    """The rows, with the refusal at the layer that it names."""
    return [
        replace(row, becomes=row.becomes or f"refused: {refusal}") if f"'{row.name}'" in refusal else row
        for row in rows
    ]


def _float_rows(model: Any) -> list[LayerRow]:
    from lqconvert.keras_loader.layer_kinds import class_name

    return [
        LayerRow(layer.name, class_name(layer), _output_shape(layer), layer.count_params())
        for layer in model.layers
    ]


def _output_shape(layer: Any) -> tuple[int | None, ...]:
    shape = layer.output_shape
    return tuple((shape[0] if isinstance(shape, list) else shape)[1:])


def quantized_rows(quantized: Any, model: Any, config: dict[str, Any] | None) -> list[LayerRow]:
    """The layers of a rewritten model, and the layers of its file that are no longer in it."""
    return _with_vanished(_quantized_rows(quantized, model), model, config)


def _quantized_rows(quantized: Any, model: Any) -> list[LayerRow]:
    """The layers of the folded graph, with their replacements in the rewritten graph and layers behind."""
    from lqconvert.keras_loader.layer_kinds import class_name
    from lqconvert.quantization.granularity import kernel_name
    from lqconvert.quantization.layers import ActivationQuantizer, FollowingQuantizer, QuantizedLayer
    from lqconvert.quantization.rewrite import float_layers

    before = {layer.name: class_name(layer) for layer in model.layers}
    floats = float_layers(quantized)
    rows = []
    for layer in quantized.layers:
        if isinstance(layer, (ActivationQuantizer, FollowingQuantizer)):
            continue
        inner, codes, scales = layer, 0, 0
        if isinstance(layer, QuantizedLayer):
            inner = layer.layer
            name = kernel_name(inner)
            codes = int(getattr(inner, name).shape.num_elements())
            scales = int(layer.quantizers[name].scale_weight.shape.num_elements())
        kind = class_name(inner)
        if before.get(layer.name, kind) != kind:
            kind = f"{before[layer.name]} -> {kind}"
        becomes = f"{FLOAT}{floats[layer.name]}" if layer.name in floats else _becomes(layer, scales)
        rows.append(
            LayerRow(layer.name, kind, _output_shape(layer), inner.count_params(), becomes, codes, scales)
        )
    return rows


def _becomes(layer: Any, scales: int) -> str:
    """The form of a layer of the rewritten graph in the int8 file, in words."""
    from lqconvert.keras_loader.layer_kinds import Range, class_name, kind_of
    from lqconvert.quantization.layers import ActivationQuantizer, FollowingQuantizer

    parts = []
    if scales:
        parts.append(f"int8, {scales} scales" if scales > 1 else "int8, one scale")
    fused = _fused_into(layer)
    if fused:
        parts.append(f"fused into {fused}")
    behind = [node.outbound_layer for node in layer.outbound_nodes]
    quantizer = next((x for x in behind if isinstance(x, (ActivationQuantizer, FollowingQuantizer))), None)
    if isinstance(quantizer, ActivationQuantizer):
        if class_name(layer) == "InputLayer":
            parts.append("range of the data, or of pixels")
        elif quantizer.fixed is None:
            parts.append("learned range")
        else:
            parts.append("fixed range {:.4g}..{:.4g}".format(*quantizer.fixed))
    elif quantizer is None and behind and _fused_into(behind[0]):
        parts.append(f"range of {behind[0].name}")
    elif kind_of(getattr(layer, "layer", layer)).output_range is Range.INSIDE:
        parts.append("int16 sums")
    else:
        parts.append("scale of its input")
    return "; ".join(parts)


def _fused_into(layer: Any) -> str:
    """The layer in front into which a ReLU is fused. Without fusing, that layer would have a quantizer."""
    from lqconvert.keras_loader.layer_kinds import class_name, kind_of
    from lqconvert.quantization.layers import QuantizedLayer

    if class_name(layer) != "ReLU":
        return ""
    source = layer.input._keras_history.layer
    return source.name if isinstance(source, QuantizedLayer) or kind_of(source).fuses_relu else ""


def _with_vanished(rows: list[LayerRow], model: Any, config: dict[str, Any] | None) -> list[LayerRow]:
    """The rows and the layers that are only in the file, each behind the layer before it."""
    from lqconvert.keras_loader.layer_kinds import LAYERS, OTHER, Loading

    kept = {row.name for row in rows}
    behind: dict[str, list[LayerRow]] = {}
    place = ""
    for row in _float_rows(model):
        if row.name not in kept:
            place = _absorber(model.get_layer(row.name), kept)
            behind.setdefault(place, []).append(replace(row, becomes=f"folded into {place}"))
    for name, kind, _ in _config_layers(config):
        if name in kept:
            place = name
        elif LAYERS.get(kind, OTHER).loading is Loading.DROPPED:
            behind.setdefault(place, []).append(LayerRow(name, kind, None, 0, "left out: for training only"))
    return [each for row in rows for each in (row, *behind.get(row.name, []))]


def _absorber(batch_norm: Any, kept: set[str]) -> str:
    """The layer that a BatchNormalization was folded into: the one in front if it is linear, or the next."""
    from lqconvert.keras_loader.layer_kinds import class_name
    from lqconvert.quantization.granularity import LINEAR

    source = batch_norm.input._keras_history.layer
    while source.name not in kept:
        source = source.input._keras_history.layer
    linear = (*LINEAR, "SeparableConv2D")
    if class_name(source) in linear and source.activation.__name__ == "linear":
        return source.name
    layer = batch_norm
    while class_name(layer) not in linear:
        layer = layer.outbound_nodes[0].outbound_layer
    return layer.name


def int8_file(quantized: Any) -> tuple[bytes, list[str]]:
    """The int8 file of a rewritten model with starting scales, and the layers of its kernels, in file order.

    Without data, the scales are those of random inputs. Its size and operators do not depend on them, unless
    ranges are equal by chance.
    """
    from lqconvert.exporting.export import Template, learned_codes
    from lqconvert.keras_loader.load import random_inputs
    from lqconvert.quantization.calibrate import calibrate

    inputs = random_inputs(quantized, batch=4)
    # Also inputs as large as pixels: with too small a range, a bias of such a model would not fit int32.
    large = [x if x.dtype == np.int32 else 255 * x for x in inputs]
    batches: list[Any] = [x if len(x) > 1 else x[0] for x in (inputs, large)]
    calibrate(quantized, batches)
    codes = learned_codes(quantized)
    template = Template.of(quantized, codes)
    return template.fill(codes), template.order


def _answer(tflite: bytes, target: Target, rows: list[LayerRow]) -> str:
    """Whether quantize makes a file for the target, or the reason why not."""
    kept = [f"'{row.name}'" for row in rows if row.stays_float]
    if kept and not target.for_phones:
        return f"refused: {', '.join(kept)} would stay float"
    try:
        target.check_installed()
        check_runs(tflite, target)
    except LqError as error:
        return str(error)
    return "runs"
