#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace nearcast {

namespace {

constexpr size_t kMostThreads = 1024;

// Another library may have set this thread to round small numbers to zero; new threads inherit that.
class DefaultRounding {
public:
    DefaultRounding() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultRounding() { std::fesetenv(&before_); }
    DefaultRounding(const DefaultRounding&) = delete;

private:
    std::fenv_t before_;
};

}  // namespace

void run_jobs(size_t jobs, size_t threads, const std::function<std::function<void(size_t)>()>& make_worker,
              const std::function<void(size_t)>& report) {
    std::atomic<size_t> next{0}, finished{0};
    std::mutex lock;
    std::exception_ptr failure;
    auto work = [&](bool reports) {
        const DefaultRounding rounding;
        try {
            auto run = make_worker();
            for (size_t job; (job = next.fetch_add(1)) < jobs;) {
                run(job);
                size_t done = finished.fetch_add(1) + 1;
                if (reports && report) report(done);
            }
        } catch (...) {
            std::lock_guard<std::mutex> hold(lock);
            if (!failure) failure = std::current_exception();
            next.store(jobs);
        }
    };
    std::vector<std::thread> others;
    threads = std::max<size_t>(1, std::min({threads, jobs, kMostThreads}));
    others.reserve(threads);
    try {
        for (size_t t = 1; t < threads; ++t) others.emplace_back(work, false);
    } catch (const std::system_error&) {  // no more threads: the running ones do all jobs
    }
    work(true);
    for (auto& thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
    if (report && jobs) report(jobs);
}

}  // namespace nearcast
