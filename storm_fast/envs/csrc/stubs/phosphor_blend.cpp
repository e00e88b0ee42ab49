// ALE's phosphor blending, without what it prepares: 33 million colour distances at each loading of a ROM, 85
// ms, for "color_averaging", which is off here as it is in gymnasium's pipeline.
#include "ale/environment/phosphor_blend.hpp"

#include <stdexcept>

namespace ale {

PhosphorBlend::PhosphorBlend(stella::OSystem* system) : m_osystem(system), m_phosphor_blend_ratio(0) {}

void PhosphorBlend::process(ALEScreen&) {
  throw std::logic_error("want color_averaging off; this build of ALE leaves phosphor blending out");
}

}  // namespace ale
