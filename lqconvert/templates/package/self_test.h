// made by lqconvert
#pragma once

#include "network.h"

// Runs the model on inputs whose outputs are known. Prints PASS; or the first value that differs, the number of
// values that do, and the largest difference.
bool SelfTest(Network& network);
