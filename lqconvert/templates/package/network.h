// Runs the model in model.h with TensorFlow Lite Micro; made by lqconvert.
#pragma once

#include <cstddef>
#include <cstdint>

class Network {
 public:
{% for port in inputs %}
  // Input {{ loop.index0 }}: {{ port.type }} {{ port.shape }}{{ " " ~ port.name if inputs | length > 1 }}
{% endfor %}
  static constexpr int kInputs = {{ inputs | length }};
{% for port in outputs %}
  // Output {{ loop.index0 }}: {{ port.type }} {{ port.shape }}{{ " " ~ port.name if outputs | length > 1 }}
{% endfor %}
  static constexpr int kOutputs = {{ outputs | length }};

  // Prepares the model; to be called once. False if an operator is missing or the arena is too small.
  bool Setup();

  // The number of values of an input, and of an output.
  size_t InputSize(int input = 0) const;
  size_t OutputSize(int output = 0) const;

  // Sets an input to real values, {{ "as they are in the data" if columns else "preprocessed as for the Keras model" }}.
  void SetInput(const float* values, int input = 0);
{% if pixels %}
  // Sets the input to raw pixels, which it preprocesses as for training: pixel * {{ pixels.scale }} + {{ pixels.offset }}.
  void SetPixels(const uint8_t* pixels);
{% endif %}
  // Sets an input in the model's own type, and gives an output in it.
  void SetCodes(const void* codes, int input = 0);
  const void* Codes(int output = 0) const;

  // Runs the model. False if it fails.
  bool Invoke();
{% if stateful %}

  // Forgets what earlier runs have left in the model's state: to be called before each sequence.
  bool Reset();
{% endif %}

  // A value of an output, and the place of its largest value.
  float Output(size_t place, int output = 0) const;
  size_t Best(int output = 0) const;
{% if classes %}

  // The classes, in the order of the output.
  static const char* const kClasses[{{ classes | length }}];
{% endif %}

  // The bytes of the arena that the model uses.
  size_t ArenaUsed() const;
};
