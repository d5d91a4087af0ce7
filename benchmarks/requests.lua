-- For wrk: draws requests at random from a file, one a line: a path to get, or a path, a tab and a JSON body to post.
-- Arguments: the file, or - to get the URL of the command line, which takes wrk the least time; a seed; the mean pause of a
-- connection between two requests in milliseconds; an Accept header.
local requests = {}

local function read_requests(name, accept)
  for line in io.lines(name) do
    local path, body = line:match("^([^\t]*)\t?(.*)$")
    if body == "" then
      requests[#requests + 1] = wrk.format("GET", path, { ["Accept"] = accept })
    else
      local headers = { ["Content-Type"] = "application/json", ["Accept"] = accept }
      requests[#requests + 1] = wrk.format("POST", path, headers, body)
    end
  end
end

init = function(args)
  math.randomseed(tonumber(args[2]) or 1)
  if args[1] ~= "-" then
    read_requests(args[1], args[4] or "*/*")
    request = function()
      return requests[math.random(#requests)]
    end
  end
  local pause = tonumber(args[3]) or 0
  if pause > 0 then
    delay = function()
      return math.floor(-pause * math.log(1 - math.random()) + math.random())
    end
  end
end

done = function(summary, latency, _)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "errors": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
