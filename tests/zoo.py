"""Small models, one for each feature that people's models have, built with either Keras.

``integer`` says that all of it computes in integers; ``floats`` names the layers that stay float, ``refused``
a part of the message where the model is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
import tf_keras

IMAGE = (8, 8, 4)
STEPS = (8, 6)


@dataclass(frozen=True)
class Feature:
    """A model; ``build`` is given keras or tf_keras."""

    build: Callable[[Any], Any]
    floats: str = ""
    refused: str = ""
    apis: tuple[str, ...] = ("tf_keras", "keras")


def layer(kind: str, *args: Any, **settings: Any) -> Callable[[Any], Any]:
    return lambda api: getattr(api.layers, kind)(*args, **settings)


def chain(shape: tuple[int | None, ...], *makers: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A functional model of layers in a row."""

    def build(api: Any) -> Any:
        x = y = api.Input(shape)
        for make in makers:
            y = make(api)(y)
        return api.Model(x, y)

    return build


conv, head, pool = layer("Conv2D", 6, 3), layer("Dense", 3), layer("GlobalAveragePooling2D")


def with_activation(name: str) -> Callable[[Any], Any]:
    return chain(IMAGE, layer("Conv2D", 6, 3, activation=name), pool, head)


def nested_words(api: Any) -> Any:
    """A text encoder that is called twice."""
    x = api.Input((8,))
    y = api.layers.Embedding(20, 4, mask_zero=True, embeddings_initializer="he_normal")(x)
    encoder = api.Model(x, api.layers.GRU(4)(y))
    a, b = api.Input((8,)), api.Input((8,))
    return api.Model([a, b], api.layers.Dense(3)(api.layers.Concatenate()([encoder(a), encoder(b)])))


def masked_residual(api: Any) -> Any:
    x = api.Input((8,))
    y = api.layers.Embedding(20, 6, mask_zero=True, embeddings_initializer="he_normal")(x)
    y = api.layers.Add()([y, api.layers.Dense(6)(y)])
    return api.Model(x, api.layers.Dense(3)(api.layers.LSTM(4)(y)))


def masked_attention(api: Any) -> Any:
    x = api.Input((8,))
    y = api.layers.Embedding(20, 6, mask_zero=True, embeddings_initializer="he_normal")(x)
    y = api.layers.MultiHeadAttention(2, 4)(y, y)
    return api.Model(x, api.layers.Dense(3)(api.layers.GlobalAveragePooling1D()(y)))


def grouped_queries(api: Any) -> Any:
    x, y = api.Input(STEPS), api.Input((5, 6))
    z = api.layers.GroupQueryAttention(3, 4, 2)(x, y)
    return api.Model([x, y], api.layers.Dense(3)(z))


def norm(api: Any) -> Any:
    return api.layers.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 0.5, 0.2])


def normalized(api: Any) -> Callable[[Any], Any]:
    if api is tf_keras:
        return lambda x: tf.math.l2_normalize(x, axis=1)
    return lambda x: keras.ops.normalize(x, axis=-1)


def bidirectional(api: Any) -> Any:
    return api.layers.Bidirectional(api.layers.LSTM(5, return_sequences=True))


def nested(api: Any) -> Any:
    part = api.Sequential([api.Input((6,)), api.layers.Dense(6, activation="relu")], name="part")
    x = api.Input((6,))
    inner = api.Model(x, api.layers.Add()([part(x), part(part(x))]), name="inner")
    return api.Sequential([api.Input((6,)), inner, api.layers.Dropout(0.5), api.layers.Dense(2)])


def attention(api: Any) -> Any:
    x = api.Input(STEPS)
    y = api.layers.Add()([x, api.layers.MultiHeadAttention(2, 4)(x, x)])
    return api.Model(x, api.layers.Dense(3)(y))


