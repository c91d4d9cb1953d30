#!lua flags=allow-oom
-- RESOLVE, and every other bump: fresh tokens, and the marks of transactions that have ended are gone.
-- KEYS: the epoch, the counter, then records. ARGV: slots, database (or '' for any), marks; then for each record
-- which of those marks, by number.
-- Returns the epoch; nothing is bumped where there is none, or that of another database.
local epoch = redis.call('GET', KEYS[1])
if not epoch then return '' end
local id, slots, database = string.match(epoch, '^1 (%S+) %S+ %S+ (%S+) (%S+)$')
if slots ~= ARGV[1] or (ARGV[2] ~= '' and database ~= ARGV[2]) then return epoch end

local marks = {}
for mark in string.gmatch(ARGV[3], '%S+') do marks[#marks + 1] = mark end
local prefix = id .. ' '
local bumped = prefix .. string.format('%.0f', redis.call('INCR', KEYS[2]))
for i = 3, #KEYS do
  local left = bumped
  local record = redis.call('GET', KEYS[i])
  if record and string.sub(record, 1, #prefix) == prefix then
    local ended = {}
    for number in string.gmatch(ARGV[i + 1], '%d+') do ended[marks[tonumber(number)]] = true end
    local behind_seq = string.find(record, ' ', #prefix + 1, true) or #record + 1
    for mark in string.gmatch(string.sub(record, behind_seq), '%S+') do
      if not ended[mark] then left = left .. ' ' .. mark end
    end
  end
  redis.call('SET', KEYS[i], left)
end
return epoch
