// The rate of multiplications, with and without the other work of a scan; for the benchmark alone.
#pragma once

#include <cstddef>

namespace nearcast {

enum class Loop : int { multiply = 0, load = 1, store = 2, compare = 3 };

// Each runs `rounds` strips of 64 items by 96 queries of 128 random dimensions that stay in the first cache levels, and
// gives the number of products. Null where the instruction set has no such loop.
using CeilingFunction = double (*)(Loop, size_t rounds);

CeilingFunction avx2_ceiling();
CeilingFunction avx512_ceiling();
CeilingFunction avx512vnni_ceiling();
CeilingFunction amx_ceiling();

}  // namespace nearcast
