// made by lqconvert
#include "network.h"

#include <cmath>
#include <cstring>

#include "model.h"
{% if library_header %}
#include <{{ library_header }}>
{% endif %}
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

// All memory that the model computes in. The model itself stays in flash.
alignas(16) uint8_t arena[{{ arena }}];

{{ resolver }}
tflite::MicroInterpreter* interpreter = nullptr;

bool AddOperators() {
{% for line in adders %}
  if ({{ line }} != kTfLiteOk) return false;
{% endfor %}
  return true;
}

template <typename T>
void Store(TfLiteTensor* tensor, size_t place, float code, float low, float high) {
  reinterpret_cast<T*>(tensor->data.raw)[place] =
      static_cast<T>(code < low ? low : code > high ? high : code);
}

void SetValue(TfLiteTensor* tensor, size_t place, float value) {
  const float code = std::round(value / tensor->params.scale) + tensor->params.zero_point;
  switch (tensor->type) {
    case kTfLiteInt8:
      Store<int8_t>(tensor, place, code, -128, 127);
      break;
    case kTfLiteUInt8:
      Store<uint8_t>(tensor, place, code, 0, 255);
      break;
    case kTfLiteInt16:
      Store<int16_t>(tensor, place, code, -32768, 32767);
      break;
    case kTfLiteInt32:  // indices
      Store<int32_t>(tensor, place, value, 0, 2147483520.0f);
      break;
    default:
      reinterpret_cast<float*>(tensor->data.raw)[place] = value;
  }
}

float Value(const TfLiteTensor* tensor, size_t place) {
  const float scale = tensor->params.scale;
  const long zero = tensor->params.zero_point;
  switch (tensor->type) {
    case kTfLiteInt8:
      return (reinterpret_cast<const int8_t*>(tensor->data.raw)[place] - zero) * scale;
    case kTfLiteUInt8:
      return (reinterpret_cast<const uint8_t*>(tensor->data.raw)[place] - zero) * scale;
    case kTfLiteInt16:
      return (reinterpret_cast<const int16_t*>(tensor->data.raw)[place] - zero) * scale;
    case kTfLiteInt32:
      return reinterpret_cast<const int32_t*>(tensor->data.raw)[place];
    default:
      return reinterpret_cast<const float*>(tensor->data.raw)[place];
  }
}

size_t Count(const TfLiteTensor* tensor) {
  size_t count = 1;
  for (int axis = 0; axis < tensor->dims->size; ++axis) count *= tensor->dims->data[axis];
  return count;
}

}  // namespace

{% if classes %}
const char* const Network::kClasses[{{ classes | length }}] = {
{% for name in classes %}
    {{ name }},
{% endfor %}
};

{% endif %}
bool Network::Setup() {
  if (interpreter != nullptr) return true;
  if (!AddOperators()) return false;
  static tflite::MicroInterpreter prepared(tflite::GetModel(g_model), resolver, arena, sizeof(arena));
  if (prepared.AllocateTensors() != kTfLiteOk) return false;
  interpreter = &prepared;
  return true;
}

size_t Network::InputSize(int input) const { return Count(interpreter->input(input)); }

size_t Network::OutputSize(int output) const { return Count(interpreter->output(output)); }

void Network::SetInput(const float* values, int input) {
  TfLiteTensor* tensor = interpreter->input(input);
  const size_t count = Count(tensor);
{% if columns %}
  using Code = decltype(g_model_columns::input_code(0.0f, 0));
  Code* codes = reinterpret_cast<Code*>(tensor->data.raw);
  for (size_t i = 0; i < count; ++i) codes[i] = g_model_columns::input_code(values[i], i % {{ columns }});
{% else %}
  for (size_t i = 0; i < count; ++i) SetValue(tensor, i, values[i]);
{% endif %}
}

{% if pixels %}
void Network::SetPixels(const uint8_t* pixels) {
  TfLiteTensor* tensor = interpreter->input(0);
  const size_t count = Count(tensor);
  for (size_t i = 0; i < count; ++i) SetValue(tensor, i, pixels[i] * {{ pixels.scale }}f + {{ pixels.offset }}f);
}

{% endif %}
void Network::SetCodes(const void* codes, int input) {
  TfLiteTensor* tensor = interpreter->input(input);
  std::memcpy(tensor->data.raw, codes, tensor->bytes);
}

const void* Network::Codes(int output) const { return interpreter->output(output)->data.raw; }

bool Network::Invoke() { return interpreter->Invoke() == kTfLiteOk; }
{% if stateful %}

bool Network::Reset() { return interpreter->Reset() == kTfLiteOk; }
{% endif %}

float Network::Output(size_t place, int output) const { return Value(interpreter->output(output), place); }

size_t Network::Best(int output) const {
  const TfLiteTensor* tensor = interpreter->output(output);
  const size_t count = Count(tensor);
  size_t best = 0;
  for (size_t i = 1; i < count; ++i) {
    if (Value(tensor, i) > Value(tensor, best)) best = i;
  }
  return best;
}

size_t Network::ArenaUsed() const { return interpreter->arena_used_bytes(); }
