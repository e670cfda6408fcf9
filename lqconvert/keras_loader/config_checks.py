"""Reads and checks a model's config without Keras. Nothing is executed, and everything unknown is refused.

A file may come from a stranger. Its config names classes that Keras would look up, import and call. So every
object in it, at any depth, has to be in a known set, and the weights have to be stored in the file itself.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import h5py

from lqconvert.errors import LqError, first_line
from lqconvert.keras_loader.archive_checks import LARGEST_CONFIG, open_archive, weight_count
from lqconvert.keras_loader.custom_layers import CUSTOM_LAYERS
from lqconvert.keras_loader.layer_kinds import LAYERS, Loading
from lqconvert.keras_loader.limits import layers_of
from lqconvert.keras_loader.op_rules import KERAS3, TENSORFLOW
from lqconvert.keras_loader.saved_model import saved_config
from lqconvert.utils.input_files import open_regular

MODELS = {"Sequential", "Functional", "Model"}
IN_FILES = {kind.name for kind in LAYERS.values() if kind.loading is not Loading.NONE}
KNOWN = {*IN_FILES, *CUSTOM_LAYERS, *KERAS3} - {"Lambda", "TrustedFunction"}
#: Functions of TensorFlow that tf_keras calls, by their names.
OPERATIONS = {"TFOpLambda", "SlicingOpLambda"}
#: Objects that layers hold besides layers: initializers, regularizers, constraints, dtypes, cells and values.
PARTS = {
    *("Zeros", "Ones", "Constant", "RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling"),
    *("GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform"),
    *("Orthogonal", "OrthogonalInitializer", "Identity", "IdentityInitializer"),
    *("L1", "L2", "L1L2", "OrthogonalRegularizer"),
    *("MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm", "RadialConstraint"),
    *("Policy", "DTypePolicy", "FloatDTypePolicy"),
    *("LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells"),
    *("__tuple__", "__ellipsis__", "__keras_tensor__", "__tensor__", "__numpy__", "TensorShape", "__slice__"),
}
FUNCTIONS = {
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "glu", "mish", "silu", "swish"),
    *("sigmoid", "hard_sigmoid", "log_sigmoid", "sparse_sigmoid", "softmax", "log_softmax", "sparsemax"),
    *("tanh", "hard_tanh", "tanh_shrink", "hard_silu", "hard_swish", "softplus", "softsign", "soft_shrink"),
    *("hard_shrink", "squareplus", "sparse_plus", "exponential", "threshold"),
}
#: The types of constants in operations.
CONSTANTS = {"float16", "bfloat16", "float32", "float64", "int32", "int64", "bool"}
#: Keras imports the module that an object names. Only these modules are allowed.
MODULES = re.compile(r"(tf_)?keras(\.\w+)*|lqconvert(\.\w+)*|builtins")
#: Each nested model adds about six levels. Keras's own readers recurse.
DEEPEST = 100
#: The limit for layers. NASNetLarge has 1,040.
MOST_LAYERS = 3_500
LONGEST_NAME = 1_000
#: The limit for parts into which an operation splits a tensor.
MOST_PARTS = 1_000
#: The limit for passes over the layers. Keras writes them in order, except layers that are called several
#: times.
MOST_ROUNDS = 100
LARGEST_NUMBER = (1 << 31) - 1


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The model's config and the version of Keras that saved it.

    Raises:
        LqError: if the file has no model, or something that Keras would not write.
    """
    if path.is_dir():
        return _saved_model_config(path), "2"
    with open_regular(path) as file:
        if not file.read(1):
            raise LqError(f"{path}: the file is empty")
        if zipfile.is_zipfile(file):
            return _archive_config(path, file)
    return _hdf5_config(path)


def _archive_config(path: Path, file: BinaryIO) -> tuple[dict[str, Any], str]:
    try:
        with open_archive(path, file) as archive:
            config = _parsed(archive.read("config.json"), path)
            version = _parsed(archive.read("metadata.json"), path).get("keras_version", "3")
    except LqError:
        raise
    except Exception as error:  # a damaged archive makes zipfile raise anything
        raise LqError(f"{path}: not a Keras model archive ({first_line(error)})") from error
    return config, str(version)


def _hdf5_config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        with h5py.File(path, "r") as file:
            weight_count(path)
            text = file.attrs.get("model_config")
            version = file.attrs.get("keras_version", "2")
    except LqError:
        raise
    except Exception as error:  # a damaged file makes h5py raise anything
        raise LqError(
            f"{path}: not a Keras model, or truncated (neither HDF5 nor a .keras archive)"
        ) from error
    if text is None:
        raise LqError(f"{path}: weights without a model; save the whole model with model.save(...)")
    version = version.decode(errors="replace") if isinstance(version, bytes) else version
    return _parsed(text, path), str(version)


