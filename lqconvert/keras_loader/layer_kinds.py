"""The properties of every kind of layer and activation function: one row of KINDS for each.

A new layer needs a row here, a rule in :mod:`lqconvert.keras_loader.layer_rules` (unless tf_keras has the
same layer), and a model with it in the tests' zoo.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


class Loading(Enum):
    """How a kind of layer is loaded."""

    AS_IS = auto()  #: as the same layer, or activation, of tf_keras
    RULE = auto()  #: as the layers that its rule in :mod:`lqconvert.keras_loader.layer_rules` makes
    DROPPED = auto()  #: not at all: it acts in training only
    NONE = auto()  #: it does not occur in files; rules make it


class Range(Enum):
    """What determines the range of an int8 output."""

    LEARNED = auto()
    INPUT = auto()  #: the input's range: the TFLite kernel has one scale for input and output
    INPUT_ROUNDED = auto()  #: the same, but results lie between the steps of that scale
    INSIDE = auto()  #: it has none: the next layer's TFLite kernel computes it in int16, or it is a mask


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The kernel of a linear layer: its attribute, and the meaning of its axes.

    Attributes:
        is_matrix: each row of inputs is multiplied with it, without a window.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    channels: tuple[int, ...]
    outputs: tuple[int, ...]
    attribute: str = "kernel"
    is_matrix: bool = False

    @property
    def summed(self) -> int | None:
        """The axis of the input channels, if every output is a sum over them."""
        return next((axis for axis in self.channels if axis not in self.outputs), None)


@dataclass(frozen=True)
class LayerKind:
    """The properties of a class of layers, or of an activation function.

    Attributes:
        name: of the class, without its package, or of the function.
        loading: how it is loaded.
        output_range: what determines the range of its int8 output, or the range itself if TFLite prescribes
            it. None if no folded model has this kind.
        kernel: for a linear layer, which gets int8 weights with learned scales.
        stays_float: it has no integer kernel; this text names it in reports.
        only_int8: it has no kernel for 16-bit activations.
        one_scale: its TFLite kernel has one scale for all inputs and the output. The converter gives this
            scale to inputs that have no scale of their own, and clips values outside of its range.
        fuses_relu: a ReLU or ReLU6 directly behind it becomes part of its TFLite kernel.
        commutes: f(x * s) = f(x) * s for every positive factor s of a channel (a ReLU only without a
            maximum).
        elementwise: an output depends only on the input in the same place.
        couples: an output depends only on all inputs in the same place, and is 0 if these are 0.
        whole: a file keeps all of its channels (:mod:`lqconvert.tflite.dead_channels`).
        time_distributed: it treats all axes but the last alike, so that TimeDistributed changes nothing.
        recurrent: a layer of Keras that is a loop over the steps of a sequence.
        loops: one of ours that is. Its kernel is multiplied with its state.
        has_activation: it has a setting for an activation, which is applied last.
        takes_indices: its inputs are whole numbers, int32 in the file.
        reads_mask: with a mask of steps it computes something else, which lqconvert does not. Recurrent
            layers and attention do, too, and lqconvert as well.
        ends_mask: it is computed with the mask of its input, and its output has no steps.
        placeholder: the converter gets another layer instead, which does not keep its input's scale.
        attends: it is attention, which may be called with several masks and with use_causal_mask=True.
    """

    name: str
    loading: Loading
    output_range: Range | tuple[float, float] | None = None
    kernel: Kernel | None = None
    stays_float: str = ""
    only_int8: bool = False
    one_scale: bool = False
    fuses_relu: bool = False
    commutes: bool = False
    elementwise: bool = False
    couples: bool = False
    whole: bool = False
    time_distributed: bool = False
    recurrent: bool = False
    loops: bool = False
    has_activation: bool = False
    takes_indices: bool = False
    reads_mask: bool = False
    ends_mask: bool = False
    placeholder: bool = False
    attends: bool = False


AS_IS, RULE, DROPPED, NONE = Loading.AS_IS, Loading.RULE, Loading.DROPPED, Loading.NONE
LEARNED, INPUT, INPUT_ROUNDED, INSIDE = Range.LEARNED, Range.INPUT, Range.INPUT_ROUNDED, Range.INSIDE
#: Prescribed by TFLite: scale 1/256 or 1/128.
PROBABILITIES, SIGNED = (0.0, 255 / 256), (-1.0, 127 / 128)

#: A Dense kernel has no spatial axes: its input axis is its row and its channel.
DENSE = Kernel(rows=(0,), columns=(1,), channels=(0,), outputs=(1,), is_matrix=True)
#: Conv1D is treated as a Conv2D of height 1.
CONV_1D = Kernel(rows=(), columns=(0,), channels=(1,), outputs=(2,))
CONV_2D = Kernel(rows=(0,), columns=(1,), channels=(2,), outputs=(3,))
DEPTHWISE = Kernel(rows=(0,), columns=(1,), channels=(2,), outputs=(2, 3), attribute="depthwise_kernel")
TRANSPOSED = Kernel(rows=(0,), columns=(1,), channels=(3,), outputs=(2,))
#: A matrix for which TFLite has only one scale.
WHOLE = Kernel(rows=(), columns=(), channels=(), outputs=(), is_matrix=True)

#: Grouped by purpose, as docs/models.md lists them.
KINDS = {
    "Inputs and weights": (
        LayerKind("InputLayer", AS_IS, LEARNED),
        LayerKind(
            "Dense", AS_IS, LEARNED, DENSE, fuses_relu=True, time_distributed=True, has_activation=True
        ),
        LayerKind("Conv1D", AS_IS, LEARNED, CONV_1D, fuses_relu=True, has_activation=True),
        LayerKind("Conv2D", RULE, LEARNED, CONV_2D, fuses_relu=True, has_activation=True),
        LayerKind("DepthwiseConv2D", AS_IS, LEARNED, DEPTHWISE, fuses_relu=True, has_activation=True),
        LayerKind("Conv2DTranspose", AS_IS, LEARNED, TRANSPOSED, fuses_relu=True, has_activation=True),
        LayerKind("Convolution2D", RULE, has_activation=True),
        LayerKind("SeparableConv2D", AS_IS, has_activation=True),
        LayerKind("DepthwiseConv1D", RULE, has_activation=True),
        LayerKind("SeparableConv1D", RULE, has_activation=True),
        LayerKind("Conv1DTranspose", RULE, has_activation=True),
        LayerKind("Conv3D", RULE, has_activation=True),
        LayerKind("Embedding", RULE, LEARNED, only_int8=True, takes_indices=True),
        LayerKind("ReversibleEmbedding", RULE, takes_indices=True),
        LayerKind("CategoryEncoding", RULE, takes_indices=True),
        LayerKind("MultiHeadAttention", RULE, attends=True),
        LayerKind("GroupQueryAttention", RULE, attends=True),
        LayerKind("Attention", RULE, attends=True),
        LayerKind("AdditiveAttention", RULE, attends=True),
        LayerKind("EinsumDense", RULE, has_activation=True),
        LayerKind("SpectralNormalization", RULE),
        LayerKind("TimeDistributed", RULE),
    ),
    "Normalization": (
        LayerKind("BatchNormalization", RULE, elementwise=True),
        LayerKind("Normalization", RULE),
        LayerKind("Rescaling", RULE),
        LayerKind("LayerScale", RULE),  # of keras.applications, like the next one
        LayerKind("CustomScaleLayer", RULE),
        LayerKind("UnitNormalization", RULE),
        LayerKind("LayerNormalization", RULE),
        LayerKind("GroupNormalization", RULE),
        LayerKind("RMSNormalization", RULE),
    ),
    "Arithmetic": (
        LayerKind("Add", RULE, LEARNED, fuses_relu=True, couples=True),
        LayerKind("Subtract", AS_IS, LEARNED, fuses_relu=True, couples=True),
        LayerKind("Multiply", AS_IS, LEARNED, fuses_relu=True, couples=True),
        LayerKind("Average", RULE, LEARNED, couples=True),
        LayerKind("Maximum", AS_IS, LEARNED, one_scale=True),
        LayerKind("Minimum", AS_IS, LEARNED, one_scale=True),
        LayerKind("Concatenate", AS_IS, LEARNED, one_scale=True),
        LayerKind("Dot", RULE),
    ),
    "Pooling": (
        LayerKind("MaxPooling1D", AS_IS, INPUT, commutes=True),
        LayerKind("MaxPooling2D", AS_IS, INPUT, commutes=True),
        LayerKind("AveragePooling1D", AS_IS, INPUT_ROUNDED, commutes=True),
        LayerKind("AveragePooling2D", AS_IS, INPUT_ROUNDED, commutes=True),
        LayerKind("AdaptiveAveragePooling1D", RULE),
        LayerKind("AdaptiveAveragePooling2D", RULE),
        LayerKind("AdaptiveMaxPooling1D", RULE),
        LayerKind("AdaptiveMaxPooling2D", RULE),
        LayerKind("MaxPooling3D", RULE),
        LayerKind("AveragePooling3D", RULE),
        LayerKind("AdaptiveAveragePooling3D", RULE),
        LayerKind("AdaptiveMaxPooling3D", RULE),
        LayerKind("GlobalMaxPooling3D", RULE),
        LayerKind("GlobalAveragePooling3D", RULE),
        LayerKind("GlobalMaxPooling1D", AS_IS, INPUT, commutes=True, whole=True),
        LayerKind("GlobalMaxPooling2D", AS_IS, INPUT, commutes=True, whole=True),
        LayerKind("GlobalAveragePooling1D", RULE, LEARNED, commutes=True, ends_mask=True),
        LayerKind("GlobalAveragePooling2D", AS_IS, LEARNED, commutes=True),
    ),
    "Shapes": (
        LayerKind("ZeroPadding3D", RULE),
        LayerKind("Cropping3D", RULE),
        LayerKind("UpSampling3D", RULE),
        LayerKind("Flatten", AS_IS, INPUT),
        LayerKind("Reshape", AS_IS, INPUT),
        LayerKind("Permute", AS_IS, INPUT),
        LayerKind("RepeatVector", AS_IS, INPUT),
        LayerKind("ZeroPadding1D", AS_IS, INPUT, commutes=True),
        LayerKind("ZeroPadding2D", AS_IS, INPUT, commutes=True),
        LayerKind("Cropping1D", AS_IS, INPUT, commutes=True, whole=True),
        LayerKind("Cropping2D", AS_IS, INPUT, commutes=True, whole=True),
        LayerKind("UpSampling1D", RULE, INPUT, commutes=True, whole=True),
        LayerKind("UpSampling2D", AS_IS, INPUT_ROUNDED, commutes=True),
        LayerKind("Resizing", RULE),
        LayerKind("CenterCrop", RULE),
        LayerKind("RandomCrop", RULE),
    ),
    "Activation layers": (
        LayerKind("Activation", RULE, elementwise=True, time_distributed=True),
        LayerKind("ReLU", RULE, LEARNED, commutes=True, elementwise=True, time_distributed=True),
        LayerKind("LeakyReLU", RULE, LEARNED, commutes=True, elementwise=True, time_distributed=True),
        LayerKind("PReLU", AS_IS, LEARNED, elementwise=True, only_int8=True, whole=True),
        LayerKind("ELU", RULE, elementwise=True, time_distributed=True),
        LayerKind("ThresholdedReLU", RULE, elementwise=True, time_distributed=True),
        LayerKind("HardSwish", RULE, LEARNED, elementwise=True, only_int8=True),
        LayerKind("Softmax", AS_IS, PROBABILITIES, reads_mask=True),
    ),
    "Activation functions": (
        # A folded model has no linear, and its relu is a layer.
        LayerKind("linear", AS_IS),
        LayerKind("relu", AS_IS),
        LayerKind("sigmoid", AS_IS, PROBABILITIES),
        LayerKind("softmax", AS_IS, PROBABILITIES),
        LayerKind("tanh", AS_IS, SIGNED),
        LayerKind("exponential", RULE),
        LayerKind("relu6", RULE),
        LayerKind("leaky_relu", RULE),
        LayerKind("silu", RULE),
        LayerKind("swish", RULE),
        LayerKind("hard_silu", RULE),
        LayerKind("hard_swish", RULE),
        LayerKind("hard_sigmoid", RULE),
        LayerKind("gelu", RULE),
        LayerKind("elu", RULE),
        LayerKind("celu", RULE),
        LayerKind("selu", RULE),
        LayerKind("softplus", RULE),
        LayerKind("softsign", RULE),
        LayerKind("mish", RULE),
        LayerKind("log_sigmoid", RULE),
        LayerKind("tanh_shrink", RULE),
        LayerKind("squareplus", RULE),
    ),
    "Recurrent layers": (
        LayerKind("LSTM", RULE, recurrent=True),
        LayerKind("GRU", RULE, recurrent=True),
        LayerKind("SimpleRNN", RULE, recurrent=True),
        # An RNN of a cell is also what rules make of a layer with unusual activations.
        LayerKind("RNN", RULE, LEARNED, stays_float="a recurrent layer", recurrent=True),
        LayerKind("Bidirectional", RULE, recurrent=True),
        LayerKind("Masking", RULE),
    ),
    "Python code": (LayerKind("Lambda", RULE, stays_float="Python code"),),
    "For training only": (
        LayerKind("Dropout", DROPPED),
        LayerKind("SpatialDropout1D", DROPPED),
        LayerKind("SpatialDropout2D", DROPPED),
        LayerKind("SpatialDropout3D", DROPPED),
        LayerKind("AlphaDropout", DROPPED),
        LayerKind("GaussianDropout", DROPPED),
        LayerKind("GaussianNoise", DROPPED),
        LayerKind("ActivityRegularization", DROPPED),
        LayerKind("RandomFlip", DROPPED),
        LayerKind("RandomRotation", DROPPED),
        LayerKind("RandomZoom", DROPPED),
        LayerKind("RandomTranslation", DROPPED),
        LayerKind("RandomContrast", DROPPED),
        LayerKind("RandomBrightness", DROPPED),
        LayerKind("RandAugment", DROPPED),
        LayerKind("AugMix", DROPPED),
        LayerKind("Solarization", DROPPED),
        LayerKind("RandomHeight", DROPPED),
        LayerKind("RandomWidth", DROPPED),
        LayerKind("RandomShear", DROPPED),
        LayerKind("RandomPerspective", DROPPED),
        LayerKind("RandomElasticTransform", DROPPED),
        LayerKind("RandomErasing", DROPPED),
        LayerKind("RandomGaussianBlur", DROPPED),
        LayerKind("RandomGrayscale", DROPPED),
        LayerKind("RandomHue", DROPPED),
        LayerKind("RandomInvert", DROPPED),
        LayerKind("RandomPosterization", DROPPED),
        LayerKind("RandomSaturation", DROPPED),
        LayerKind("RandomSharpness", DROPPED),
        LayerKind("RandomColorDegeneration", DROPPED),
        LayerKind("RandomColorJitter", DROPPED),
        LayerKind("Identity", DROPPED),
    ),
    "Made by rules": (
        # Our own layers. They do not occur in files.
        LayerKind("RecurrentInputs", NONE, INSIDE, WHOLE, only_int8=True),
        LayerKind("StepMask", NONE, INSIDE),
        LayerKind("AnyStep", NONE, INSIDE),
        LayerKind("MaskedInputs", NONE, INSIDE),
        LayerKind("MaskedMean", NONE, LEARNED, only_int8=True, placeholder=True),
        LayerKind("LSTMStates", NONE, LEARNED, WHOLE, loops=True),
        LayerKind("LSTMLoopStates", NONE, LEARNED, WHOLE, loops=True),
        LayerKind("GRUStates", NONE, LEARNED, WHOLE, loops=True),
        LayerKind("SimpleRNNStates", NONE, LEARNED, WHOLE, loops=True),
        LayerKind("L2Normalize", NONE, SIGNED, only_int8=True),
        LayerKind("Elementwise", NONE, LEARNED, elementwise=True, only_int8=True, placeholder=True),
        LayerKind("Constant", NONE, LEARNED),
        LayerKind("Resize", NONE, INPUT_ROUNDED, commutes=True),
        LayerKind("DepthToSpace", NONE, INPUT),
        LayerKind("MergeSteps", NONE, INPUT),
        LayerKind("SplitSteps", NONE, INPUT),
        LayerKind("Slice", NONE, INPUT),
        LayerKind("Reduce", NONE, LEARNED),  # its maximum: INPUT
        LayerKind("MatMul", NONE, LEARNED),
        LayerKind("AttentionMask", NONE, INPUT_ROUNDED, placeholder=True),
        LayerKind("ZeroMasked", NONE, INPUT, placeholder=True),
        LayerKind("LayerNorm", NONE, LEARNED, placeholder=True),
        LayerKind("GroupNorm", NONE, LEARNED, placeholder=True),
        LayerKind("RMSNorm", NONE, LEARNED, placeholder=True),
        LayerKind("TrustedFunction", NONE, LEARNED, stays_float="Python code"),
    ),
}
ACTIVATIONS = {kind.name: kind for kind in KINDS["Activation functions"]}
LAYERS = {kind.name: kind for kinds in KINDS.values() for kind in kinds if kind.name not in ACTIVATIONS}
#: Classes that have another name in files.
SAVED_AS = {"GroupedQueryAttention": "GroupQueryAttention"}
#: The kind of everything without a row. It has no properties.
OTHER = LayerKind("", NONE)


def class_name(layer: Any) -> str:
    """A layer's class, without the package in which it is registered."""
    name = layer["class_name"] if isinstance(layer, dict) else type(layer).__name__
    return str(name).split(">")[-1]


def kind_of(layer: Any) -> LayerKind:
    """The kind of a layer, or of a layer's config; OTHER if it has no row."""
    name = class_name(layer)
    return LAYERS.get(SAVED_AS.get(name, name), OTHER)
