// The k-th largest of a few hundred values, by bisection on their bits, and the pairs whose value is large enough.
//
// Included like body_score.h. Counting values above a pivot is a loop that the compiler vectorises; some ten counts find
// the place, against the mispredictions or the double writes of a partition. Exact: it ends when k values are above.

inline int32_t ordered_bits(float value) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) & 0x7FFFFFFF);  // as an integer, in the order of the floats
}

inline float from_ordered_bits(int32_t bits) {
    bits ^= (bits >> 31) & 0x7FFFFFFF;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

// k counts from 1 and is at most n; scratch holds n values. No value is NaN.
float kth_largest(const float* values, size_t n, size_t k, int32_t* scratch) {
    int32_t lowest = 0x7FFFFFFF, highest = -0x7FFFFFFF - 1;
    for (size_t i = 0; i < n; ++i) {
        const int32_t bits = ordered_bits(values[i]);
        scratch[i] = bits;
        lowest = bits < lowest ? bits : lowest;
        highest = bits > highest ? bits : highest;
    }
    // At least k values are >= low, fewer than k are > high.
    int64_t low = lowest, high = highest;
    while (low < high) {
        const int32_t pivot = static_cast<int32_t>((low + high + 1) >> 1);
        int32_t above = 0;
        for (size_t i = 0; i < n; ++i) above += scratch[i] >= pivot;
        if (static_cast<size_t>(above) == k) {
            int32_t least = highest;
            for (size_t i = 0; i < n; ++i) {
                const int32_t candidate = scratch[i] >= pivot ? scratch[i] : highest;  // two steps, or gcc gives up
                least = candidate < least ? candidate : least;
            }
            return from_ordered_bits(least);
        }
        if (static_cast<size_t>(above) > k) low = pivot;
        else high = int64_t(pivot) - 1;
    }
    return from_ordered_bits(static_cast<int32_t>(low));
}

// In place: a pair is written at or before its own place.
uint32_t keep_above(float* values, uint32_t* items, uint32_t n, float bar) {
    uint32_t kept = 0, i = 0;
#if defined(__AVX512F__)
    const __m512 least = _mm512_set1_ps(bar);
    for (; i + 16 <= n; i += 16) {  // 16 pairs are read before as many are written over them
        const __m512 some = _mm512_loadu_ps(values + i);
        const __m512i their = _mm512_loadu_si512(items + i);
        const __mmask16 mask = _mm512_cmp_ps_mask(some, least, _CMP_GE_OQ);
        _mm512_storeu_ps(values + kept, _mm512_maskz_compress_ps(mask, some));
        _mm512_storeu_si512(items + kept, _mm512_maskz_compress_epi32(mask, their));
        kept += static_cast<uint32_t>(__builtin_popcount(mask));
    }
#endif
    for (; i < n; ++i) {
        const float value = values[i];
        values[kept] = value;
        items[kept] = items[i];
        kept += value >= bar;
    }
    return kept;
}