def _parsed(text: Any, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys: readers differ in which of two values they use."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise LqError(f"{path}: a key occurs twice in the model's config")
        return result

    if not isinstance(text, (str, bytes)) or len(text) > LARGEST_CONFIG:
        raise LqError(f"{path}: the model's config is not a text of at most {LARGEST_CONFIG:,} bytes")
    try:
        config = json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise LqError(f"{path}: the model's config is nested too deeply") from error
    except ValueError as error:
        raise LqError(f"{path}: the model's config is damaged ({first_line(error)})") from error
    if not isinstance(config, dict):
        raise LqError(f"{path}: the model's config is not a JSON object")
    return config


def _saved_model_config(path: Path) -> dict[str, Any]:
    """The config of the model in a SavedModel. Of the rest, only the weights are read."""
    metadata = _parsed(saved_config(path), path)
    # With the numbers of shared objects, if there are any.
    config = metadata.get("model_config")
    config = config if isinstance(config, dict) and "config" in config else metadata
    return {key: config[key] for key in ("class_name", "config") if key in config}


def refuse_unknown(config: dict[str, Any], trusted: bool = False) -> None:
    """Refuses a model's config if anything in it, at any depth, is not known to be harmless.

    Args:
        config: from :func:`read_config`.
        trusted: allow Lambda layers, whose Python code Keras runs.

    Raises:
        LqError: at the first unknown object.
    """
    kind = str(config.get("class_name"))
    if kind not in MODELS:
        raise LqError(f"the model is a {kind}, not a Sequential or functional model: it cannot be rebuilt")
    if layer_count(config) > MOST_LAYERS:
        raise LqError(f"the model has more than {MOST_LAYERS:,} layers")
    _vet(config, f"the {kind} model", trusted, 0)


def uncompiled(config: Any) -> Any:
    """A checked config without the losses and metrics of the model and of models in it: nobody reads them."""
    if isinstance(config, list):
        return [uncompiled(inner) for inner in config]
    if not isinstance(config, dict):
        return config
    return {key: uncompiled(inner) for key, inner in config.items() if key != "compile_config"}


def layer_count(value: Any) -> int:
    """The number of layers of a model, including those of nested models at any depth."""
    count, stack = 0, [value]
    while stack:
        layers = layers_of(stack.pop())
        count += len(layers)
        stack += layers
    return count


def _vet(value: Any, where: str, trusted: bool, depth: int) -> None:
    if depth > DEEPEST:
        raise LqError(f"{where}: nested too deeply for a network")
    if isinstance(value, dict):
        if "class_name" in value:
            where = _vet_object(value, where, trusted)
        if value.get("data_format") == "channels_first":
            raise LqError(f"{where}: data_format channels_first; build the model with channels_last")
        for key, inner in value.items():
            if key == "compile_config":  # not read, see uncompiled()
                continue
            if key == "shared_object_id" and isinstance(inner, int):  # Python's id of the object
                continue
            if key.endswith("activation") and isinstance(inner, str) and inner not in FUNCTIONS:
                raise LqError(f"{where}: activation '{inner[:80]}' is not known to lqconvert")
            if key == "name" and isinstance(inner, str) and len(inner) > LONGEST_NAME:
                raise LqError(f"{where}: a name of {len(inner):,} characters")
            if key in ("num_or_size_splits", "indices_or_sections") and _parts(inner) > MOST_PARTS:
                raise LqError(f"{where}: splits a tensor into more than {MOST_PARTS:,} parts")
            own = inner is None and "order" in value  # then ops.normalize has its own default
            if key == "epsilon" and not isinstance(inner, (int, float)) and not own:  # folding needs it
                raise LqError(f"{where}: epsilon is not a number")
            _vet(inner, where, trusted, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _vet(inner, where, trusted, depth + 1)
    elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise LqError(f"{where}: {str(value)[:20]} is too large for a number in a layer")


def _parts(value: Any) -> int:
    return value if isinstance(value, int) else len(value) if isinstance(value, list) else 0


def refuse_endless(value: Any, keras3: bool) -> None:
    """Refuses a config with a graph, at any depth, whose layers have no order, or are far from it.

    Both Kerases pass over the layers until all are connected, and tf_keras would never stop.
    """
    if isinstance(value, dict):
        if isinstance(value.get("layers"), list):
            _refuse_endless_graph([layer for layer in value["layers"] if isinstance(layer, dict)], keras3)
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            refuse_endless(inner, keras3)


def _refuse_endless_graph(layers: list[dict[str, Any]], keras3: bool) -> None:
    nodes, done, last = {}, {}, {}
    for layer in layers:
        name, inbound = str(layer.get("name")), layer.get("inbound_nodes") or []
        if name in nodes and inbound:
            raise LqError(f"two layers are called '{name[:80]}'")
        nodes[name] = inbound if isinstance(inbound, list) else [inbound]
        if layer.get("class_name") == "InputLayer":
            if inbound:
                raise LqError(f"layer '{name[:80]}' is an input, but has inputs")
            done[name] = last[name] = 1
        else:
            done[name] = int(not keras3 and _starts_with_input(layer))
            last[name] = done[name] + len(nodes[name])
    left, rounds = [name for name in nodes if done[name] < last[name]], 0
    while left:
        before, rounds = sum(done.values()), rounds + 1
        for name in left:
            first = last[name] - len(nodes[name])
            while done[name] < last[name] and _ready(nodes[name][done[name] - first], done):
                done[name] += 1
        left = [name for name in left if done[name] < last[name]]
        if sum(done.values()) == before or rounds > MOST_ROUNDS:
            raise LqError(f"the inputs of layer '{left[0][:80]}' form a circle, or refer to nothing")


def _starts_with_input(layer: Any) -> bool:
    """Whether a layer is a model with inputs of its own. tf_keras counts the nodes of such a model from 1."""
    if not isinstance(layer, dict) or layer.get("class_name") not in MODELS:
        return False
    if layer["class_name"] != "Sequential":
        return True
    config = layer.get("config")
    if isinstance(config, dict) and config.get("build_input_shape"):
        return True
    inner = config.get("layers") if isinstance(config, dict) else config
    first = inner[0] if isinstance(inner, list) and inner else {}
    config = first.get("config") if isinstance(first, dict) else {}
    has_shape = isinstance(config, dict) and (config.get("batch_input_shape") or config.get("batch_shape"))
    return bool(has_shape or _starts_with_input(first))


def _ready(value: Any, done: dict[str, int]) -> bool:
    """Whether all tensors in a node's inputs, each as [layer, node, tensor], have been made."""
    if isinstance(value, dict):
        return all(_ready(inner, done) for inner in value.values())
    if not isinstance(value, list):
        return True
    if len(value) > 2 and isinstance(value[0], str) and value[0] in done:
        known = type(value[1]) is int and 0 <= value[1] < done[value[0]]
        return known and all(_ready(inner, done) for inner in value[2:])
    return all(_ready(inner, done) for inner in value)


def _vet_object(value: dict[str, Any], where: str, trusted: bool) -> str:
    """Refuses an object whose class, module or function is not known. Returns its name for messages."""
    config = value.get("config")
    inner: dict[str, Any] = config if isinstance(config, dict) else {}
    kind, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    short = str(kind).split(">")[-1]
    name = str(inner.get("name", value.get("name", "?")))[:80]
    operation = inner.get("function") if short in OPERATIONS else None
    what = str(operation or short)[:80]
    shown = f"layer '{name}' ({what})" if name != "?" else f"{where}: '{what}'"

    def unknown(why: str = "this layer is not known to lqconvert", hint: str | None = None) -> NoReturn:
        raise LqError(f"{shown}: {why}", hint=hint)

    if not isinstance(kind, str):
        unknown()
    if short in ("Lambda", "__lambda__"):
        if not trusted:
            unknown(
                "holds Python code, which loading would run; replace it by Keras layers, or trust the model "
                "if you trust whoever made it",
                hint="trust_model",
            )
    elif short == "function":
        if value.get("config") not in FUNCTIONS:
            raise LqError(
                f"{where}: the function {str(value.get('config'))[:80]!r} is not known to lqconvert"
            )
        short = str(value["config"])
    elif short in OPERATIONS:
        if not isinstance(operation, str) or operation not in TENSORFLOW:
            unknown()
    elif short not in KNOWN | MODELS | PARTS:
        unknown()
    if short in ("__tensor__", "__numpy__") and inner.get("dtype") not in CONSTANTS:
        unknown(f"a constant of type {str(inner.get('dtype'))[:80]!r}")
    if module is not None and not (isinstance(module, str) and MODULES.fullmatch(module)):
        unknown(f"comes from the module {str(module)[:80]!r}, not from Keras")
    # Keras uses a registered name before module and class.
    if registered and str(registered).split(">")[-1] not in (short, kind):
        unknown(f"is registered as {str(registered)[:80]!r}, which is not its class's name")
    return shown if short in KNOWN | MODELS | OPERATIONS | {"Lambda"} else where
