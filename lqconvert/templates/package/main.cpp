// Runs the self-test. Put your program in its place: see network.h. (lqconvert made this file, and leaves it as
// it is if the package is made again.)
#include "network.h"
#include "self_test.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"

{{ "extern \"C\" void app_main(void)" if package == "esp-idf" else "int main()" }} {
  tflite::InitializeTarget();
  static Network network;
{% if package == "esp-idf" %}
  if (!network.Setup()) {
    MicroPrintf("FAIL: the model cannot be set up");
    return;
  }
  SelfTest(network);
{% else %}
  if (!network.Setup()) {
    MicroPrintf("FAIL: the model cannot be set up");
    return 1;
  }
  return SelfTest(network) ? 0 : 1;
{% endif %}
}
