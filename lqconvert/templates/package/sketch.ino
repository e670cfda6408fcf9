// Runs the self-test once a second. Put your program in its place: see network.h. (lqconvert made this file, and
// leaves it as it is if the package is made again.)
#include <{{ library_header }}>

#include "network.h"
#include "self_test.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"

Network network;
bool ready = false;

void setup() {
  tflite::InitializeTarget();
  ready = network.Setup();
}

void loop() {
  if (ready) {
    SelfTest(network);
  } else {
    MicroPrintf("FAIL: the model cannot be set up");
  }
  delay(1000);
}
