// The k-th largest of a few hundred values, by bisection on their bits.
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
