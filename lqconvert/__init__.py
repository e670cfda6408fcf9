"""Learned quantization of trained Keras models: integer-only .tflite files, measured.

    report = lqconvert.quantize("model.h5", "mnist", "out/model.tflite")   # the whole job
    model = lqconvert.rewrite(float_model)                                 # a tf_keras model to fit
    tflite = lqconvert.export(model).tflite                                # its integer-only file

TensorFlow is imported at the first use of a name, not with the package. Runs log their progress to the logger
"lqconvert"; nothing is printed unless that, or the root logger, has a handler.
"""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "calibrate": "quantization.calibrate",
    "check": "analysis.check",
    "compare": "analysis.compare",
    "evaluate": "analysis.evaluate",
    "explain": "analysis.explain",
    "export": "exporting.export",
    "export_codes": "pipeline.quantize",
    "inspect": "analysis.inspect",
    "load_data": "data.sources",
    "load_model": "keras_loader.load",
    "plan": "pipeline.plan",
    "quantize": "pipeline.quantize",
    "rewrite": "quantization.rewrite",
    "Budget": "training.budget",
    "Distribution": "training.distribution",
    "Limits": "runtime.verify",
    "target": "tflite.targets",
    "BudgetMissed": "errors",
    "Interrupted": "errors",
    "LqError": "errors",
    "Rate": "quantization.schemes",
    "LSQ": "quantization.schemes",
    "GradientThreshold": "quantization.schemes",
    "MaxBin": "quantization.schemes",
    "Inverse": "quantization.schemes",
    "Difference": "quantization.schemes",
}
__all__ = [*_HOMES]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"lqconvert.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lqconvert' has no attribute '{name}'")
