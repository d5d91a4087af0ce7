#include "dispatch.h"

#include <stdexcept>

#if defined(NEARCAST_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace nearcast {
namespace {

#if defined(NEARCAST_X86)
std::string missing_avx2() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid(1, &a, &b, &c, &d);
    if (!__builtin_cpu_supports("avx2")) return "the processor or system lacks AVX2";
    if (!__builtin_cpu_supports("fma")) return "the processor lacks FMA";
    if (!(c & (1u << 29))) return "the processor lacks F16C";
    return "";
}

std::string missing_avx512() {
    if (!__builtin_cpu_supports("avx512f")) return "the processor or system lacks AVX-512F";
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq"))
        return "the processor lacks AVX-512BW, VL or DQ";
    return "";
}

std::string missing_vnni() {
    std::string reason = missing_avx512();
    if (!reason.empty()) return reason;
    return __builtin_cpu_supports("avx512vnni") ? "" : "the processor lacks AVX-512 VNNI";
}

// Linux hands out the 8 KiB of tile state only to processes that ask for it.
bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

std::string missing_amx() {
    std::string reason = missing_vnni();
    if (!reason.empty()) return reason;
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    if (!(d & (1u << 24))) return "the processor lacks AMX tiles";
    if (!(d & (1u << 25))) return "the processor lacks AMX int8";
    static const bool permitted = tiles_permitted();
    return permitted ? "" : "the system does not grant tile state to this process";
}
#endif

}  // namespace

std::vector<IsaStatus> isa_statuses() {
    std::vector<IsaStatus> all;
#if defined(NEARCAST_X86)
    auto add = [&](const char* name, std::string reason, bool tests_only = false) {
        all.push_back({name, reason.empty(), tests_only, reason});
    };
    add("amx", missing_amx());
    add("avx512vnni", missing_vnni());
    add("avx512", missing_avx512());
    add("avx2", missing_avx2());
    all.push_back({"portable", true, false, ""});
    add("amx-emulated", missing_vnni(), true);
#else
    for (const char* name : {"amx", "avx512vnni", "avx512", "avx2"})
        all.push_back({name, false, false, "this is not an x86-64 processor"});
    all.push_back({"portable", true, false, ""});
#endif
    return all;
}

KernelTable kernels_named(const std::string& name) {
    for (const IsaStatus& status : isa_statuses()) {
        if (status.name != name) continue;
        if (!status.available) throw std::invalid_argument("instruction set " + name + ": " + status.reason);
#if defined(NEARCAST_X86)
        if (name == "amx") return amx_kernels();
        if (name == "avx512vnni") return avx512vnni_kernels();
        if (name == "avx512") return avx512_kernels();
        if (name == "avx2") return avx2_kernels();
        if (name == "amx-emulated") return amx_emulated_kernels();
#endif
        return portable_kernels();
    }
    throw std::invalid_argument("no instruction set is named " + name);
}

}  // namespace nearcast
