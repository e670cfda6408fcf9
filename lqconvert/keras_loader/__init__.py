"""A model file of either Keras, checked, to one flat functional tf_keras model."""
