"""Trains digits_cnn.h5: Conv-BN-ReLU blocks, pooling, dense; on the digits' raw 0..16 pixels."""

from pathlib import Path

import tf_keras
from tf_keras import layers

from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.data.sources import load_data

tf_keras.utils.set_random_seed(42)
data = load_data("digits", (8, 8, 1), 10)
model = tf_keras.Sequential([tf_keras.Input((8, 8, 1))])
for filters, pool in ((16, False), (32, True), (32, True)):
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
    model.add(layers.BatchNormalization())
    model.add(layers.ReLU())
    if pool:
        model.add(layers.MaxPooling2D())
model.add(layers.Flatten())
model.add(layers.Dropout(0.3))
model.add(layers.Dense(10, activation="softmax"))
model.compile(tf_keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", ["accuracy"])
train = data.train.batches(64, shuffle_seed=0, preprocessing=PREPROCESSINGS["none"])
model.fit(train.map(lambda _, x, y: (x, y)), epochs=40, verbose=2)
test = data.test.batches(256, preprocessing=PREPROCESSINGS["none"])
print("test accuracy", model.evaluate(test.map(lambda _, x, y: (x, y)), verbose=0)[1])
model.save(Path(__file__).parent / "digits_cnn.h5", include_optimizer=False)
