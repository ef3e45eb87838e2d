-- Gives back what a reservation did not use, or takes what it used beyond. KEYS: one for each tally. ARGV, six for each:
-- kind, a, b, c as in take.lua; the mark that it answered; the units, below zero for what was used beyond.
-- Units of a window that is over are given back in no other one.
local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local ms = math.floor(us / 1000)
for i = 1, #KEYS do
  local at = (i - 1) * 6
  local kind = ARGV[at + 1]
  local a, b, c = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local mark, back = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  if kind == 'b' then
    local raw = redis.call('GET', KEYS[i])
    local level, waited = math.min(a, b), '0'
    if raw then
      local was, since, rate, burst
      was, since, rate, burst, waited = string.match(raw, '(%S+) (%S+) (%S+) (%S+) (%S+)')
      level = math.min(was + rate * math.max(0, us - since) / 1e6, burst + 0, b)
    end
    if mark ~= 1 and (raw or back < 0) then
      level = math.min(level + back, b)
      local life = a > 0 and (b - level) / a * 1000 or 86400000
      local value = string.format('%.17g %.0f %.17g %.17g %s', level, us, a, b, waited)
      redis.call('SET', KEYS[i], value, 'PX', string.format('%.0f', math.min(life, 3456000000) + 600000))
    end
  elseif kind == 'f' then
    local raw = redis.call('GET', KEYS[i])
    local count = tonumber(raw or 0)
    local ttl = raw and redis.call('PTTL', KEYS[i]) or -2
    if back > 0 then
      if ttl >= 0 and math.abs(ms + ttl - mark) <= 20 then
        redis.call('DECRBY', KEYS[i], string.format('%.0f', math.min(back, count)))
      end
    elseif back < 0 then
      redis.call('INCRBY', KEYS[i], string.format('%.0f', -back))
      if ttl < 0 then
        local life = c >= 0 and c or b
        if a > 0 then
          life = life + math.max(0, math.ceil(-back / a - 1e-9) - 1) * b
        end
        redis.call('PEXPIRE', KEYS[i], string.format('%.0f', life))
      end
    end
  else
    local index = math.floor(ms / b)
    local current, earlier = 0, 0
    local raw = redis.call('GET', KEYS[i])
    if raw then
      local was, then_current, then_earlier = string.match(raw, '(%S+) (%S+) (%S+)')
      if was + 0 == index then
        current, earlier = then_current + 0, then_earlier + 0
      elseif was + 1 == index then
        earlier = then_current + 0
      end
    end
    if back < 0 then
      current = current - back
    elseif index == mark then
      current = math.max(0, current - back)
    elseif index == mark + 1 then
      earlier = math.max(0, earlier - back)
    end
    if raw or back < 0 then
      local value = string.format('%.0f %.0f %.0f', index, current, earlier)
      redis.call('SET', KEYS[i], value, 'PX', string.format('%.0f', 2 * b))
    end
  end
end
return 1
