// What docs/micro/main.cc uses of TensorFlow Lite Micro, declared: to check the program's syntax and its use of
// the generated sources where there is no checkout. Nothing is defined, so nothing links.
#pragma once

#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

#define TF_LITE_ENSURE_STATUS(expression)                \
  do {                                                   \
    const TfLiteStatus status = (expression);            \
    if (status != kTfLiteOk) return status;              \
  } while (false)

union TfLitePtrUnion {
  int8_t* int8;
};

struct TfLiteTensor {
  TfLitePtrUnion data;
  size_t bytes;
};

void MicroPrintf(const char* format, ...) __attribute__((format(printf, 1, 2)));

namespace tflite {

class Model;
const Model* GetModel(const void* buffer);

void InitializeTarget();

class MicroOpResolver {};

template <unsigned int operators>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
  TfLiteStatus AddConv2D();
  TfLiteStatus AddDecode();
  TfLiteStatus AddFullyConnected();
  TfLiteStatus AddMaxPool2D();
  TfLiteStatus AddReshape();
  TfLiteStatus AddSoftmax();
};

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver, uint8_t* arena, size_t arena_bytes);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(size_t index);
  TfLiteTensor* output(size_t index);
  size_t arena_used_bytes() const;
};

}  // namespace tflite
