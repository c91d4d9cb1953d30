#!lua
-- MARK: transactions are about to commit.
-- KEYS: the epoch, then records. ARGV: slots, database, marks; then for each record which of those marks, by number.
-- Returns the epoch; nothing is marked where there is none, or that of another database.
local epoch = redis.call('GET', KEYS[1])
if not epoch then return '' end
local id, slots, database = string.match(epoch, '^1 (%S+) %S+ %S+ (%S+) (%S+)$')
if slots ~= ARGV[1] or database ~= ARGV[2] then return epoch end

local marks = {}
for mark in string.gmatch(ARGV[3], '%S+') do marks[#marks + 1] = ' ' .. mark end
local prefix = id .. ' '
for i = 2, #KEYS do
  local record = redis.call('GET', KEYS[i])
  if not record or string.sub(record, 1, #prefix) ~= prefix then record = prefix .. '0' end
  local behind_seq = string.find(record, ' ', #prefix + 1, true) or #record + 1
  for number in string.gmatch(ARGV[i + 2], '%d+') do
    local mark = marks[tonumber(number)]
    if not string.find(record .. ' ', mark .. ' ', behind_seq, true) then record = record .. mark end
  end
  redis.call('SET', KEYS[i], record)
end
return epoch
