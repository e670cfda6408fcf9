"""Loads a model file of either Keras, checks it, and rebuilds it as one flat functional tf_keras model."""
