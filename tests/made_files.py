"""Int8 files of whole networks, made without training or TensorFlow: codes, scales and biases are drawn."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.tflite.editing import add_constant, add_tensor, new_operator
from lqconvert.tflite.flatbuffer import write
from lqconvert.tflite.graph import Model, Port, Quantization, Signature


def options(kind, **settings):
    """The schema's options of an operator of this kind."""
    made = getattr(schema, f"{kind}OptionsT")()
    for name, value in settings.items():
        setattr(made, name, value)
    return made


class Network:
    """A file under construction; every method adds an operator and returns the index of its output.

    Args:
        zeros: the share of codes that are 0.
        spread: the standard deviation of the others.
        dead: the share of channels whose codes are all 0.
    """

    def __init__(self, seed: int, zeros: float, spread: float, dead: float) -> None:
        self.model, self.rng = Model.empty(), np.random.default_rng(seed)
        self.zeros, self.spread, self.dead = zeros, spread, dead

    def shape(self, index):
        return self.model.main.tensors[index].shape

    def tensor(self, shape, scale=0.05, zero_point=-128):
        return add_tensor(self.model, "INT8", shape, Quantization.one(scale, zero_point))

    def operator(self, name, inputs, output, options=None, version=1):
        self.model.main.operators.append(
            new_operator(self.model, name, inputs, [output], options, version=version)
        )
        return output

    def codes(self, shape):
        drawn = np.rint(self.rng.normal(0, self.spread, shape)) * (self.rng.random(shape) >= self.zeros)
        return np.clip(drawn, -127, 127).astype(np.int8)

    def weights(self, codes, axis, biased=True):
        """A kernel, and perhaps a bias, with one scale or a scale for each channel."""
        channels = codes.shape[axis]
        per_channel = self.rng.random() < 0.6
        scales = self.rng.uniform(0.005, 0.02, channels if per_channel else 1).astype(np.float32)
        kernel = Quantization(scales, np.zeros(len(scales), np.int64), axis if per_channel else 0)
        indices = [add_constant(self.model, codes, kernel)]
        if biased:
            bias = self.rng.integers(-3000, 3000, channels).astype(np.int32)
            products = Quantization(np.float32(0.05) * scales, kernel.zero_points)
            indices.append(add_constant(self.model, bias, products))
        return indices

    def convolution(self, x, channels, size=3, *, stride=1, relu=True, biased=True):
        _, height, width, inputs = self.shape(x)
        codes = self.codes((channels, size, size, inputs))
        codes[self.rng.random(channels) < self.dead] = 0
        codes[..., self.rng.random(inputs) < self.dead / 3] = 0
        settings = options(
            "Conv2D",
            strideH=stride,
            strideW=stride,
            fusedActivationFunction=int(relu),
            padding=schema.Padding.SAME,
        )
        zero_point = int(self.rng.choice([-128, -128, 0, 3]))
        output = self.tensor((1, height // stride, width // stride, channels), 0.05, zero_point)
        return self.operator("CONV_2D", [x, *self.weights(codes, 0, biased)], output, settings, 3)

    def depthwise(self, x):
        codes = self.codes((1, 3, 3, self.shape(x)[-1]))
        codes[..., self.rng.random(codes.shape[-1]) < self.dead] = 0
        settings = options("DepthwiseConv2D", strideH=1, strideW=1, depthMultiplier=1)
        output = self.tensor(self.shape(x))
        return self.operator("DEPTHWISE_CONV_2D", [x, *self.weights(codes, 3)], output, settings, 3)

    def add(self, x, y):
        settings = options("Add", fusedActivationFunction=1)
        return self.operator("ADD", [x, y], self.tensor(self.shape(x), 0.07), settings, 2)

    def pool(self, x):
        _, height, width, channels = self.shape(x)
        settings = options(
            "Pool2D", padding=schema.Padding.VALID, strideH=2, strideW=2, filterHeight=2, filterWidth=2
        )
        output = self.tensor((1, height // 2, width // 2, channels), 0.07)
        return self.operator("MAX_POOL_2D", [x], output, settings, 2)

    def join(self, x, y):
        shape = (*self.shape(x)[:-1], self.shape(x)[-1] + self.shape(y)[-1])
        settings = options("Concatenation", axis=3)
        return self.operator("CONCATENATION", [x, y], self.tensor(shape), settings, 2)

    def mean(self, x):
        axes = add_constant(self.model, np.array([1, 2], np.int32))
        output = self.tensor((1, self.shape(x)[-1]))
        mean = self.operator("MEAN", [x, axes], output, options("Reducer"), 2)
        shape = add_constant(self.model, np.array(self.shape(mean), np.int32))
        settings = options("Reshape", newShape=np.array(self.shape(mean), np.int32))
        return self.operator("RESHAPE", [mean, shape], self.tensor(self.shape(mean)), settings)

    def dense(self, x, units):
        codes = self.codes((units, self.shape(x)[-1]))
        codes[:, self.rng.random(codes.shape[1]) < self.dead] = 0
        settings = options("FullyConnected")
        return self.operator(
            "FULLY_CONNECTED", [x, *self.weights(codes, 0)], self.tensor((1, units), 0.1, 4), settings, 4
        )

    def file(self, x, y):
        """The file with this input and output, named as converters name them, and with their notes."""
        model, graph = self.model, self.model.main
        graph.inputs, graph.outputs = (x,), (y,)
        graph.tensors[x].name, graph.tensors[y].name = b"serving_default_x:0", b"StatefulPartitionedCall:0"
        model.signatures = [Signature(0, [Port(b"x", x)], [Port(b"y", y)], b"serving_default")]
        model.description = b"MLIR Converted."
        return write(model)


def residual_network(
    seed, widths=(8, 12), *, blocks=1, zeros=0.6, spread=2.0, dead=0.3, classes=10, size=16
) -> bytes:
    """A network of ``blocks`` residual blocks of each width, with all operators that packing handles."""
    made = Network(seed, zeros, spread, dead)
    x = start = made.tensor((1, size, size, 3), 0.02)
    x = made.pool(made.convolution(x, widths[0]))
    for width in widths:
        for block in range(blocks):
            stride = 2 if width != made.shape(x)[-1] and not block else 1
            y = made.convolution(x, width, stride=stride)
            y = made.convolution(y, width, relu=False)
            if stride > 1:
                x = made.convolution(x, width, 1, stride=stride, relu=False, biased=False)
            x = made.add(x, y)
    x = made.join(x, made.depthwise(x))
    return made.file(start, made.dense(made.mean(x), classes))


def resnet_18(seed=0) -> bytes:
    """The numbers of layers and weights of ResNet-18, with codes distributed about as learned ones."""
    widths = (64, 128, 256, 512)
    return residual_network(seed, widths, blocks=2, zeros=0.55, spread=1.6, dead=0.02, classes=1000, size=64)
