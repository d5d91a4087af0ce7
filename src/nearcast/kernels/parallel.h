// Runs numbered jobs on a few threads that it starts and joins.
//
// The first exception stops the rest and is thrown again in the calling thread. Results must not depend on who does
// which job.
#pragma once

#include <cstddef>
#include <functional>

namespace nearcast {

// make_worker is called once per thread and returns the function of one job. The calling thread works too; report is called
// in it alone, with the number of finished jobs.
void run_jobs(size_t jobs, size_t threads, const std::function<std::function<void(size_t)>()>& make_worker,
              const std::function<void(size_t)>& report);

}  // namespace nearcast
