// Which instruction sets this processor and operating system let us use.
//
// Does not choose by environment: the caller names one.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace nearcast {

struct IsaStatus {
    std::string name;
    bool available;
    bool tests_only;
    std::string reason;  // why not, where not available
};

std::vector<IsaStatus> isa_statuses();              // best first
KernelTable kernels_named(const std::string& name); // throws std::invalid_argument where it cannot run

}  // namespace nearcast
