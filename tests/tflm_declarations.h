// What docs/micro/main.cc and packages use of TensorFlow Lite Micro, declared: to check their syntax and their use
// of the generated sources where there is no checkout. Nothing is defined, so nothing links.
#pragma once

#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

#define TF_LITE_ENSURE_STATUS(expression)                \
  do {                                                   \
    const TfLiteStatus status = (expression);            \
    if (status != kTfLiteOk) return status;              \
  } while (false)

enum TfLiteType { kTfLiteFloat32 = 1, kTfLiteInt32 = 2, kTfLiteUInt8 = 3, kTfLiteInt16 = 7, kTfLiteInt8 = 9 };

struct TfLiteQuantizationParams {
  float scale;
  int32_t zero_point;
};

struct TfLiteIntArray {
  int size;
  int data[];
};

union TfLitePtrUnion {
  int8_t* int8;
  char* raw;
};

struct TfLiteTensor {
  TfLiteType type;
  TfLitePtrUnion data;
  TfLiteIntArray* dims;
  TfLiteQuantizationParams params;
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
  TfLiteStatus AddConcatenation();
  TfLiteStatus AddConv2D();
  TfLiteStatus AddDecode();
  TfLiteStatus AddDequantize();
  TfLiteStatus AddFullyConnected();
  TfLiteStatus AddGather();
  TfLiteStatus AddMaxPool2D();
  TfLiteStatus AddQuantize();
  TfLiteStatus AddReshape();
  TfLiteStatus AddSoftmax();
  TfLiteStatus AddStridedSlice();
  TfLiteStatus AddUnidirectionalSequenceLSTM();
};

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver, uint8_t* arena, size_t arena_bytes);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteStatus Reset();
  TfLiteTensor* input(size_t index);
  TfLiteTensor* output(size_t index);
  size_t arena_used_bytes() const;
};

}  // namespace tflite
