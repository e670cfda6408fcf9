"""Packed files have the same bytes as before, and their sizes are known without writing them."""

import hashlib

import numpy as np
import pytest
from made_files import residual_network
from single_operator import SHAPES, single_operator

from lqconvert.runtime.verify import smallest
from lqconvert.tflite.flatbuffer import read, size_of, write
from lqconvert.tflite.graph import OPERANDS
from lqconvert.tflite.packing import Kernel, as_int8, assemble, kernels, pack
from lqconvert.tflite.targets import RUNTIMES, target

PACKED_FOR = {
    "litert": target("litert"),
    "int4 convolutions": target("litert", int4_convolutions=True),
    "tflm": target("tflm", prefer="flash"),
    "tflm, all stripped": target("tflm", prefer="flash", strip_all=True),
}


def one_operator(operator: str, zeros: float = 0.9, spread: float = 2.0, unread: int = 0) -> bytes:
    rng = np.random.default_rng(5)
    shape = SHAPES[operator](3, 24, 20)[0]
    codes = np.rint(rng.normal(0, spread, shape)) * (rng.random(shape) >= zeros)
    codes[..., :unread] = 0
    return single_operator(operator, codes.astype(np.int8), operator != "FULLY_CONNECTED", k=3, rng=rng)


MADE = {
    "few zeros": lambda: residual_network(0, zeros=0.3, spread=6.0),
    "many zeros": lambda: residual_network(1, (16, 24), zeros=0.9, spread=1.5, dead=0.1),
    "small codes": lambda: residual_network(2, zeros=0.6, spread=1.0, blocks=2),
    "wide": lambda: residual_network(3, (32, 48), zeros=0.95, spread=3.0, dead=0.0),
    "dead": lambda: residual_network(4, (16, 16), zeros=0.8, dead=0.7),
    **{name: lambda name=name: one_operator(name) for name in OPERANDS},
    "unread inputs": lambda: one_operator("FULLY_CONNECTED", 0.0, 25.0, unread=60),
}
#: For each file, the first digits of its packed files' SHA-256, in the order of PACKED_FOR.
DIGESTS = {
    "few zeros": "72982af4b701 72982af4b701 1b0150a0da5a 3052c98c991b",
    "many zeros": "7cb2ffc7b59b 32cdd4912525 b4aee6bb4b20 2de86cfe62a2",
    "small codes": "a932069782e2 f2f3df17f015 fcefb3e0abcb ec764e3fae95",
    "wide": "8b2245638d63 404e3bbcc042 092ab07e34a3 94a6500e6540",
    "dead": "2ca05cdaac9a 41b07dca53fb a0a871fe1868 4cd648a9ae76",
    "CONV_2D": "d2f41d5f3371 d2f41d5f3371 a5eae8eca670 a5eae8eca670",
    "DEPTHWISE_CONV_2D": "24b40afc82a5 072f5d2e85e3 99254f48a1f6 99254f48a1f6",
    "FULLY_CONNECTED": "e5003826dff8 e5003826dff8 204f8476924b 204f8476924b",
    "TRANSPOSE_CONV": "7381b01934f0 7381b01934f0 603f8d69107d 603f8d69107d",
    "unread inputs": "0755c04c64ff 0755c04c64ff 0755c04c64ff 0755c04c64ff",
}


@pytest.mark.parametrize("name", MADE)
def test_packed_files_are_the_same_bytes(name):
    tflite = MADE[name]()
    packed = [smallest(tflite, each) for each in PACKED_FOR.values()]
    assert [hashlib.sha256(each.tflite).hexdigest()[:12] for each in packed] == DIGESTS[name].split()
    assert [len(each.tflite) for each in packed] == [each.size for each in packed]


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_smallest_is_found_by_sizes_alone(name):
    """As it would be by writing every trial."""
    model, packings = read(MADE["many zeros"]()), RUNTIMES[name].packings
    found = kernels(model)
    chosen = [as_int8(kernel) for kernel in found]

    def trials(kernel: Kernel):
        encoded = [packing.encode(kernel) for packing in packings if packing.fits(kernel)]
        smaller = [each for each in encoded if each is not None and each.size < kernel.codes.size]
        return sorted(smaller, key=lambda each: each.size)

    best = len(write(assemble(model, found, chosen)))
    for _ in range(2):
        for n in sorted(range(len(found)), key=lambda n: -found[n].codes.size):
            for stored in trials(found[n]):
                trial = [*chosen[:n], stored, *chosen[n + 1 :]]
                assembled = assemble(model, found, trial)
                size = len(write(assembled))
                assert size == size_of(assembled)
                if size < best:
                    best, chosen = size, trial
    packed = pack(model, packings)
    assert packed.packings == [stored.packing for stored in chosen]
    assert packed.tflite == write(assemble(model, found, chosen))
    assert set(packed.packings) != {"int8"}


def test_packing_leaves_the_model_as_it_was():
    model = read(MADE["many zeros"]())
    before = write(model)
    for each in PACKED_FOR.values():
        pack(model, each.packings, needless=each.needless)
        assert write(model) == before
