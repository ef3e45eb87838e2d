-- Takes from every tally, or from none, by the server's own clock: what limiter/tally.rs does, number for number.
-- KEYS: two for each count, the tenant's tally and the pool's. ARGV, eight for each: kind, a, b, c, units, extra, owed, borrows.
--   b(ucket)  a: units per second, b: burst        value: "level us rate burst waited"
--   f(ixed)   a: limit, b: window in ms, c: ms to the end of one that begins now   value: a count; its expiry is the window's end
--   s(liding) a: limit, b: window in ms            value: "index current earlier"
-- The mark of a bucket is 1 where nothing was taken from it, because the tenant borrowed from the pool.
-- Answers {1, extra, left ms or -1, mark...}, or {0, after ms or -1, which key}.
local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local ms = math.floor(us / 1000)
local n = #KEYS
local found = {}
local seen = {} -- by key: what several tenants owe is taken from one pool, one after the other
local longest, which, fits, extra, any_extra, left = 0, 0, true, true, false, -1

local function slack(units)
  return 1e-9 * math.max(1, math.abs(units))
end

for i = 1, n do
  local at = (i - 1) * 8
  local kind = ARGV[at + 1]
  local a, b, c = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local units, more, owed = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
  local one = { kind = kind, a = a, b = b, c = c, units = units, more = more, owed = owed, mark = 0, waited = 0 }
  local after = nil -- nil: there is room; -1: nobody can tell
  any_extra = any_extra or more > 0
  if kind == 'b' then
    local before, raw = seen[KEYS[i]], redis.call('GET', KEYS[i])
    local level = math.min(a, b)
    if before then
      level = math.max(before.level - owed, math.min(before.level, -b))
      one.waited = before.waited
    elseif raw then
      local was, since, rate, burst, waited = string.match(raw, '(%S+) (%S+) (%S+) (%S+) (%S+)')
      -- What went by shares meanwhile is taken before what flowed in is cut to the burst, and leaves a burst's debt at the most.
      level = math.min(was + rate * math.max(0, us - since) / 1e6 - owed, burst + 0, b)
      level = math.max(level, math.min(was + 0, -b))
      one.waited = waited + 0
    else
      level = math.max(level - owed, -b)
    end
    local needed = math.min(units, b)
    if b <= 0 then
      after = -1
    elseif level + slack(needed) < needed then
      after = a > 0 and (needed - level) / a * 1000 or -1
    end
    extra = extra and b > 0 and level + slack(units + more) >= units + more
    -- One that is new begins to fill now, be there room or not.
    one.level, one.is_new = level, not raw
  elseif kind == 'f' then
    local before, raw = seen[KEYS[i]], redis.call('GET', KEYS[i])
    local count = before and before.count or tonumber(raw or 0)
    local ttl = -2
    if raw then
      ttl = redis.call('PTTL', KEYS[i])
      if ttl == -1 then
        -- Somebody has taken its expiry away: it has one again.
        ttl = c >= 0 and c or b
        redis.call('PEXPIRE', KEYS[i], ttl)
      end
    end
    one.runs = ttl >= 0
    one.ends = ms + math.max(ttl, 0)
    if before then
      one.runs, one.ends = before.runs or before.owed > 0, before.ends
    end
    owed = math.min(owed, math.floor(math.max(0, a - count)))
    one.owed = owed
    if owed > 0 and not one.runs then
      one.ends = ms + (c >= 0 and c or b)
    end
    count = count + owed
    if not ((count == 0 and a > 0) or count + units <= a + 1e-9) then
      after = a > 0 and math.max(1, one.ends - ms) or -1
    end
    extra = extra and count + units + more <= a + 1e-9
    one.count = count
  else
    local index = math.floor(ms / b)
    local current, earlier = 0, 0
    local before, raw = seen[KEYS[i]], redis.call('GET', KEYS[i])
    if before then
      current, earlier = before.current, before.earlier
    elseif raw then
      local was, then_current, then_earlier = string.match(raw, '(%S+) (%S+) (%S+)')
      if was + 0 == index then
        current, earlier = then_current + 0, then_earlier + 0
      elseif was + 1 == index then
        earlier = then_current + 0
      end
    end
    owed = math.min(owed, math.floor(math.max(0, a - current)))
    one.owed = owed
    current = current + owed
    local past = (ms % b) / b
    local counted = earlier * (1 - past) + current
    local needed = math.min(units, a)
    if a <= 0 then
      after = -1
    elseif counted + needed > a + 1e-9 then
      if current + needed <= a then
        after = math.max(0, 1 - (a - current - needed) / earlier - past) * b
      else
        local later = current > 0 and math.max(0, 1 - (a - needed) / current) or 0
        after = (1 - past + later) * b
      end
    end
    extra = extra and a > 0 and counted + units + more <= a + 1e-9
    one.index, one.current, one.earlier, one.mark = index, current, earlier, index
  end
  one.after = after
  found[i], seen[KEYS[i]] = one, one
