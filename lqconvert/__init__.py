"""Learned quantization of trained Keras models: integer-only .tflite files, measured.

    report = lqconvert.quantize("model.h5", "mnist", "out/model.tflite")   # the whole job
    model = lqconvert.rewrite(float_model)                                 # a tf_keras model to fit
    tflite = lqconvert.export(model).tflite                                # its integer-only file

TensorFlow is imported at the first use of a name, not with the package.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "calibrate": "calibration",
    "check": "checking",
    "compare": "comparing",
    "evaluate": "evaluating",
    "explain": "explaining",
    "export": "exporting",
    "export_codes": "convert",
    "inspect": "inspecting",
    "load_data": "datasets",
    "load_model": "loading",
    "plan": "planning",
    "quantize": "convert",
    "rewrite": "rewriting",
    "Budget": "budget",
    "Distribution": "distributing",
    "Limits": "proving",
    "target": "targets",
    "BudgetMissed": "errors",
    "Interrupted": "errors",
    "LqError": "errors",
    "Rate": "schemes",
    "LSQ": "schemes",
    "GradientThreshold": "schemes",
    "MaxBin": "schemes",
    "Inverse": "schemes",
    "Difference": "schemes",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"lqconvert.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lqconvert' has no attribute '{name}'")
