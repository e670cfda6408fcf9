"""Trains mnist_mlp.h5: 784-128-10 on pixels scaled to 0..1. Needs MNIST (LQCONVERT_DATA or a network)."""

from pathlib import Path

import tf_keras

from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.data.sources import load_data

tf_keras.utils.set_random_seed(42)
data = load_data("mnist", (784,), 10)
model = tf_keras.Sequential(
    [
        tf_keras.Input((784,)),
        tf_keras.layers.Dense(128, activation="relu"),
        tf_keras.layers.Dense(10, activation="softmax"),
    ]
)
schedule = tf_keras.optimizers.schedules.CosineDecay(1e-3, 12 * data.train.size // 128)
model.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", ["accuracy"])
train = data.train.batches(128, shuffle_seed=0, preprocessing=PREPROCESSINGS["0-1"])
model.fit(train.map(lambda _, x, y: (x, y)), epochs=12, verbose=2)
test = data.test.batches(256, preprocessing=PREPROCESSINGS["0-1"])
print("test accuracy", model.evaluate(test.map(lambda _, x, y: (x, y)), verbose=0)[1])
model.save(Path(__file__).parent / "mnist_mlp.h5", include_optimizer=False)
