-- Takes from several buckets at once, all or none. KEYS: the buckets. ARGV: how much (0: only look; less: give back), and for
-- each bucket how long one takes to drain and how long a full one does. All times in microseconds, by the clock of Redis.
-- Answers with how long to wait (0 or less: taken), and the level of each bucket.
local function put(key, now, level)
  if level == 0 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, string.format('%.0f', now + level), 'PX', math.ceil(level / 1000))
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = tonumber(ARGV[1])
local levels = {}
local wait = 0
for i, key in ipairs(KEYS) do
  local interval, capacity = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local level = tonumber(redis.call('GET', key) or now) - now
  levels[i] = math.min(math.max(level, 0), capacity)
  if level > capacity then
    -- The clock was set back: it would be full until the clock is there again.
    put(key, now, capacity)
  end
  wait = math.max(wait, levels[i] + cost * interval - capacity)
end
if wait <= 0 and cost ~= 0 then
  for i, key in ipairs(KEYS) do
    levels[i] = math.max(levels[i] + cost * tonumber(ARGV[2 * i]), 0)
    put(key, now, levels[i])
  end
end
table.insert(levels, 1, wait)
return levels