def causal(api: Any, **settings: Any) -> Any:
    x = api.Input(STEPS)
    y = api.layers.MultiHeadAttention(2, 4)(x, x, **settings)
    return api.Model(x, api.layers.Dense(3)(y[0] if isinstance(y, (list, tuple)) else y))


def several(api: Any) -> Any:
    a, b = api.Input((8,), name="a"), api.Input((4, 3), name="b")
    y = api.layers.Concatenate()([api.layers.Dense(5)(a), api.layers.Flatten()(api.layers.Dense(5)(b))])
    first = api.layers.Dense(3, name="first")(y)
    return api.Model([a, b], [first, api.layers.Dense(2, activation="tanh", name="second")(y)])


def branches(api: Any) -> Any:
    """Excitation by channel, as in MobileNetV3 and EfficientNet, and mirrored sums."""
    x = api.Input(IMAGE)
    y = api.layers.Conv2D(6, 3, activation="relu")(x)
    z = api.layers.GlobalAveragePooling2D(keepdims=True)(y)
    z = api.layers.Conv2D(6, 1, activation="sigmoid")(z)
    y = api.layers.Average()([api.layers.Multiply()([y, z]), api.layers.Maximum()([y, -y]), y])
    y = api.layers.Subtract()([y, api.layers.Minimum()([y, z])])
    return api.Model(x, api.layers.Dense(3)(api.layers.Flatten()(y)))


def arithmetic(api: Any) -> Any:
    t = tf if api is tf_keras else keras.ops
    x = api.Input(IMAGE)
    y = api.layers.Conv2D(6, 3)(x)
    y = (tf.nn.relu if t is tf else t.relu)(y + 3.0) * 0.5
    y = 1.0 - y / 2
    a, b = t.split(y, 2, axis=-1)
    y = -(a * b) + t.abs(a)
    y = t.maximum(y, b) ** 2
    y = (tf.clip_by_value if t is tf else t.clip)(y, 0.1, 0.9)
    return api.Model(x, api.layers.Dense(3)(api.layers.Flatten()(y)))


def shapes(api: Any) -> Any:
    t = tf if api is tf_keras else keras.ops
    x = api.Input(IMAGE)
    y = api.layers.Conv2D(6, 3)(x)
    y = t.transpose(t.reshape(y, (-1, 36, 6)), (0, 2, 1))
    y = (tf.concat if t is tf else t.concatenate)([y, y[:, ::-1]], -1)
    y = y[:, 1:5, ::2]
    y = t.squeeze(t.expand_dims((tf.reduce_mean if t is tf else t.mean)(y, axis=1), 1), 1)
    y = t.pad(t.stack([y, y], 1), [[0, 0], [1, 0], [0, 0]])
    y = (tf.reduce_max if t is tf else t.max)(y, axis=1)
    return api.Model(x, api.layers.Dense(3)(y))


def products(api: Any) -> Any:
    t = tf if api is tf_keras else keras.ops
    x = api.Input((6, 8))
    y = api.layers.Dense(6)(x)
    y = (tf.nn.softmax if t is tf else t.softmax)(t.matmul(y, api.layers.Permute((2, 1))(y)))
    return api.Model(x, api.layers.Dense(3)(t.matmul(y, x)))


def trusted(api: Any) -> Any:
    x = api.Input((4,))
    y = api.layers.Lambda(lambda x: x * 2, output_shape=(4,), name="twice")(x)
    return api.Model(x, api.layers.Dense(2)(y))


def by_tensor(api: Any) -> Any:
    x = api.Input((4,))
    y = api.layers.Dense(4)(x)
    return api.Model(x, api.layers.Dense(2)(y / (y * y + 1.0)))


def formulas(api: Any) -> Any:
    x = api.Input((6,))
    y = api.layers.Dense(6)(x)
    t = tf.math if api is tf_keras else keras.ops
    y = t.log(t.sqrt(y * y + 1.0) + 0.5) + t.erf(y) * t.sin(y)
    y = y - t.rsqrt(t.softplus(y) + 1.0) + t.cos(y) ** 3
    return api.Model(x, api.layers.Dense(2)(y))


