"""Removes channels of a model until its files are within the limits of RAM and latency."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tf_keras

from lqconvert.errors import BudgetMissed
from lqconvert.exporting.export import Template, learned_codes
from lqconvert.quantization.granularity import kernel_name
from lqconvert.quantization.pruning import Peak, Pruning, Work
from lqconvert.runtime.verify import Excess, Limits, excess
from lqconvert.tflite.dead_channels import remove_dead_channels
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.targets import Target

log = logging.getLogger(__name__)

#: Channels leave in rounds, and the others adapt in between. In each round, half of what seems to be too much
#: leaves, but at least this part of all, and at most this part of what is left.
LEAST, MOST = 0.02, 0.2
#: A limit of latency is aimed at with this factor, because measurements differ.
MARGIN = 0.92


@dataclass(frozen=True)
class Measuring:
    """How far the files of a model exceed the limits.

    Args:
        quantized: a calibrated model from :func:`lqconvert.rewrite`.
        template: its int8 file.
        targets: all of their files have to be within the limits.
    """

    quantized: tf_keras.Model
    template: Template
    targets: Sequence[Target]
    limits: Limits

    def too_large(self) -> bool:
        """Whether even the plain int8 file exceeds the limits, so that channels have to leave."""
        faster = self.limits.max_latency is not None and self.limits.max_latency < 1
        return faster or self._excess(self.template.tflite, replace(self.limits, max_latency=None)).ram > 1

    def excess(self) -> Excess:
        """How far the file of the model's weights, without dead channels, exceeds the limits."""
        plain = self.template.fill(learned_codes(self.quantized))
        return self._excess(write(remove_dead_channels(read(plain))), self.limits)

    def _excess(self, tflite: bytes, limits: Limits) -> Excess:
        if limits.max_ram is None and limits.max_latency is None:
            return Excess()
        found = [excess(tflite, self.template.tflite, target, limits) for target in self.targets]
        return Excess(max(each.ram for each in found), max(each.latency for each in found))


def prune(pruning: Pruning, measuring: Measuring, kept: np.ndarray | None = None) -> None:
    """Removes channels until files are within their limits.

    The model that is measured gets the weights of the pruned one. It has to be calibrated again.

    Args:
        kept: :attr:`Pruning.kept` of an earlier run, whose channels are removed then. Nothing is measured.

    Raises:
        BudgetMissed: if files exceed the limits even with one channel in each layer.
    """
    if kept is not None:
        pruning.keep(kept)
        pruning.compensate()
        _take_weights(measuring.quantized, pruning)
        return
    with pruning.at_its_smallest():
        _take_weights(measuring.quantized, pruning)
        least = measuring.excess()
    if least.most > 1:
        raise BudgetMissed(_missed(measuring, least))
    _take_weights(measuring.quantized, pruning)
    costs: dict[str, Work | Peak] = {"ram": pruning.peak, "latency": pruning.work}
    whole = {name: pruning.cost(of) for name, of in costs.items()}
    over = measuring.excess()
    while (aim := replace(over, latency=over.latency / MARGIN)).most > 1:
        of, all_of_it = costs[aim.name], whole[aim.name]
        cost = pruning.cost(of)
        part = min(max(LEAST * all_of_it, (cost - cost / aim.most) / 2), MOST * cost)
        # If no whole block can leave, time outside of these kernels still falls with each channel.
        single = (1 - LEAST) * pruning.cost(pruning.unblocked)
        if not pruning.remove(of, cost - part) and not pruning.remove(pruning.unblocked, single):
            if over.most > 1:
                raise BudgetMissed(_missed(measuring, over))
            return
        pruning.compensate()
        _take_weights(measuring.quantized, pruning)
        over = measuring.excess()
        left = pruning.cost(pruning.work) / whole["latency"]
        log.info(
            f"{pruning.removed:,} of {pruning.units:,} channels are removed, {left:.0%} of the multiply-adds "
            f"are left: {over}"
        )


def _missed(measuring: Measuring, over: Excess) -> str:
    names = ", ".join(target.name for target in measuring.targets)
    return (
        f"no file for {names} is within the limits ({measuring.limits}): with as few channels as possible, "
        f"it takes {over}"
    )


def _take_weights(quantized: tf_keras.Model, pruning: Pruning) -> None:
    """Gives the layers of a quantized model the weights of the pruned one."""
    for connection in pruning.connections:
        source, layer = connection.layer, quantized.get_layer(connection.layer.name).layer
        getattr(layer, kernel_name(layer)).assign(getattr(source, kernel_name(source)))
        if layer.use_bias:
            layer.bias.assign(source.bias)
