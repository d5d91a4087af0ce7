// Full-precision scores, written once and compiled for each instruction set.
//
// Included inside an unnamed namespace of a file that has its own compile flags. Uses nothing of the standard library
// that the linker would share between files. Must be compiled with -ffp-contract=off: the score's definition leaves no
// room for a fused step. (A product of two float32 is exact in float64, but a squared difference is not.)

inline double half_to_double(uint16_t bits) {
#if defined(__F16C__)
    return static_cast<double>(_cvtsh_ss(bits));
#else
    uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    uint32_t rest = static_cast<uint32_t>(bits & 0x7FFFu) << 13;
    // Move the exponent by a multiplication, which also gets subnormal halves right.
    uint32_t word = rest;
    float magnitude;
    __builtin_memcpy(&magnitude, &word, 4);
    magnitude *= 5.192296858534828e+33f;  // 2^112
    __builtin_memcpy(&word, &magnitude, 4);
    if ((bits & 0x7C00u) == 0x7C00u) word |= 0x7F800000u;
    word |= sign;
    __builtin_memcpy(&magnitude, &word, 4);
    return static_cast<double>(magnitude);
#endif
}

inline void load_lanes(const uint16_t* row, double* lanes) {
#if defined(__AVX512F__)
    __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
    _mm512_storeu_pd(lanes, _mm512_cvtps_pd(_mm512_castps512_ps256(wide)));
    _mm512_storeu_pd(lanes + 8, _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(wide), 1))));
#elif defined(__F16C__)
    for (size_t l = 0; l < kScoreLanes; l += 4)
        _mm256_storeu_pd(lanes + l, _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(
                                        reinterpret_cast<const __m128i*>(row + l)))));
#else
    for (size_t l = 0; l < kScoreLanes; ++l) lanes[l] = half_to_double(row[l]);
#endif
}
template <class T>
inline void load_lanes(const T* row, double* lanes) {
    for (size_t l = 0; l < kScoreLanes; ++l) lanes[l] = static_cast<double>(row[l]);
}

inline double load_one(const uint16_t* element) { return half_to_double(*element); }
template <class T>
inline double load_one(const T* element) { return static_cast<double>(*element); }

inline double add_lanes(double* lanes) {
    for (size_t half = kScoreLanes / 2; half > 0; half /= 2)
        for (size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    return lanes[0];
}

template <bool Squared, class T>
inline double sum_of(const double* query, const T* row, size_t d) {
    double sums[kScoreLanes] = {};
    double lanes[kScoreLanes];
    size_t i = 0;
    for (; i + kScoreLanes <= d; i += kScoreLanes) {
        load_lanes(row + i, lanes);
        for (size_t l = 0; l < kScoreLanes; ++l) {
            double step = Squared ? query[i + l] - lanes[l] : query[i + l];
            sums[l] += step * (Squared ? step : lanes[l]);
        }
    }
    for (size_t l = 0; i + l < d; ++l) {
        double element = load_one(row + i + l);
        double step = Squared ? query[i + l] - element : query[i + l];
        sums[l] += step * (Squared ? step : element);
    }
    return add_lanes(sums);
}

template <class T>
inline void widen_row(const T* row, size_t d, double* out) {
    for (size_t i = 0; i < d; ++i) out[i] = load_one(row + i);
}

template <class T>
inline double norm_row(const T* row, size_t d) {
    double sums[kScoreLanes] = {};
    for (size_t i = 0; i < d; ++i) {
        double element = load_one(row + i);
        sums[i % kScoreLanes] += element * element;
    }
    return __builtin_sqrt(add_lanes(sums));
}

template <class T>
void rescore_rows(const RescoreJob& job, const uint32_t* positions, size_t n, float* scores) {
    const T* items = static_cast<const T*>(job.items.data);
    const size_t d = job.items.d;
    constexpr size_t kAhead = 10;  // rows asked for before they are needed: they lie anywhere in memory
    const size_t bytes = d * sizeof(T) < 512 ? d * sizeof(T) : 512;
    auto ask = [&](size_t i) {
        const char* next = reinterpret_cast<const char*>(items + size_t(positions[i]) * d);
        for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b);
    };
    for (size_t i = 0; i < n && i < kAhead; ++i) ask(i);
    for (size_t i = 0; i < n; ++i) {
        if (i + kAhead < n) ask(i + kAhead);
        const T* row = items + size_t(positions[i]) * d;
        double score;
        if (job.metric == Metric::l2) {
            score = -sum_of<true>(job.query, row, d);
        } else {
            score = sum_of<false>(job.query, row, d);
            if (job.metric == Metric::cosine) {
                double norms = job.query_norm * job.item_norms[positions[i]];
                score = norms > 0 ? score / norms : 0.0;
            }
        }
        scores[i] = static_cast<float>(score) + 0.0f;  // so that a zero is +0
    }
}

// One call per element type, chosen once per call.
#define NEARCAST_BY_TYPE(type, call)                                        \
    switch (type) {                                                         \
        case ElementType::float16: { using Element = uint16_t; call; break; } \
        case ElementType::float32: { using Element = float; call; break; }    \
        case ElementType::int8: { using Element = int8_t; call; break; }      \
        case ElementType::uint8: { using Element = uint8_t; call; break; }    \
    }

void rescore(const RescoreJob& job, const uint32_t* positions, size_t n, float* scores) {
    NEARCAST_BY_TYPE(job.items.type, rescore_rows<Element>(job, positions, n, scores))
}

void widen(const Vectors& vectors, size_t row, double* out) {
    NEARCAST_BY_TYPE(vectors.type,
                     widen_row(static_cast<const Element*>(vectors.data) + row * vectors.d, vectors.d, out))
}

double norm(const Vectors& vectors, size_t row) {
    double result = 0;
    NEARCAST_BY_TYPE(vectors.type,
                     result = norm_row(static_cast<const Element*>(vectors.data) + row * vectors.d, vectors.d))
    return result;
}
