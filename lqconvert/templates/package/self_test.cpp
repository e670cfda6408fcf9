// made by lqconvert
#include "self_test.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
{% if library_header %}
#include <{{ library_header }}>
{% endif %}
#include "tensorflow/lite/micro/micro_log.h"

namespace {

constexpr int kExamples = {{ examples }};
{% if not of_micro %}
// The expected outputs are those of LiteRT, which rounds differently. So they may be some steps apart.
{% endif %}

{% for port in inputs %}
alignas(8) const {{ port.ctype }} input_{{ loop.index0 }}[kExamples][{{ port.size }}] = {
{% for row in port.rows %}
    {{ row }},
{% endfor %}
};
{% endfor %}
{% for port in outputs %}
alignas(8) const {{ port.ctype }} output_{{ loop.index0 }}[kExamples][{{ port.size }}] = {
{% for row in port.rows %}
    {{ row }},
{% endfor %}
};
{% endfor %}

struct Differences {
  int count = 0;
  float largest = 0.0f;
};

// Compares an output with what is expected, within a tolerance. Prints the first difference only. Floats are
// printed in thousandths, because not every library prints them.
template <typename T, size_t N>
void Compare(const Network& network, int example, int output, const T (&expected)[N], float tolerance,
             Differences& differences) {
  constexpr int kUnit = static_cast<T>(0.5f) == T{0} ? 1 : 1000;
  const T* found = static_cast<const T*>(network.Codes(output));
  for (size_t i = 0; i < N; ++i) {
    const float apart = std::fabs(static_cast<float>(found[i]) - static_cast<float>(expected[i]));
    if (apart <= tolerance) continue;  // a NaN is not
    if (differences.count == 0) {
      MicroPrintf("FAIL: example %d, output %d, place %d: %d, expected %d{{ " (thousandths)" if is_float }}", example, output,
                  static_cast<int>(i), static_cast<int>(found[i] * kUnit), static_cast<int>(expected[i] * kUnit));
    }
    ++differences.count;
    if (apart * kUnit > differences.largest) differences.largest = apart * kUnit;
  }
}

}  // namespace

bool SelfTest(Network& network) {
  Differences differences;
  for (int example = 0; example < kExamples; ++example) {
{% if stateful %}
    if (!network.Reset()) {
      MicroPrintf("FAIL: the model's state cannot be reset");
      return false;
    }
{% endif %}
{% for port in inputs %}
    network.SetCodes(input_{{ loop.index0 }}[example], {{ loop.index0 }});
{% endfor %}
    if (!network.Invoke()) {
      MicroPrintf("FAIL: example %d: the model does not run", example);
      return false;
    }
{% for port in outputs %}
    Compare(network, example, {{ loop.index0 }}, output_{{ loop.index0 }}[example], {{ port.tolerance }}f, differences);
{% endfor %}
  }
  if (differences.count > 0) {
    MicroPrintf("FAIL: %d values differ, by at most %d{{ " (thousandths)" if is_float }}", differences.count,
                static_cast<int>(differences.largest));
    return false;
  }
  MicroPrintf("PASS: %d examples, %d bytes of arena", kExamples, static_cast<int>(network.ArenaUsed()));
  return true;
}
