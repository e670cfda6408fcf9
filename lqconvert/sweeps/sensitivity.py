"""The sensitivity of each layer: the score when its weights alone are coarsened, without training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lqconvert.data.arrays import DataLike
from lqconvert.data.dataset import as_numpy
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.data.sources import load_data
from lqconvert.keras_loader.in_memory import ModelLike
from lqconvert.keras_loader.load import load_model
from lqconvert.pipeline.prepare import input_shapes, preprocessed
from lqconvert.quantization.calibrate import best_scale, calibrate
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.quantization.granularity import kernel_name
from lqconvert.quantization.layers import QuantizedLayer, WeightQuantizer
from lqconvert.quantization.model_outputs import inference, joined, outputs_of, predict
from lqconvert.quantization.rewrite import rewrite
from lqconvert.quantization.schemes import LSQ


@dataclass(frozen=True)
class Sensitivity:
    """The validation score with one layer's weights at ``bits`` and all others at 8.

    The score is the first metric that budgets limit. ``drop`` is the difference in points to the score with
    8 bits everywhere.
    """

    layer: str
    weights: int
    bits: int
    score: float
    drop: float


def sensitivities(
    model: ModelLike,
    data: DataLike,
    *,
    bits: tuple[int, ...] = (2, 3, 4),
    preprocess: Preprocessing | None = None,
    input_shape: tuple[int, ...] | None = None,
    trust_model: bool = False,
) -> list[Sensitivity]:
    """Coarsens one layer after the other to each width, by least squared error, without fine-tuning.

    Scores are measured on the validation split, with one scale for each output channel, on the graph with
    simulated quantization. No file is made: only differences between layers are of interest.
    """
    loaded = load_model(model, input_shape=input_shape, trust_model=trust_model)
    given = load_data(data, input_shapes(loaded), outputs_of(loaded))
    splits, preprocess = preprocessed(loaded, given, preprocess)
    quantized = rewrite(loaded, LSQ())
    few = splits.train.batches(256, shuffle_seed=0, preprocessing=preprocess).take(4)
    calibrate(quantized, [as_numpy(x) for _, x, _ in few])
    validation = splits.validation.batches(256, preprocessing=preprocess)
    labels = splits.validation.y
    targets = predict(joined(fold(loaded)), splits.validation, preprocess)
    call = inference(joined(quantized))

    def score() -> float:
        reached = np.concatenate([call(x).numpy() for _, x, _ in validation])
        return splits.heads.judged_scores(reached, labels, targets)[0]

    baseline, rows = score(), []
    for layer in quantized.layers:
        if not isinstance(layer, QuantizedLayer):
            continue
        kernel = getattr(layer.layer, kernel_name(layer.layer))
        quantizer = layer.quantizers[kernel_name(layer.layer)]
        floats, scale = kernel.numpy(), quantizer.scale.numpy()
        for width in bits:
            narrow = WeightQuantizer(LSQ(limit=2 ** (width - 1) - 1), quantizer.kept_axes)
            coarse = best_scale(narrow, floats)
            # Values on the coarse grid pass through the 8-bit quantizer of the same scale unchanged.
            kernel.assign(narrow.codes(floats, coarse) * coarse)
            quantizer.set_scale(coarse)
            reached = score()
            rows.append(Sensitivity(layer.name, floats.size, width, reached, 100 * (baseline - reached)))
        kernel.assign(floats)
        quantizer.set_scale(scale)
    return rows
