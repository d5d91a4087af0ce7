// Rotation and 8-bit rounding of vectors, eight rows side by side: every step of one row is a step of eight lanes.
//
// Included after body_score.h, under the same rules. Each row's operations and their order are those of NumPy's fallback.

constexpr size_t kSideBySide = 8;

inline void hadamard_step(double* __restrict low, double* __restrict high, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        double sum = low[i] + high[i], difference = low[i] - high[i];
        low[i] = sum;
        high[i] = difference;
    }
}

// Rotates `size` components of eight rows.
inline void hadamard(double* block, size_t size) {
    for (size_t half = size / 2; half > 0; half /= 2)
        for (size_t at = 0; at < size; at += 2 * half)
            hadamard_step(block + at * kSideBySide, block + (at + half) * kSideBySide, half * kSideBySide);
    const double shrink = 1.0 / __builtin_sqrt(static_cast<double>(size));
    for (size_t i = 0; i < size * kSideBySide; ++i) block[i] *= shrink;
}

// plain: eight rows of d. out: (width, 8).
void rotate(const double* plain, size_t d, const Rotation& rotation, const double* divisors, double* out) {
    for (size_t i = 0; i < rotation.width * kSideBySide; ++i) out[i] = 0.0;
    for (size_t i = 0; i < d; ++i) {
        const double centre = rotation.centre ? rotation.centre[i] : 0.0, sign = rotation.sign[i];
        double* to = out + rotation.place[i] * kSideBySide;
        for (size_t r = 0; r < kSideBySide; ++r) {
            double centred = rotation.centre ? plain[r * d + i] - centre : plain[r * d + i];
            to[r] = sign * (rotation.normalise ? centred / divisors[r] : centred);
        }
    }
    for (size_t at = 0, left = rotation.width; left > 0;) {  // the largest power of two first: 384 is 256 and 128
        size_t size = 1;
        while (size * 2 <= left) size *= 2;
        hadamard(out + at * kSideBySide, size);
        at += size;
        left -= size;
    }
}

// Lengths of eight rows (width, 8), each summed in the lanes of a score.
inline void lengths_of(const double* values, size_t width, double* lengths) {
    double sums[kScoreLanes * kSideBySide] = {};
    for (size_t i = 0; i < width * kSideBySide; i += kScoreLanes * kSideBySide)
        for (size_t l = 0; l < kScoreLanes * kSideBySide; ++l) sums[l] += values[i + l] * values[i + l];
    for (size_t half = kScoreLanes / 2; half > 0; half /= 2)
        for (size_t l = 0; l < half * kSideBySide; ++l) sums[l] += sums[l + half * kSideBySide];
    for (size_t r = 0; r < kSideBySide; ++r) lengths[r] = __builtin_sqrt(sums[r]);
}

// Rounds eight rows (width, 8) to codes, and leaves what they lose.
inline void round_rows(double* rotated, size_t width, int levels, double* scales, int8_t* codes) {
    double largest[kSideBySide] = {}, inverse[kSideBySide];
    for (size_t i = 0; i < width * kSideBySide; i += kSideBySide)
        for (size_t r = 0; r < kSideBySide; ++r) {
            double size = rotated[i + r] < 0 ? -rotated[i + r] : rotated[i + r];
            largest[r] = size > largest[r] ? size : largest[r];
        }
    for (size_t r = 0; r < kSideBySide; ++r) {
        // The scale is used as float32 later, so it is rounded now: the residual is measured from what is used. Below
        // kLeastScale its inverse, and products with it, would leave float32: such a vector is rounded to zero.
        const double step = static_cast<double>(static_cast<float>(largest[r] / levels));
        scales[r] = step >= kLeastScale ? step : 0.0;
        inverse[r] = scales[r] > 0 ? 1.0 / scales[r] : 0.0;
    }
    constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to the nearest even integer
    const double most = levels;
    for (size_t i = 0; i < width * kSideBySide; i += kSideBySide)
        for (size_t r = 0; r < kSideBySide; ++r) {
            double code = (rotated[i + r] * inverse[r] + kRounder) - kRounder;
            code = code < most ? code : most;  // NaN too
            code = code > -most ? code : -most;
            codes[i + r] = static_cast<int8_t>(static_cast<int32_t>(code));
            rotated[i + r] -= scales[r] * code;
        }
}

// Rounds rows begin..end. scratch holds 8 * (width + d) + width values.
void quantise(const Vectors& vectors, size_t begin, size_t end, const Rotation& rotation, int levels, double* scratch,
              Codes& out) {
    const size_t width = rotation.width, d = vectors.d;
    double* rotated = scratch;
    double* plain = scratch + kSideBySide * width;
    int8_t* codes = reinterpret_cast<int8_t*>(plain + kSideBySide * d);
    double divisors[kSideBySide], scales[kSideBySide], norms[kSideBySide], residuals[kSideBySide];
    for (size_t row = begin; row < end; row += kSideBySide) {
        const size_t n = end - row < kSideBySide ? end - row : kSideBySide;
        for (size_t r = 0; r < kSideBySide; ++r) {
            const size_t from = row + (r < n ? r : 0);
            widen(vectors, from, plain + r * d);
            divisors[r] = rotation.normalise ? norm(vectors, from) : 1.0;
            if (!(divisors[r] > 0)) divisors[r] = 1.0;
        }
        rotate(plain, d, rotation, divisors, rotated);
        lengths_of(rotated, width, norms);
        round_rows(rotated, width, levels, scales, codes);
        lengths_of(rotated, width, residuals);
        for (size_t r = 0; r < n; ++r) {
            out.norms[row + r] = norms[r];
            out.scales[row + r] = scales[r];
            out.residuals[row + r] = residuals[r];
            int8_t* to = out.codes + (row + r) * width;
            for (size_t i = 0; i < width; ++i) to[i] = codes[i * kSideBySide + r];
        }
    }
}

// Codes on 127 levels to the 63 of every instruction set, as rint(code * 63 / 127): no code lies between two.
int32_t coarsen(const int8_t* codes, size_t width, int8_t* coarse) {
    int32_t sum = 0;
    for (size_t i = 0; i < width; ++i) {
        const int32_t code = (codes[i] * 32510 + 32768) >> 16;
        coarse[i] = static_cast<int8_t>(code);
        sum += code;
    }
    return sum;
}
