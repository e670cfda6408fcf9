// Classifies images with the model that `lqconvert quantize ... --c-array` wrote as model.h and model.cc.
//
// On a computer the pixels come from stdin, a byte each, image after image. On a board, put the camera or
// sensor in place of ReadImage(). MicroPrintf() prints through the port's DebugLog().

#include <cstdint>
#include <cstdio>

#include "model.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

// All RAM that the model needs while it runs. The model itself stays in flash.
alignas(16) uint8_t arena[g_model_arena_bytes];

// The lines at the end of model.h.
using Resolver = tflite::MicroMutableOpResolver<6>;
TfLiteStatus AddOperators(Resolver& resolver) {
  TF_LITE_ENSURE_STATUS(resolver.AddConv2D());
  TF_LITE_ENSURE_STATUS(resolver.AddFullyConnected());
  TF_LITE_ENSURE_STATUS(resolver.AddMaxPool2D());
  TF_LITE_ENSURE_STATUS(resolver.AddReshape());
  TF_LITE_ENSURE_STATUS(resolver.AddSoftmax());
  TF_LITE_ENSURE_STATUS(resolver.AddDecode());
  return kTfLiteOk;
}

// Fills the input with the next image; false at the end. int8 = uint8 pixel - 128, also if the model was
// trained on scaled pixels, such as pixel / 255: the scaling is part of the file.
bool ReadImage(int8_t* input, size_t pixels) {
  for (size_t i = 0; i < pixels; ++i) {
    const int pixel = std::getchar();
    if (pixel == EOF) return false;
    input[i] = static_cast<int8_t>(pixel - 128);
  }
  return true;
}

}  // namespace

int main() {
  tflite::InitializeTarget();
  static Resolver resolver;
  if (AddOperators(resolver) != kTfLiteOk) return 1;
  static tflite::MicroInterpreter interpreter(tflite::GetModel(g_model), resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return 1;
  TfLiteTensor* input = interpreter.input(0);  // these use arena memory too
  const TfLiteTensor* output = interpreter.output(0);
  if (input == nullptr || output == nullptr) return 1;
  MicroPrintf("arena: %d of %d bytes", static_cast<int>(interpreter.arena_used_bytes()),
              static_cast<int>(sizeof(arena)));

  while (ReadImage(input->data.int8, input->bytes)) {
    if (interpreter.Invoke() != kTfLiteOk) return 1;
    int best = 0;
    for (int i = 1; i < static_cast<int>(output->bytes); ++i) {
      if (output->data.int8[i] > output->data.int8[best]) best = i;
    }
    const float score = (output->data.int8[best] - g_model_output_zero_point) * g_model_output_scale;
    MicroPrintf("class %d, score %d/100", best, static_cast<int>(100 * score));
  }
  return 0;
}