def constants(api: Any) -> Any:
    positions = tf.sin(tf.reshape(tf.range(48.0), (1, *STEPS)))
    x = api.Input(STEPS)
    y = (x + positions) * (2.0 + positions[0])
    return api.Model(x, api.layers.Dense(3)(api.layers.Flatten()(y - positions)))


def anchors(api: Any) -> Any:
    x = api.Input(IMAGE)
    y = api.layers.Reshape((-1, 4))(api.layers.Conv2D(4, 3)(x))
    fixed = tf.tile(tf.reshape(tf.range(144.0) / 100, (1, 36, 4)), [tf.shape(x)[0], 1, 1])
    return api.Model(x, [y, fixed])


def sizes(api: Any) -> Any:
    x = api.Input(IMAGE)
    y = api.layers.Resizing(6, 5)(x)
    y = (tf.nn.relu if api is tf_keras else keras.ops.relu)(api.layers.Conv2D(8, 3, padding="same")(y))
    y = api.layers.Resizing(12, 10, interpolation="nearest")(y)
    y = tf.image.resize(y, (8, 8)) if api is tf_keras else keras.ops.image.resize(y, (8, 8))
    y = tf.nn.depth_to_space(y, 2) if api is tf_keras else api.layers.Conv2D(2, 1)(y)
    return api.Model(x, api.layers.Conv2D(3, 3)(y))


def additive_attention(api: Any) -> Any:
    x, y = api.Input(STEPS), api.Input((5, 6))
    mixed = api.layers.AdditiveAttention()([x, y])
    return api.Model([x, y], api.layers.Dense(3)(mixed))


