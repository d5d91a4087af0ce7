// Kernels for AVX-512 with VNNI: four 8-bit products per lane and instruction.
#include <immintrin.h>

#include "ceilings.h"
#include "kernels.h"

namespace nearcast {
namespace {
#include "body_score.h"
#include "body_quantise.h"
#include "body_select.h"
#include "body_rule512.h"

inline __m512i dot4(__m512i sum, __m512i items, __m512i query) { return _mm512_dpbusd_epi32(sum, items, query); }

#include "body_scan_simd512.h"
#include "body_rank512.h"

// ---- ceilings ----

using Vector = __m512i;
constexpr size_t kLanes = 16, kTall = 6, kWide = 4;
inline Vector load(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
inline Vector broadcast(int value) { return _mm512_set1_epi32(value); }
inline Vector dot(Vector sum, Vector items, Vector query) { return dot4(sum, items, query); }
inline void to_memory(int32_t* to, Vector sums) { _mm512_storeu_si512(to, sums); }
inline int32_t any_above(Vector sums, Vector limit) { return _mm512_cmpgt_epi32_mask(sums, limit) != 0; }
#include "body_ceiling.h"
}  // namespace

KernelTable avx512vnni_kernels() {
    return {"avx512vnni", 127, kQueryGroup, false, scan, coarsen, rank, nullptr, nullptr, quantise, widen, rescore, norm,
            kth_largest, keep_above, interval_masks, overlap_masks};
}

CeilingFunction avx512vnni_ceiling() { return ceiling; }
}  // namespace nearcast
