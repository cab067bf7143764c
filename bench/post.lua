-- Posts one GraphQL request again and again, with another number each time where BODY has @N@.
-- The last line of the output is "rate p50 p99", in requests/s and ms.
wrk.method = "POST"
wrk.body = os.getenv("BODY")
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer " .. (os.getenv("TOKEN") or "")

if wrk.body:find("@N@") then
  -- Each thread counts from elsewhere, so that no two ask for the same.
  local threads, number = 0, nil
  function setup(thread)
    thread:set("first", threads * 225000)
    threads = threads + 1
  end
  function init() number = first end
  function request()
    number = (number + 1) % 900000
    return wrk.format(nil, nil, nil, (wrk.body:gsub("@N@", number + 100000)))
  end
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  if failed > 0 then io.write("failed requests: ", failed, "\n") end
  io.write(string.format("%.0f %.2f %.2f\n", summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
