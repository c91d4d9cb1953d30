#!lua flags=allow-oom
-- SWAP: put another epoch in the place of the one that was seen, if it is still there (compare and set).
-- KEYS: the epoch. ARGV: what was seen ('' for none), what is to be. Returns what is there now.
local epoch = redis.call('GET', KEYS[1]) or ''
if epoch ~= ARGV[1] then return epoch end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
