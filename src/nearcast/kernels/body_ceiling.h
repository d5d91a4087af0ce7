// The ceilings' loops for register kernels; included behind the scan, whose dot4 it measures.
//
// The including file gives Vector, kLanes (items per register), kTall (queries) x kWide (registers) sums, load,
// broadcast, add_up, to_memory and dot. Data are random: zeros run faster and mislead.

constexpr size_t kCeilingWidth = 128, kCeilingQueries = 96, kCeilingItems = 64;

struct CeilingData {
    alignas(64) uint8_t items[kCeilingItems * kCeilingWidth];
    alignas(64) int8_t queries[kCeilingQueries * kCeilingWidth];
    alignas(64) int32_t sums[kCeilingQueries * kCeilingItems];
};

void fill(CeilingData& data) {
    uint64_t state = 88172645463325252ull;
    auto next = [&] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state >> 32;
    };
    for (auto& item : data.items) item = static_cast<uint8_t>(next());
    for (auto& query : data.queries) query = static_cast<int8_t>(static_cast<int>(next() % 127) - 63);
}

template <bool Load, bool Store, bool Compare>
int32_t ceiling_strip(CeilingData& data) {
    int32_t found = 0;
    Vector limit = broadcast(1 << 30);
    asm volatile("" : "+v"(limit));  // or the compiler would know what no sum exceeds
    for (size_t item = 0; item < kCeilingItems; item += kWide * kLanes)
        for (size_t row = 0; row + kTall <= kCeilingQueries; row += kTall) {
            Vector sums[kTall][kWide], items[kWide], queries[kTall];
            for (size_t q = 0; q < kTall; ++q)
                for (size_t t = 0; t < kWide; ++t) sums[q][t] = broadcast(static_cast<int>(q));
            for (size_t t = 0; t < kWide; ++t) items[t] = load(data.items + t * sizeof(Vector));
            for (size_t q = 0; q < kTall; ++q) queries[q] = broadcast(data.queries[q] * 65793);
            for (size_t i = 0; i < kCeilingWidth; i += kGroup) {
                if (!Load)  // as if the registers had changed, or one product would serve for all
                    for (size_t t = 0; t < kWide; ++t) asm volatile("" : "+v"(items[t]));
                if (Load)
                    for (size_t t = 0; t < kWide; ++t)
                        items[t] = load(data.items + (item + t * kLanes) * kCeilingWidth + i * kLanes);
#pragma GCC unroll 32
                for (size_t q = 0; q < kTall; ++q) {
                    if (Load) {
                        int32_t four;
                        __builtin_memcpy(&four, data.queries + (row + q) * kCeilingWidth + i, 4);
                        queries[0] = broadcast(four);
                    }
#pragma GCC unroll 32
                    for (size_t t = 0; t < kWide; ++t) {
                        sums[q][t] = dot(sums[q][t], items[t], queries[Load ? 0 : q % 2]);
                        asm volatile("" : "+v"(sums[q][t]));  // or gcc stores what leaves the loop in every step
                    }
                }
            }
            if (!Load || (!Store && !Compare)) {
#pragma GCC unroll 32
                for (size_t q = 0; q < kTall; ++q)
#pragma GCC unroll 32
                    for (size_t t = 0; t < kWide; ++t) asm volatile("" ::"v"(sums[q][t]));
                continue;
            }
            // Stored by hand: where gcc stores them itself, it keeps the sums in memory for the whole loop above.
            alignas(64) uint8_t kept[kTall * kWide * sizeof(Vector)];
#pragma GCC unroll 32
            for (size_t q = 0; q < kTall; ++q)
#pragma GCC unroll 32
                for (size_t t = 0; t < kWide; ++t)
                    asm volatile("vmovups %1, %0"
                                 : "=m"(*reinterpret_cast<Vector*>(kept + (q * kWide + t) * sizeof(Vector)))
                                 : "v"(sums[q][t]));
            for (size_t q = 0; q < kTall; ++q)
                for (size_t t = 0; t < kWide; ++t) {
                    const Vector done = load(kept + (q * kWide + t) * sizeof(Vector));
                    if (Store) to_memory(data.sums + (row + q) * kCeilingItems + item + t * kLanes, done);
                    if (Compare) found += any_above(done, limit);
                }
        }
    return found;
}

double ceiling(Loop loop, size_t rounds) {
    static thread_local CeilingData data;
    fill(data);
    int32_t found = 0;
    for (size_t r = 0; r < rounds; ++r) {
        if (loop == Loop::multiply) found += ceiling_strip<false, false, false>(data);
        if (loop == Loop::load) found += ceiling_strip<true, false, false>(data);
        if (loop == Loop::store) found += ceiling_strip<true, true, false>(data);
        if (loop == Loop::compare) found += ceiling_strip<true, false, true>(data);
        asm volatile("" ::"r"(&data) : "memory");
    }
    asm volatile("" ::"r"(found));
    const double tall = kCeilingQueries / kTall * kTall;
    return static_cast<double>(rounds) * tall * kCeilingItems * kCeilingWidth ;
}