def einsum(api: Any) -> Any:
    """As in transformers: to heads and back, with and without a bias."""
    x = api.Input(STEPS)
    y = api.layers.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de", activation="relu")(x)
    y = api.layers.EinsumDense("abde,dec->abc", (None, 4), bias_axes="c")(y)
    y = api.layers.EinsumDense("...x,xy->...y", 6, activation="swish")(y)
    return api.Model(x, api.layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d")(y))


def video(api: Any) -> Any:
    each, (conv_layer, normalize) = (
        api.layers.TimeDistributed,
        (api.layers.Conv2D, api.layers.BatchNormalization),
    )
    x = api.Input((3, *IMAGE))
    y = each(normalize())(each(conv_layer(6, 3, activation="elu"))(x))
    y = each(api.layers.GlobalAveragePooling2D())(each(api.layers.MaxPooling2D())(y))
    return api.Model(x, api.layers.Dense(3)(api.layers.Flatten()(y)))


def video_of_models(api: Any) -> Any:
    part = api.Sequential([api.Input(IMAGE), api.layers.Conv2D(6, 3), api.layers.GlobalMaxPooling2D()])
    x = api.Input((3, *IMAGE))
    y = api.layers.LSTM(4)(api.layers.TimeDistributed(part)(x))
    return api.Model(x, api.layers.Dense(3)(y))


def named_outputs(api: Any) -> Any:
    x = api.Input((8,))
    y = api.layers.Dense(8, activation="relu")(x)
    first = api.layers.Identity(name="class")(api.layers.Dense(3, activation="softmax")(y))
    return api.Model(x, [first, api.layers.Identity(name="box")(api.layers.Dense(4)(y))])


def similarity(api: Any) -> Any:
    x = api.Input((6, 8))
    a, b = (api.layers.Dense(5)(x) for _ in range(2))
    products = api.layers.Dot(axes=(2, 2), normalize=True)([a, b])
    means = (api.layers.GlobalAveragePooling1D()(y) for y in (a, b))
    y = api.layers.Concatenate()([api.layers.Flatten()(products), api.layers.Dot(axes=1)([*means])])
    return api.Model(x, api.layers.Dense(3)(y))


def dot_attention(api: Any) -> Any:
    x = api.Input(STEPS)
    y = api.layers.Dense(6)(x)
    return api.Model(x, api.layers.Dense(3)(api.layers.Attention(use_scale=True)([y, x])))


def compiled_inside(api: Any) -> Any:
    part = api.Sequential([api.Input((6,)), api.layers.Dense(6, activation="relu")])
    part.compile("adam", "mse")
    return api.Sequential([api.Input((6,)), part, api.layers.Dense(2)])


def compiled(api: Any) -> Any:
    model = chain((6,), head)(api)
    model.compile("adam", loss=lambda truth, answer: (truth - answer) ** 2)
    return model


ZOO: dict[str, Feature] = {
    **{
        name: Feature(with_activation(name))
        for name in (
            *("relu6", "swish", "gelu", "hard_sigmoid", "leaky_relu", "exponential", "tanh", "sigmoid"),
            *("elu", "selu", "softplus", "softsign", "mish"),
        )
    },
    **{
        name: Feature(with_activation(name), apis=("keras",))
        for name in ("celu", "log_sigmoid", "tanh_shrink", "squareplus")
    },
    "hard-silu": Feature(with_activation("hard_silu"), apis=("keras",)),
    "hard-swish": Feature(
        lambda api: chain(
            IMAGE, conv, lambda api: lambda x: x * api.layers.ReLU(6.0)(x + 3.0) * (1 / 6), head
        )(api)
    ),
    "unit length": Feature(chain(IMAGE, conv, pool, layer("Dense", 8), layer("UnitNormalization"))),
    "unit length by an operation": Feature(chain(IMAGE, conv, pool, layer("Dense", 8), normalized)),
    "elu layer": Feature(chain(IMAGE, conv, layer("ELU", 0.5), head)),
    "prelu": Feature(
        chain(IMAGE, conv, layer("PReLU", shared_axes=[1, 2], alpha_initializer="uniform"), head)
    ),
    "relu up to 1": Feature(chain(IMAGE, conv, layer("ReLU", max_value=1.0), head)),
    "rescaling": Feature(chain(IMAGE, layer("Rescaling", 0.5, -1.0), conv)),
    "normalization": Feature(chain(IMAGE, norm, conv)),
    "random flip": Feature(chain(IMAGE, layer("RandomFlip"), conv), apis=("keras",)),
    "grouped": Feature(chain(IMAGE, layer("Conv2D", 8, 3, groups=2), head)),
    "depthwise by groups": Feature(chain(IMAGE, layer("Conv2D", 8, 3, groups=4, activation="relu"), head)),
    "dilated": Feature(chain(IMAGE, layer("Conv2D", 8, 3, dilation_rate=2, padding="same"), head)),
    "depthwise": Feature(chain(IMAGE, layer("DepthwiseConv2D", 3, depth_multiplier=2), head)),
    "separable": Feature(chain(IMAGE, layer("SeparableConv2D", 5, 3, activation="relu"), head)),
    "transposed": Feature(chain(IMAGE, layer("Conv2DTranspose", 5, 3, strides=2, activation="relu"), head)),
    "normalized before transposed": Feature(
        chain(IMAGE, conv, layer("BatchNormalization"), layer("Conv2DTranspose", 4, 2, strides=2), head)
    ),
    "images": Feature(
        chain(
            IMAGE,
            layer("ZeroPadding2D", 1),
            conv,
            layer("MaxPooling2D"),
            layer("UpSampling2D"),
            layer("Cropping2D", 1),
            layer("AveragePooling2D", 2, padding="same"),
            layer("Permute", (2, 1, 3)),
            layer("BatchNormalization"),
            layer("GlobalMaxPooling2D"),
            head,
        )
    ),
    "sequences": Feature(
        chain(
            STEPS,
            layer("ZeroPadding1D", 1),
            layer("Conv1D", 6, 3, activation="relu"),
            layer("MaxPooling1D"),
            layer("UpSampling1D"),
            layer("Cropping1D", 1),
            layer("AveragePooling1D", 2, padding="same"),
            layer("GlobalMaxPooling1D"),
            layer("Reshape", (3, 2)),
            layer("Flatten"),
            head,
        )
    ),
    "bilinear": Feature(chain(IMAGE, layer("UpSampling2D", 2, interpolation="bilinear"), conv)),
    "causal 1d": Feature(chain(STEPS, layer("Conv1D", 5, 3, padding="causal", dilation_rate=2), head)),
    "depthwise 1d": Feature(chain(STEPS, layer("DepthwiseConv1D", 3, padding="same"), head)),
    "separable 1d": Feature(chain(STEPS, layer("SeparableConv1D", 5, 3, activation="gelu"), head)),
    "transposed 1d": Feature(chain(STEPS, layer("Conv1DTranspose", 5, 3, strides=2), head)),
    "time distributed": Feature(
        chain(STEPS, lambda api: api.layers.TimeDistributed(api.layers.Dense(5, activation="relu")), head)
    ),
    "repeat": Feature(chain((6,), layer("RepeatVector", 3), head)),
    "embedding": Feature(
        chain((8,), layer("Embedding", 300, 6), layer("GlobalAveragePooling1D"), layer("Dense", 3))
    ),
    "attention": Feature(attention),
    "causal attention": Feature(lambda api: causal(api, use_causal_mask=True)),
    "masked attention": Feature(masked_attention),
    "attention scores": Feature(
        lambda api: causal(api, return_attention_scores=True),
        refused="return_attention_scores=True, which is not supported",
    ),
    "additive attention": Feature(additive_attention),
    "einsum": Feature(einsum),
    "spectral normalization": Feature(
        chain(
            IMAGE,
            lambda api: api.layers.SpectralNormalization(api.layers.Conv2D(6, 3, activation="relu")),
            pool,
            head,
        )
    ),
    "adaptive pooling": Feature(
        chain(
            (8, 12, 4),
            conv,
            layer("ZeroPadding2D", 1),
            layer("AdaptiveAveragePooling2D", (4, 6)),
            layer("AdaptiveMaxPooling2D", (2, 6)),
            layer("Reshape", (12, 6)),
            layer("AdaptiveAveragePooling1D", 6),
            layer("AdaptiveMaxPooling1D", 3),
            layer("Flatten"),
        ),
        apis=("keras",),
    ),
    "layer norm": Feature(
        chain(
            STEPS,
            layer("Dense", 8),
            layer("LayerNormalization"),
            head,
            layer("LayerNormalization", axis=[1, 2], center=False),
            layer("Flatten"),
            head,
        )
    ),
    "lstm": Feature(chain(STEPS, layer("LSTM", 5), head)),
    "stacked lstm": Feature(
        chain(
            STEPS,
            layer("BatchNormalization"),
            layer("LSTM", 5, return_sequences=True, go_backwards=True, use_bias=False),
            layer("BatchNormalization"),
            layer("LSTM", 4, return_sequences=True),
            layer("Flatten"),
            head,
        )
    ),
    "lstm elu": Feature(chain(STEPS, layer("LSTM", 5, activation="elu"), head), floats="a recurrent layer"),
    "recurrent relu": Feature(
        chain(
            STEPS,
            layer("LSTM", 5, activation="relu", return_sequences=True),
            layer("GRU", 4, activation="relu", return_sequences=True),
            layer("SimpleRNN", 4, activation="relu"),
            head,
        )
    ),
    "old gates": Feature(
        chain(
            STEPS,
            layer("LSTM", 5, recurrent_activation="hard_sigmoid", return_sequences=True),
            layer("GRU", 4, recurrent_activation="hard_sigmoid", go_backwards=True),
            head,
        )
    ),
    "masked words": Feature(
        chain(
            (8,),
            layer("Embedding", 20, 6, mask_zero=True, embeddings_initializer="he_normal"),
            layer("Dropout", 0.2),
            lambda api: api.layers.Bidirectional(api.layers.LSTM(5)),
            head,
        )
    ),
    "masked steps": Feature(
        chain(
            STEPS,
            layer("Masking", -1.0),
            layer("Dense", 6),
            layer("SimpleRNN", 5, return_sequences=True),
            lambda api: api.layers.Bidirectional(api.layers.GRU(4)),
            head,
        )
    ),
    "gru": Feature(chain(STEPS, layer("GRU", 5), head)),
    "rnn of a cell": Feature(
        chain(STEPS, lambda api: api.layers.RNN(api.layers.GRUCell(5), return_sequences=True), head)
    ),
    "video of models": Feature(video_of_models),
    "gru reset before": Feature(
        chain(
            STEPS,
            layer("GRU", 5, reset_after=False, return_sequences=True),
            layer("GRU", 4, use_bias=False),
            head,
        )
    ),
    "rnn": Feature(chain(STEPS, layer("SimpleRNN", 5), head)),
    "bidirectional": Feature(chain(STEPS, bidirectional, head)),
    "nested": Feature(nested),
    "several": Feature(several),
    "branches": Feature(branches),
    "arithmetic": Feature(arithmetic),
    "shapes": Feature(shapes),
    "products": Feature(products),
    "float16": Feature(chain(IMAGE, layer("Conv2D", 6, 3, dtype="float16"), head)),
    "mixed precision": Feature(
        chain(IMAGE, layer("Conv2D", 6, 3, dtype="mixed_float16"), layer("Dense", 3, dtype="mixed_float16"))
    ),
    "custom loss": Feature(compiled),
    "channels first": Feature(
        chain(IMAGE, layer("Conv2D", 6, 3, data_format="channels_first")), refused="channels_first"
    ),
    "open size": Feature(chain((None, None, 4), conv, pool, head), refused="unknown size"),
    "division": Feature(by_tensor),
    "formulas": Feature(formulas),
    "constants": Feature(constants),
    "anchors": Feature(anchors, apis=("tf_keras",)),
    "sizes": Feature(sizes),
    "crops": Feature(
        chain(IMAGE, layer("CenterCrop", 7, 6), layer("RandomCrop", 5, 5), conv, pool, head),
        apis=("tf_keras",),
    ),
    "video": Feature(video),
    "named outputs": Feature(named_outputs),
    "similarity": Feature(similarity),
    "dot attention": Feature(dot_attention),
    "compiled inside": Feature(compiled_inside),
    "group norm": Feature(chain(IMAGE, conv, layer("GroupNormalization", 2), pool, head)),
    "rms norm": Feature(chain(STEPS, layer("Dense", 8), layer("RMSNormalization"), head), apis=("keras",)),
    "colours": Feature(
        chain(
            (8, 8, 3),
            layer("RandomColorDegeneration", 0.5),
            layer("RandomColorJitter"),
            layer("RandomGaussianBlur"),
            layer("RandomGrayscale", 0.5),
            layer("RandomHue", 0.5),
            layer("RandomInvert"),
            layer("RandomPosterization", 4),
            layer("RandomSaturation", 0.5),
            layer("RandomSharpness", 0.5),
            conv,
        ),
        apis=("keras",),
    ),
    "distortions": Feature(
        chain(
            (8, 8, 3),
            layer("RandomElasticTransform"),
            layer("RandomErasing"),
            layer("RandomPerspective"),
            layer("RandomShear", (0.0, 0.1), (0.0, 0.1)),
            layer("RandAugment"),
            layer("AugMix"),
            layer("Solarization"),
            conv,
        ),
        apis=("keras",),
    ),
    "random sizes": Feature(
        chain(IMAGE, layer("RandomHeight", 0.1), layer("RandomWidth", 0.1), conv, pool, head),
        apis=("tf_keras",),
    ),
    "lambda": Feature(trusted, refused=r"'twice' .*Lambda"),
    "stateful": Feature(
        lambda api: api.Sequential(
            [api.Input(batch_shape=(1, *STEPS)), api.layers.LSTM(5, stateful=True), api.layers.Dense(2)]
        ),
        refused="stateful",
        apis=("keras",),
    ),
    "nested words": Feature(nested_words),
    "masked residual": Feature(masked_residual),
    "mean of masked": Feature(
        chain((8,), layer("Embedding", 300, 6, mask_zero=True), layer("GlobalAveragePooling1D"), head)
    ),
    "volumes": Feature(
        chain(
            (6, 9, 8, 2),
            layer("Conv3D", 6, (3, 2, 3), strides=(2, 1, 1), padding="same"),
            layer("BatchNormalization"),
            layer("ReLU"),
            layer("MaxPooling3D", (1, 2, 2)),
            layer("SpatialDropout3D", 0.2),
            layer("Conv3D", 5, 2, activation="relu", dilation_rate=(1, 2, 1)),
            layer("Flatten"),
            head,
        )
    ),
    "sizes of volumes": Feature(
        chain(
            (4, 5, 6, 2),
            layer("ZeroPadding3D", ((1, 0), (0, 1), (1, 1))),
            layer("AveragePooling3D", 3, strides=1),
            layer("UpSampling3D", (2, 1, 2)),
            layer("Cropping3D", ((1, 0), (0, 1), (0, 0))),
            layer("Conv3D", 4, 1),
            layer("GlobalMaxPooling3D"),
            head,
        )
    ),
    "adaptive volumes": Feature(
        chain(
            (6, 6, 9, 2),
            layer("Conv3D", 4, 1, activation="relu"),
            layer("AdaptiveMaxPooling3D", (3, 6, 3)),
            layer("AdaptiveAveragePooling3D", (1, 2, 3)),
            layer("GlobalAveragePooling3D", keepdims=True),
            layer("Flatten"),
            head,
        ),
        apis=("keras",),
    ),
    "grouped queries": Feature(grouped_queries, apis=("keras",)),
    "cells in a list": Feature(
        chain(
            STEPS,
            layer("Masking"),
            lambda api: api.layers.RNN([api.layers.LSTMCell(4), api.layers.GRUCell(5)], go_backwards=True),
            head,
        )
    ),
    "categories": Feature(
        chain(
            (3,),
            layer("CategoryEncoding", 7, output_mode="count"),
            layer("Dense", 8, activation="relu"),
            head,
        )
    ),
    "reversible": Feature(
        chain((8,), layer("ReversibleEmbedding", 30, 6), layer("Flatten"), head), apis=("keras",)
    ),
    "thresholded": Feature(chain(STEPS, head, layer("ThresholdedReLU", 0.1), head), apis=("tf_keras",)),
    "activation layers": Feature(
        chain(IMAGE, conv, layer("LeakyReLU"), layer("Activation", "tanh"), pool, head, layer("Softmax"))
    ),
    "training only": Feature(
        chain(
            IMAGE,
            layer("Dropout", 0.5),
            layer("SpatialDropout2D", 0.5),
            layer("AlphaDropout", 0.5),
            layer("GaussianDropout", 0.5),
            layer("GaussianNoise", 0.5),
            layer("ActivityRegularization", 0.1),
            conv,
            head,
        )
    ),
    "training only 1d": Feature(
        chain(STEPS, layer("SpatialDropout1D", 0.5), layer("Dense", 3, activation="softmax"))
    ),
    "random images": Feature(
        chain(
            (8, 8, 3),
            layer("RandomRotation", 0.1),
            layer("RandomZoom", 0.1),
            layer("RandomTranslation", 0.1, 0.1),
            layer("RandomContrast", 0.1),
            layer("RandomBrightness", 0.1),
            conv,
        ),
        apis=("keras",),
    ),
}
APIS = {"tf_keras": (tf_keras, ".h5"), "keras": (keras, ".keras")}
