// made by lqconvert
#pragma once

#include "network.h"

// Runs the model on inputs whose outputs are known. Prints PASS, or the first output that differs.
bool SelfTest(Network& network);