end

-- To wait until both are over; -1 if one never is.
local function later(one, other)
  return (one < 0 or other < 0) and -1 or math.max(one, other)
end

-- Units left over of a pool's bucket: nil if there are, else after how many ms; -1 if never.
local function left_over(pool, borrows)
  if pool.kind ~= 'b' or borrows ~= '1' or pool.b <= 0 or pool.a <= 0 then
    return -1
  end
  local needed = math.min(pool.units, pool.b)
  local much = pool.b < 2 * needed and needed or math.max(2 * needed, 0.6 * pool.b)
  local filled = (much - pool.level) / pool.a * 1000
  local quiet = math.min(3, 3 * needed / pool.a) * 1000
  local waited = pool.waited == 0 and math.huge or math.max(0, us - pool.waited) / 1000
  local ms_left = math.max(filled, quiet - waited)
  if ms_left > slack(much) / pool.a * 1000 then
    return ms_left
  end
end

for i = 1, n, 2 do
  local tenant, pool = found[i], found[i + 1]
  local after = nil
  local needed = math.min(pool.units, pool.b)
  if pool.kind == 'b' and tenant.kind == 'b' and pool.b >= 4 * needed and pool.b > 0 and tenant.b > 0 then
    -- A part of the pool is kept for tenants that have not used up their own.
    local own = math.max(0, math.min(1, tenant.level / tenant.b))
    needed = needed + math.min(0.4 * pool.b, pool.b - needed) * (1 - own)
    pool.after = nil
    if pool.level + slack(needed) < needed then
      pool.after = pool.a > 0 and (needed - pool.level) / pool.a * 1000 or -1
    end
  end
  if tenant.after then
    local left = left_over(pool, ARGV[i * 8])
    if left then
      after = later(tenant.after, pool.after or 0)
      if left >= 0 and (after < 0 or left < after) then
        after = left
      end
    else
      tenant.borrows = true
    end
  elseif pool.after then
    after = pool.after
    if pool.kind == 'b' then
      pool.waited, pool.waits = us, true
    end
  end
  if after then
    if longest >= 0 and (fits or after < 0 or after > longest) then
      longest, which = after, i
    end
    fits = false
  end
end
extra = extra and any_extra

local answer = { fits and 1 or 0 }
for i = 1, n do
  local one = found[i]
  local taken = fits and not one.borrows and one.units + (extra and one.more or 0) or 0
  if one.kind == 'b' then
    one.mark = one.borrows and 1 or 0
    if fits or one.owed > 0 or one.is_new or one.waits then
      local level = one.level - taken
      -- As long as anything is missing, and ten minutes: one that is full again is as good as new.
      local life = one.a > 0 and (one.b - level) / one.a * 1000 or 86400000
      local value = string.format('%.17g %.0f %.17g %.17g %.0f', level, us, one.a, one.b, one.waited)
      redis.call('SET', KEYS[i], value, 'PX', string.format('%.0f', math.min(life, 3456000000) + 600000))
    end
  elseif one.kind == 'f' then
    local add = taken + one.owed
    if add > 0 then
      redis.call('INCRBY', KEYS[i], string.format('%.0f', add))
      if not one.runs then
        -- Once, with the window's first unit: later ones do not reach this line.
        local life = one.c >= 0 and one.c or one.b
        if one.a > 0 then
          local first = one.owed > 0 and one.owed or add
          life = life + math.max(0, math.ceil(first / one.a - 1e-9) - 1) * one.b
        end
        redis.call('PEXPIRE', KEYS[i], string.format('%.0f', life))
        one.ends = ms + life
      end
    end
    one.mark = one.ends
    local runs_for = one.ends - ms
    if runs_for > 0 and (left < 0 or runs_for < left) then
      left = runs_for
    end
  elseif fits or one.owed > 0 then
    local value = string.format('%.0f %.0f %.0f', one.index, one.current + taken, one.earlier)
    redis.call('SET', KEYS[i], value, 'PX', string.format('%.0f', 2 * one.b))
  end
  answer[i + 3] = one.mark
end
if fits then
  answer[2], answer[3] = extra and 1 or 0, left
  return answer
end
return { 0, longest < 0 and -1 or math.ceil(longest), which }
